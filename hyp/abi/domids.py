"""Domain numbers that are fixed (Xen's public/xen.h)."""

from typing import Final

DOM0: Final = 0
DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_NIC: Final = 0x7FF1
"""The device's pseudo-domain (Xen's DOMID_IO): it has upcalls and counters, and no RAM."""
