"""How far a guest may hold up or flood others at a loop that serves it: an engine of the NIC, Dom0's bridge. Compiled."""
