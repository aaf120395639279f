"""What Dom0's loop tells of frames, when somebody looks (hyp/trace/). Compiled.

Ports go by the guest's domain id; the uplink's is 0, Dom0's.
"""

from dom0.frames import DELIVERED
from dom0.state import UPLINK, port_of, staged_of
from hyp.abi.trace import FLOODED, NOWHERE
from hyp.events import tracer_of
from hyp.kernels import compiled, outlined
from hyp.offload.frame import frame_at
from hyp.trace.ring import DROPPED, PASSED, TAKEN, sampled_of_run, trace_frame, trace_pieces


@compiled
def _name_of(p):
    return 0 if p.number == UPLINK else p.domid


@compiled
def _offload(s):
    """The upper half of a staged frame's fragment word."""
    return 0 if s.slots == 0 else (s.offload >> 32) & 0xFFFF_FFFF


@compiled
def first_bytes(s):
    """How many bytes of a staged frame lie where it begins; 0 of an entry that begins none."""
    return 0 if s.length == 0 else s.length if s.slots == 0 else s.bytes


@outlined
def trace_taken(e, p) -> None:
    """A port's stage has been filled: with a guest's frames, copied or from pinned pages, or with the NIC's, as they came."""
    tracer, n = tracer_of(e.wait), p.staged - p.next
    if tracer == 0 or n == 0:
        return
    s, last = staged_of(p, p.next), staged_of(p, p.staged - 1)
    k, step = sampled_of_run(tracer, n, s.addr, first_bytes(s), last.addr, first_bytes(last))
    k += p.next
    while k < p.staged:
        s = staged_of(p, k)
        if s.length > 0:
            trace_frame(tracer, TAKEN, _name_of(p), NOWHERE, 0, s.addr, first_bytes(s), s.length, _offload(s))
        k += max(s.slots, 1) if step == 1 else step


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
