"""`launch.py top`: a running topology on the terminal."""
