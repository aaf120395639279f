"""What Dom0's loop tells of frames, when somebody looks (hyp/trace/). Compiled.

Ports go by the guest's domain id; the uplink's is 0, Dom0's.
"""

from dom0.frames import DELIVERED
from dom0.state import UPLINK, port_of, staged_of
from hyp.abi.trace import FLOODED, NOWHERE
from hyp.events import tracer_of
from hyp.kernels import compiled, outlined
from hyp.offload.frame import frame_at
from hyp.trace.ring import DROPPED, PASSED, TAKEN, trace_frame, trace_pieces


@compiled
def _name_of(p):
    return 0 if p.number == UPLINK else p.domid


@compiled
def _offload(s):
    """The upper half of a staged frame's fragment word."""
    return 0 if s.slots == 0 else (s.offload >> 32) & 0xFFFF_FFFF


@outlined
def trace_taken(e, p) -> None:
    """A port's stage has been filled: with a guest's frames, copied or from pinned pages, or with the NIC's, as they came."""
    k, tracer = p.next, tracer_of(e.wait)
    while k < p.staged and tracer != 0:
        s = staged_of(p, k)
        if s.length > 0:
            there = s.length if s.slots == 0 else s.bytes
            trace_frame(tracer, TAKEN, _name_of(p), NOWHERE, 0, s.addr, there, s.length, _offload(s))
        k += max(s.slots, 1)


@outlined
def trace_passed(tracer, e, p, s, result, flooded) -> None:
    """What became of a staged frame. `result`: DELIVERED, or the drop's name; `flooded`: it went to more than one port."""
    moment, other, drop = DROPPED, NOWHERE, result
    if result == DELIVERED:
        moment, other, drop = PASSED, FLOODED if flooded else _name_of(port_of(e, p.towards)), 0
    if s.slots == 0:
        trace_frame(tracer, moment, _name_of(p), other, drop, s.addr, s.length, s.length, 0)
    else:
        f = frame_at(e.frame)
        trace_pieces(tracer, moment, _name_of(p), other, drop, f.pieces, f.count, s.length, _offload(s))
