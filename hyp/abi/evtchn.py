"""Event channels, after Xen's ``xen/event_channel.h``: operations, states, and their argument structures.

A channel joins two *ports*, one in each domain. A domain allocates an unbound port for a named peer, tells the peer
its number (through xenstore), and the peer binds a port of its own to it. After that either end sends.

An event is one bit: a port is pending or it is not, and however often it is sent before the receiver looks, that is
one event. Binding sets both ends pending, because the peer may have sent before there was anything to send to. A
wake-up is a hint; what happened is in the rings.

Here the bit is the readiness of an eventfd that the waiter sees through an epoll descriptor (R6), so the two-level
bitmap of Xen's ``shared_info`` has no place in memory; its size still bounds the port numbers. The structures below
are what a guest written against Xen's header passes; all are little-endian with C's alignment::

    alloc_unbound      0 dom u16 | 2 remote_dom u16 | 4 port u32 (out)
    bind_interdomain   0 remote_dom u16 | 4 remote_port u32 | 8 local_port u32 (out)
    close, send,       0 port u32
    unmask
    status             0 dom u16 | 4 port u32 | 8 status u32 (out) | 12 vcpu u32 (out) |
                       16 u.unbound.dom, u.interdomain.dom u16 (out) | 20 u.interdomain.port u32 (out)

What a notification costs its sender the waiter decides, so that it has a debt: hyp/abi/debts.py.

They are arguments, private to the caller: the hypervisor copies them in, and writes the results back.
"""

import numpy as np

OP_BIND_INTERDOMAIN = 0
OP_CLOSE = 3
OP_SEND = 4
OP_STATUS = 5
OP_ALLOC_UNBOUND = 6
OP_UNMASK = 9
OP_RESET = 10

STATE_CLOSED = 0
STATE_UNBOUND = 1
STATE_INTERDOMAIN = 2

NR_CHANNELS = 4096  # of the two-level ABI on a 64-bit machine; port 0 is never used

PORT_BYTES = 4

ALLOC_UNBOUND_DOM = 0
ALLOC_UNBOUND_REMOTE_DOM = 2
ALLOC_UNBOUND_PORT = 4

BIND_INTERDOMAIN_REMOTE_DOM = 0
BIND_INTERDOMAIN_REMOTE_PORT = 4
BIND_INTERDOMAIN_LOCAL_PORT = 8

STATUS_DOM = 0
STATUS_PORT = 4
STATUS_STATUS = 8
STATUS_VCPU = 12
STATUS_PEER_DOM = 16
STATUS_PEER_PORT = 20

ALLOC_UNBOUND = np.dtype([("dom", "<u2"), ("remote_dom", "<u2"), ("port", "<u4")])
BIND_INTERDOMAIN = np.dtype([("remote_dom", "<u2"), ("pad", "<u2"), ("remote_port", "<u4"), ("local_port", "<u4")])
PORT_ARGUMENT = np.dtype([("port", "<u4")])
"""Argument of close, send and unmask."""
STATUS = np.dtype(
    [
        ("dom", "<u2"),
        ("pad", "<u2"),
        ("port", "<u4"),
        ("status", "<u4"),
        ("vcpu", "<u4"),
        ("peer_dom", "<u2"),
        ("peer_pad", "<u2"),
        ("peer_port", "<u4"),
    ]
)
