"""The host kernel's network as the lab uses it: TAP devices, and what is set of interfaces."""
