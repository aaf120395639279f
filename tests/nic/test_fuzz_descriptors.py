"""Descriptors of every kind, good ones and lies in any mixture, against a slow model of the NIC: statuses, memory and counters.

The model takes one frame after the other and one page after the other, with numbers that do not wrap; the NIC takes runs and
windows, in 64 bits. Both have to agree on each completion, on the receiver's memory, and on every drop and fault by name.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from hyp.abi.counters import DROPS, FAULTS
from hyp.abi.nic import (
    DESC_MORE,
    DESC_SIGNALED,
    MAX_FRAME,
    MAX_LONE_FRAME,
    MIN_FRAME,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from tests.support.drivers import header
from tests.support.fuzz import TIERS, fuzz
from tests.support.guests import BROADCAST_MAC, JUST_BELOW_WRAP, NOBODY, WIRE_MAC, WRAP, Guest, completed, eventually
from tests.support.peers import Bench, bench_of

INPUTS: Final = 60
QUEUE: Final = 64
NAMES: Final = {column.name.lower() for column in (*DROPS, *FAULTS)}


@dataclass(frozen=True)
class Descriptor:
    """What a driver writes; `place` and `offset` become an address."""

    place: str
    offset: int
    length: int
    flags: int
    segment: int

    def addr(self, guest: Guest, slot: int) -> int:
        """The address, as u64, for the descriptor in `slot`."""
        base = {
            "send pool": guest.tx_pool + slot % QUEUE * PAGE,
            "receive pool": guest.rx_pool + slot % QUEUE * PAGE,
            "end of the pools": guest.free,
            "end of RAM": guest.mapping.size,
            "2**63": 1 << 63,
            "2**63 above": (1 << 63) + guest.rx_pool,
            "2**64": 1 << 64,
        }[self.place]
        return (base + self.offset) % (1 << 64)


class Model:
    """The NIC, frame by frame: what is sent by `sender`, with `receiver` on the same engine and a sink on the wire."""

    def __init__(self, sender: Guest, receiver: Guest) -> None:
        self.sender, self.receiver = sender, receiver
        self.buffers: deque[tuple[int, int, Descriptor]] = deque()  # index, address
        self.ram = bytearray(receiver.memory.tobytes())
        self.sent: list[tuple[int, int]] = []  # completions: index, status
        self.received: list[tuple[int, int, int]] = []  # completions: index, length, status
        self.counts: Counter[tuple[str, str]] = Counter()  # (guest, column)

    @staticmethod
    def may(guest: Guest, addr: int, length: int, *, write: bool) -> bool:
        """Whether the device may use each byte's page: what was registered is its queues' pages and both pools."""
        rings = [at for name, at in guest.places.items() if name.endswith("cq") or not write]
        pools = range(guest.rx_pool if write else guest.tx_pool, guest.free, PAGE)
        return {byte - byte % PAGE for byte in (*range(addr, addr + length, PAGE), addr + length - 1)} <= {*rings, *pools}

    def send(self, index: int, addr: int, descriptor: Descriptor) -> None:
        """One descriptor of the sender's."""
        status, drop = self.judge(addr, descriptor)
        if drop:
            self.counts[self.sender.name, drop] += 1
        if status != STATUS_OK or descriptor.flags & DESC_SIGNALED:
            self.sent.append((index, status))

    def judge(self, addr: int, descriptor: Descriptor) -> tuple[int, str]:
        """(status, name of the drop or "")."""
        sender, length = self.sender, descriptor.length
        if descriptor.flags & DESC_MORE:
            self.counts[sender.name, "faults_descriptor"] += 1
            return STATUS_BAD_FLAGS, "drop_bad_frame"
        if length == 0 or length > MAX_FRAME:
            self.counts[sender.name, "faults_descriptor"] += 1
            return STATUS_BAD_LENGTH, "drop_oversize" if length else "drop_bad_frame"
        if descriptor.flags not in (0, DESC_SIGNALED):
            self.counts[sender.name, "faults_descriptor"] += 1
            return STATUS_BAD_FLAGS, "drop_bad_frame"
        if descriptor.segment:
            self.counts[sender.name, "faults_offload"] += 1
            return STATUS_BAD_OFFLOAD, "drop_bad_frame"
        if not self.may(sender, addr, length, write=False):
            self.counts[sender.name, "faults_address"] += 1
            return STATUS_BAD_ADDRESS, "drop_bad_address"
        if not MIN_FRAME <= length <= MAX_LONE_FRAME:
            self.counts[sender.name, "faults_descriptor"] += 1
            return STATUS_BAD_LENGTH, "drop_oversize" if length > MAX_LONE_FRAME else "drop_bad_frame"
        frame = sender.read(addr, length)
        if frame[6:12] != header(NOBODY, sender.mac)[6:12]:
            return STATUS_SPOOFED, "drop_spoofed"
        if frame[0] & 1:
            drop = self.deliver(frame)
            if drop:  # the copy's, not the frame's, which the wire has
                self.counts[self.receiver.name, "drop_queue_full" if drop == "drop_no_buffer" else drop] += 1
            return STATUS_OK, ""
        if frame[:6] == header(sender.mac, NOBODY)[:6]:
            return STATUS_DROPPED, "drop_same_port"
        if frame[:6] != header(self.receiver.mac, NOBODY)[:6]:
            return STATUS_OK, ""  # the wire has what nobody has
        drop = self.deliver(frame)
        return STATUS_DROPPED if drop else STATUS_OK, drop

    def deliver(self, frame: bytes) -> str:
        """Into the receiver's next buffer. The name of the drop, or ""."""
        if not self.buffers:
            return "drop_no_buffer"
        index, addr, buffer = self.buffers.popleft()
        if buffer.length < len(frame) or buffer.flags or buffer.segment:
            self.counts[self.receiver.name, "faults_descriptor"] += 1
            self.received.append((index, 0, STATUS_BAD_LENGTH))
            return "drop_small_buffer"
        if not self.may(self.receiver, addr, len(frame), write=True):
            self.counts[self.receiver.name, "faults_address"] += 1
            self.received.append((index, 0, STATUS_BAD_ADDRESS))
            return "drop_bad_address"
        self.ram[addr : addr + len(frame)] = frame
        self.received.append((index, len(frame), STATUS_OK))
        return ""


def write_frame(sender: Guest, receiver: Guest, addr: int, length: int, to: str, number: int) -> None:
    """Put a frame where a descriptor points, as far as that is a place in the pools."""
    targets = {"receiver": receiver.mac, "itself": sender.mac, "wire": WIRE_MAC, "nobody": NOBODY, "all": BROADCAST_MAC}
    source = receiver.mac if to == "spoofed" else sender.mac
    content = header(targets.get(to, receiver.mac), source) + bytes((number + k) % 251 for k in range(min(length, MAX_LONE_FRAME)))
    if sender.tx_pool <= addr < sender.free:
        sender.write(addr, content[: min(length, sender.free - addr)])


def faults_and_drops(bench: Bench, guest: Guest) -> dict[str, int]:
    return {column: n for column, n in bench.of(guest).items() if column in NAMES}


def exchange(case: Any, seen: Counter[str]) -> None:
    """Post a case's buffers and frames, compare all that comes of it, and let the sender's index run away at the end."""
    start, buffers, frames, (queue, ahead) = case
    with bench_of(2, start=start, queue=QUEUE, pause_us=0) as (bench, sender, receiver):
        model = Model(sender, receiver)
        for slot, buffer in enumerate(buffers):
            addr = buffer.addr(receiver, slot)
            model.buffers.append(((start + slot) % WRAP, addr, buffer))
            receiver.post_buffer(addr, buffer.length, buffer.flags)
            receiver.rq[(start + slot) % QUEUE]["segment"] = buffer.segment
        receiver.ring_buffers()
        addresses = [frame.addr(sender, slot) for slot, (frame, _) in enumerate(frames)]
        for slot, (frame, to) in enumerate(frames):
            write_frame(sender, receiver, addresses[slot], frame.length, to, slot)
        for addr, (frame, _) in zip(addresses, frames, strict=True):
            model.send(sender.post(addr, frame.length, frame.flags, frame.segment), addr, frame)
        sender.ring()
        assert completed(sender, len(model.sent)) == model.sent
        cqes = [cqe.tolist()[:3] for cqe in receiver._completions(receiver.rcq, "rcq_cons", "rcq_event", len(model.received))]
        assert cqes == model.received
        bench.at_rest(len(frames))
        assert receiver.waiting() == 0
        pools = slice(receiver.tx_pool, receiver.mapping.size)
        assert receiver.memory[pools].tobytes() == model.ram[pools]
        for guest in (sender, receiver):
            assert faults_and_drops(bench, guest) == {name: n for (who, name), n in model.counts.items() if who == guest.name}
        seen.update(name for _, name in model.counts.elements())
        seen.update(f"status {status}" for _, status in model.sent)
        run_away(bench, sender, receiver, queue, ahead)
        seen["faults_protocol"] += 1
        seen["drop_down"] += 1


def run_away(bench: Bench, guilty: Guest, other: Guest, queue: str, ahead: int) -> None:
    """A producer index beyond what the queue has room for: the context is out of service, and frames for it drop by name."""
    before = bench.of(guilty).get("faults_protocol", 0)
    guilty.words[queue] = (int(guilty.words[queue]) + ahead) % WRAP
    guilty.kick()
    if queue == "sq_prod":  # else nothing but a frame has the NIC look at it
        eventually(lambda: bench.of(guilty).get("faults_protocol") == before + 1, "the context to fail")
    other.send(other.frame(guilty.mac))
    assert other.sent(1) == [STATUS_DROPPED]
    bench.sync()  # counts are published after the completion
    assert faults_and_drops(bench, other).get("drop_down") == 1
    assert bench.of(guilty)["faults_protocol"] == before + 1 == 1


LENGTHS: Final = st.one_of(
    st.sampled_from([64, 64, 64, 1514, MIN_FRAME, MAX_LONE_FRAME]), st.integers(MIN_FRAME, MAX_LONE_FRAME),
    st.sampled_from([0, 1, MIN_FRAME - 1, MAX_LONE_FRAME + 1, 1 << 16, (1 << 16) + 64, 1 << 31, WRAP - 1]),
)  # fmt: skip
OFFSETS: Final = st.one_of(st.just(0), st.integers(0, PAGE - 1), st.integers(-100, 0))
ELSEWHERE: Final = ("end of the pools", "end of RAM", "2**63", "2**63 above", "2**64")


def descriptors(place: str, lengths: st.SearchStrategy[int], flags: st.SearchStrategy[int]) -> st.SearchStrategy[Descriptor]:
    """Mostly good ones in the pool `place`."""
    places = st.sampled_from([place] * 14 + ["send pool", "receive pool", *ELSEWHERE])
    odd = st.sampled_from([0] * 15 + [1, 0x8000])
    return st.builds(Descriptor, places, OFFSETS, lengths, flags, odd)


FRAMES: Final = st.tuples(
    descriptors("send pool", LENGTHS, st.sampled_from([0] * 8 + [DESC_SIGNALED] * 8 + [2, 0x8001, 0xFFFF])),
    st.sampled_from(["receiver"] * 10 + ["itself", "wire", "wire", "nobody", "all", "spoofed"]),
)
GOOD: Final = st.just((Descriptor("send pool", 0, 64, 0, 0), "receiver"))
BUFFERS: Final = descriptors(
    "receive pool", st.sampled_from([PAGE] * 12 + [MAX_LONE_FRAME, 1514, 64, 63, 0, WRAP - 1]), st.sampled_from([0] * 15 + [1])
)
CASES: Final = st.tuples(
    st.sampled_from([0, JUST_BELOW_WRAP]),
    st.lists(BUFFERS, max_size=QUEUE),
    st.one_of(*(st.lists(st.one_of(FRAMES, GOOD), min_size=least, max_size=QUEUE) for least in (1, 30))),
    st.tuples(
        st.sampled_from(["sq_prod", "rq_prod"]), st.one_of(st.integers(QUEUE + 1, WRAP - 1), st.just(QUEUE + 1), st.just(WRAP - 1))
    ),
)
STATUSES: Final = (
    STATUS_OK,
    STATUS_BAD_OFFLOAD,
    STATUS_BAD_LENGTH,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_SPOOFED,
    STATUS_DROPPED,
)
NOT_THE_NICS: Final = {
    "faults_grant",
    "drop_tap",
    "faults_chain",
    "drop_no_route",
    "drop_storm",
}  # Dom0's, a TAP's: the wire has what nobody has, and there is no limit on broadcasts


@TIERS
def test_the_nic_does_what_the_model_does_with_any_descriptors(examples: int) -> None:
    seen: Counter[str] = Counter()
    fuzz(lambda case: exchange(case, seen), CASES, INPUTS * examples)
    print(dict(seen))
    assert seen.keys() == (NAMES - NOT_THE_NICS) | {f"status {status}" for status in STATUSES}
