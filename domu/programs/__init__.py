"""What runs in a guest upon its device: the traffic program, the TAP."""
