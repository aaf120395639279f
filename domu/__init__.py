"""A guest: front ends behind one device interface, and what runs on top of them."""
