"""The wire, beyond the NIC's port: what leaves (`outward`), what comes in (`inward`), and who sends from out there. Compiled."""
