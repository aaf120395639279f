"""`reflect`: each frame that leaves comes back, its MAC addresses swapped."""

from hyp.abi.counters import DROP_NO_ROUTE, DROP_QUEUE_FULL, TX_BYTES, TX_FRAMES
from hyp.abi.nic import GROUP_BIT, NO_CONTEXT
from hyp.abi.trace import NOWHERE
from hyp.counters import count
from hyp.frames import destination_of, head_words, source_of
from hyp.kernels import compiled
from hyp.offload.frame import frame_at, one_piece
from nic.crossing import cross
from nic.deliver import put_broadcast
from nic.state import DELIVERED, PAUSE, receiver_of
from nic.switch import lookup


@compiled
def turned(w, head0, head1):
    """The header of a reflected frame, and the MAC address that it goes to."""
    source, destination = source_of(head0, head1), destination_of(head0)
    if destination & GROUP_BIT:
        destination = w.mac
    back0, back1 = head_words(source, destination, head1)
    return back0, back1, source


@compiled
def reflect(e, w, buffer, length, head0, head1):
    back0, back1, source = turned(w, head0, head1)
    count(w.counts, TX_FRAMES, 1)
    count(w.counts, TX_BYTES, length)
    number = lookup(e.table, source)
    f = frame_at(e.turned)
    one_piece(f, buffer, length, 0, back0, back1)
    r = receiver_of(e, 0 if number == NO_CONTEXT else number, f)
    result = DROP_NO_ROUTE
    if r.active != 0:  # a reflected frame belongs to nobody's sending queue, so it does not pause anybody
        if r.mine == 0:
            result = cross(e, r.engine, r.number, r.generation, f, NOWHERE)  # of its going out nobody has told yet
            if result == PAUSE:
                result = DROP_QUEUE_FULL
        else:
            result = put_broadcast(e, r, f)
    if result != DELIVERED:
        count(w.counts, result, 1)
