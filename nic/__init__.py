"""The emulated multi-queue NIC: contexts, engines, embedded switch, wire."""
