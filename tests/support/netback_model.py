"""A slow model of netback, frame by frame and byte for byte: what becomes of the slots that a front end posts.

It reads slots as Xen's io/netif.h has them, and knows what becomes of a packet from tests/support/plain_packets.py.
"""

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import RSP_ERROR, RSP_NULL, RSP_OKAY
from tests.support.plain_packets import ETHERNET, TCP, read

RECEIVERS: Final = {"whole": {"sg", "csum", "tso"}, "cut": {"sg", "csum"}, "fill": {"sg"}, "lone": {"csum"}, "plain": set[str]()}
"""Guests that frames are sent to, and the offloads that they have accepted."""
CSUM_BLANK, VALIDATED, MORE, EXTRA = 1, 2, 4, 8
RX_VALIDATED, RX_BLANK = 1, 2
ADD, DELETE, HASH, MOST_GROUPS = 2, 3, 4, 64


@dataclass
class Delivery:
    """One frame as its receiver gets it."""

    content: bytes
    flags: int = 0
    extra: bytes = b""

    @property
    def slots(self) -> int:
        return -(-len(self.content) // PAGE_BYTES) + (1 if self.extra else 0)


@dataclass
class Model:
    """netback, of one vif that sends: `statuses` of its slots, `got` by its receivers, `counts` by name."""

    most: int  # bytes of a frame that is not to be segmented
    receivers: dict[bytes, str]  # MAC address → name: "wire" and one's own too
    statuses: list[int] = field(default_factory=list)
    got: dict[str, list[Delivery]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    groups: list[bytes] = field(default_factory=list)

    def transmit(self, slots: list[bytes], pages: dict[int, bytearray]) -> None:
        """All slots, whole frames of them. `pages` by grant reference."""
        at = 0
        while at < len(slots):
            first, n_extras, n_rest = struct.unpack("<IHHHH", slots[at]), 0, 0
            more = first[2] & EXTRA
            while more:
                n_extras += 1
                more = slots[at + n_extras][1] & 1
            more = first[2] & MORE
            while more:
                n_rest += 1
                more = struct.unpack("<IHHHH", slots[at + n_extras + n_rest])[2] & MORE
            extras = [struct.unpack("<BBHBBH", slot[:8]) for slot in slots[at + 1 : at + 1 + n_extras]]
            rest = [struct.unpack("<IHHHH", slot) for slot in slots[at + 1 + n_extras : at + 1 + n_extras + n_rest]]
            change = n_extras == 1 and extras[0][0] in (ADD, DELETE)
            name = self._fault(first, extras, rest) if change else self._frame(first, extras, rest, pages)
            self.counts.update(name.split())
            status = RSP_ERROR if name and "same_port" not in name and "small_buffer" not in name else RSP_OKAY
            if change and not name:
                status = self._change(extras[0][0], slots[at + 1][2:8])
            self.statuses += [status] + [RSP_NULL] * n_extras + [status] * n_rest
            at += 1 + n_extras + n_rest

    def _change(self, kind: int, mac: bytes) -> int:
        """A group address is added or taken back."""
        if kind == ADD:
            if len(self.groups) == MOST_GROUPS:
                return RSP_ERROR
            self.groups.append(mac)
        elif mac in self.groups:
            self.groups.remove(mac)
        return RSP_OKAY

    def _frame(self, first: Any, extras: list[Any], rest: list[Any], pages: dict[int, bytearray]) -> str:
        """Deliver a frame; "" or the names under which it is counted."""
        if fault := self._fault(first, extras, rest):
            return fault
        gso = next((extra for extra in reversed(extras) if extra[0] != HASH), None)
        total = first[4]
        if gso is None and total > self.most:
            return "drop_oversize"
        sizes = [total - sum(one[4] for one in rest), *(one[4] for one in rest)]
        if any(one[0] not in pages for one in [first, *rest]):
            return "faults_grant drop_bad_address"
        frame = b"".join(bytes(pages[one[0]][one[1] : one[1] + n]) for one, n in zip([first, *rest], sizes, strict=True))
        blank = bool(first[2] & CSUM_BLANK) or gso is not None
        if not blank:
            return self._deliver(frame, [Delivery(frame)], [Delivery(frame)])
        packet = read(frame)
        if packet is None:
            return "faults_offload drop_bad_frame"
        padding = frame[len(packet.blank()) :]
        if gso is None:
            return self._deliver(frame, [Delivery(frame, RX_VALIDATED | RX_BLANK)], [Delivery(packet.filled() + padding)])
        wanted = {4: 1, 6: 2}[packet.version]
        if gso[3] != wanted or packet.protocol != TCP or padding or not packet.payload or gso[2] < 48:
            return "faults_offload drop_bad_frame"
        parts = packet.segments(gso[2])
        if len(parts[0].blank()) > self.most:
            return "drop_oversize"
        extra = struct.pack("<BBHBBH", 1, 0, gso[2], wanted, 0, 0)
        whole = Delivery(packet.blank(), RX_VALIDATED | RX_BLANK | EXTRA, extra)
        blanks = [Delivery(part.blank(), RX_VALIDATED | RX_BLANK) for part in parts]
        return self._deliver(frame, blanks, [Delivery(part.filled()) for part in parts], whole)

    def _fault(self, first: Any, extras: list[Any], rest: list[Any]) -> str:
        descriptor, chain, offload = (f"faults_{what} drop_bad_frame" for what in ("descriptor", "chain", "offload"))
        if first[2] & ~15:
            return descriptor
        for k, (kind, _, size, gso, _, _) in enumerate(extras):
            if k >= 4:
                return chain
            if kind == HASH or (len(extras) == 1 and kind in (ADD, DELETE)):
                continue
            if kind != 1 or size == 0 or gso not in (1, 2):
                return offload
        for k, (_, offset, flags, _, size) in enumerate(rest):
            if flags & ~15 or offset + size > PAGE_BYTES:
                return descriptor
            if size == 0 or k >= 17 or flags & EXTRA:
                return chain
        if len(extras) == 1 and extras[0][0] in (ADD, DELETE):
            return chain if rest else ""
        own = first[4] - sum(one[4] for one in rest)
        if rest and own < ETHERNET:
            return chain
        return descriptor if own < ETHERNET or first[1] + own > PAGE_BYTES else ""

    def _deliver(self, frame: bytes, blank: list[Delivery], filled: list[Delivery], whole: Delivery | None = None) -> str:
        name = self.receivers[frame[:6]]
        features = RECEIVERS.get(name)
        if features is None:  # the wire, or its sender
            self.got.setdefault(name, []).extend(filled)
            return "drop_same_port" if name == "bert" else ""
        frames = blank if "csum" in features else filled
        if whole is not None and features == RECEIVERS["whole"]:
            frames = [whole]
        if len(frames[0].content) > PAGE_BYTES and "sg" not in features:
            return "drop_small_buffer"
        self.got.setdefault(name, []).extend(frames)
        return ""
