"""A limit on what a guest sends, by credit, as Linux's xen-netback has it (tx_credit_exceeded, tx_add_credit). Compiled.

A vif with a rate has a credit of bytes, one for all its queues. Its windows are `window_ns` long, and each gives `credit_bytes`
once. A frame is taken in only if the credit is enough for all of it; until then it stays in the ring, and all behind it, on every
queue: the guest waits, nothing is lost, nothing overtakes. A window begins when the credit is looked at and doesn't suffice, so an
idle guest saves nothing up; who waits gets the next one the moment the last one ends, and those that it missed if the engine comes
late. Credit adds up over windows where a frame needs more than one gives, to BURST, so that the longest frame goes at any rate.
Each connection begins with a window, less what the guest owes of the one before, and to connect again takes its time
(dom0/vifs.py). So in any time t of one no more passes than what the windows that begin in it give, and what was left before, which
is less than twice what one gives, or BURST.

Who owns what: the control plane says the rate with ADD_PORT and SET_RATE (dom0/engine.py), all else is the engine's. The credit is
what `allowance` is ahead of the vif's own count of TX_BYTES, in which a frame that is refused counts as well. So what a guest pays
is what was copied of its requests, not what was seen there when the credit was looked at; if it has changed them in between, it
owes. A port without a rate (`credit_bytes` 0) pays a look at that, once a turn.

    0 -> end of the window      `credit_at` (of the first port): the next frame needs more credit; a deadline of the engine's sleep
    end -> a later end          the window over, and not enough yet
    -> 0                        enough; or another rate
"""

from dom0.state import member_of, port_of
from hyp.abi.counters import CREDIT_WAITS, TX_BYTES
from hyp.abi.netif import TX_REQ_FLAGS, TX_REQ_SIZE, TXF_EXTRA_INFO, TXF_MORE_DATA
from hyp.atomics import load16_once, load64, u32_add
from hyp.counters import count
from hyp.kernels import compiled, outlined
from hyp.ring import ring_at, slot_address

BURST = 131072
"""Bytes that may add up (Linux's); more than any frame has."""
MOST_WINDOWS = 1 << 20
"""So that what they give is no more than 64 bits have (dom0/rate.py); BURST comes sooner, unless a window gives next to nothing."""


@outlined
def set_rate(e, number, credit_bytes, window_ns):
    """Limit the vif that is port `number` to `credit_bytes` every `window_ns`; 0: not at all.

    One that had no limit begins with a window, less what it owes. Of the credit of one that had, no more is left than a window
    gives now.
    """
    v = port_of(e, number)
    credit = _credit(v)
    if v.credit_bytes == 0:
        v.window, credit = e.now, credit_bytes + v.allowance
    v.window_ns, v.credit_at = window_ns, 0
    v.allowance = load64(v.counts + 8 * TX_BYTES) + min(credit, credit_bytes) if credit_bytes != 0 else 0
    for k in range(v.queues):
        member_of(e, v, k).credit_bytes = credit_bytes


@outlined
def end_credit(e, number):
    """The vif that is port `number` is about to be removed: what it owes is kept for when it connects again."""
    v = port_of(e, number)
    if v.credit_bytes != 0:
        v.allowance = min(_credit(v), 0)
        for k in range(v.queues):
            member_of(e, v, k).credit_bytes = 0


@compiled
def _credit(v):
    return v.allowance - load64(v.counts + 8 * TX_BYTES)


@outlined
def slots_within_credit(e, p, most):
    """How many of the next `most` slots of a transmit ring may be taken in: up to the first frame of several, which goes whole.

    `most` is 1 at least. 0: the next frame has to wait until the `credit_at` of the vif's first port.
    """
    v = port_of(e, p.vif)
    if e.now < v.credit_at:
        return 0
    ring, left = ring_at(p.tx_ring), _credit(v)
    if _size_of(ring, 0) > left and e.now >= v.window + v.window_ns:
        windows = 1
        if v.credit_at != 0:
            windows = (e.now - v.window) // v.window_ns  # more than one if we come late
            v.window += windows * v.window_ns
        else:
            v.window = e.now
        gained = min(min(windows, MOST_WINDOWS) * v.credit_bytes, max(BURST, v.credit_bytes) - left)
        v.allowance += gained
        left += gained
    n, whole = 0, True
    while n < most and whole:
        size = _size_of(ring, n)
        if size > left:
            break
        left -= size
        whole = load16_once(_slot(ring, n) + TX_REQ_FLAGS) & (TXF_MORE_DATA | TXF_EXTRA_INFO) == 0
        n += 1
    if n > 0:
        v.credit_at = 0
    else:
        if v.credit_at == 0:
            count(v.counts, CREDIT_WAITS, 1)
            v.dirty = 1
        v.credit_at = v.window + v.window_ns
    return n


@compiled
def _slot(ring, n):
    """Address of the `n`-th request that has not been taken yet."""
    return slot_address(ring, u32_add(ring.req_cons, n))


@compiled
def _size_of(ring, n):
    """What the first request of a frame says that the frame is long."""
    return load16_once(_slot(ring, n) + TX_REQ_SIZE)
