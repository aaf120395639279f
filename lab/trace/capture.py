"""Sightings of frames as a capture file: an interface for each place where frames are seen, nanoseconds, drops as comments.

    anna                  its front end: what its program sends and receives (of several queues: anna.1, …)
    dom0 vif1:anna        netback: taken from the guest, or copied to it
    dom0 uplink           Dom0's driver of the NIC
    nic ctx2:carl         the NIC: into a context's buffers
    nic wire              out of the NIC, or in
    hyp vmm5:emil         the device model: taken from its guest, or handed to it

A frame that is passed on is seen where it goes, one that is dropped where it came from.
"""

import re
import time
from collections.abc import Iterable
from typing import Final

from hyp.abi.trace import FLOODED, WIRE, Moment
from hyp.capture.format import Frame
from hyp.capture.write import CaptureWriter
from lab.ledger import Snapshot
from lab.trace.story import DOM0, HYP, NIC
from lab.trace.viewer import Sighting

SNAP: Final = 65535
_CONTEXT = re.compile(r"nic/(ctx(\d+):.+)")


def context_names(rows: Iterable[str]) -> dict[int, str]:
    """What the NIC's contexts are called, by number: from the names of the rows in which it counts for them."""
    return {int(found[2]): found[1] for row in rows if (found := _CONTEXT.fullmatch(row))}


class Capture:
    """Writes sightings to a pcapng file. CaptureError, from any call, if that fails: the file can be read as far as it is."""

    def __init__(self, writer: CaptureWriter, guests: dict[int, str], rows: Snapshot, only: str | None = None) -> None:
        """`guests`: names by domain id; `rows`: the counters' rows; `only`: the MAC address of who sends or receives."""
        self._writer, self._guests, self._contexts = writer, guests, context_names(rows)
        self._only = None if only is None else bytes.fromhex(only.replace(":", ""))
        self._numbers: dict[str, int] = {}
        self._since_1970 = time.time_ns() - time.monotonic_ns()
        self.frames = 0

    def add(self, sightings: Iterable[Sighting]) -> None:
        """Write them, in the order of time, and let who reads along have them."""
        for one in sightings:
            if self._only is None or self._only in (one.frame[:6], one.frame[6:12]):
                name = self._place(one)
                if name not in self._numbers:
                    self._numbers[name] = self._writer.interface(name)
                data, number = one.frame[: one.length], self._numbers[name]
                self._writer.frame(Frame(data, one.length, self._since_1970 + one.time_ns, number, self._comments(one)))
                self.frames += 1
        self._writer.flush()

    def _place(self, one: Sighting) -> str:
        port = one.port if one.moment in (Moment.TAKEN, Moment.DROPPED) else one.other
        if one.process == NIC:
            port = one.port if port == FLOODED else port
            return "nic wire" if port == WIRE else f"nic {self._contexts.get(port, f'ctx{port}')}"
        if one.process == DOM0:
            named = {FLOODED: "dom0 bridge", 0: "dom0 uplink"}
            return named.get(port, f"dom0 vif{port}:{self._guests.get(port, '?')}")
        if one.process == HYP:
            guest = one.port or port
            return f"hyp vmm{guest}:{self._guests.get(guest, '?')}"
        return one.loop

    @staticmethod
    def _comments(one: Sighting) -> tuple[str, ...]:
        if one.moment == Moment.DROPPED:
            return (f"dropped by {one.process}: {one.drop}",)
        return (f"{one.moment.name.lower()} by {one.process}",)
