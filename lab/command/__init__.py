"""What launch.py's commands do: run, demo, exec, status, stop; how they end, and what they print."""
