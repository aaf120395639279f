"""The traffic program: verified streams and round trips, above the device interface. One compiled loop per guest.

A stream is sent as fast as the device takes it, or, given a rate, on a schedule (open loop: `hyp/load/schedule.py`). Frames that
are longer than a send buffer: `domu/programs/long_frames.py`.

It always receives: every test frame is verified and accounted for; one whose stream has the ECHO bit is sent back with its MAC
addresses swapped, unless this guest asked for it. At most one job of its own runs at a time: a stream or a series of round trips.
"""

import asyncio
import os
from typing import Any

import numpy as np

from domu.boot import run_program
from domu.device import (
    ALL,
    BURST,
    FAILED,
    RX,
    TX,
    arm,
    device_at,
    frame_addr,
    frame_length,
    frame_word,
    rx_poll,
    rx_release,
    set_word,
    sleep_for,
    tx_commit,
    tx_pending,
    tx_reserve,
)
from domu.guest import Guest
from domu.programs.long_frames import LONG_FIELDS, LongFrames, receive_long, send_long
from hyp.abi.fragment import CSUM_BLANK, MORE
from hyp.abi.nic import mac_to_int
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    load16,
    load64,
    memcpy,
    notify,
    prefetch_frame,
    prefetch_frame_for_write,
    record_view,
    store64,
)
from hyp.control import Refused
from hyp.counters import commit
from hyp.engine import STOP, Engine, mail_address, mail_record, mail_taken, mail_waiting
from hyp.events import end_spin, new_eventfd, spin_limit, spins, wait_at
from hyp.frames import head_words, source_of
from hyp.kernels import compiled, entry, i64, outlined
from hyp.load.frames import (
    ETHERTYPE_WIRE,
    MIN_TEST_FRAME,
    STREAM,
    TRACKER,
    TRACKERS,
    attach_histograms,
    is_test_frame,
    tracker_report,
    verify,
    write_test_frame,
)
from hyp.load.histogram import histogram_of, summary
from hyp.load.schedule import MAX_RATE, SCHEDULE, begin_schedule, frame_sent, frames_due, note_lag, schedule_at, stamp
from hyp.load.tcp import verify_frame
from hyp.process import Process

ECHO = 0x8000  # in the stream number: the receiver sends the frame back
SEND_STREAM, ROUND_TRIPS, END_JOB = 1, 2, 3
MAIL = mail_record("stream", "destination", "length", "frames", "nanoseconds", "pps", "units", "unit")
IDLE, STREAMING, DRAINING, ASKING = 0, 1, 2, 3
MAX_ROUND_TRIPS = 1 << 20
REPLY_TIMEOUT_NS = 1_000_000_000

TRAFFIC = np.dtype(
    [
        ("device", "i8"),
        ("mailbox", "i8"),
        ("mail", "i8"),
        ("trackers", "i8"),
        ("counts", "i8"),  # the program's counters row
        ("counts_shared", "i8"),
        ("done_fd", "i8"),
        ("job", "i8"),  # IDLE, STREAMING, DRAINING, ASKING
        ("stream", "i8"),
        ("destination", "i8"),  # MAC address
        ("length", "i8"),
        *LONG_FIELDS,
        ("left", "i8"),
        ("until_ns", "i8"),  # 0: no limit in time
        ("sequence", "i8"),
        ("schedule", "i8"),  # a SCHEDULE record, for streams
        ("started_ns", "i8"),
        ("ended_ns", "i8"),
        ("waiting", "i8"),  # ASKING: a request is under way
        ("asked_ns", "i8"),
        ("latencies", "i8"),  # MAX_ROUND_TRIPS × i8, ns
        ("answered", "i8"),
        ("failed", "i8"),
        ("no_room", "i8"),  # an answer waits for a send buffer
        ("now", "i8"),
        ("idle_since", "i8"),
    ]
)
_traffic_at = record_view(TRAFFIC)
_mail_at = record_view(MAIL)


@compiled
def _begin_job(p, m):
    p.job = STREAMING if m.opcode == SEND_STREAM else ASKING
    p.stream, p.destination, p.length, p.left, p.sequence = m.stream, m.destination, m.length, m.frames, 0
    p.started_ns = clock_ns()
    p.until_ns = p.started_ns + m.nanoseconds if m.nanoseconds > 0 else 0
    p.units, p.unit, p.part = m.units, m.unit, 0
    p.waiting, p.answered = 0, 0
    begin_schedule(schedule_at(p.schedule), m.pps, p.started_ns)


@compiled
def _end_job(p) -> None:
    p.job = IDLE
    p.ended_ns = clock_ns()
    notify(p.done_fd)


@compiled
def _take_mail(p):
    stop = False
    while mail_waiting(p.mailbox, p.mail) > 0:
        m = _mail_at(mail_address(p.mailbox, p.mail))
        if m.opcode == STOP:
            stop = True
        elif m.opcode == END_JOB:
            p.left = 0
        else:
            _begin_job(p, m)
        p.mail += 1
    mail_taken(p.mailbox, p.mail)
    return stop


@compiled
def _echo(p, d, frame, length):
    """Send a frame back with its addresses swapped. False if there is no room to send."""
    if tx_reserve(p.device, 1) != 1:
        return False
    buffer = frame_addr(d.tx, 0)
    memcpy(buffer, frame, length)
    head0, head1 = load64(frame), load64(frame + 8)
    back0, back1 = head_words(source_of(head0, head1), d.mac, head1)
    store64(buffer, back0)
    store64(buffer + 8, back1)
    set_word(d.tx, 0, length)
    tx_commit(p.device, 1)
    return True


@compiled
def _receive(p, d):
    """Verify and answer what has arrived, one burst. Returns the number of frames, or FAILED."""
    n = rx_poll(p.device, BURST)
    if n <= 0:
        return n
    done = 0
    p.no_room = 0
    while done < n:
        addr, length = frame_addr(d.rx, done), frame_length(d.rx, done)
        if frame_word(d.rx, done) & (MORE | CSUM_BLANK) != 0:
            done += receive_long(p, d, done)
            continue
        if length >= MIN_TEST_FRAME and is_test_frame(addr, length) and load16(addr + STREAM) & ECHO:
            prefetch_frame(addr, length)
            mine = p.job == ASKING and load16(addr + STREAM) == p.stream
            if not mine and not _echo(p, d, addr, length):
                p.no_room = 1
                break
            good = verify(p.trackers, p.counts, addr, length, p.now)
            if mine and good and p.waiting != 0:
                store64(p.latencies + 8 * p.answered, clock_ns() - p.asked_ns)
                p.answered += 1
                p.waiting = 0
        elif length > 0:
            verify_frame(p.trackers, p.counts, addr, length, 0, p.now)
        done += 1
    rx_release(p.device, done)
    return done


@compiled
def _send_stream(p, d):
    """Write and send one burst of the stream, of what is due of it. Returns the number of frames, or FAILED."""
    s = schedule_at(p.schedule)
    if p.part == 0 and (p.left <= 0 or (p.until_ns != 0 and p.now >= p.until_ns)):
        if p.left > 0 and s.pps != 0:
            note_lag(s, p.now)
        p.job = DRAINING
        return 0
    if p.length > d.room:
        return send_long(p, d)
    want = frames_due(s, p.now, min(BURST, p.left))
    if want == 0:
        return 0
    n = tx_reserve(p.device, want)
    if n < want:
        return min(n, 0)  # wait for room for a whole burst: small ones cost a hand-over each
    head0, head1 = head_words(p.destination, d.mac, ETHERTYPE_WIRE << 32)
    if s.pps != 0:
        _write_scheduled(p, d, s, n, head0, head1)
    else:
        burst, length, stream, sequence = d.tx, p.length, p.stream, p.sequence  # in registers: a store to a buffer might alias
        for k in range(n):
            write_test_frame(frame_addr(burst, k), length, head0, head1, stream, sequence + k, 0)
            set_word(burst, k, length)
    p.sequence += n
    p.left -= n
    return tx_commit(p.device, n)


@outlined
def _write_scheduled(p, d, s, n, head0, head1):
    """Write the next `n` frames of an open-loop stream, each stamped with the time at which it is due."""
    for k in range(n):
        write_test_frame(frame_addr(d.tx, k), p.length, head0, head1, p.stream, p.sequence + k, stamp(s))
        set_word(d.tx, k, p.length)
        frame_sent(s, p.now)


@compiled
def _ask(p, d):
    """Send the next request, if none is under way. Returns the number of frames, or FAILED."""
    if p.waiting != 0:
        if p.now - p.asked_ns < REPLY_TIMEOUT_NS:
            return 0
        p.waiting = 0  # lost on the way: the counters of some hop say where
    if p.left <= 0 or p.answered >= MAX_ROUND_TRIPS or (p.until_ns != 0 and p.now >= p.until_ns):
        p.job = DRAINING
        return 0
    n = tx_reserve(p.device, 1)
    if n <= 0:
        return n
    head0, head1 = head_words(p.destination, d.mac, ETHERTYPE_WIRE << 32)
    p.asked_ns = clock_ns()
    prefetch_frame_for_write(frame_addr(d.tx, 0), p.length)
    write_test_frame(frame_addr(d.tx, 0), p.length, head0, head1, p.stream, p.sequence, 0)
    set_word(d.tx, 0, p.length)
    p.sequence += 1
    p.left -= 1
    p.waiting = 1
    return tx_commit(p.device, 1)


@compiled
def _work(p, d):
    """One round. Returns the number of frames moved, or FAILED."""
    moved = _receive(p, d)
    sent = 0
    if p.job == STREAMING:
        sent = _send_stream(p, d)
    elif p.job == ASKING:
        sent = _ask(p, d)
    elif p.job == DRAINING and tx_pending(p.device) == 0:
        _end_job(p)
    if moved < 0 or sent < 0:
        return FAILED
    return moved + sent


@compiled
def _next_due(p):
    """When the next frame of an open-loop stream is due, if that is not yet; 0 if nothing but room is waited for."""
    s = schedule_at(p.schedule)
    return s.due_ns if p.job == STREAMING and s.pps != 0 and s.due_ns > p.now else 0


@compiled
def _time_left(p):
    """ns until the job has to do something even if nothing arrives (0: now), or −1."""
    deadline = 0
    if p.job == STREAMING:
        due = _next_due(p)
        deadline = due if due != 0 and (p.until_ns == 0 or due < p.until_ns) else p.until_ns
    elif p.job == ASKING:
        deadline = p.asked_ns + REPLY_TIMEOUT_NS
    return -1 if deadline == 0 else max(deadline - clock_ns(), 0)


@compiled
def _idle(p, d):
    wait = wait_at(d.wait)
    if spins(p, wait):
        return
    due = _next_due(p)
    if due != 0 and due - p.now <= spin_limit(wait):
        cpu_relax()
        return
    commit(p.counts, p.counts_shared)
    commit(d.counts, d.counts_shared)
    what = RX
    if (p.job == STREAMING and due == 0) or p.no_room != 0:
        what |= TX
    elif p.job == DRAINING:
        what |= ALL
    if arm(p.device, what) != 0 or mail_waiting(p.mailbox, p.mail) > 0:
        return
    timeout = _time_left(p)
    if timeout != 0:
        sleep_for(d, what, timeout)
    end_spin(p, d.counts)


@entry(i64(i64))
def run(address: int) -> int:
    """Be the program until the mailbox says stop. `address`: the TRAFFIC record. Returns 0, or FAILED if the device failed."""
    p = _traffic_at(address)
    d = device_at(p.device)
    result = 0
    while True:
        if mail_waiting(p.mailbox, p.mail) > 0 and _take_mail(p):
            break
        p.now = clock_ns()
        moved = _work(p, d)
        if moved > 0:
            end_spin(p, d.counts)
        elif moved == 0:
            _idle(p, d)
        else:
            p.failed = 1
            result = FAILED
            break
    commit(p.counts, p.counts_shared)
    commit(d.counts, d.counts_shared)
    notify(p.done_fd)
    return result


class Traffic:
    """The program's control side: starts jobs, reports."""

    def __init__(self, guest: Guest) -> None:
        self._record = np.zeros(1, TRAFFIC)
        self._trackers = np.zeros(TRACKERS, TRACKER)
        self._histograms = attach_histograms(self._trackers)
        self._schedule = np.zeros(1, SCHEDULE)
        self._latencies = np.zeros(MAX_ROUND_TRIPS, np.int64)
        self._engine: Engine = guest.engine
        self._long = LongFrames(guest.device, int(guest.config["mtu"]))
        self._done_fd = new_eventfd()
        self._done: asyncio.Future[None] | None = None
        row = self._record[0]
        row["device"], row["mailbox"], row["done_fd"] = guest.device.address, self._engine.mailbox, self._done_fd
        row["trackers"], row["latencies"] = self._trackers.ctypes.data, self._latencies.ctypes.data
        row["schedule"] = self._schedule.ctypes.data
        self._long.attach(row)
        row["counts"], row["counts_shared"] = guest.counters.row("traffic")
        asyncio.get_running_loop().add_reader(self._done_fd, self._job_done)
        for handler in (self.send_stream, self.round_trips, self.end_job, self.received, self.sent):
            guest.process.serve(handler.__name__, handler)

    def start(self) -> None:
        """Start the loop."""
        self._engine.start(run, int(self._record.ctypes.data), mail=MAIL)

    def stop(self) -> None:
        """Nothing runs but the loop."""

    async def send_stream(
        self, mac: str, frame: int, stream: int, frames: int = 0, seconds: float = 0.0, pps: int = 0
    ) -> dict[str, Any]:
        """Send test frames to `mac`; answers when all have been sent and none is pending.

        `pps` 0: as fast as they are taken. Else frame k is due k / `pps` s after the start and stamped with that time, so that its
        receiver measures its latency, however late it was sent. Refused (EINVAL) beyond `MAX_RATE`.
        """
        return await self._job(SEND_STREAM, mac, frame, stream, frames, seconds, pps)

    async def round_trips(self, mac: str, frame: int, stream: int, frames: int = 0, seconds: float = 0.0) -> dict[str, Any]:
        """Closed loop of requests to `mac`, one at a time.

        Besides `sent`: ``rtt_us`` with p50, p90, p99, p999, mean and max; ``latency``: as a histogram (`hyp.load.histogram`).
        """
        report = await self._job(ROUND_TRIPS, mac, frame, stream | ECHO, min(frames, MAX_ROUND_TRIPS), seconds)
        times = self._latencies[: int(self._record[0]["answered"])]
        report["answered"] = len(times)
        if len(times):
            p50, p90, p99, p999 = (float(value) for value in np.percentile(times / 1000, [50, 90, 99, 99.9]))
            mean, longest = float(times.mean() / 1000), float(times.max() / 1000)
            report["rtt_us"] = {"p50": p50, "p90": p90, "p99": p99, "p999": p999, "mean": mean, "max": longest}
            report["latency"] = summary(histogram_of(times), int(times.max()))
        return report

    async def end_job(self) -> None:
        """End the present job, if there is one; answers when it has ended, with what was under way."""
        if self._done is not None and not self._done.done():
            await self._engine.post(END_JOB)
            await self._done

    def received(self, stream: int) -> dict[str, Any]:
        """What this guest has received of a stream."""
        return tracker_report(self._trackers, stream, self._histograms)

    def sent(self) -> dict[str, Any]:
        """How far the present or last job is. Of an open-loop stream: how late it was at the end, and at worst (ns)."""
        row, schedule = self._record[0], self._schedule[0]
        lag = {name: int(schedule[name]) for name in ("lag_ns", "max_lag_ns")} if int(schedule["pps"]) else {}
        units = max(int(row["units"]), 1)
        return {
            "sent": int(row["sequence"]) * units,
            "units": units,
            "answered": int(row["answered"]),
            "running": int(row["job"]) != IDLE,
            "seconds": (int(row["ended_ns"]) - int(row["started_ns"])) / 1e9,
            "failed": bool(row["failed"]),
            **lag,
        }

    async def _job(self, op: int, mac: str, frame: int, stream: int, frames: int, seconds: float, pps: int = 0) -> dict[str, Any]:
        frame, units, unit = self._long.size(frame, stream=op == SEND_STREAM)
        if not 0 <= pps <= MAX_RATE:
            raise Refused("EINVAL", f"pps is {pps}, not in [0, {MAX_RATE}]")
        if self._done is not None and not self._done.done():
            raise Refused("EBUSY", "a job runs already")
        self._done = asyncio.get_running_loop().create_future()
        count = frames if frames > 0 else 1 << 62
        await self._engine.post(
            op,
            stream=stream,
            destination=mac_to_int(mac),
            length=frame,
            frames=count,
            nanoseconds=int(seconds * 1e9),
            pps=pps,
            units=units,
            unit=unit,
        )
        await self._done
        if int(self._record[0]["failed"]):
            raise Refused("EIO", "the network device has failed")
        return self.sent()

    def _job_done(self) -> None:
        try:
            os.eventfd_read(self._done_fd)
        except BlockingIOError:
            return
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


async def main(process: Process, config: dict[str, Any]) -> None:
    """The guest process's role."""
    await run_program(process, config, Traffic)
