"""Hostile drivers at full speed, compiled: each a loop that takes the address of a `JOB` record and goes on until `stop` is set.

`post_garbage`, `scribble` and `flip` work on a queue pair (hyp/verbs.py), `post_ring_garbage` on netif's rings. Each returns how
often it attacked. Below them: what a driver in Python cannot do without compiled code.
"""

import numpy as np

from domu.frontends.bypass import buffer_of
from domu.frontends.cdna import CDNA_FRONT
from domu.frontends.split_state import RX_REF, RX_SLOTS, TX_REF, TX_SLOTS, netfront_at
from hyp.abi.nic import DESC_BYTES, DESC_SIGNALED, PAGE, SQ_PROD
from hyp.abi.ring import RSP_PROD
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    load32_acquire,
    load64,
    record_view,
    store32,
    store32_once,
    store32_release,
    store64,
    store64_once,
    u32_sub,
)
from hyp.events import notify_if
from hyp.kernels import compiled, entry, i64, void
from hyp.monitor.cdna import cdna_at, enqueue_receives, enqueue_sends
from hyp.ring import next_request, push_requests, ring_at
from hyp.trap import write_register
from hyp.verbs import (
    advance_sends,
    arm_receives,
    consume_receives,
    peek_receive,
    poll_sends,
    post_receive,
    post_send,
    qp_at,
    ring_receives,
    ring_sends,
    send_room,
)

JOB = np.dtype(
    [
        ("qp", "i8"),  # address of the QP record
        ("front", "i8"),  # of a split front end's NETFRONT record
        ("epoll", "i8"),
        ("ram", "i8"),  # address of guest-physical 0
        ("tx_pool", "i8"),  # guest-physical addresses: a page for each slot
        ("rx_pool", "i8"),
        ("counts", "i8"),  # a private counters row
        ("head0", "i8"),  # the header of the frames to send
        ("head1", "i8"),
        ("length", "i8"),
        ("stream", "i8"),
        ("frames", "i8"),  # how many to send
        ("expect", "i8"),  # how many good ones to receive
        ("signal_every", "i8"),
        ("window", "i8"),  # most descriptors under way; receive buffers posted
        ("trackers", "i8"),
        ("stop", "i8"),  # set from outside: come to an end
        ("until_ns", "i8"),  # 0: no limit in time
        ("sequence", "i8"),  # frames posted
        ("done", "i8"),  # frames completed
        ("received", "i8"),  # good ones received
        ("bad", "i8"),  # receive completions with an error status
        ("seed", "i8"),
        ("first", "i8"),  # for the hostile: guest-physical range that it scribbles over
        ("size", "i8"),
        ("other0", "i8"),  # for `flip`: the other header
        ("other1", "i8"),
    ]
)
job_at = record_view(JOB)
BATCH = 64
_cdna_front_at = record_view(CDNA_FRONT)


@compiled
def at_end(job):
    """Whether the job is to come to an end."""
    return job.stop != 0 or (job.until_ns != 0 and clock_ns() >= job.until_ns)


@compiled
def random63(job):
    """The next of the job's random numbers, 63 bits: xorshift64."""
    x = job.seed
    x ^= x << 13
    x ^= (x >> 7) & 0x01FF_FFFF_FFFF_FFFF
    x ^= x << 17
    job.seed = x
    return x & 0x7FFF_FFFF_FFFF_FFFF


@compiled
def _hostile_address(job):
    """An IOVA: one's own page, a misaligned one, unregistered, beyond RAM, or so large that sums with it wrap."""
    kind = random63(job) & 7
    page = job.tx_pool + (random63(job) & 63) * PAGE
    if kind < 3:
        return page
    if kind == 3:
        return page + (random63(job) & 4095)
    if kind == 4:
        return random63(job) & 0xFF_FFFF
    if kind == 5:
        return 0x7FFF_FFFF_FFFF_FFFF - (random63(job) & 8191)
    if kind == 6:
        return -(random63(job) & 8191)
    return random63(job)


@entry(i64(i64))
def post_garbage(address: int) -> int:
    """Hostile, careful with its indices: descriptors of every kind, rewritten after they were published. Number posted."""
    job = job_at(address)
    q = qp_at(job.qp)
    posted = 0
    while not at_end(job):
        poll_sends(q)
        for _ in range(min(send_room(q), 8)):
            length = random63(job) & 0xFFF if random63(job) & 3 else random63(job)
            post_send(q, _hostile_address(job), length, DESC_SIGNALED if random63(job) & 15 else random63(job) & 0xFFFF_FFFF)
            posted += 1
        ring_sends(q)
        index, _, _ = peek_receive(q, 0)
        if index >= 0:
            consume_receives(q, 1)
            post_receive(q, _hostile_address(job), random63(job) & 0x1_0000_1FFF)
            ring_receives(q)
        for _ in range(4):  # after the device may have checked them
            store64_once(q.sq + (random63(job) & (q.sq_size - 1)) * DESC_BYTES + (random63(job) & 8), random63(job))
            store64_once(job.ram + job.tx_pool + (random63(job) & 63) * PAGE + (random63(job) & 8), random63(job))
    return posted


@entry(i64(i64))
def post_again(address: int) -> int:
    """Post receive buffers, `size` bytes of those of the slots, each again as soon as it is used up. Number posted."""
    job = job_at(address)
    q = qp_at(job.qp)
    posted = 0
    while not at_end(job):
        used = 0
        while used < BATCH and peek_receive(q, 0)[0] >= 0:
            consume_receives(q, 1)
            post_receive(q, buffer_of(job.rx_pool, q.rq_prod, q.rq_size), job.size)
            used += 1
        if used > 0:
            ring_receives(q)
        else:
            cpu_relax()
        posted += used
    return posted


@entry(i64(i64))
def post_ring_garbage(address: int) -> int:
    """The same on netif's rings: requests of every kind, slots and grants rewritten after they were published. Number posted."""
    job = job_at(address)
    f = netfront_at(job.front)
    tx, rx = ring_at(f.tx_ring), ring_at(f.rx_ring)
    posted = 0
    while not at_end(job):
        room = TX_SLOTS - u32_sub(tx.req_prod_pvt, load32_acquire(tx.sring + RSP_PROD))
        for _ in range(max(0, min(room, 8))):
            slot = next_request(tx)
            good = random63(job) & 3
            store32(slot, TX_REF + (random63(job) & (TX_SLOTS - 1)) if good else random63(job) & 0xFFFF_FFFF)
            flags = 0 if random63(job) & 3 else random63(job) & 0xFFFF
            store32(slot + 4, (random63(job) & 0xFFF if good else random63(job) & 0xFFFF) | (flags << 16))
            store32(slot + 8, random63(job) & 0xFFFF_FFFF if good != 1 else (random63(job) & 0xFFFF) | (60 << 16))
            posted += 1
        notify_if(push_requests(tx), f.tx_event_fd, job.counts)
        room = RX_SLOTS - u32_sub(rx.req_prod_pvt, load32_acquire(rx.sring + RSP_PROD))
        for _ in range(max(0, min(room, 2))):
            slot = next_request(rx)
            store32(slot, random63(job) & 0xFFFF_FFFF)
            store32(slot + 4, RX_REF + (random63(job) & (RX_SLOTS - 1)) if random63(job) & 3 else random63(job) & 0xFFFF_FFFF)
        notify_if(push_requests(rx), f.rx_event_fd, job.counts)
        for _ in range(4):
            at = tx.sring + 64 + (random63(job) & (TX_SLOTS - 1)) * 12 + (random63(job) % 3) * 4
            store32_once(at, random63(job) & 0xFFFF_FFFF)
            entry_at = f.table + (TX_REF + (random63(job) & (TX_SLOTS + RX_SLOTS - 1))) * 8
            sound = load64(entry_at)
            store64_once(entry_at, random63(job))
            store64_once(entry_at, sound)
    return posted


@entry(i64(i64))
def scribble(address: int) -> int:
    """Hostile: random words all over the doorbell page and [first, first + size). Number of rounds."""
    job = job_at(address)
    q = qp_at(job.qp)
    rounds = 0
    while not at_end(job):
        store32_once(q.doorbell + 64 * (random63(job) % 6), random63(job))
        store32_once(q.doorbell + SQ_PROD, random63(job) & 127)
        store32_once(q.doorbell + (random63(job) & 1023) * 4, random63(job))
        for _ in range(16):
            store64_once(job.ram + job.first + (random63(job) % (job.size >> 3)) * 8, random63(job))
        rounds += 1
    return rounds


@entry(i64(i64))
def scribble_memory(address: int) -> int:
    """`scribble` of [first, first + size) alone, and sparing nothing else. Number of rounds."""
    job = job_at(address)
    rounds = 0
    while not at_end(job):
        for _ in range(16):
            store64_once(job.ram + job.first + (random63(job) % (job.size >> 3)) * 8, random63(job))
        rounds += 1
    return rounds


@entry(i64(i64))
def flip(address: int) -> int:
    """Hostile: change the header at `first` to and fro between (head0, head1) and (other0, other1). Number of changes."""
    job = job_at(address)
    at = job.ram + job.first
    changes = 0
    while not at_end(job):
        store64_once(at, job.other0 if changes & 1 else job.head0)
        store64_once(at + 8, job.other1 if changes & 1 else job.head1)
        for _ in range(changes & 15):
            cpu_relax()
        changes += 1
    return changes


@entry(i64(i64))
def compute(address: int) -> int:
    """Honest: use a CPU, and touch nothing. Number of rounds."""
    job = job_at(address)
    rounds = 0
    while not at_end(job):
        for _ in range(1000):
            random63(job)
        rounds += 1
    return rounds


# --- steps of a driver in Python --------------------------------------------------------------------------------------


@entry(void(i64))
def ring(qp: int) -> None:
    """Publish what was posted, in both directions, by register writes that trap if the device is emulated."""
    q = qp_at(qp)
    ring_sends(q)
    ring_receives(q)


@entry(i64(i64))
def room(qp: int) -> int:
    """Take all send completions; how many descriptors can be posted."""
    q = qp_at(qp)
    poll_sends(q)
    return send_room(q)


@entry(i64(i64))
def drain(qp: int) -> int:
    """Take all receive completions without posting a buffer for any. How many."""
    q = qp_at(qp)
    taken = 0
    while taken < q.rq_size and peek_receive(q, 0)[0] >= 0:
        consume_receives(q, 1)
        taken += 1
    return taken


@entry(void(i64))
def ask(qp: int) -> None:
    """Ask for a notification of the next receive completion."""
    arm_receives(qp_at(qp))


@entry(void(i64, i64, i64))
def write_index(qp: int, register: int, value: int) -> None:
    """Write a register of the device, whatever it says; notify."""
    q = qp_at(qp)
    if q.trap != 0:
        write_register(q.trap, register, value)
    else:
        store32_release(q.doorbell + register, value)
        notify_if(True, q.doorbell_fd, q.counts)


@entry(i64(i64, i64, i64, i64))
def cdna_enqueue(front: int, addr: int, word: int, receives: int) -> int:
    """One request to the hypervisor, a receive buffer or a send. Whether it was enqueued."""
    f = _cdna_front_at(front)
    q, c = qp_at(f.qp), cdna_at(f.hypercalls)
    store64(f.requests, addr)
    store64(f.requests + 8, word)
    if receives:
        done = enqueue_receives(c, f.requests, f.receives, 1)
        f.receives += done
        q.rq_prod = (q.rq_prod + done) & 0xFFFF_FFFF
        return done
    done = enqueue_sends(c, f.requests, f.sends, 1)
    f.sends += done
    advance_sends(q, done, done)
    return done
