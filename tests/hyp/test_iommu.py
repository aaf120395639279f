"""IOMMU tables: registrations, rights, pins. Runs of entries: test_iommu_runs.py; how one is taken away: test_shootdown.py."""

import random
from typing import Any

import pytest

from hyp.abi.nic import PAGE
from hyp.control import Refused
from hyp.iommu import READ, RIGHTS, WRITE, IommuTable, translate
from hyp.kernels import entry, i64
from hyp.memory import create_region
from tests.support.peers import Bench

PAGES = 16


@entry(i64(i64, i64, i64, i64, i64, i64))
def look_up(table: int, table_pages: int, ram: int, ram_pages: int, iova: int, rights: int) -> int:
    """The address of `translate`, from Python."""
    return translate(table, table_pages, ram, ram_pages, iova, rights)[0]


class Table:
    """A table and RAM that is nothing but an address."""

    RAM = 0x10_0000_0000

    def __init__(self) -> None:
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
    pins = table.iommu
    pins.register(PAGE, 4 * PAGE, writable=False)
    pins.register(2 * PAGE, PAGE, writable=True)
    pins.register(2 * PAGE, 2 * PAGE, writable=False)
    assert table.rights() == ".rwrr..........."
    assert pins.deregister(2 * PAGE, 2 * PAGE, writable=False) is False
    assert table.rights() == ".rwrr..........."
    assert pins.deregister(2 * PAGE, PAGE, writable=True) is True, "the right to write went away"
    assert table.rights() == ".rrrr..........."
    assert pins.deregister(PAGE, 4 * PAGE, writable=False) is True
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
            {"addr": "0", "length": PAGE}, {"addr": 0.0, "length": PAGE}, {"addr": True, "length": PAGE},
            {"addr": [], "length": {}},
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
