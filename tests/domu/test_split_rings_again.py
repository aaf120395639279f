"""The split front end's rings after its back end was made anew, in one process: what is written again; a hostile one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from domu.device import BURST, FAILED, device_at, new_device, rx_poll, set_word, tx_commit, tx_pending, tx_reserve
from domu.frontends import split
from domu.frontends.split_again import begin_again, resend, settle, unanswered
from domu.frontends.split_rings import OPERATIONS
from domu.frontends.split_state import RX_SLOTS, TX_SLOTS
from hyp.abi.counters import COLUMNS, Count
from hyp.abi.fragment import CSUM_BLANK, GSO_TCPV4, MORE, SEGMENT_SHIFT
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import RSP_NULL, TXF_EXTRA_INFO, TXF_MORE_DATA
from hyp.abi.platform import PLATFORM_BYTES
from hyp.abi.ring import FIRST_SLOT, REQ_PROD, RSP_PROD
from hyp.atomics import load64
from hyp.events import new_wait
from hyp.kernels import entry, i64

PAGES = 2 + TX_SLOTS + RX_SLOTS + 1
GSO_FRAME = CSUM_BLANK | GSO_TCPV4 | (1448 << SEGMENT_SHIFT)


@entry(i64(i64, i64, i64))
def do_send(device: int, words: int, n: int) -> Any:
    """Send fragments with these words."""
    if tx_reserve(device, n) < n:
        return FAILED
    for k in range(n):
        set_word(device_at(device).tx, k, load64(words + 8 * k))
    return tx_commit(device, n)


@entry(i64(i64))
def do_pending(device: int) -> Any:
    return tx_pending(device)


@entry(i64(i64, i64))
def do_poll(device: int, want: int) -> Any:
    return rx_poll(device, want)


class World:
    """A front end with its rings; the test is the back end."""

    def __init__(self) -> None:
        memory = np.zeros((PAGES + 1) * PAGE_BYTES, np.uint8)
        address = -(-memory.ctypes.data // PAGE_BYTES) * PAGE_BYTES
        given = iter(range(0, PAGES * PAGE_BYTES, PAGE_BYTES))

        def allocate(size: int) -> int:
            first, *_ = (next(given) for _ in range(size // PAGE_BYTES))
            return first

        self.table = np.zeros(2 * PAGE_BYTES, np.uint8)
        guest: Any = SimpleNamespace(ram=SimpleNamespace(address=address, allocate=allocate))
        table: Any = SimpleNamespace(address=self.table.ctypes.data)
        self.front = split._Memory(guest, table)
        split._init_rings(self.front.address, self.front.ring_pages)
        self.counts, platform = np.zeros((2, COLUMNS + 8), np.int64), np.zeros(PLATFORM_BYTES, np.uint8)
        wait = new_wait(-1, platform.ctypes.data)
        rows = tuple(int(row.ctypes.data) for row in self.counts)
        self.device = new_device(OPERATIONS, self.front.address, "", 0, 2048, (rows[0], rows[1]), int(wait.ctypes.data), 0)
        row = self.device.record[0]
        row["fragment_room"], row["fragment_align"] = PAGE_BYTES, PAGE_BYTES
        begin = address - int(memory.ctypes.data)
        self.pages = [memory[begin + k * PAGE_BYTES : begin + (k + 1) * PAGE_BYTES] for k in range(2)]
        for name in ("tx_event_fd", "rx_event_fd"):
            self.front.record[0][name] = -1
        split._post_all_receives(self.device.address)
        self.keep = memory, platform, wait

    def send(self, *words: int) -> None:
        array = np.array(words, np.int64)
        assert do_send(self.device.address, int(array.ctypes.data), len(words)) == len(words)

    def word(self, page: int, at: int) -> int:
        return int(self.pages[page].view("<u4")[at // 4])

    def requests(self, since: int) -> list[tuple[int, ...]]:
        """Transmit slots from index `since` on: three words each."""
        slots = self.pages[0][FIRST_SLOT : FIRST_SLOT + TX_SLOTS * 12].view("<u4").reshape(TX_SLOTS, 3)
        return [tuple(slots[k % TX_SLOTS].tolist()) for k in range(since, self.word(0, REQ_PROD))]

    def answer(self, *answers: tuple[int, int]) -> None:
        """Transmit responses: id, status."""
        for number, status in answers:
            at = FIRST_SLOT + self.word(0, RSP_PROD) % TX_SLOTS * 12
            self.pages[0][at : at + 4].view("<u4")[0] = number | ((status & 0xFFFF) << 16)
            self.pages[0][RSP_PROD : RSP_PROD + 4].view("<u4")[0] += 1

    def deliver(self, frames: int) -> None:
        for _ in range(frames):
            index = self.word(1, RSP_PROD)
            at = FIRST_SLOT + index % RX_SLOTS * 8
            self.pages[1][at : at + 8].view("<u8")[0] = index % RX_SLOTS | (100 << 48)
            self.pages[1][RSP_PROD : RSP_PROD + 4].view("<u4")[0] += 1

    def again(self) -> int:
        device = self.device.address
        assert settle(device) == 0
        ids = unanswered(self.front.busy, int(self.front.record[0]["free_head"]))
        begin_again(device)
        return int(resend(device, int(ids.ctypes.data), len(ids)))


def test_whole_frames_in_their_order() -> None:
    world = World()
    world.send(60)
    world.send(4096 | MORE | GSO_FRAME, 4096 | MORE, 100)
    world.send(70)
    before = world.requests(0)
    assert len(before) == 6
    assert before[1][1] >> 16 & (TXF_EXTRA_INFO | TXF_MORE_DATA) == TXF_EXTRA_INFO | TXF_MORE_DATA
    world.answer((before[0][2] & 0xFFFF, 0))
    world.pages[0][FIRST_SLOT + 12 : FIRST_SLOT + TX_SLOTS * 12] = 0xAA  # what is there is nobody's word
    for _ in range(3):  # it dies again, and again
        assert world.again() == 2
        assert world.requests(world.word(0, RSP_PROD)) == before[1:]
    assert world.counts[0, Count.RESENT] == 6
    world.answer(*[(slot[2] & 0xFFFF, 0) if k != 1 else (0, RSP_NULL) for k, slot in enumerate(before[1:])])
    assert do_pending(world.device.address) == 0


def test_of_a_frame_answered_in_part_nothing_is_sent() -> None:
    world = World()
    world.send(4096 | MORE, 4096 | MORE, 100)
    world.send(80)
    before = world.requests(0)
    world.answer((before[1][2] & 0xFFFF, 0))
    assert world.again() == 1
    assert world.requests(world.word(0, RSP_PROD)) == before[3:]
    assert world.counts[0, Count.DROP_DOWN] == 1
    assert do_pending(world.device.address) == 1


def test_received_frames_stay_the_programs() -> None:
    """Those that were polled and not released, and those that were there: the new ring has so many requests less."""
    world = World()
    world.deliver(5)
    assert do_poll(world.device.address, 3) == 3
    assert world.again() == 0
    assert world.word(1, REQ_PROD) - world.word(1, RSP_PROD) == RX_SLOTS - 5
    assert do_poll(world.device.address, BURST) == 5
    world.deliver(2)
    assert do_poll(world.device.address, BURST) == 7


@pytest.mark.parametrize("hostile", ["unknown", "twice", "ahead"])
def test_a_hostile_back_end_after_it(hostile: str) -> None:
    world = World()
    world.send(60)
    assert world.again() == 1
    number = world.requests(world.word(0, RSP_PROD))[0][2] & 0xFFFF
    if hostile == "ahead":
        world.pages[0][RSP_PROD : RSP_PROD + 4].view("<u4")[0] += 100
    else:
        world.send(60)
        world.answer(*([(number, 0)] * 2 if hostile == "twice" else [(number + 7, 0)]))
    assert do_pending(world.device.address) == FAILED
    assert world.counts[0, Count.FAULTS_PROTOCOL] == 1
