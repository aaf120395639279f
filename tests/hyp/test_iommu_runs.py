"""IOMMU entries in a row with the same rights, of which one look-up does for all, and what ends them."""

import random

import pytest

from hyp import iommu
from hyp.abi.nic import (
    DESC_SIGNALED,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_DROPPED,
    STATUS_OK,
)
from hyp.iommu import READ, RIGHTS, WRITE, IommuTable, translate
from hyp.kernels import entry, i64
from hyp.memory import create_region
from tests.support.guests import (
    completed,
    place,
    prime,
)
from tests.support.peers import DEFAULT_RAM, Bench, bench_of


@entry(i64(i64, i64, i64, i64, i64, i64))
def span_of(table: int, table_pages: int, ram: int, ram_pages: int, iova: int, rights: int) -> int:
    """The number of bytes that `translate` says its answer is good for."""
    return translate(table, table_pages, ram, ram_pages, iova, rights)[1]


class Entries:
    """A table of `pages` pages, filled by the hypervisor's code."""

    RAM = 0x10_0000_0000

    def __init__(self, pages: int) -> None:
        region = create_region("sealed", "runs", "test", "table", -(-pages * 8 // PAGE) * PAGE)
        self.mapping, self.pages = region.map(), pages
        region.close()
        self.iommu = IommuTable(self.mapping, pages)

    def span(self, iova: int, rights: int, ram_pages: int | None = None) -> int:
        return int(span_of(self.mapping.address, self.pages, self.RAM, ram_pages or self.pages, iova, rights))

    def words(self) -> list[int]:
        return [int(word) for word in self.mapping.words("<u8", 0, self.pages)]

    def model(self) -> list[int]:
        """What the entries have to be, by the pins."""
        words, following = [0] * self.pages, 0
        for page in range(self.pages - 1, -1, -1):
            rights = (READ if self.iommu._readers[page] else 0) | (WRITE if self.iommu._writers[page] else 0)
            run = min((following >> 2 & iommu.MAX_RUN) + 1, iommu.MAX_RUN) if following & RIGHTS == rights else 0
            following = words[page] = (page << 12) | (run << 2) | rights if rights else 0
        return words


@pytest.mark.parametrize("pages", [16, 1023, 1024, 1025, 1536, 2600])
def test_runs_in_any_order_of_registrations_agree_with_a_slow_model(pages: int) -> None:
    rng, entries = random.Random(pages), Entries(pages)
    held: list[tuple[int, int, bool]] = []
    entries.iommu.register(0, pages * PAGE, writable=False)
    assert entries.words() == entries.model()
    for _ in range(60):
        if held and rng.random() < 0.5:
            first, count, writable = held.pop(rng.randrange(len(held)))
            entries.iommu.deregister(first * PAGE, count * PAGE, writable=writable)
        else:
            first = rng.randrange(pages)
            held.append((first, rng.choice((1, rng.randint(1, pages - first), pages - first)), rng.random() < 0.5))
            entries.iommu.register(held[-1][0] * PAGE, held[-1][1] * PAGE, writable=held[-1][2])
        assert entries.words() == entries.model()
    entries.iommu.clear()
    assert entries.words() == [0] * pages


def test_a_page_taken_from_the_middle_ends_every_run_over_it() -> None:
    """No look-up in front of it is good for what is not registered, wherever in its page it begins."""
    entries = Entries(64)
    entries.iommu.register(0, 64 * PAGE, writable=False)
    entries.iommu.register(0, 40 * PAGE, writable=True)
    entries.iommu.deregister(40 * PAGE, PAGE, writable=False)
    entries.iommu.deregister(0, 40 * PAGE, writable=True)
    entries.iommu.register(20 * PAGE, 2 * PAGE, writable=True)
    for iova, rights, end in (
        (0, READ, 20), (1, READ, 20), (20 * PAGE - 1, READ, 20), (20 * PAGE, READ, 22), (21 * PAGE + 5, WRITE, 22),
        (22 * PAGE, READ, 40), (40 * PAGE - 1, READ, 40), (41 * PAGE, READ, 64), (64 * PAGE - 1, READ, 64),
    ):  # fmt: skip
        assert entries.span(iova, rights) == end * PAGE - iova
    for iova, rights in ((0, WRITE), (40 * PAGE, READ), (41 * PAGE - 1, READ), (22 * PAGE, WRITE), (64 * PAGE, READ), (-1, READ)):
        assert entries.span(iova, rights) == 0


@pytest.mark.parametrize("pages", [1023, 1024, 1025, 2048])
def test_a_run_is_no_longer_than_its_field(pages: int) -> None:
    entries = Entries(pages)
    entries.iommu.register(0, pages * PAGE, writable=True)
    longest = iommu.MAX_RUN + 1
    for page in (0, 1, pages - longest - 1, pages - longest, pages - longest + 1, pages - 1):
        if page >= 0:
            assert entries.span(page * PAGE + 7, RIGHTS) == min(pages - page, longest) * PAGE - 7


def test_a_run_ends_with_ram() -> None:
    entries = Entries(16)
    entries.iommu.register(0, 16 * PAGE, writable=True)
    assert entries.span(3 * PAGE + 1, READ, ram_pages=10) == 7 * PAGE - 1
    assert entries.span(9 * PAGE, READ, ram_pages=10) == PAGE
    assert entries.span(10 * PAGE, READ, ram_pages=10) == 0


@pytest.mark.parametrize("target", ["wire", "guest"])
def test_what_was_deregistered_between_two_pages_is_not_sent(target: str) -> None:
    """Three neighbours, registered one by one, make one run; the one in the middle goes."""
    with bench_of(2) as (bench, anna, bert):
        pages = [anna.free + k * PAGE for k in range(3)]
        keys = [anna.call("mr_register", addr=page, length=PAGE, writable=False).value["key"] for page in pages]
        mac = prime(anna, bert if target == "guest" else None)
        places = [pages[0] + 1000, pages[1] - 32, pages[1] + 1000, pages[2] + 1000, pages[2] - 32]
        for at in places:
            anna.write(at, anna.frame(mac))
        bad = STATUS_BAD_ADDRESS
        for expected in ([STATUS_OK] * 5, [STATUS_OK, bad, bad, STATUS_OK, bad]):
            good = expected.count(STATUS_OK)
            if target == "guest":
                bert.post_buffers(good)
            first = anna.post(places[0], 64, 0)
            for at in places[1:]:
                anna.post(at, 64, 0 if at != places[-1] else DESC_SIGNALED)  # one that is signalled would end the run
            anna.ring()
            told = [(first + k, status) for k, status in enumerate(expected) if status != STATUS_OK or k == 4]
            assert completed(anna, len(told)) == told
            if target == "guest":
                assert bert.take(good) == [(STATUS_OK, anna.frame(mac))] * good
            if good == 5:
                anna.call("mr_deregister", key=keys[1])
        bench.at_rest(11)


def test_what_lost_the_right_to_be_written_between_two_pages_is_not_written() -> None:
    with bench_of(2) as (bench, anna, bert):
        pages = [bert.free + k * PAGE for k in range(3)]
        bert.call("mr_register", addr=pages[0], length=3 * PAGE, writable=False)
        keys = [bert.call("mr_register", addr=page, length=PAGE, writable=True).value["key"] for page in pages]
        prime(anna, bert)
        bert.call("mr_deregister", key=keys[1])
        places = [pages[0], pages[1] - 32, pages[1], pages[2], pages[2] - 32, pages[2] + 100]
        for at in places:
            bert.post_buffer(at, 64)
        bert.ring_buffers()
        for k in range(6):  # one that is signalled would end the run
            anna.post(place(anna, 0, anna.frame(bert.mac, sequence=k)), 64, 0 if k < 5 else DESC_SIGNALED)
        anna.ring()
        ok, bad = STATUS_OK, STATUS_BAD_ADDRESS
        assert [status for status, _ in bert.take(6)] == [ok, bad, bad, ok, bad, ok]
        assert completed(anna, 4) == [(1 + k, STATUS_DROPPED) for k in (1, 2, 4)] + [(6, STATUS_OK)]
        assert not any(bert.read(pages[1], PAGE))
        bench.at_rest(7)
        assert bench.drops() == {"drop_bad_address": 3}


@pytest.mark.parametrize("target", ["wire", "guest"])
def test_a_passed_through_context_leaves_ram_in_no_run(target: str) -> None:
    with Bench() as bench:
        bench.passed_through.update((1, 2))
        anna, bert = bench.guest(), bench.guest()
        mac = prime(anna, bert if target == "guest" else None)
        end = DEFAULT_RAM
        beyond = (end, end - 63, end - 16, end - 1, end + anna.tx_pool, 1 << 62, (1 << 63) - 1, -(1 << 63), -64, -1, -PAGE)
        anna.write(end - 64, anna.frame(mac))
        for at in beyond:
            if target == "guest":
                bert.post_buffers(3)
            anna.send(anna.frame(mac), flags=0)
            anna.post(end - 64, 64)
            anna.post(at, 64)
            anna.post(end - 64, 64)
            anna.ring()
            assert anna.sent(3) == [STATUS_OK, STATUS_BAD_ADDRESS, STATUS_OK]
            if target == "guest":
                bert.take(3)
        bench.at_rest(1 + 4 * len(beyond))
        assert bench.drops() == {"drop_bad_address": len(beyond)}
