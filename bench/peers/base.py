"""What a peer is: a system that the lab is measured against, live beside it and run in short slices.

To add one: a module in this folder with a class that has what `Peer` asks for, and a line in `PEERS` of
`bench/peers/__init__.py`. A peer whose two ends are sockets is a subclass of `bench.peers.sockets.SocketPeer`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from lab.accounting import usage

MAX_SLICE_S = 0.5
DEPTH = 256
"""Frames that may be under way between sender and receiver: the lab's ring, and the same for every peer."""


class PeerError(Exception):
    """A peer could not be set up or did not do what it was asked; the message says which and why."""


@dataclass(slots=True)
class PeerSlice:
    """What one slice gave."""

    frames: int
    """Received, and found good where the peer verifies, between the two reads of the receiver's counter."""
    seconds: float
    """Between those two reads."""
    cpu_ns: int
    """Of all its processes and threads between those reads (/proc/*/task/*/schedstat, good to a timer tick)."""
    sent: int
    """In the whole slice, ramp and drain included; as are the frames that `lost` is reckoned from."""
    lost: int
    detail: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """Reasons why these figures must not be used."""

    @property
    def mpps(self) -> float:
        """Million frames per second at the receiver."""
        return self.frames / self.seconds / 1e6 if self.seconds > 0 else 0.0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mpps": self.mpps}


class Peer(Protocol):
    """A contender. `start` … `slice`, `slice`, … `stop`; between slices it burns no CPU."""

    name: str

    @staticmethod
    def missing(cores: int = 2) -> str | None:
        """None if it can run here on that many cores; else why not, and how to install what is missing."""

    async def start(self, frame: int, cpus: Sequence[int]) -> None:
        """Set up. `frame`: Ethernet frame in bytes without FCS; sender on the first of `cpus`, receiver on the last."""

    async def set_frame(self, frame: int) -> None:
        """Another frame size from the next slice on; nothing is restarted."""

    async def slice(self, seconds: float) -> PeerSlice:
        """Run for `seconds` (at most 0.5); idle before and after."""

    async def stop(self) -> None:
        """Everything that it made is gone. May be called at any time, more than once."""


def check_slice(seconds: float) -> None:
    """ValueError for a slice that could not be alternated with others'."""
    if not 0 < seconds <= MAX_SLICE_S:
        raise ValueError(f"a slice is longer than 0 s and at most {MAX_SLICE_S} s, not {seconds}")


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time of these processes so far."""
    return sum(usage(pid).cpu_ns for pid in pids)
