"""The driver domain: netback, learning bridge, toolstack, xenstored."""
