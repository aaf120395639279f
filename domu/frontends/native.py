"""The native front end: the bound that bypass is held against. No virtualization: nothing is registered, nothing is translated.

The queues, the descriptors and the compiled code are those of bypass. A host's program has its context from its own kernel; here it
comes as a guest's does, since processes get their memory and eventfds from nobody else.
"""

from typing import TYPE_CHECKING

from domu.device import Device
from domu.frontends.bypass import connect_context

if TYPE_CHECKING:
    from domu.guest import Guest


async def connect(guest: "Guest") -> list[Device]:
    """Open a context that the IOMMU passes through, post all receive buffers, start."""
    return [await connect_context(guest, guest.queues[0], native=True)]
