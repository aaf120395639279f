"""Compiled drivers for the guests of tests/support/guests.py that behave; those that don't are in bench/isolation/loops.py.

A loop is an entry point that takes the address of a `JOB` record (ibid.): what it works on, what it is to do, how far it has come,
and `stop`, which the test sets. `tests.support.guests.Loop` runs it in a thread::

    Loop(scribble, guest, guest.job(first=PAGE, size=guest.tx_pool - PAGE))

`exchange` sends test frames and verifies those that come, over hyp/verbs.py, and returns `FINISHED`, `STALLED` or `STOPPED`.
Below them: test frames made in Python, and the two things that a driver in Python cannot do without compiled code.
"""

from typing import Final

import numpy as np

from bench.isolation.loops import at_end, job_at
from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.abi.nic import DESC_SIGNALED, PAGE, STATUS_OK, mac_to_int
from hyp.atomics import clock_ns, epoll_sleep, full_fence
from hyp.kernels import compiled, entry, i64, void
from hyp.load.frames import verify, write_test_frame
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
ABANDON = 2
"""In `stop`: come to an end whatever is still to come; what is worked on is about to go."""


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

    FINISHED; STOPPED if it was asked to stop, once all that was posted is completed; STALLED if no wake-up came, or it is
    to ABANDON what it waits for.
    """
    job = job_at(address)
    q = qp_at(job.qp)
    job.frames = min(job.frames, 1 << 60)
    while True:
        moved = poll_sends(q)
        job.done += moved
        moved += _receive_some(job, q)
        if job.stop == ABANDON:
            return STALLED
        if at_end(job):
            job.frames, job.expect = job.sequence, 0
        moved += _send_some(job, q)
        if job.done == job.sequence == job.frames and job.received >= job.expect:
            return STOPPED if at_end(job) else FINISHED
        if moved == 0:
            arm_sends(q)
            arm_receives(q)
            full_fence()
            if sends_completed(q) or receives_completed(q):
                continue
            if epoll_sleep(job.epoll, STALL_NS, 0) == 0 and not sends_completed(q) and not receives_completed(q):
                return STALLED


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
    return epoll_sleep(epoll, timeout_ns, 0)


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
