"""What comes in by the wire: to the guest whose address it has, else to the physical function."""

from hyp.abi.counters import DROP_NO_ROUTE
from hyp.abi.nic import NO_CONTEXT
from hyp.abi.trace import WIRE
from hyp.events import tracer_of
from hyp.kernels import compiled
from nic.crossing import cross_or_pause
from nic.deliver import put_or_pause
from nic.state import PAUSE, receiver_of
from nic.switch import lookup
from nic.tracing import trace_inbound


@compiled
def inbound(e, w, destination, f):
    """A frame from the wire for an address: to who has it, else to the physical function. DELIVERED, PAUSE, or a drop's name."""
    number = lookup(e.table, destination)
    if number == NO_CONTEXT:
        number = 0
    r = receiver_of(e, number, f)
    if r.active == 0:
        result = DROP_NO_ROUTE
    elif r.mine == 0:
        result = cross_or_pause(e, w, r, f, WIRE)
    else:
        result = put_or_pause(e, w, r, f)
    trace_arrival(e, r, f, result)
    return result


@compiled
def trace_arrival(e, r, f, result):
    tracer = tracer_of(e.wait)
    if tracer != 0 and result != PAUSE:
        trace_inbound(tracer, r, f, result)
