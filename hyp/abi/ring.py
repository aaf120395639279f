"""The shared ring: one 4096-byte page, after Xen's ``xen/io/ring.h``.

A header of 64 bytes, then as many slots as fit, rounded down to a power of two. Requests (front to back) and responses
(back to front) share the slots: a response takes the place of a request that was consumed before.

::

     0          4          8          12         16                                            64
    +----------+----------+----------+----------+---------+-----------------------------------+--------+--------+--
    | req_prod | req_event| rsp_prod | rsp_event| pvt (4) | padding (44)                      | slot 0 | slot 1 |
    +----------+----------+----------+----------+---------+-----------------------------------+--------+--------+--

Who writes what, and how it is read (R2):

===========  ======  =======  ====================================================================================
field        writer  reader   ordering
===========  ======  =======  ====================================================================================
req_prod     front   back     release after the requests are written; read with acquire, before the slots are read
req_event    back    front    written once, then a full fence, then `req_prod` is read again; the front reads it once,
                              after it has published `req_prod` and passed a full fence
rsp_prod     back    front    as `req_prod`
rsp_event    front   back     as `req_event`
pvt          nobody  nobody   zero (was smart polling of netif)
slots        both    both     the front's until `req_prod` covers it, then the back's until `rsp_prod` covers it; plain
                              writes in front of that store; each field read once, after the index that covers it
===========  ======  =======  ====================================================================================

Indices run free modulo 2**32; slot = index & (entries − 1). At initialisation producers are 0 and events are 1:
"notify me of the very first". The consumer positions (`rsp_cons`, `req_cons`) are private and are not in the page:
each side learns what the other has consumed from what it answers.

The hold-off. A producer that moved `prod` from `old` to `new` notifies iff ``(u32)(new − event) < (u32)(new − old)``:
the event index lies in what was just published. A consumer sets ``event = cons + 1`` before it sleeps and looks again.
Both sides store and then load, so both need a full fence between: without either of them (or without the second look)
each can miss the other's store and a wake-up is lost, on x86 too.
"""

import numpy as np

PAGE_BYTES = 4096

REQ_PROD = 0
REQ_EVENT = 4
RSP_PROD = 8
RSP_EVENT = 12
PRIVATE = 16
FIRST_SLOT = 64
HEADER_BYTES = 64

SRING = np.dtype(
    [
        ("req_prod", "<u4"),
        ("req_event", "<u4"),
        ("rsp_prod", "<u4"),
        ("rsp_event", "<u4"),
        ("pvt", "u1", 4),
        ("pad", "u1", 44),
    ]
)
"""The header of the page, 64 bytes."""
