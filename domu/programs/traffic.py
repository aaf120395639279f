"""The traffic program: verified streams and round trips. Its console; what moves frames is domu/programs/traffic_loop.py.

There is one loop for each queue of the guest's device. A stream is sent by the loop of the queue that its flow hashes to
(hyp/offload/flow.py), as whoever sends to the guest chooses one; so an answer comes to the loop that has asked. Several streams go
on at a time if their queues are different ones.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from domu.boot import run_program
from domu.device import Device
from domu.guest import Guest, GuestQueue
from domu.programs.long_frames import LongFrames
from domu.programs.replay import Replay
from domu.programs.traffic_loop import (
    ANSWER_BYTES,
    ANSWERS,
    ECHO,
    END_JOB,
    IDLE,
    MAIL,
    MAX_ROUND_TRIPS,
    ROUND_TRIPS,
    SEND_MIX,
    SEND_REPLAY,
    SEND_STREAM,
    TRAFFIC,
    run,
)
from hyp.abi.frame import ETHERTYPE_WIRE, MIN_TEST_FRAME
from hyp.abi.nic import mac_bytes, mac_to_int
from hyp.atomics import load64
from hyp.capture.format import CaptureError
from hyp.capture.recorder import RING_BYTES, Recorder
from hyp.capture.ring import RING
from hyp.control import Refused
from hyp.counters import CounterPage
from hyp.events import new_eventfd
from hyp.frames import head_words
from hyp.kernels import entry, i64
from hyp.load.frames import ANYBODY, TRACKER, TRACKER_ROWS, attach_histograms, keep_for, report_of_all, write_test_frame
from hyp.load.histogram import histogram_of, summary
from hyp.load.mix import sizes_of
from hyp.load.replay import expect_replay, replay_report
from hyp.load.schedule import MAX_RATE, SCHEDULE
from hyp.load.tcp import LARGEST, write_tcp_frame
from hyp.offload.flow import queue_of
from hyp.offload.frame import ETHERNET_HEADER
from hyp.process import Process


@entry(i64(i64, i64, i64, i64, i64, i64, i64))
def _queue_for(buffer: int, destination: int, own: int, stream: int, units: int, unit: int, queues: int) -> Any:
    """The queue, of so many, that a stream's frames go to. `buffer`: room for one; `units`, `unit`: of a TCP test frame, else 0."""
    head0, head1 = head_words(destination, own, ETHERTYPE_WIRE << 32)
    if units != 0:
        write_tcp_frame(buffer, head0, head1, stream, 0, units, unit)
    else:
        write_test_frame(buffer, MIN_TEST_FRAME, head0, head1, stream, 0, 0)
    return queue_of(load64(buffer), load64(buffer + 8), buffer, MIN_TEST_FRAME if units == 0 else LARGEST, queues)


class Loop:
    """One queue's loop: its memory, and the job that it has."""

    def __init__(self, queue: GuestQueue, device: Device, counters: CounterPage, mtu: int) -> None:
        self._record = np.zeros(1, TRAFFIC)
        self.trackers = np.zeros(TRACKER_ROWS, TRACKER)
        self.histograms = attach_histograms(self.trackers)
        self._schedule = np.zeros(1, SCHEDULE)
        self._latencies = np.zeros(MAX_ROUND_TRIPS, np.int64)
        self._answers = np.zeros(ANSWERS * ANSWER_BYTES, np.uint8)
        self._engine, self.room = queue.engine, int(device.record[0]["room"])
        self.long = LongFrames(device, mtu)
        self._recorded: tuple[Any, Any] | None = None
        self._done_fd = new_eventfd()
        self._done: asyncio.Future[None] | None = None
        row = self._record[0]
        row["device"], row["mailbox"], row["done_fd"] = device.address, self._engine.mailbox, self._done_fd
        row["trackers"], row["latencies"] = self.trackers.ctypes.data, self._latencies.ctypes.data
        row["schedule"], row["answers"] = self._schedule.ctypes.data, self._answers.ctypes.data
        self.long.attach(row)
        self.replay = Replay(device, mtu)
        self.replay.attach(row)
        row["counts"], row["counts_shared"] = counters.row(queue.row("traffic"))
        asyncio.get_running_loop().add_reader(self._done_fd, self._job_done)

    def ring(self) -> tuple[Any, Any]:
        """What is recorded goes into this ring, and its memory, as long as it is open. They are the loop's for good."""
        if self._recorded is None:
            self._recorded = np.zeros(1, RING), np.zeros(RING_BYTES, np.uint8)
        return self._recorded

    def record(self) -> None:
        """Record what arrives, from now on, into the ring."""
        self._record[0]["recorder"] = self.ring()[0].ctypes.data

    def start(self) -> None:
        """Start it."""
        self._engine.start(run, int(self._record.ctypes.data), mail=MAIL)

    @property
    def busy(self) -> bool:
        """True while it has a job."""
        return self._done is not None and not self._done.done()

    async def job(self, opcode: int, **words: int) -> None:
        """Do a job to its end. Refused: EBUSY if it has one, EIO if the device has failed."""
        if self.busy:
            raise Refused("EBUSY", "a job runs already")
        self._done = asyncio.get_running_loop().create_future()
        try:
            await self._engine.post(opcode, **words)
        except RuntimeError:  # the loop has ended with its device
            self._done = None
            raise Refused("EIO", "the network device has failed") from None
        await self._done
        if int(self._record[0]["failed"]):
            raise Refused("EIO", "the network device has failed")

    async def end_job(self) -> None:
        """End the present job, if there is one; returns when it has ended, with what was under way."""
        if self._done is not None and self.busy:
            await self._engine.post(END_JOB)
            await self._done

    def round_trips(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Times of the round trips that were answered, in ns."""
        return self._latencies[: int(self._record[0]["answered"])]

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

    def _job_done(self) -> None:
        try:
            os.eventfd_read(self._done_fd)
        except BlockingIOError:
            return
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class Traffic:
    """The program's control side: starts jobs, reports."""

    def __init__(self, guest: Guest) -> None:
        self._mtu = mtu = int(guest.config["mtu"])
        self._loops = [Loop(queue, device, guest.counters, mtu) for queue, device in zip(guest.running, guest.devices, strict=True)]
        self._address, self._name = guest.device.mac, guest.process.name
        self._recorder: Recorder | None = None
        self._recorder_wake = -1
        self._mac = mac_to_int(self._address)
        self._frame = np.zeros(LARGEST + 1, np.uint8)
        for handler in (
            self.send_stream, self.send_replay, self.round_trips, self.end_job, self.expect, self.received, self.expect_replay,
            self.replayed, self.record, self.sent, self.queue,
        ):  # fmt: skip
            guest.process.serve(handler.__name__, handler)

    def start(self) -> None:
        """Start the loops."""
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """Nothing runs but the loops."""

    async def send_stream(
        self, mac: str, frame: int, stream: int, frames: int = 0, seconds: float = 0.0, pps: int = 0, traffic: str = ""
    ) -> dict[str, Any]:
        """Send test frames to `mac`; answers when all have been sent and none is pending. `traffic`: a mix of sizes in the place of
        `frame` (hyp/load/mix.py).

        `pps` 0: as fast as they are taken. Else frame k is due k / `pps` s after the start and stamped with that time, so that its
        receiver measures its latency, however late it was sent. Refused (EINVAL) beyond `MAX_RATE`.
        """
        return (await self._job(SEND_STREAM, mac, frame, stream, frames, seconds, pps, traffic)).sent()

    async def send_replay(
        self,
        file: str,
        to: str | None = None,
        keep_source: bool = False,
        speed: float = 1.0,
        times: int = 1,
        seconds: float = 0.0,
        snapped: str = "pad",
    ) -> dict[str, Any]:
        """Send the frames of a capture file, `times` times over (0: without end) or for `seconds`, from the first queue.

        To `to`, or to whom they were for; from this guest's address, unless its sources are to be kept; `speed` (0: as fast as they
        are taken) and `snapped`: `hyp.load.replay.Rewriting`. Answers when all have been sent: `sent`, and of the file ``file``, of
        what was sent ``oversize`` and ``digest``. Refused (EINVAL) if there is nothing to send.
        """
        loop, own, other = self._loops[0], None if keep_source else mac_bytes(self._address), mac_bytes(to) if to else None
        if loop.busy:
            raise Refused("EBUSY", "a job runs already")
        recording = await asyncio.to_thread(loop.replay.load, file, own, other, speed, snapped)
        await loop.job(
            SEND_REPLAY, entries=recording.address, length=recording.count, round_ns=recording.round_ns,
            frames=times * recording.count or 1 << 62, nanoseconds=int(seconds * 1e9), pps=int(recording.timed),
        )  # fmt: skip
        report = loop.sent()
        passed = report["sent"]
        return {**report, "file": recording.about(), "oversize": recording.not_sent(passed), "digest": recording.digest(passed)}

    def expect_replay(self, mac: str | None) -> None:
        """Replayed frames come from `mac` ("": from anybody), and are counted from now on, afresh; None: that was it."""
        for loop in self._loops:
            expect_replay(loop.trackers, 0 if mac is None else mac_to_int(mac) if mac else ANYBODY)

    def record(self, file: str | None) -> dict[str, Any]:
        """Record what arrives from now on, in `file`; None: end that. What has been recorded, at last: `Recorder.report`.

        Refused: EINVAL if the file can't be made, EBUSY if another one is being recorded, ENOENT if none is.
        """
        recorder = self._recorder
        if file is None:
            if recorder is None:
                raise Refused("ENOENT", "nothing is recorded")
            self._recorder = None
            return recorder.close()
        if recorder is not None:
            raise Refused("EBUSY", f"{recorder.path} is being recorded")
        if self._recorder_wake < 0:
            self._recorder_wake = new_eventfd()
        try:
            names = [f"{self._name}.{number}" if number else self._name for number in range(len(self._loops))]
            self._recorder = Recorder(file, [loop.ring() for loop in self._loops], names, self._recorder_wake)
        except CaptureError as error:
            raise Refused("EINVAL", str(error)) from None
        for loop in self._loops:
            loop.record()
        return self._recorder.report()

    def replayed(self) -> dict[str, int]:
        """What this guest has counted of replayed frames."""
        return replay_report([loop.trackers for loop in self._loops])

    async def round_trips(self, mac: str, frame: int, stream: int, frames: int = 0, seconds: float = 0.0) -> dict[str, Any]:
        """Closed loop of requests to `mac`, one at a time.

        Besides `sent`: ``rtt_us`` with p50, p90, p99, p999, mean and max; ``latency``: as a histogram (`hyp.load.histogram`).
        """
        loop = await self._job(ROUND_TRIPS, mac, frame, stream | ECHO, min(frames, MAX_ROUND_TRIPS), seconds)
        report, times = loop.sent(), loop.round_trips()
        report["answered"] = len(times)
        if len(times):
            p50, p90, p99, p999 = (float(value) for value in np.percentile(times / 1000, [50, 90, 99, 99.9]))
            mean, longest = float(times.mean() / 1000), float(times.max() / 1000)
            report["rtt_us"] = {"p50": p50, "p90": p90, "p99": p99, "p999": p999, "mean": mean, "max": longest}
            report["latency"] = summary(histogram_of(times), int(times.max()))
        return report

    async def end_job(self) -> None:
        """End the present jobs, if there are any; answers when they have ended, with what was under way."""
        await asyncio.gather(*(loop.end_job() for loop in self._loops))

    def expect(self, stream: int, mac: str | None) -> None:
        """The stream comes from `mac`, and nobody else's frames spoil what is known of it; None: that was it."""
        for loop in self._loops:
            keep_for(loop.trackers, stream, 0 if mac is None else mac_to_int(mac))

    def received(self, stream: int) -> dict[str, Any]:
        """What this guest has received of a stream."""
        return report_of_all([(loop.trackers, loop.histograms) for loop in self._loops], stream)

    def sent(self) -> dict[str, Any]:
        """How far the present or last job is, as `Loop.sent`; of several queues, the sums and the latest."""
        return _together([loop.sent() for loop in self._loops])

    def queue(self, mac: str, frame: int, stream: int) -> int:
        """The number of the queue that sends this stream."""
        return self._queue(mac, *self._loops[0].long.size(frame, stream=True)[1:], stream)

    def _queue(self, mac: str, units: int, unit: int, stream: int) -> int:
        if len(self._loops) == 1:
            return 0
        place = int(self._frame.ctypes.data)
        return int(_queue_for(place, mac_to_int(mac), self._mac, stream, units, unit, len(self._loops)))

    async def _job(
        self, op: int, mac: str, frame: int, stream: int, frames: int, seconds: float, pps: int = 0, traffic: str = ""
    ) -> Loop:
        """Let the loop whose stream it is do it; returns which."""
        frame, units, unit = self._loops[0].long.size(frame, stream=op == SEND_STREAM)
        if not 0 <= pps <= MAX_RATE:
            raise Refused("EINVAL", f"pps is {pps}, not in [0, {MAX_RATE}]")
        loop, more = self._loops[self._queue(mac, units, unit, stream)], {}
        if traffic:
            try:
                sizes = sizes_of(traffic, min(self._mtu + ETHERNET_HEADER, loop.room))
            except CaptureError as error:
                raise Refused("EINVAL", str(error)) from None
            op, frame, more = SEND_MIX, len(sizes), {"entries": int(sizes.ctypes.data)}  # which are kept
        await loop.job(
            op,
            stream=stream,
            destination=mac_to_int(mac),
            length=frame,
            frames=frames if frames > 0 else 1 << 62,
            nanoseconds=int(seconds * 1e9),
            pps=pps,
            units=units,
            unit=unit,
            **more,
        )
        return loop


def _together(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report for all queues'."""
    if len(reports) == 1:
        return reports[0]
    lags = {
        name: max(one.get(name, 0) for one in reports) for name in ("lag_ns", "max_lag_ns") if any(name in one for one in reports)
    }
    return {
        **{name: sum(one[name] for one in reports) for name in ("sent", "answered")},
        **{name: max(one[name] for one in reports) for name in ("units", "seconds")},
        **{name: any(one[name] for one in reports) for name in ("running", "failed")},
        **lags,
    }


async def main(process: Process, config: dict[str, Any]) -> None:
    """The guest process's role."""
    await run_program(process, config, Traffic)
