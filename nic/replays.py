"""The control side of replay on the wire (nic/replay.py): what is replayed, in memory; what a NIC that died was replaying.

Who owns what: the frames are this process's. How far the replay is, and what was asked for, are kept (nic/kept.py). So a NIC that
takes over reads the file again and goes on with the frame after the last one that was passed on; those that were due meanwhile go
out at once, late. If the file is not as it was, the replay is over, and the log says why.
"""

import json
import logging
from typing import Any

import numpy as np

from hyp.abi.nic import LINK_HEADER, mac_bytes
from hyp.capture.format import CaptureError
from hyp.control import Refused
from hyp.load.mix import sizes_of
from hyp.load.replay import Recording, Rewriting
from hyp.offload.frame import ETHERNET_HEADER
from nic.build import EngineState

log = logging.getLogger(__name__)

ENDLESS = 1 << 62


def mixed_sizes(traffic: str, mtu: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Lengths of frames of a mix. Refused (EINVAL) if it is none."""
    try:
        return sizes_of(traffic, mtu + ETHERNET_HEADER)
    except CaptureError as error:
        raise Refused("EINVAL", str(error)) from None


class Replays:
    """The first engine's: it replays. `job`: kept memory for what was asked for."""

    def __init__(self, state: EngineState, job: "np.ndarray[Any, np.dtype[np.uint8]]", wire_mac: str, mtu: int) -> None:
        self._state, self._job, self._mac, self._longest = state, job, mac_bytes(wire_mac), mtu + LINK_HEADER
        self._recording: Recording | None = None
        self.stream = -1

    def load(self, file: str, to: str | None, rewrite: dict[str, str], speed: float, snapped: Any) -> Recording:
        """Frames of a file, as they are to be sent. Refused (EINVAL) if there are none."""
        source = None if rewrite or to is None else self._mac
        macs = {mac_bytes(old): mac_bytes(new) for old, new in rewrite.items()}
        try:
            return Recording(file, Rewriting(self._longest, (to and mac_bytes(to)) or None, source, macs, speed, snapped))
        except CaptureError as error:
            raise Refused("EINVAL", str(error)) from None

    def keep(self, recording: Recording, stream: int, **job: Any) -> Recording | None:
        """What is to be replayed from now on. Returns what was before, which may go when the engine has been told."""
        said = json.dumps({"count": recording.count, "stream": stream, **job}).encode()
        if len(said) + 1 > len(self._job):
            raise Refused("EINVAL", f"the replay of {job['file']} has too many addresses to rewrite")
        self._job[:] = 0
        self._job[: len(said)] = np.frombuffer(said, np.uint8)
        before, self._recording, self.stream = self._recording, recording, stream
        return before

    def resume(self) -> None:
        """Before the engine runs: go on with what a NIC that died was replaying, if it was."""
        wire, record = self._state.wire[0], self._state.replay[0]
        if not int(wire["replays"]) or int(wire["left"]) <= 0:
            return
        job = json.loads(bytes(self._job).rstrip(b"\0") or b"{}")
        try:
            count, self.stream = job.pop("count"), job.pop("stream")
            recording = self.load(**job)
            if recording.count != count:
                raise Refused("EINVAL", f"{job['file']} has {recording.count} frames, and had {count}")
        except (Refused, KeyError) as error:
            log.warning("the replay is over: %s", error)
            wire["left"] = 0
            return
        record["entries"], record["count"], self._recording = recording.address, recording.count, recording

    def report(self) -> dict[str, Any]:
        """Of the present replay: what the file has, and a digest of what has been sent."""
        if self._recording is None:
            return {}
        done = int(self._state.wire[0]["sequence"])
        return {
            "file": self._recording.about(),
            "oversize": self._recording.not_sent(done),
            "digest": self._recording.digest(done),
        }
