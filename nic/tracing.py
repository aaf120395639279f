"""What an engine tells of frames, when somebody looks (hyp/trace/). Compiled.

Ports go by the context's number, and WIRE. A frame whose receiver is another engine's is told of twice: *taken* by the one that has
fetched it, and *passed* by the one that delivers it, from the receiver's port to that port.
"""

from hyp.abi.nic import NO_CONTEXT
from hyp.abi.sizes import LARGEST_FRAME_BUFFER
from hyp.abi.trace import FLOODED, NOWHERE, WIRE
from hyp.atomics import load64
from hyp.kernels import compiled, outlined
from hyp.trace.ring import DROPPED, PASSED, TAKEN, sampled_of_run, trace_frame, trace_pieces
from nic.state import DELIVERED, STAGED_BYTES, WIRE_BUFFERS, receiver_of, staged_at


@outlined
def trace_sent(tracer, e, c, f, result) -> None:
    """What became of a context's frame. `result`: DELIVERED, or the drop's name."""
    if result == DELIVERED and c.route >= 0 and receiver_of(e, c.route, f).mine == 0:
        return  # it has crossed, which has been told
    moment, other, drop = DROPPED, NOWHERE, result
    if result == DELIVERED:
        moment, drop = PASSED, 0
        other = c.route if c.route >= 0 else WIRE if c.route == NO_CONTEXT else FLOODED
    trace_pieces(tracer, moment, c.number, other, drop, f.pieces, f.count, f.length, (f.offload >> 32) & 0xFFFF_FFFF)


@outlined
def trace_run(tracer, e, port, r, done) -> None:
    """The first `done` frames of the stage, which came from `port`, are in the buffers of context `r`."""
    if done == 0:
        return
    s, last = staged_at(e.stage), staged_at(e.stage + (done - 1) * STAGED_BYTES)
    first, step = sampled_of_run(tracer, done, s.frame, s.length, last.frame, last.length)
    for k in range(first, done, step):
        s = staged_at(e.stage + k * STAGED_BYTES)
        trace_frame(tracer, PASSED, port, r.number, 0, s.frame, s.length, s.length, 0)


@outlined
def trace_run_to_sink(tracer, c, w, first, done) -> None:
    """`done` frames are in the wire's buffers from number `first` on."""
    if done == 0:
        return
    one, one_bytes = _on_wire(w, first)
    last, last_bytes = _on_wire(w, first + done - 1)
    begin, step = sampled_of_run(tracer, done, one, one_bytes, last, last_bytes)
    for k in range(begin, done, step):
        frame, length = _on_wire(w, first + k)
        trace_frame(tracer, PASSED, c.number, WIRE, 0, frame, length, length, 0)


@compiled
def _on_wire(w, number):
    """Where frame `number` of the wire's buffers is, and how long it is."""
    slot = number & (WIRE_BUFFERS - 1)
    return w.buffers + slot * LARGEST_FRAME_BUFFER, load64(w.lengths + 8 * slot)


@outlined
def trace_inbound(tracer, r, f, result) -> None:
    """What became of a frame from the wire for context `r`."""
    if result == DELIVERED and r.mine == 0:
        return  # as above
    moment, other, drop = (PASSED, r.number, 0) if result == DELIVERED else (DROPPED, NOWHERE, result)
    trace_pieces(tracer, moment, WIRE, other, drop, f.pieces, f.count, f.length, (f.offload >> 32) & 0xFFFF_FFFF)


@outlined
def trace_crossing(tracer, port, f) -> None:
    """A frame from `port` is about to cross to another engine."""
    trace_pieces(tracer, TAKEN, port, NOWHERE, 0, f.pieces, f.count, f.length, (f.offload >> 32) & 0xFFFF_FFFF)


@outlined
def trace_crossed(tracer, number, f, result) -> None:
    """What became of a frame for context `number` that another engine has fetched."""
    moment, other, drop = (PASSED, number, 0) if result == DELIVERED else (DROPPED, NOWHERE, result)
    trace_pieces(tracer, moment, number, other, drop, f.pieces, f.count, f.length, (f.offload >> 32) & 0xFFFF_FFFF)
