"""The trap page: how a register write of an emulated NIC reaches the hypervisor, and how the guest learns that it is done.

The emulated NIC has the descriptors, completions and registers of the real one (hyp/abi/nic.py). Its registers have the
offsets of the doorbell page, but there is no memory behind them: a write *traps*. The virtual CPU that makes it is stopped
until the hypervisor's device model has carried it out; so there is at most one write under way, and nothing is held off::

    register written     carried out
    SQ_PROD     0        frames are copied out of the guest and posted on the real NIC, as far as that has room
    RQ_PROD    64        frames that wait for a buffer are copied in
    SCQ_EVENT 128        the interrupt is raised when the send CQ's producer passes this; the driver looks again
    RCQ_EVENT 192        the same for the receive CQ

Trap page (4096 B, one per guest). A word has one writer; words of different writers never share a cache line::

    offset  field             writer      meaning and ordering
         0  u32 register      guest       which; plain, before `sequence`
         8  u32 value         guest       what is written; plain, before `sequence`
        16  u32 sequence      guest       number of this write, from 1; release
        64  u32 answered      hypervisor  number of the last write carried out; release, after all that it brought about
       128  u32 trap_event    hypervisor  signal the trap's eventfd for this number; then a full fence and a second look
       192  u32 answer_event  guest       wake me when this one is answered; then a full fence and a second look

The hypervisor's loop, while it is busy, finds a write by itself; a loop that sleeps is signalled. The same holds for a guest
that spins for the answer and one that sleeps.
"""

from typing import Final

from hyp.abi.nic import PAGE

REGISTER: Final = 0
VALUE: Final = 8
SEQUENCE: Final = 16
ANSWERED: Final = 64
TRAP_EVENT: Final = 128
ANSWER_EVENT: Final = 192
TRAP_BYTES: Final = PAGE
