"""The hypervisor's own process: domains, hypercalls, the devices' set-up, emulated NICs."""
