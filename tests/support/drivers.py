"""Compiled drivers for the guests of tests/support/guests.py: one that behaves, and hostile ones, each a loop at full speed.

A loop is an entry point that takes the address of a `JOB` record: what it works on, what it is to do, how far it has come, and
`stop`, which the test sets. `tests.support.guests.Loop` runs it in a thread::

    Loop(scribble, guest, guest.job(first=PAGE, size=guest.tx_pool - PAGE))

`exchange` sends test frames and verifies those that come, over hyp/verbs.py, and returns `FINISHED`, `STALLED` or `STOPPED`.
`post_garbage`, `scribble` and `flip` attack, and return how often they did.
Below them: test frames made in Python, and the two things that a driver in Python cannot do without compiled code.
"""

from typing import Final

import numpy as np

from hyp.abi.nic import DESC_SIGNALED, PAGE, SQ_PROD, STATUS_OK, mac_to_int
from hyp.atomics import clock_ns, cpu_relax, epoll_sleep, full_fence, record_view, store32_once, store64_once
from hyp.kernels import compiled, entry, i64, void
from hyp.load.frames import ETHERTYPE_WIRE, verify, write_test_frame
from hyp.verbs import (
    arm_receives,
    arm_sends,
    consume_receives,
    peek_receive,
    poll_sends,
    post_receive,
    post_send,
    qp_at,
    receives_completed,
    ring_receives,
    ring_sends,
    send_room,
    sends_completed,
)

STALL_NS: Final = 60_000_000_000  # a wake-up that takes this long was lost
FINISHED, STALLED, STOPPED = 0, -1, 1

JOB = np.dtype(
    [
        ("qp", "i8"),  # address of the QP record
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
        ("stop", "i8"),  # set by the test: come to an end
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


@compiled
def _at_end(job):  # type: ignore[no-untyped-def]
    return job.stop != 0 or (job.until_ns != 0 and clock_ns() >= job.until_ns)


@compiled
def _send_some(job, q):  # type: ignore[no-untyped-def]
    """Post as many test frames as window and batch allow. Returns how many."""
    room = min(min(job.window - (q.sq_size - send_room(q)), job.frames - job.sequence), 32)
    for k in range(room):
        gpa = job.tx_pool + (q.sq_prod & (q.sq_size - 1)) * PAGE
        write_test_frame(job.ram + gpa, job.length, job.head0, job.head1, job.stream, job.sequence, 0)
        job.sequence += 1
        signaled = k == room - 1 or job.sequence % job.signal_every == 0
        post_send(q, gpa, job.length, DESC_SIGNALED if signaled else 0)
    ring_sends(q)
    return room


@compiled
def _receive_some(job, q):  # type: ignore[no-untyped-def]
    """Verify what has come and give the buffers back, at most 32. Returns how many."""
    for k in range(32):
        index, length, status = peek_receive(q, 0)
        if index < 0:
            ring_receives(q)
            return k
        if status == STATUS_OK:
            addr = job.ram + job.rx_pool + (index & (q.rq_size - 1)) * PAGE
            if verify(job.trackers, job.counts, addr, length, clock_ns()):
                job.received += 1
        else:
            job.bad += 1
        consume_receives(q, 1)
        post_receive(q, job.rx_pool + (q.rq_prod & (q.rq_size - 1)) * PAGE, PAGE)
    ring_receives(q)
    return 32


@entry(i64(i64))
def exchange(address: int) -> int:
    """Send `frames` and receive `expect` good ones, as a front end does: batch, ring, poll, arm, look again, sleep.

    FINISHED; STOPPED if it was asked to stop, once all that was posted is completed; STALLED if no wake-up came.
    """
    job = job_at(address)
    q = qp_at(job.qp)
    job.frames = min(job.frames, 1 << 60)
    while True:
        moved = poll_sends(q)
        job.done += moved
        moved += _receive_some(job, q)
        if _at_end(job):
            job.frames, job.expect = job.sequence, 0
        moved += _send_some(job, q)
        if job.done == job.sequence == job.frames and job.received >= job.expect:
            return STOPPED if _at_end(job) else FINISHED
        if moved == 0:
            arm_sends(q)
            arm_receives(q)
            full_fence()
            if sends_completed(q) or receives_completed(q):
                continue
            if epoll_sleep(job.epoll, STALL_NS) == 0 and not sends_completed(q) and not receives_completed(q):
                return STALLED


@compiled
def _random(job):  # type: ignore[no-untyped-def]
    """xorshift64."""
    x = job.seed
    x ^= x << 13
    x ^= (x >> 7) & 0x01FF_FFFF_FFFF_FFFF
    x ^= x << 17
    job.seed = x
    return x & 0x7FFF_FFFF_FFFF_FFFF


@compiled
def _hostile_address(job):  # type: ignore[no-untyped-def]
    """An IOVA: one's own page, a misaligned one, unregistered, beyond RAM, or so large that sums with it wrap."""
    kind = _random(job) & 7
    page = job.tx_pool + (_random(job) & 63) * PAGE
    if kind < 3:
        return page
    if kind == 3:
        return page + (_random(job) & 4095)
    if kind == 4:
        return _random(job) & 0xFF_FFFF
    if kind == 5:
        return 0x7FFF_FFFF_FFFF_FFFF - (_random(job) & 8191)
    if kind == 6:
        return -(_random(job) & 8191)
    return _random(job)


@entry(i64(i64))
def post_garbage(address: int) -> int:
    """Hostile, careful with its indices: descriptors of every kind, rewritten after they were published. Number posted."""
    job = job_at(address)
    q = qp_at(job.qp)
    posted = 0
    while not _at_end(job):
        poll_sends(q)
        for _ in range(min(send_room(q), 8)):
            length = _random(job) & 0xFFF if _random(job) & 3 else _random(job)
            post_send(q, _hostile_address(job), length, DESC_SIGNALED if _random(job) & 15 else _random(job) & 0xFFFF_FFFF)
            posted += 1
        ring_sends(q)
        index, _, _ = peek_receive(q, 0)
        if index >= 0:
            consume_receives(q, 1)
            post_receive(q, _hostile_address(job), _random(job) & 0x1_0000_1FFF)
            ring_receives(q)
        for _ in range(4):  # after the device may have checked them
            store64_once(q.sq + (_random(job) & (q.sq_size - 1)) * 16 + (_random(job) & 8), _random(job))
            store64_once(job.ram + job.tx_pool + (_random(job) & 63) * PAGE + (_random(job) & 8), _random(job))
    return posted


@entry(i64(i64))
def scribble(address: int) -> int:
    """Hostile: random words all over the doorbell page and [first, first + size). Number of rounds."""
    job = job_at(address)
    q = qp_at(job.qp)
    rounds = 0
    while not _at_end(job):
        store32_once(q.doorbell + 64 * (_random(job) % 6), _random(job))
        store32_once(q.doorbell + SQ_PROD, _random(job) & 127)
        store32_once(q.doorbell + (_random(job) & 1023) * 4, _random(job))
        for _ in range(16):
            store64_once(job.ram + job.first + (_random(job) % (job.size >> 3)) * 8, _random(job))
        rounds += 1
    return rounds


@entry(i64(i64))
def flip(address: int) -> int:
    """Hostile: change the header at `first` to and fro between (head0, head1) and (other0, other1). Number of changes."""
    job = job_at(address)
    at = job.ram + job.first
    changes = 0
    while not _at_end(job):
        store64_once(at, job.other0 if changes & 1 else job.head0)
        store64_once(at + 8, job.other1 if changes & 1 else job.head1)
        for _ in range(changes & 15):
            cpu_relax()
        changes += 1
    return changes


@entry(void(i64, i64, i64, i64, i64, i64))
def _compose(addr: int, length: int, head0: int, head1: int, stream: int, sequence: int) -> None:
    write_test_frame(addr, length, head0, head1, stream, sequence, 0)


@entry(void())
def fence() -> None:
    """Full barrier, for drivers in Python."""
    full_fence()


@entry(i64(i64, i64))
def sleep_until_event(epoll: int, timeout_ns: int) -> int:
    """epoll_pwait2 without the GIL. Number of events, 0 at the timeout."""
    return epoll_sleep(epoll, timeout_ns)


def header(destination: str, source: str) -> bytes:
    """The first 14 bytes of a test frame."""
    macs = b"".join(mac_to_int(mac).to_bytes(6, "little") for mac in (destination, source))
    return macs + ETHERTYPE_WIRE.to_bytes(2, "little")


def head_words(destination: str, source: str) -> tuple[int, int]:
    """`header` as compiled code takes it."""
    head = header(destination, source) + bytes(2)
    return int.from_bytes(head[:8], "little", signed=True), int.from_bytes(head[8:], "little", signed=True)


def compose(destination: str, source: str, length: int = 64, stream: int = 1, sequence: int = 0) -> bytes:
    """A test frame (hyp/load/frames.py) of `length` ≥ 48 bytes."""
    buffer = np.zeros(length + 16, np.uint8)
    _compose(int(buffer.ctypes.data), length, *head_words(destination, source), stream, sequence)
    return buffer[:length].tobytes()
