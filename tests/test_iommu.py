"""IOMMU tables, pins, and the shootdown: nothing is read through a translation that was taken away."""

import asyncio
import mmap
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hyp.abi.domids import DOMID_NIC
from hyp.abi.nic import DESC_SIGNALED, MAX_FRAME, PAGE, STATUS_BAD_ADDRESS, STATUS_OK
from hyp.abi.platform import EPOCH, PLATFORM_BYTES, SHOOTDOWN_REQUEST
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    epoll_sleep,
    full_fence,
    load64_acquire,
    load64_once,
    memcpy,
    store64_once,
    store64_release,
)
from hyp.control import Refused
from hyp.iommu import READ, RIGHTS, WRITE, IommuTable, Shootdown, translate
from hyp.kernels import entry, i64
from hyp.memory import Mapping, create_region
from hyp.ram import register
from hyp.verbs import post_send, qp_at, ring_sends, send_room, poll_sends
from tests.peers import FINISHED, STALLED, STALL_NS, STOPPED, TIMEOUT_S, WIRE_MAC, Bench, Guest, Loop, bench_of, eventually, job_at

PAGES = 16
LOST, DONE = -1, 0


@entry(i64(i64, i64, i64, i64, i64, i64))
def look_up(table: int, table_pages: int, ram: int, ram_pages: int, iova: int, rights: int) -> int:
    """`translate`, from Python."""
    return translate(table, table_pages, ram, ram_pages, iova, rights)


class Table:
    """A table and RAM that is nothing but an address."""

    RAM = 0x10_0000_0000

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PAGE)
        self.words = np.frombuffer(self._memory, "<u8")
        self.address = int(self.words.ctypes.data)
        region = create_region("sealed", "iommu", "test", "table", PAGE)
        self.mapping = region.map()
        region.close()
        self.iommu = IommuTable(self.mapping, PAGES)

    def __call__(self, iova: int, rights: int = READ, ram_pages: int = PAGES) -> int | None:
        """Offset in RAM that `iova` leads to, or None."""
        found = int(look_up(self.mapping.address, PAGES, self.RAM, ram_pages, iova, rights))
        return found - self.RAM if found else None

    def rights(self) -> str:
        """For each page: ``.`` nothing, ``r`` read, ``w`` read and write."""
        words = self.mapping.words("<u8", 0, PAGES)
        assert all(int(word) >> 12 == page for page, word in enumerate(words) if word)
        return "".join(".r?w"[int(word) & 3] for word in words)


@pytest.fixture
def table() -> Table:
    return Table()


# --- the table -------------------------------------------------------------------------------------------------------


def test_an_empty_table_translates_nothing(table: Table) -> None:
    assert all(table(iova, rights) is None for iova in range(0, PAGES * PAGE, PAGE // 2) for rights in (READ, WRITE, RIGHTS))


def test_translation_has_the_rights_of_the_registration(table: Table) -> None:
    table.iommu.register(2 * PAGE, PAGE, writable=False)
    table.iommu.register(3 * PAGE, 2 * PAGE, writable=True)
    for iova, rights, expected in (
        (2 * PAGE, READ, True), (2 * PAGE, WRITE, False), (2 * PAGE, RIGHTS, False), (3 * PAGE - 1, READ, True),
        (3 * PAGE, WRITE, True), (5 * PAGE - 1, RIGHTS, True), (5 * PAGE, READ, False), (2 * PAGE - 1, READ, False),
    ):  # fmt: skip
        assert table(iova, rights) == (iova if expected else None)


@pytest.mark.parametrize("iova", [-1, -PAGE, -(1 << 63), PAGES * PAGE, 1 << 32, 1 << 52, (1 << 63) - 1])
def test_no_translation_outside_the_table(table: Table, iova: int) -> None:
    table.iommu.register(0, PAGES * PAGE, writable=True)
    assert table(iova) is None


def test_a_frame_beyond_ram_is_never_reached(table: Table) -> None:
    words = table.mapping.words("<u8", 0, PAGES)
    for frame in (PAGES, PAGES + 1, 1 << 40, (1 << 52) - 1):
        words[4] = (frame << 12) | RIGHTS
        assert table(4 * PAGE) is None
    words[4] = ((PAGES - 1) << 12) | RIGHTS
    assert table(4 * PAGE + 5) == (PAGES - 1) * PAGE + 5
    assert table(4 * PAGE + 5, ram_pages=PAGES - 1) is None


def test_pages_stay_pinned_until_the_last_registration_goes(table: Table) -> None:
    iommu = table.iommu
    iommu.register(PAGE, 4 * PAGE, writable=False)
    iommu.register(2 * PAGE, PAGE, writable=True)
    iommu.register(2 * PAGE, 2 * PAGE, writable=False)
    assert table.rights() == ".rwrr..........."
    assert iommu.deregister(2 * PAGE, 2 * PAGE, writable=False) is False
    assert table.rights() == ".rwrr..........."
    assert iommu.deregister(2 * PAGE, PAGE, writable=True) is True, "the right to write went away"
    assert table.rights() == ".rrrr..........."
    assert iommu.deregister(PAGE, 4 * PAGE, writable=False) is True
    assert table.rights() == "." * PAGES


def test_registrations_in_any_order_agree_with_a_slow_model(table: Table) -> None:
    rng = random.Random(4)
    held: list[tuple[int, int, bool]] = []
    for _ in range(400):
        before = table.rights()
        due = None
        if held and rng.random() < 0.5:
            first, count, writable = held.pop(rng.randrange(len(held)))
            due = table.iommu.deregister(first * PAGE, count * PAGE, writable=writable)
        else:
            first = rng.randrange(PAGES)
            held.append((first, rng.randint(1, PAGES - first), rng.random() < 0.5))
            table.iommu.register(held[-1][0] * PAGE, held[-1][1] * PAGE, writable=held[-1][2])
        model = ["."] * PAGES
        for first, count, writable in held:
            for page in range(first, first + count):
                model[page] = "w" if writable or model[page] == "w" else "r"
        assert table.rights() == "".join(model)
        if due is False:
            assert table.rights() == before, "a right went away and no shootdown was asked for"


@pytest.mark.parametrize(("addr", "length"), [
    (-PAGE, PAGE), (0, 0), (0, -PAGE), (PAGES * PAGE, PAGE), (0, (PAGES + 1) * PAGE), ((PAGES - 1) * PAGE, 2 * PAGE),
    (1, PAGE), (0, 1), (PAGE, PAGE + 1), (1 << 64, PAGE), (PAGE, (1 << 64) - PAGE), ((1 << 63), 1 << 63),
])  # fmt: skip
def test_bad_ranges_are_refused_and_change_nothing(table: Table, addr: int, length: int) -> None:
    with pytest.raises(ValueError, match="is not"):
        table.iommu.register(addr, length, writable=True)
    assert table.rights() == "." * PAGES


def test_clear_takes_everything_away(table: Table) -> None:
    table.iommu.register(0, PAGES * PAGE, writable=True)
    table.iommu.clear()
    assert table.rights() == "." * PAGES
    table.iommu.register(PAGE, PAGE, writable=False)
    assert table.rights() == ".r" + "." * (PAGES - 2)


def test_hypercalls_check_what_a_guest_says() -> None:
    with Bench() as bench:
        guest = bench.domain()
        bad: list[dict[str, Any]] = [
            {"addr": -PAGE, "length": PAGE}, {"addr": 1, "length": PAGE}, {"addr": 0, "length": 1 << 20 << 1},
            {"addr": "0", "length": PAGE}, {"addr": 0.0, "length": PAGE}, {"addr": True, "length": PAGE}, {"addr": [], "length": {}},
        ]  # fmt: skip
        for args in bad:
            with pytest.raises(Refused) as refused:
                guest.call("mr_register", writable=True, **args)
            assert refused.value.name == "EINVAL"
        key = guest.call("mr_register", addr=PAGE, length=PAGE, writable=True).value["key"]
        for other in (key + 1, -1, "1", None, 1 << 63):
            with pytest.raises(Refused) as refused:
                guest.call("mr_deregister", key=other)
            assert refused.value.name == "ENOENT"
        guest.call("mr_deregister", key=key)
        with pytest.raises(Refused):
            guest.call("mr_deregister", key=key)
        stranger = bench.domain()
        mine = guest.call("mr_register", addr=PAGE, length=PAGE, writable=True).value["key"]
        with pytest.raises(Refused):
            stranger.call("mr_deregister", key=mine)


# --- the shootdown alone ---------------------------------------------------------------------------------------------


class Pages:
    """A platform page and engine pages whose engines are the test."""

    def __init__(self, engines: int) -> None:
        regions = [create_region("sealed", "iommu", "test", f"page{k}", PAGE) for k in range(engines + 1)]
        self.platform, *self.engines = (region.map() for region in regions)
        for region in regions:
            region.close()
        assert self.platform.size >= PLATFORM_BYTES

    def set_epochs(self, *epochs: int) -> None:
        for page, epoch in zip(self.engines, epochs, strict=True):
            page.words("<u8", EPOCH, 1)[0] = epoch

    @property
    def requests(self) -> int:
        return int(self.platform.words("<u8", SHOOTDOWN_REQUEST, 1)[0])


def test_a_shootdown_waits_for_engines_in_a_batch_only() -> None:
    pages = Pages(3)
    pages.set_epochs(4, 7, 9)
    wait = Shootdown(pages.platform, pages.engines)
    assert pages.requests == 1
    assert not wait.is_over()
    pages.set_epochs(5, 7, 10)
    assert not wait.is_over()
    pages.set_epochs(5, 9, 11)  # the second went straight into its next batch
    assert wait.is_over()
    assert wait.is_over()


def test_a_shootdown_of_idle_engines_is_over_at_once() -> None:
    pages = Pages(2)
    pages.set_epochs(0, 8)
    assert Shootdown(pages.platform, pages.engines).is_over()
    assert Shootdown(pages.platform, []).is_over()
    assert pages.requests == 2


# --- under load ------------------------------------------------------------------------------------------------------


@entry(i64(i64, i64, i64, i64, i64, i64))
def shoot(platform: int, page: int, epoll: int, rounds: int, until_ns: int, gap: int) -> int:
    """The hypervisor's half, in a loop: ask, and if the engine is in a batch wait for its signal. Rounds done, or LOST.

    As `Devices.shootdown` does, it looks at the epoch when it was signalled, and not without.
    """
    for turn in range(rounds):
        full_fence()
        store64_release(platform + SHOOTDOWN_REQUEST, load64_once(platform + SHOOTDOWN_REQUEST) + 1)
        full_fence()
        epoch = load64_acquire(page + EPOCH)
        while epoch & 1 and load64_acquire(page + EPOCH) == epoch:
            if epoll_sleep(epoll, 3_000_000_000) == 0:
                return LOST
        for _ in range(turn % gap):
            cpu_relax()
        if clock_ns() > until_ns:
            return turn + 1
    return rounds


@pytest.fixture
def loaded() -> Iterator[tuple[Bench, Guest, Loop]]:
    """A NIC that sends 4000-byte frames to the wire as fast as it can."""
    with bench_of(1) as (bench, anna):
        yield bench, anna, anna.traffic(WIRE_MAC, 1 << 50, length=4000)


def test_every_shootdown_under_load_is_signalled(loaded: tuple[Bench, Guest, Loop]) -> None:
    bench, _, sender = loaded
    devices = bench.devices

    async def quiet() -> None:
        asyncio.get_running_loop().remove_reader(devices._past_batch.epoll.fileno())

    bench.run(quiet())
    engine, platform = devices._engine_pages[0], bench.hypervisor._platform_page
    shoot.load()
    import time

    rounds = shoot(platform.address, engine.address, devices._past_batch.epoll.fileno(), 1 << 40, time.monotonic_ns() + 1_500_000_000, 97)
    assert rounds != LOST, "the engine left its batch and nobody was told"
    print(rounds)
    assert rounds > 100
    assert sender.stop() == STOPPED
