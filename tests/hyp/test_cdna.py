"""The hypercalls of path cdna: what they refuse, what they pin, and what a guest that goes round them reaches."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.abi.counters import (
    COLUMNS,
    FAULTS_ADDRESS,
    FAULTS_CHAIN,
    FAULTS_DESCRIPTOR,
    FAULTS_PROTOCOL,
    HYPERCALLS,
    RX_BYTES,
    RX_FRAMES,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO_TCPV4, MORE, SEGMENT_SHIFT, SIGNALED
from hyp.abi.nic import (
    CQE,
    DESC,
    DESC_MORE,
    DESC_SIGNALED,
    MAX_FRAGMENTS,
    MAX_LONE_FRAME,
    MIN_FRAME,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_OK,
)
from hyp.abi.platform import PLATFORM_BYTES
from hyp.control import Refused, close_all
from hyp.kernels import entry, i64
from hyp.memory import Mapping
from hyp.monitor.cdna import (
    CDNA,
    DONE_RECEIVES,
    DONE_SENDS,
    ENQUEUED_SENDS,
    OUT_OF_SEQUENCE,
    PINS,
    RECEIVE_LOG,
    SEND_LOG,
    cdna_at,
    enqueue_receives,
    enqueue_sends,
    table_bytes,
)
from hyp.offload.frame import PIECES_BYTES
from hyp.verbs import QP
from tests.support.peers import Bench

ENTRIES = 64
RAM = 64 * PAGE
MASK64 = (1 << 64) - 1


@entry(i64(i64, i64, i64, i64))
def _sends(call: int, requests: int, sequence: int, n: int) -> int:
    return enqueue_sends(cdna_at(call), requests, sequence, n)


@entry(i64(i64, i64, i64, i64))
def _receives(call: int, requests: int, sequence: int, n: int) -> int:
    return enqueue_receives(cdna_at(call), requests, sequence, n)


class Caller:
    """A guest's queues, a pin table and the hypervisor's record of it; the NIC is played by `complete`."""

    def __init__(self) -> None:
        self.table = np.zeros(table_bytes(RAM), np.uint8)
        self.counts, self.platform = np.zeros(COLUMNS, np.int64), np.zeros(PLATFORM_BYTES, np.uint8)
        self.sq, self.rq = np.zeros(ENTRIES, DESC), np.zeros(ENTRIES, DESC)
        self.scq, self.rcq = np.zeros(ENTRIES, CQE), np.zeros(ENTRIES, CQE)
        self.qp, self.call = np.zeros(1, QP), np.zeros(1, CDNA)
        for name in ("sq", "rq", "scq", "rcq"):
            self.qp[0][name] = getattr(self, name).ctypes.data
        self.qp[0]["sq_size"] = self.qp[0]["rq_size"] = ENTRIES
        self.qp[0]["counts"] = self.counts.ctypes.data
        row = self.call[0]
        row["table"], row["qp"], row["ram_bytes"] = self.table.ctypes.data, self.qp.ctypes.data, RAM
        self.chain = np.zeros(PIECES_BYTES + 64, np.uint8)
        row["chain"] = self.chain.ctypes.data
        row["platform"], row["counts"] = self.platform.ctypes.data, self.counts.ctypes.data
        self._completed = {"scq": 0, "rcq": 0}

    def enqueue(self, entry_point: Any, requests: list[tuple[int, int]], sequence: int) -> int:
        """`requests`: (address, length), any 64 bits each."""
        words = np.array([(addr & MASK64, length & MASK64) for addr, length in requests], np.uint64).reshape(-1, 2)
        return int(entry_point(self.call.ctypes.data, words.ctypes.data, sequence, len(requests)))

    def complete(self, ring: str, index: int, status: int = STATUS_OK, length: int = 64, flags: int = 0) -> None:
        """The NIC's completion of descriptor `index`."""
        at = self._completed[ring]
        owner = 0 if at & ENTRIES else 1
        getattr(self, ring)[at % ENTRIES] = (index, length, status, flags, owner, 0)
        self._completed[ring] = at + 1

    def word(self, offset: int) -> int:
        return int(self.table[offset : offset + 8].view(np.uint64)[0])

    @property
    def pins(self) -> list[int]:
        return [int(n) for n in self.table[PINS : PINS + 2 * (RAM // PAGE)].view(np.uint16)]


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_a_batch_is_written_pinned_and_numbered(caller: Caller) -> None:
    assert caller.enqueue(_sends, [(0x1000, 64), (0x1FF0, 100), (0x3000, MAX_LONE_FRAME)], 0) == 3
    assert [(int(d["addr"]), int(d["length"]), int(d["flags"])) for d in caller.sq[:3]] == [
        (0x1000, 64, 0), (0x1FF0, 100, 0), (0x3000, MAX_LONE_FRAME, DESC_SIGNALED),
    ]  # fmt: skip
    assert caller.pins[:5] == [0, 2, 1, 1, 0]
    assert caller.word(ENQUEUED_SENDS) == 3
    assert caller.counts[HYPERCALLS] == 1, "one hypercall a batch"
    assert caller.counts[TX_FRAMES] == 3


def test_pages_are_unpinned_once_the_nic_is_done_and_the_next_call_sees_it(caller: Caller) -> None:
    caller.enqueue(_sends, [(0x1000, 64), (0x1FF0, 100)], 0)
    caller.complete("scq", 1)
    assert caller.enqueue(_sends, [], 2) == 0
    assert sum(caller.pins) == 0
    assert caller.word(DONE_SENDS) == 2


def test_buffers_are_unpinned_when_they_are_filled(caller: Caller) -> None:
    caller.enqueue(_receives, [(k * PAGE, 2048) for k in range(1, 9)], 0)
    assert sum(caller.pins) == 8
    for index in range(3):
        caller.complete("rcq", index)
    assert caller.enqueue(_receives, [(k * PAGE, 2048) for k in range(1, 4)], 8) == 3
    assert sum(caller.pins) == 8
    assert caller.word(DONE_RECEIVES) == caller.counts[RX_FRAMES] == 3


BAD = [
    ((RAM, 64), FAULTS_ADDRESS), ((RAM - 63, 64), FAULTS_ADDRESS), ((-1, 64), FAULTS_ADDRESS), ((1 << 63, 64), FAULTS_ADDRESS),
    (((1 << 64) - 32, 64), FAULTS_ADDRESS), ((0x1000, 0), FAULTS_DESCRIPTOR), ((0x1000, MIN_FRAME - 1), FAULTS_DESCRIPTOR),
    ((0x1000, MAX_LONE_FRAME + 1), FAULTS_DESCRIPTOR), ((0x1000, -1), FAULTS_DESCRIPTOR),
    ((0x1000, 64 | DESC_SIGNALED << 32), FAULTS_DESCRIPTOR),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "fault"), BAD, ids=[f"{addr:#x}+{length}" for (addr, length), _ in BAD])
def test_a_bad_request_ends_the_batch_and_pins_nothing(caller: Caller, request_: tuple[int, int], fault: int) -> None:
    assert caller.enqueue(_sends, [(0x1000, 64), request_, (0x2000, 64)], 0) == 1
    assert caller.counts[fault] == 1
    assert sum(caller.pins) == 1
    assert caller.word(ENQUEUED_SENDS) == 1
    assert caller.enqueue(_sends, [(0x2000, 64)], 1) == 1, "the next good batch is taken"


OFFLOAD = CSUM_BLANK | GSO_TCPV4 | (1448 << SEGMENT_SHIFT)


def chain(*lengths: int, first: int = 0) -> list[tuple[int, int]]:
    """Requests for one frame, a page for each fragment; `first`: its offload word."""
    return [
        ((k % 60 + 1) * PAGE, length | (MORE if k < len(lengths) - 1 else 0) | (first if k == 0 else 0))
        for k, length in enumerate(lengths)
    ]


def test_a_chain_is_written_pinned_and_numbered_as_one_frame(caller: Caller) -> None:
    assert caller.enqueue(_sends, [(0x8000, 64), *chain(1000, 1, 4000, first=OFFLOAD), *chain(14, 50)], 0) == 6
    assert [tuple(int(d[name]) for name in ("addr", "length", "flags", "segment")) for d in caller.sq[:6]] == [
        (0x8000, 64, 0, 0), (0x1000, 1000, OFFLOAD >> 32 & 0xFFFF | DESC_MORE, 1448), (0x2000, 1, DESC_MORE, 0),
        (0x3000, 4000, 0, 0), (0x1000, 14, DESC_MORE, 0), (0x2000, 50, DESC_SIGNALED, 0),
    ]  # fmt: skip
    assert caller.pins[:9] == [0, 2, 2, 1, 0, 0, 0, 0, 1]
    assert caller.word(ENQUEUED_SENDS) == 6
    assert (caller.counts[TX_FRAMES], caller.counts[TX_BYTES]) == (3, 64 + 5001 + 64)
    caller.complete("scq", 5)
    caller.enqueue(_sends, [], 6)
    assert sum(caller.pins) == 0


LONGEST_CHAIN = [14, *[1] * (MAX_FRAGMENTS - 1)]
BAD_CHAINS = {
    "no end": ([(0x1000, 64 | MORE)], FAULTS_CHAIN),
    "too many": (chain(*LONGEST_CHAIN, 1), FAULTS_CHAIN),
    "an empty one": (chain(64, 0, 64), FAULTS_CHAIN),
    "no header in the first": (chain(13, 64), FAULTS_CHAIN),
    "too long in all": (chain(*[4000] * 17), FAULTS_DESCRIPTOR),
    "a fragment too long": (chain(64, MAX_LONE_FRAME + 1), FAULTS_DESCRIPTOR),
    "signalled": ([(0x1000, 64 | MORE), (0x2000, 64 | SIGNALED)], FAULTS_DESCRIPTOR),
    "an offload in the second": ([(0x1000, 64 | MORE), (0x2000, 64 | CSUM_BLANK)], FAULTS_DESCRIPTOR),
    "an unknown flag": (chain(64, 64, first=CSUM_VALID), FAULTS_DESCRIPTOR),
    "another": (chain(64, 64, first=1 << 40), FAULTS_DESCRIPTOR),
    "beyond RAM": ([(0x1000, 64 | MORE), (RAM - 63, 64)], FAULTS_ADDRESS),
}


@pytest.mark.parametrize("which", BAD_CHAINS)
def test_a_chain_that_is_no_good_ends_the_batch_and_pins_nothing(caller: Caller, which: str) -> None:
    requests, fault = BAD_CHAINS[which]
    follows = [] if which == "no end" else [(0x1000, 64)]
    assert caller.enqueue(_sends, [*chain(64, 64), *requests, *follows], 0) == 2
    assert caller.counts[[FAULTS_ADDRESS, FAULTS_CHAIN, FAULTS_DESCRIPTOR]].sum() == caller.counts[fault] == 1
    assert sum(caller.pins) == caller.word(ENQUEUED_SENDS) == 2
    assert not caller.chain[PIECES_BYTES:].any(), "nothing was copied beyond the room for a chain"
    assert caller.enqueue(_sends, chain(*LONGEST_CHAIN), 2) == MAX_FRAGMENTS, "the next good batch is taken"


def test_a_chain_that_the_ring_has_no_room_for_is_left_whole(caller: Caller) -> None:
    assert caller.enqueue(_sends, [*[(0x1000, 64)] * (ENTRIES - 2), *chain(64, 64, 64)], 0) == ENTRIES - 2
    assert sum(caller.pins) == ENTRIES - 2
    assert caller.counts[[FAULTS_ADDRESS, FAULTS_CHAIN, FAULTS_DESCRIPTOR]].sum() == 0, "it is nobody's fault"


def test_a_frame_received_over_several_buffers_counts_once(caller: Caller) -> None:
    caller.enqueue(_receives, [(k * PAGE, 2048) for k in range(1, 9)], 0)
    for index, flags in enumerate((DESC_MORE, DESC_MORE, 0, 0)):
        caller.complete("rcq", index, length=100, flags=flags)
    caller.enqueue(_receives, [], 8)
    assert (caller.counts[RX_FRAMES], caller.counts[RX_BYTES]) == (2, 400)
    assert sum(caller.pins) == 4


@pytest.mark.parametrize("entry_point", [_sends, _receives], ids=["sends", "receives"])
@pytest.mark.parametrize("sequence", [0, 2, 1 << 40, -1, 1 << 62])
def test_what_is_out_of_sequence_is_refused_whole(caller: Caller, entry_point: Any, sequence: int) -> None:
    assert caller.enqueue(entry_point, [(0x1000, 64)], 0) == 1
    before = caller.table.copy()
    assert caller.enqueue(entry_point, [(0x2000, 64)], sequence) == OUT_OF_SEQUENCE
    assert caller.counts[FAULTS_PROTOCOL] == 1
    assert (caller.table == before).all()


@pytest.mark.parametrize("entry_point", [_sends, _receives], ids=["sends", "receives"])
def test_no_more_than_the_ring_holds(caller: Caller, entry_point: Any) -> None:
    assert caller.enqueue(entry_point, [(0x1000, 64)] * (ENTRIES + 5), 0) == ENTRIES
    assert caller.enqueue(entry_point, [(0x1000, 64)], ENTRIES) == 0


@pytest.mark.parametrize(("log", "ring"), [(SEND_LOG, "scq"), (RECEIVE_LOG, "rcq")])
@pytest.mark.parametrize("nonsense", [MASK64, 1 << 63, RAM // PAGE | 1 << 32, RAM // PAGE - 1 | 2 << 32, 1 | 3 << 32, 0])
def test_a_corrupt_log_unpins_nothing_beyond_the_table(caller: Caller, log: int, ring: str, nonsense: int) -> None:
    """The log lies where a hostile guest can write: what it says of pages outside RAM is not believed."""
    entry_point = _sends if ring == "scq" else _receives
    caller.enqueue(entry_point, [(0x1000, 64)], 0)
    caller.table[log : log + 8].view(np.uint64)[0] = nonsense
    caller.complete(ring, 0)
    before = caller.pins
    caller.enqueue(entry_point, [], 1)
    assert caller.pins == before


requests_ = st.tuples(
    st.one_of(st.integers(0, RAM), st.sampled_from([RAM - 64, RAM - 1, MASK64, 1 << 63])),
    st.one_of(st.integers(MIN_FRAME, 2100), st.sampled_from([0, 1, MAX_LONE_FRAME, MAX_LONE_FRAME + 1, 1 << 32, MASK64])),
)
steps = st.lists(st.one_of(st.lists(requests_, max_size=20), st.integers(0, ENTRIES)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_pins_are_those_of_a_slow_model(script: list[Any]) -> None:
    """Enqueue batches of anything, complete any number of what is under way: at each call the pins are the model's."""
    caller, pending, done = Caller(), list[tuple[int, int]](), 0
    sequence = 0
    for step in script:
        if isinstance(step, int):
            finish = min(step, len(pending))
            if finish:
                done += finish
                caller.complete("scq", done - 1)
                del pending[:finish]
            continue
        good = 0
        for addr, length in step:
            if good + len(pending) >= ENTRIES or not (MIN_FRAME <= length <= MAX_LONE_FRAME and addr + length <= RAM):
                break
            good += 1
        assert caller.enqueue(_sends, step, sequence) == good
        sequence += good
        pending += step[:good]
        expected = [0] * (RAM // PAGE)
        for addr, length in pending:
            for page in range(addr // PAGE, (addr + length - 1) // PAGE + 1):
                expected[page] += 1
        assert caller.pins == expected
    assert caller.word(ENQUEUED_SENDS) == sequence


# --- on a NIC ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def test_the_pin_table_is_for_contexts_that_the_iommu_lets_through(bench: Bench) -> None:
    bench.passed_through.add(1)
    enqueued, checked = bench.guest(), bench.guest()
    reply = enqueued.call("cdna_attach", context=enqueued.context)
    table = Mapping(reply.fds[0], table_bytes(enqueued.ram.size))
    assert table.size % mmap.PAGESIZE == 0
    close_all(reply.fds)
    with pytest.raises(Refused, match="is checked by the IOMMU, not by hypercalls") as caught:
        checked.call("cdna_attach", context=checked.context)
    assert caught.value.name == "EPERM"
    with pytest.raises(Refused, match="it has no such context"):
        enqueued.call("cdna_attach", context=checked.context)


def test_a_guest_that_writes_its_ring_itself_reaches_nobodys_memory_but_its_own(bench: Bench) -> None:
    bench.passed_through.add(1)
    mallory, anna, bert = bench.guest(), bench.guest(), bench.guest()
    table = mallory.call("cdna_attach", context=mallory.context)
    pins = Mapping(table.fds[0], table_bytes(mallory.ram.size))
    close_all(table.fds)
    pins.array[:] = 0xFF  # its own, and nobody else's
    for beyond in (mallory.ram.size, mallory.ram.size - 32, 1 << 62, (1 << 64) - 64):
        assert mallory.send_one(beyond, 64) == STATUS_BAD_ADDRESS, hex(beyond)
    bert.post_buffers(4)
    anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(4)))
    assert anna.sent(4) == [STATUS_OK] * 4
    assert [(status, frame) for status, frame in bert.take(4)] == [
        (STATUS_OK, anna.frame(bert.mac, sequence=k)) for k in range(4)
    ]  # fmt: skip
