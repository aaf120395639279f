"""How long a full receiver may hold up its senders: a context of the NIC, a vif of Dom0's bridge. Compiled.

A frame for a receiver without buffers waits, and with it whatever is behind it in its queue: of the same sender, of all senders of
an engine (a crossing), of all split guests (the physical function's queues). So that a receiver that is merely slow loses nothing,
and one that drips buffers holds up nobody for long, each guest has a *patience* as a receiver, with all its queues, in ns:

* at most `pause_us`, which it begins with;
* time in which somebody waits for a queue of it is taken off, however many wait, and whatever ends it: buffers, or the queue's end;
* a frame that it takes gives it `pause_us` / 64.

For who waits in a queue that is *shared*, behind which others' frames wait, there is a *shared* patience as well, of as much, from
which is taken off while such a one waits, and to which a frame gives a 64th of that; he waits until one of both has ended.

Out of patience, its frames drop by name (DROP_NO_BUFFER) until it posts a buffer; those behind them go on. It is the guest's
(standing.py): who opens a new context, or connects again, begins with what was left, a new domain of the same name or number
with all. The physical function, which is platform and has no patience to lose, may hold up its senders for `TRUSTED` × `pause_us`
each time.

A device to which its guest is just moving has a *grace*, from the switch on: until it ends all wait for it that there are, and it
is not charged, as it is the toolstack that lets it wait (dom0/toolstack/moves.py). Who waits in a shared queue has less of it: with
the patience after it no more than the platform has, so that nobody's frames for others drop on the way to that queue.

Fields of a receiver: `standing`, the address of its guest's; `grace`, when that ends (ns); `full_since`, since when somebody has
waited for it that is not yet taken off, 0: nobody does, and `shared_since`, since when one in a shared queue has; `taken`, its
RX_FRAMES when frames were last counted for it; `stalled`, out of patience and nothing posted since.
"""

from hyp.abi.counters import RX_FRAMES
from hyp.atomics import load64
from hyp.fairness.standing import standing_of
from hyp.kernels import compiled

OWN, SHARED = 6, 12
"""What a frame taken gives: `pause_us` shifted by this."""
MOST_TAKEN = 1 << SHARED
TRUSTED = 16
GRACE_NS = 2_000_000_000
"""Of who waits in a queue of his own."""


@compiled
def begin_patience(r):
    """Receiver `r` starts, with the patience that its guest has left."""
    r.taken, r.full_since, r.shared_since = load64(r.counts + 8 * RX_FRAMES), 0, 0


@compiled
def end_wait(r, now):
    """Nobody waits for `r` any more: what they have waited is taken off. Whatever ends a receiver calls it, too."""
    if r.full_since != 0:
        guest = standing_of(r)
        guest.patience = max(guest.patience - (now - r.full_since), 0)
        if r.shared_since != 0:
            guest.shared_patience = max(guest.shared_patience - (now - r.shared_since), 0)
    r.full_since, r.shared_since = 0, 0


@compiled
def note_posted(r, now, enough):
    """Receiver `r` has posted buffers since it was last looked at; `enough`: those that whoever looks wants are there."""
    r.stalled = 0
    if r.full_since != 0:
        shared = r.shared_since != 0
        end_wait(r, now)
        if not enough:
            r.full_since, r.shared_since = now, now if shared else 0


@compiled
def waits_on(e, r, shared):
    """Somebody goes on waiting for `r`, in a queue that is `shared` or not; another one may have had what it posted."""
    if r.full_since == 0:
        r.full_since = e.now
    if shared != 0 and r.shared_since == 0:
        r.shared_since = e.now


@compiled
def grace_ends(e, r, shared):
    """When the grace of receiver `r` ends for who waits in a queue that is `shared` or not (ns)."""
    return r.grace - GRACE_NS + min(GRACE_NS, (TRUSTED - 1) * e.pause_ns) if shared != 0 else r.grace


@compiled
def wait_ends(e, r, row, shared):
    """Somebody begins to wait for `r`, in a queue that is `shared` or not. Returns when that is over (ns); 0: it is already.

    `row`: of those that count in the same row of counters as `r`, the one whose `taken` says what that had.
    """
    if e.now < grace_ends(e, r, shared):
        return grace_ends(e, r, shared)
    guest, taken = standing_of(r), load64(r.counts + 8 * RX_FRAMES)
    frames, row.taken = min(taken - row.taken, MOST_TAKEN), taken
    guest.patience = min(guest.patience + frames * (e.pause_ns >> OWN), e.pause_ns)
    guest.shared_patience = min(guest.shared_patience + frames * (e.pause_ns >> SHARED), e.pause_ns)
    if guest.patience == 0:
        lose_patience(e, r, shared)
        return 0
    if shared != 0 and guest.shared_patience == 0:
        return 0
    waits_on(e, r, shared)
    ends = r.full_since + guest.patience
    return min(ends, r.shared_since + guest.shared_patience) if shared != 0 else ends


@compiled
def platform_wait_ends(e):
    """`wait_ends` for a receiver that is platform."""
    return e.now + TRUSTED * e.pause_ns


@compiled
def lose_patience(e, r, shared):
    """A wait for `r` was in vain, in a queue that is `shared` or not: there it may be the shared patience alone that has ended."""
    guest = standing_of(r)
    if shared != 0:
        guest.shared_patience, r.shared_since = 0, 0
        if guest.patience > 0 and r.full_since != 0 and e.now - r.full_since < guest.patience:
            return
    end_wait(r, e.now)
    r.stalled, guest.patience = 1, 0
