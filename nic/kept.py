"""What outlives the NIC's process: memory of the hypervisor's that one NIC after the other finds as the last one left it.

Not the engines' own state, which a process that died may have left half-changed and whose addresses nobody else has, but what isn't
theirs: frames that are under way in the device, between engines, and the *wire*. The wire is not the NIC: what has left is
out there, on its way or being looked at, and those who look at it go on looking whatever becomes of the NIC.

One region, laid out here in the order of the calls, the same in every process of a topology:

    settings                       what the console has set of the wire: gbps, delay in µs (f8 each)
    job                            what is being replayed (nic/captures.py), as JSON
    crossings                      engines × engines rings (nic/crossing.py), indices included
    for each engine, its wire      WIRE record, schedule, how far a replay is, links and lines, buffers, lengths, trackers,
                                   histograms, the ring of a recorder (hyp/capture/ring.py)

Records have addresses in them; those are entered anew by each process (nic/build.py). A page that nobody touched takes no memory.
"""

from typing import Any

import numpy as np

from hyp.abi.nic import PAGE
from hyp.abi.sizes import JUMBO_BUFFER, LARGEST_FRAME_BUFFER
from hyp.capture.recorder import RING_BYTES
from hyp.capture.ring import RING
from hyp.load.frames import TRACKER, TRACKER_ROWS, TRACKERS
from hyp.load.histogram import BUCKETS
from hyp.load.replay import REPLAY
from hyp.load.schedule import SCHEDULE
from hyp.memory import Mapping
from nic.crossing import CROSSING_BYTES
from nic.state import WIRE, WIRE_BUFFERS
from nic.wire.link import LINE_BYTES, LINK

Array = np.ndarray[Any, np.dtype[Any]]

_WIRE_PARTS: list[tuple[str, Any, tuple[int, ...]]] = [
    ("wire", WIRE, (1,)),
    ("schedule", SCHEDULE, (1,)),
    ("replay", REPLAY, (1,)),
    ("links", LINK, (2,)),
    ("lengths", np.int64, (WIRE_BUFFERS,)),
    ("trackers", TRACKER, (TRACKER_ROWS,)),
    ("histograms", np.int64, (TRACKERS, BUCKETS)),
    ("buffers", np.uint8, (WIRE_BUFFERS * LARGEST_FRAME_BUFFER,)),
    ("lines", np.uint8, (2, LINE_BYTES)),
    ("ring", RING, (1,)),
    ("recorded", np.uint8, (RING_BYTES,)),
    ("jumbos", np.uint8, (WIRE_BUFFERS * JUMBO_BUFFER,)),
]
_SETTINGS: tuple[Any, tuple[int, ...]] = np.float64, (2,)
_JOB: tuple[Any, tuple[int, ...]] = np.uint8, (4 * PAGE,)


def _crossings(engines: int) -> tuple[Any, tuple[int, ...]]:
    return np.uint8, (engines * engines * CROSSING_BYTES if engines > 1 else 8,)


def _pages(dtype: Any, shape: tuple[int, ...]) -> int:
    """Bytes of an array, in whole pages."""
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // PAGE) * PAGE


def kept_bytes(engines: int) -> int:
    """How much there is of it."""
    wire = sum(_pages(dtype, shape) for _, dtype, shape in _WIRE_PARTS)
    return _pages(*_SETTINGS) + _pages(*_JOB) + _pages(*_crossings(engines)) + engines * wire


class KeptWire:
    """One engine's end of the wire, as arrays in kept memory."""

    wire: Array
    schedule: Array
    replay: Array
    links: Array
    lengths: Array
    trackers: Array
    histograms: Array
    buffers: Array
    lines: Array
    jumbos: Array
    ring: Array
    recorded: Array

    def __init__(self, kept: "Kept") -> None:
        for name, dtype, shape in _WIRE_PARTS:
            setattr(self, name, kept.take(dtype, shape))


class Kept:
    """All of it. `resumed`: another NIC has had it before."""

    def __init__(self, memory: Mapping, engines: int, *, resumed: bool) -> None:
        self._memory, self._next, self.resumed = memory, 0, resumed
        self.settings = self.take(*_SETTINGS)
        self.job = self.take(*_JOB)
        self.crossings = self.take(*_crossings(engines))
        self.wires = [KeptWire(self) for _ in range(engines)]

    def take(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        """The next array; each begins on a page."""
        size, at = _pages(dtype, shape), self._next
        self._next += size
        length = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._memory.array[at : at + length].view(dtype).reshape(shape)
