"""A guest's stream whose frames have several sizes (hyp/load/mix.py), by the traffic program's loop."""

from typing import Any

from domu.device import BURST, frame_addr, set_word, tx_commit, tx_reserve
from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.atomics import load64
from hyp.frames import head_words
from hyp.kernels import compiled, outlined
from hyp.load.frames import write_test_frame
from hyp.load.schedule import frame_sent, frames_due, schedule_at, stamp

MIX_FIELDS = [
    ("sizes", "i8"),  # lengths of its frames, i8 each, over and over
    ("size_count", "i8"),
    ("size_at", "i8"),  # the next one
]
"""What a program's record has for it, beside those that a stream has."""


@compiled
def begin_mix(p: Any, m: Any) -> None:
    """The stream that begins now has lengths at `m.entries`, `m.length` of them."""
    p.sizes, p.size_count, p.size_at, p.units = m.entries, m.length, 0, 1  # so it is not in the stream's own loop


@outlined
def send_mix(p: Any, d: Any) -> Any:
    """Write and send one burst of what is due. Returns the number of frames, or FAILED."""
    s = schedule_at(p.schedule)
    want = frames_due(s, p.now, min(BURST, p.left))
    if want == 0:
        return 0
    n = tx_reserve(p.device, want)
    if n < want:
        return min(n, 0)
    head0, head1 = head_words(p.destination, d.mac, ETHERTYPE_WIRE << 32)
    burst, stream, sequence, sizes, count, at = d.tx, p.stream, p.sequence, p.sizes, p.size_count, p.size_at
    for k in range(n):
        length = load64(sizes + 8 * at)
        write_test_frame(frame_addr(burst, k), length, head0, head1, stream, sequence + k, stamp(s))
        set_word(burst, k, length)
        frame_sent(s, p.now)
        at = at + 1 if at + 1 < count else 0
    p.size_at = at
    p.sequence += n
    p.left -= n
    return tx_commit(p.device, n)
