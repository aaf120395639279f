"""The wire and capture files: operations of its console that replay (nic/wire/replay.py), record (hyp/capture/), and mix sizes.

Who owns what: the frames that are replayed are this process's, and so is the thread that records. How far the replay is, what was
asked for, and what has been recorded but is not in the file yet, are kept (nic/kept.py). So a NIC that takes over reads the file
again and goes on with the frame after the last one that was passed on; those that were due meanwhile go out at once, late. If the
file is not as it was, the replay is over, and the log says why. What the wire records goes on in the same file.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyp.abi.nic import LINK_HEADER, mac_bytes, mac_to_int
from hyp.capture.format import CaptureError
from hyp.capture.recorder import Recorder
from hyp.control import Refused
from hyp.events import new_eventfd
from hyp.load.frames import ANYBODY
from hyp.load.mix import sizes_of
from hyp.load.replay import Recording, Rewriting, expect_replay, replay_report
from hyp.net.steps import SetupError
from hyp.offload.frame import ETHERNET_HEADER
from hyp.process import Process
from nic.build import EngineState
from nic.engine import GENERATE, REPLAY
from nic.kept import Kept

log = logging.getLogger(__name__)

ENDLESS = 1 << 62
Sizes = np.ndarray[Any, np.dtype[np.int64]]


class WireCaptures:
    """What the wire of these engines does with capture files. The first of them replays; each records what leaves by it."""

    def __init__(self, process: Process, engines: Sequence[EngineState], kept: Kept, wire: dict[str, Any], mtu: int) -> None:
        """Before the engines run. SetupError if the wire is to be recorded and can't be."""
        self._engines, self._job, self._resumed = engines, kept.job, kept.resumed
        self._mac, self._mtu = mac_bytes(wire["mac"]), mtu
        self._replayed: Recording | None = None
        self._stream = -1
        self._mixes: list[Sizes] = []
        self._recorder: Recorder | None = None
        for handler in (self.wire_replay, self.wire_expect_replay, self.wire_replayed, self.wire_recorded):
            process.serve(handler.__name__, handler)
        if self._resumed:
            self._resume()
        if wire["mode"] == "record":
            self._record(wire["file"])

    # -- replay --

    async def wire_replay(
        self,
        file: str,
        stream: int,
        to: str | None = None,
        rewrite: dict[str, str] | None = None,
        speed: float = 1.0,
        times: int = 1,
        seconds: float = 0.0,
        snapped: str = "pad",
    ) -> dict[str, Any]:
        """Send the frames of a capture file, `times` times over (0: without end) or for `seconds`; answers with the file's counts.

        `to`, `rewrite`, `speed` (0: as fast as they are taken), `snapped`: `hyp.load.replay.Rewriting`; with `to` the source is the
        wire's address. Refused (EINVAL) if there is nothing to send.
        """
        job: dict[str, Any] = {"file": file, "to": to, "rewrite": rewrite or {}, "speed": speed, "snapped": snapped}
        recording = await asyncio.to_thread(self._load, **job)
        self._keep_job({"count": recording.count, "stream": stream, **job})
        before, self._replayed, self._stream = self._replayed, recording, stream
        for state in self._engines[1:]:  # what they generate is over
            await state.engine.post(GENERATE, frames=0, stream=-1)
        await self._engines[0].engine.post(
            REPLAY, entries=recording.address, length=recording.count, round_ns=recording.round_ns,
            frames=times * recording.count or ENDLESS, nanoseconds=int(seconds * 1e9), pps=int(recording.timed), stream=stream,
            shared=int(to is None),
        )  # fmt: skip
        del before  # the engine has let go of it
        return recording.about()

    def _load(self, file: str, to: str | None, rewrite: dict[str, str], speed: float, snapped: Any) -> Recording:
        """Frames of a file, as they are to be sent. Refused (EINVAL) if there are none."""
        macs = {mac_bytes(old): mac_bytes(new) for old, new in rewrite.items()}
        source, destination = (None, None) if to is None else (self._mac, mac_bytes(to))
        try:
            return Recording(file, Rewriting(self._mtu + LINK_HEADER, destination, source, macs, speed, snapped))
        except CaptureError as error:
            raise Refused("EINVAL", str(error)) from None

    def _keep_job(self, job: dict[str, Any]) -> None:
        said = json.dumps(job).encode()
        if len(said) >= len(self._job):
            raise Refused("EINVAL", f"the replay of {job['file']} has too many addresses to rewrite")
        self._job[:] = 0
        self._job[: len(said)] = np.frombuffer(said, np.uint8)

    def _resume(self) -> None:
        """Go on with what a NIC that died was replaying, if it was."""
        wire, record = self._engines[0].wire[0], self._engines[0].replay[0]
        if not int(wire["replays"]) or int(wire["left"]) <= 0:
            return
        job = json.loads(bytes(self._job).rstrip(b"\0") or b"{}")
        try:
            count, self._stream = job.pop("count"), job.pop("stream")
            recording = self._load(**job)
            if recording.count != count:
                raise Refused("EINVAL", f"{job['file']} has {recording.count} frames, and had {count}")
        except (Refused, KeyError) as error:
            log.warning("the replay is over: %s", error)
            wire["left"] = 0
            return
        record["entries"], record["count"], self._replayed = recording.address, recording.count, recording

    def report(self, stream: int) -> dict[str, Any]:
        """Of the present generator, if it replays as `stream`: what the file has, and a digest of what has been sent."""
        wire = self._engines[0].wire[0]
        if self._replayed is None or not int(wire["replays"]) or not stream == self._stream == int(wire["stream"]):
            return {}
        done, recording = int(wire["sequence"]), self._replayed
        return {"file": recording.about(), "oversize": recording.not_sent(done), "digest": recording.digest(done)}

    def wire_expect_replay(self, mac: str | None) -> None:
        """Replayed frames come from `mac` ("": from anybody), and are counted from now on, afresh; None: that was it."""
        for state in self._engines:
            expect_replay(state.trackers, 0 if mac is None else mac_to_int(mac) if mac else ANYBODY)

    def wire_replayed(self) -> dict[str, int]:
        """What the wire has counted of replayed frames."""
        return replay_report([state.trackers for state in self._engines])

    # -- mixes of sizes --

    def sizes(self, traffic: str) -> Sizes:
        """Lengths of frames of a mix, kept until the one after the next is asked for. Refused (EINVAL) if it is none."""
        try:
            found = sizes_of(traffic, self._mtu + ETHERNET_HEADER)
        except CaptureError as error:
            raise Refused("EINVAL", str(error)) from None
        self._mixes = [*self._mixes[-1:], found]
        return found

    # -- recording --

    def _record(self, file: str) -> None:
        names = [f"wire{index}" for index in range(len(self._engines))]
        rings = [state.recorded for state in self._engines]
        try:
            self._recorder = Recorder(file, rings, names, new_eventfd(), resume=self._resumed)
        except CaptureError as error:
            if not self._resumed:
                raise SetupError("record the wire", str(error), "say another nic.wire.file") from None
            log.warning("recording has ended: %s", error)
            return
        for state in self._engines:
            state.wire[0]["recorder"] = state.recorded[0].ctypes.data

    def wire_recorded(self) -> dict[str, Any]:
        """What has been recorded: `hyp.capture.recorder.Recorder.report`. Refused (ENOENT) if nothing is to be."""
        if self._recorder is None:
            raise Refused("ENOENT", "nothing is recorded")
        return self._recorder.report()

    def stop(self) -> None:
        """The engines have ended: write what they have recorded."""
        if self._recorder is not None:
            log.info("%(file)s: %(frames)d frames recorded, %(missed)d missed", self._recorder.close())
