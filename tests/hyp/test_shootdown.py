"""The shootdown: nothing is read through a translation that was taken away."""

import asyncio
import os
import select
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from bench.isolation.loops import job_at
from hyp import iommu
from hyp.abi.domids import DOMID_NIC
from hyp.abi.frame import PAYLOAD
from hyp.abi.nic import DESC_SIGNALED, MAX_LONE_FRAME, PAGE
from hyp.abi.platform import EPOCH, PLATFORM_BYTES, SHOOTDOWN_REQUEST
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    epoll_sleep,
    full_fence,
    load64,
    load64_acquire,
    load64_once,
    store64_once,
    store64_release,
)
from hyp.control import Refused, Reply
from hyp.iommu import READ, Shootdown
from hyp.kernels import compiled, entry, i64
from hyp.memory import create_region
from hyp.verbs import (
    consume_receives,
    peek_receive,
    poll_sends,
    post_receive,
    post_send,
    qp_at,
    ring_receives,
    ring_sends,
    send_room,
)
from tests.support.drivers import STOPPED, compose
from tests.support.guests import WAIT_S, WIRE_MAC, Guest, Loop, eventually
from tests.support.patience import effort, patient
from tests.support.peers import Bench, bench_of

LOST, LOST_NS = -1, 60_000_000_000
POISON = 0x5EED_DEAD_BEEF_0BAD


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
    assert pages.requests == 0, "nobody needs to say anything"


def test_the_epoch_that_is_waited_for_is_from_before_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine answers at once and is in its next batch before the hypervisor looks again: nobody will tell of that one's end."""
    pages = Pages(1)
    pages.set_epochs(7)
    request = iommu._count_request

    def answered_at_once(platform: int) -> None:
        request(platform)
        pages.set_epochs(9)

    monkeypatch.setattr(iommu, "_count_request", answered_at_once)
    assert Shootdown(pages.platform, pages.engines).is_over()
    assert pages.requests == 1


# --- under load ------------------------------------------------------------------------------------------------------


@entry(i64(i64, i64, i64, i64, i64))
def shoot(platform: int, page: int, epoll: int, until_ns: int, gap: int) -> int:
    """The hypervisor's half, in a loop: ask, and if the engine is in a batch wait for its signal. Rounds done, or LOST.

    As `Nic.shootdown` does, it looks at the epoch when it was signalled, and not without.
    """
    turn = 0
    while clock_ns() < until_ns:
        full_fence()
        epoch = load64_acquire(page + EPOCH)
        store64_release(platform + SHOOTDOWN_REQUEST, load64_once(platform + SHOOTDOWN_REQUEST) + 1)
        full_fence()
        while epoch & 1 and load64_acquire(page + EPOCH) == epoch:
            if epoll_sleep(epoll, LOST_NS, 0) == 0:
                return LOST
        for _ in range(turn % gap):
            cpu_relax()
        turn += 1
    return turn


@compiled
def _fill(addr: int, length: int, word: int) -> None:
    for at in range(PAYLOAD, length, 8):
        store64_once(addr + at, word)


@entry(i64(i64, i64, i64, i64, i64, i64, i64))
def hammer(platform: int, engine: int, table_entry: int, word: int, page: int, until_ns: int, wait: int) -> int:
    """Give a page to the device and take it away again, and poison it the moment the shootdown is over. Rounds done, or LOST."""
    turn = 0
    while clock_ns() < until_ns:
        store64_once(table_entry, word)
        full_fence()
        first, limit = load64_acquire(engine + EPOCH), clock_ns() + 200_000
        while load64_acquire(engine + EPOCH) < first + 4 and clock_ns() < limit:
            cpu_relax()
        for _ in range(turn * 7 % 301):
            cpu_relax()
        store64_once(table_entry, 0)
        full_fence()
        epoch, limit = load64_acquire(engine + EPOCH), clock_ns() + LOST_NS
        store64_release(platform + SHOOTDOWN_REQUEST, load64_once(platform + SHOOTDOWN_REQUEST) + 1)
        full_fence()
        while wait != 0 and epoch & 1 and load64_acquire(engine + EPOCH) == epoch:
            if clock_ns() > limit:
                return LOST
        _fill(page, MAX_LONE_FRAME, POISON)
        for _ in range(2000):
            cpu_relax()
        _fill(page, MAX_LONE_FRAME, turn)
        turn += 1
    return turn


@entry(i64(i64))
def spray(address: int) -> int:
    """A guest that sends the page at `first` over and over, also while it may not. Descriptors completed."""
    job = job_at(address)
    q = qp_at(job.qp)
    while True:
        job.done += poll_sends(q)
        room = 0 if job.stop != 0 else send_room(q)
        for _ in range(room):
            post_send(q, job.first, job.length, DESC_SIGNALED)
        ring_sends(q)
        if room == 0:
            if job.stop != 0 and send_room(q) == q.sq_size:
                return job.done
            epoll_sleep(job.epoll, 1_000_000, 0)


@entry(i64(i64))
def inspect(address: int) -> int:
    """Receive, and look at every word of every frame: `bad` counts frames that carry poison."""
    job = job_at(address)
    q = qp_at(job.qp)
    while job.stop == 0:
        index, length, _ = peek_receive(q, 0)
        if index < 0:
            ring_receives(q)
            epoll_sleep(job.epoll, 1_000_000, 0)
            continue
        poisoned = 0
        addr = job.ram + job.rx_pool + (index & (q.rq_size - 1)) * PAGE
        for at in range(PAYLOAD, length, 8):
            poisoned |= load64(addr + at) == POISON
        job.received += 1
        job.bad += poisoned
        consume_receives(q, 1)
        post_receive(q, job.rx_pool + (q.rq_prod & (q.rq_size - 1)) * PAGE, PAGE)
        if job.received & 15 == 0:
            ring_receives(q)
    return job.bad


@contextmanager
def watched_page(**options: Any) -> Iterator[tuple[Bench, Guest, int, Loop, Loop]]:
    """(bench, sender, page, spray, inspect): a page that is sent all the time, and who looks at what arrives."""
    with bench_of(2, **options) as (bench, anna, bert):
        page = anna.free
        anna.write(page, compose(bert.mac, anna.mac, MAX_LONE_FRAME))
        bert.post_buffers(bert.entries)
        eye = Loop(inspect, bert, bert.job())
        sender = Loop(spray, anna, anna.job(first=page, length=MAX_LONE_FRAME))
        yield bench, anna, page, sender, eye
        assert sender.stop() > 0
        eye.stop()
        bench.at_rest()


def soon(seconds: float) -> int:
    """CLOCK_MONOTONIC in ns, that much from now."""
    return time.monotonic_ns() + int(seconds * 1e9)


def test_every_shootdown_under_load_is_signalled() -> None:
    with bench_of(1) as (bench, anna):
        sender = anna.traffic(WIRE_MAC, 1 << 50, length=4000)
        nic = bench.hypervisor.system.nic
        epoll = bench.run(_take_over(nic))
        shoot.load()
        pages = bench.hypervisor.system.platform_page.address, nic._engine_pages[0].address
        rounds, goes_on = 0, effort(1.2)
        while goes_on(rounds > 100):
            more = shoot(*pages, epoll.fileno(), soon(0.3), 97)
            assert more != LOST, "the engine left its batch and nobody was told"
            rounds += more
        assert rounds > 100
        assert sender.stop() == STOPPED


async def _take_over(nic: Any) -> select.epoll:
    """The test waits in the place of the hypervisor's event loop, by this."""
    past, epoll = nic._engine_past[0], select.epoll()
    asyncio.get_running_loop().remove_reader(past)
    epoll.register(past, select.EPOLLIN | select.EPOLLET)
    return epoll


def test_nothing_is_read_through_a_translation_after_its_shootdown() -> None:
    with watched_page() as (bench, anna, page, _, eye):
        table = bench.hypervisor.system.domains[anna.domid].iommu
        assert table is not None
        entry_at = table._table.address + page // PAGE * 8
        pages = bench.hypervisor.system.platform_page.address, bench.hypervisor.system.nic._engine_pages[0].address
        hammer.load()
        rounds, goes_on = 0, effort(1.5)
        while goes_on(rounds > 50 and eye["received"] > 50):
            more = hammer(*pages, entry_at, page | READ, anna.ram.address + page, soon(0.3), 1)
            assert more != LOST
            rounds += more
        assert rounds > 50
        assert eye["received"] > 50, "the page was never sent while it could be"
    assert eye["bad"] == 0, f"{eye['bad']} frames carry what was written after the shootdown"


@pytest.mark.parametrize("engines", [1, 2])
def test_deregistering_returns_when_the_nic_no_longer_uses_the_page(engines: int) -> None:
    with watched_page(engines=engines) as (_, anna, page, sender, eye):
        whole = anna.read(page, MAX_LONE_FRAME)
        poison = whole[:PAYLOAD] + POISON.to_bytes(8, "little") * ((MAX_LONE_FRAME - PAYLOAD) // 8)
        for _ in range(150):
            seen = eye["received"]
            key = anna.call("mr_register", addr=page, length=PAGE, writable=False).value["key"]
            eventually(lambda seen=seen: eye["received"] > seen, "the page is sent again")  # type: ignore[misc]
            anna.call("mr_deregister", key=key)
            anna.write(page, poison)
            seen = sender["done"]
            eventually(lambda seen=seen: sender["done"] > seen + 64, "the NIC has refused some")  # type: ignore[misc]
            anna.write(page, whole)
    assert eye["bad"] == 0


# --- stopped and dead engines ----------------------------------------------------------------------------------------


def stop_in_a_batch(bench: Bench) -> None:
    """SIGSTOP the NIC so that it stands in the middle of a batch."""
    nic = bench.pid
    assert nic is not None
    epoch = bench.hypervisor.system.nic._engine_pages[0].words("<u8", EPOCH, 1)

    def stands() -> bool:
        os.kill(nic, signal.SIGSTOP)
        os.waitpid(nic, os.WUNTRACED)
        if int(epoch[0]) & 1:
            return True
        os.kill(nic, signal.SIGCONT)
        os.waitpid(nic, os.WCONTINUED)
        return False

    eventually(stands, "the NIC is stopped in a batch")


@contextmanager
def stopped_under_a_deregistration() -> Iterator[tuple[Bench, Guest, "Future[Reply]"]]:
    """A NIC process that was stopped in a batch, and a deregistration that waits for it."""
    with bench_of(1, forked=True) as (bench, anna):
        anna.traffic(WIRE_MAC, 1 << 50, length=4000)
        key = anna.call("mr_register", addr=anna.free, length=PAGE, writable=True).value["key"]
        stop_in_a_batch(bench)
        pending = bench.submit(anna.hyp.call("mr_deregister", key=key))
        with pytest.raises(TimeoutError):
            pending.result(0.3)
        yield bench, anna, pending


def test_a_stopped_engine_holds_up_its_own_shootdown_only() -> None:
    with stopped_under_a_deregistration() as (bench, anna, pending):
        other = bench.domain()  # the hypervisor serves others meanwhile
        assert other.call("mr_register", addr=PAGE, length=PAGE, writable=True).value["key"] == 1
        other.call("mr_deregister", key=1)  # it has no context that could use it
        assert anna.call("evtchn_alloc_unbound", remote=other.domid, upcall=0).value["port"] > 0
        assert not pending.done()
        assert bench.pid is not None
        os.kill(bench.pid, signal.SIGCONT)
        pending.result(patient(WAIT_S))


def test_the_death_of_the_nic_ends_the_wait() -> None:
    with stopped_under_a_deregistration() as (bench, anna, pending):
        assert bench.pid is not None
        os.kill(bench.pid, signal.SIGKILL)
        bench.run(bench.hypervisor.domain_destroy(DOMID_NIC))  # what the keeper asks for when it has reaped the NIC
        pending.result(patient(WAIT_S))
        key = anna.call("mr_register", addr=anna.free, length=PAGE, writable=True).value["key"]
        anna.call("mr_deregister", key=key)
        anna.call("context_close", context=anna.context)
        with pytest.raises(Refused) as refused:
            anna.call("context_open", upcall=anna.upcall)
        assert refused.value.name == "ENODEV"
        bench.run(bench.hypervisor.domain_destroy(anna.domid))
        assert anna.domid not in bench.hypervisor.system.domains
