"""Event channels: the hypervisor's table, what a hostile waiter can do with what it holds (R6), and loops that sleep on them."""

import asyncio
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import termios
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bench.isolation.pollers import polled_many_times
from hyp.abi.evtchn import NR_CHANNELS
from hyp.control.aside import Aside, Stuck
from hyp.control.debt import Debt
from hyp.events import new_eventfd, raise_event
from hyp.monitor.event_channels import EventChannels, EventError, Upcall
from tests.support.labs import wait_until
from tests.support.patience import patient

ONE, OTHER, THIRD = 3, 7, 9


def pending(upcall: Upcall) -> bool:
    """Take what is pending; was there anything?"""
    return bool(upcall.epoll.poll(0))


def bind(table: EventChannels, upcalls: list[Upcall]) -> tuple[int, int]:
    """A channel between ONE (upcall 0) and OTHER (upcall 1); the ports. What bind left pending has been taken."""
    port = table.alloc_unbound(ONE, OTHER, upcalls[0])
    remote = table.bind_interdomain(OTHER, ONE, port, upcalls[1])
    for upcall in upcalls:
        pending(upcall)
    return port, remote


def refused(code: int, call: Callable[..., object], *args: object) -> None:
    with pytest.raises(EventError) as error:
        call(*args)
    assert error.value.errno == code, error.value


# --- the table -------------------------------------------------------------------------------------------------------


def test_bind_sets_both_ends_pending(table: EventChannels, upcalls: list[Upcall]) -> None:
    port = table.alloc_unbound(ONE, OTHER, upcalls[0])
    assert table.status(ONE, port) == "unbound"
    assert not pending(upcalls[0])
    remote = table.bind_interdomain(OTHER, ONE, port, upcalls[1])
    assert table.status(ONE, port) == table.status(OTHER, remote) == "interdomain"
    assert [pending(upcall) for upcall in upcalls] == [True, True, False]
    assert [pending(upcall) for upcall in upcalls] == [False, False, False]


def test_events_arrive_at_the_other_end_only(table: EventChannels, upcalls: list[Upcall]) -> None:
    port, remote = bind(table, upcalls)
    for domid, number, there in ((ONE, port, 1), (OTHER, remote, 0)):
        raise_event(table.notifier(domid, number))
        assert [pending(upcall) for upcall in upcalls] == [k == there for k in range(3)]


def test_many_events_before_anybody_looks_are_one(table: EventChannels, upcalls: list[Upcall]) -> None:
    port, _ = bind(table, upcalls)
    for _ in range(1000):
        raise_event(table.notifier(ONE, port))
    assert len(upcalls[1].epoll.poll(0)) == 1
    assert not pending(upcalls[1])
    raise_event(table.notifier(ONE, port))
    assert pending(upcalls[1]), "an event after a wake-up is a new one, though nobody read the eventfd"


def test_port_numbers_are_a_domains_own_and_never_0(table: EventChannels, upcalls: list[Upcall]) -> None:
    assert [table.alloc_unbound(ONE, OTHER, upcalls[0]) for _ in range(3)] == [1, 2, 3]
    assert table.alloc_unbound(OTHER, ONE, upcalls[1]) == 1
    table.close(ONE, 2)
    assert table.alloc_unbound(ONE, THIRD, upcalls[0]) == 2


def test_only_the_domain_that_was_named_can_bind(table: EventChannels, upcalls: list[Upcall]) -> None:
    port = table.alloc_unbound(ONE, OTHER, upcalls[0])
    refused(errno.EINVAL, table.bind_interdomain, THIRD, ONE, port, upcalls[2])
    refused(errno.EINVAL, table.bind_interdomain, ONE, ONE, port, upcalls[0])
    assert table.status(ONE, port) == "unbound"
    assert [pending(upcall) for upcall in upcalls] == [False] * 3
    table.bind_interdomain(OTHER, ONE, port, upcalls[1])


def test_a_port_is_bound_once(table: EventChannels, upcalls: list[Upcall]) -> None:
    port, remote = bind(table, upcalls)
    refused(errno.EINVAL, table.bind_interdomain, OTHER, ONE, port, upcalls[1])
    refused(errno.EINVAL, table.bind_interdomain, ONE, OTHER, remote, upcalls[0])
    raise_event(table.notifier(OTHER, remote))
    assert pending(upcalls[0])


@pytest.mark.parametrize("port", [0, -1, 5, NR_CHANNELS, 1 << 40])
def test_ports_that_are_not_there(table: EventChannels, upcalls: list[Upcall], port: int) -> None:
    bind(table, upcalls)
    refused(errno.EINVAL, table.bind_interdomain, OTHER, ONE, port, upcalls[1])
    for call in (table.notifier, table.status, table.close):
        refused(errno.EINVAL, call, ONE, port)


def test_an_unbound_port_has_no_notifier(table: EventChannels, upcalls: list[Upcall]) -> None:
    refused(errno.ENOTCONN, table.notifier, ONE, table.alloc_unbound(ONE, OTHER, upcalls[0]))


def test_the_limit_is_per_domain_and_binding_counts_too(upcalls: list[Upcall]) -> None:
    table = EventChannels(limit=5)
    ports = [table.alloc_unbound(ONE, OTHER, upcalls[0]) for _ in range(4)]
    refused(errno.ENOSPC, table.alloc_unbound, ONE, OTHER, upcalls[0])
    for port in ports[:3]:
        table.bind_interdomain(OTHER, ONE, port, upcalls[1])
    table.alloc_unbound(OTHER, ONE, upcalls[1])
    before = len(os.listdir("/proc/self/fd"))
    refused(errno.ENOSPC, table.bind_interdomain, OTHER, ONE, ports[3], upcalls[1])
    assert len(os.listdir("/proc/self/fd")) == before
    assert table.status(ONE, ports[3]) == "unbound"
    table.close(OTHER, 1)
    table.bind_interdomain(OTHER, ONE, ports[3], upcalls[1])


def test_after_close_nothing_arrives_from_a_notifier_that_was_kept(table: EventChannels, upcalls: list[Upcall]) -> None:
    for closer in (ONE, OTHER):
        port, remote = bind(table, upcalls)
        kept = [os.dup(table.notifier(ONE, port)), os.dup(table.notifier(OTHER, remote))]
        table.close(*((ONE, port) if closer == ONE else (OTHER, remote)))
        survivor = (OTHER, remote) if closer == ONE else (ONE, port)
        refused(errno.EINVAL, table.status, closer, port if closer == ONE else remote)
        assert table.status(*survivor) == "unbound"
        refused(errno.ENOTCONN, table.notifier, *survivor)
        for fd in kept:
            raise_event(fd)
        assert [pending(upcall) for upcall in upcalls] == [False] * 3, "a stale wake-up"
        # the surviving end can be bound again by the one it was meant for, with eventfds of its own
        owner, number = survivor
        again = table.bind_interdomain(closer, owner, number, upcalls[0 if closer == ONE else 1])
        assert pending(upcalls[0])
        assert pending(upcalls[1])
        for fd in kept:
            raise_event(fd)
            os.close(fd)
        assert [pending(upcall) for upcall in upcalls] == [False] * 3, "a stale wake-up"
        raise_event(table.notifier(closer, again))
        assert pending(upcalls[1 if closer == ONE else 0])
        table.close_all(ONE)
        table.close_all(OTHER)


def test_close_all_ends_a_domain_and_leaves_the_others(table: EventChannels, upcalls: list[Upcall]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    port, remote = bind(table, upcalls)
    waiting = table.alloc_unbound(OTHER, ONE, upcalls[1])
    third = table.alloc_unbound(THIRD, OTHER, upcalls[2])
    fourth = table.bind_interdomain(OTHER, THIRD, third, upcalls[1])
    table.close_all(ONE)
    refused(errno.EINVAL, table.status, ONE, port)
    assert table.status(OTHER, remote) == table.status(OTHER, waiting) == "unbound"
    assert table.status(OTHER, fourth) == "interdomain"
    table.close_all(OTHER)
    table.close_all(THIRD)
    assert len(os.listdir("/proc/self/fd")) == before, "eventfds were left open"
    assert not table._ports


def test_closing_a_port_whose_waiter_has_ended(table: EventChannels, upcalls: list[Upcall]) -> None:
    port, _ = bind(table, upcalls)
    upcalls[1].close()
    table.close(ONE, port)
    unbound = table.alloc_unbound(OTHER, ONE, upcalls[1])
    refused(errno.EBADF, table.bind_interdomain, ONE, OTHER, unbound, upcalls[0])
    assert table.status(OTHER, unbound) == "unbound"


# --- R6: the waiter holds its upcall and nothing else ----------------------------------------------------------------


def as_guest(attack: Callable[[int], None], keep: int) -> None:
    """Run `attack(epoll)` in a process that has no descriptor but that; AssertionError if it raises."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.closerange(3, keep)
            os.closerange(keep + 1, 1 << 16)
            attack(keep)
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def fails(*codes: int) -> Callable[[Callable[[], object]], None]:
    def check(call: Callable[[], object]) -> None:
        with pytest.raises(OSError) as error:  # noqa: PT011 (its number is checked)
            call()
        assert error.value.errno in codes, error.value

    return check


def targets(epoll: int) -> list[int]:
    """Numbers under which the hypervisor put eventfds into the epoll descriptor, as fdinfo tells everybody."""
    with open(f"/proc/self/fdinfo/{epoll}") as info:
        return [int(line.split()[1]) for line in info if line.startswith("tfd")]


def misuse(fd: int) -> None:
    """Everything a waiter can try with its epoll descriptor, and with the numbers it can read about it."""
    held = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
    assert not any("eventfd" in link for link in held), held
    fails(errno.EINVAL)(lambda: os.read(fd, 8))
    fails(errno.EINVAL)(lambda: os.write(fd, struct.pack("<Q", (1 << 64) - 2)))
    fails(errno.ENXIO, errno.EACCES)(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    epoll = select.epoll.fromfd(fd)
    found = targets(fd)
    assert found
    for number in found:
        for call in (lambda n=number: epoll.unregister(n), lambda n=number: epoll.modify(n, 0)):
            fails(errno.EBADF, errno.ENOENT)(call)
        decoy = os.eventfd(0, os.EFD_NONBLOCK)
        if number != fd:
            os.dup2(decoy, number)
            for call in (lambda n=number: epoll.unregister(n), lambda n=number: epoll.modify(n, 0)):
                fails(errno.ENOENT)(call)
            os.close(number)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
    for request in (termios.FIONBIO, termios.FIOASYNC):
        try:
            fcntl.ioctl(fd, request, struct.pack("i", 0))
        except OSError:
            pass
    others = [select.epoll() for _ in range(3)]
    for other in others:
        other.register(fd, select.EPOLLIN | select.EPOLLET)
        other.poll(0)
    for _ in range(100):
        epoll.poll(0)


def test_a_waiter_can_neither_swallow_nor_fill_nor_block(table: EventChannels, upcalls: list[Upcall]) -> None:
    port, _ = bind(table, upcalls)
    notifier = table.notifier(ONE, port)
    raise_event(notifier)
    as_guest(misuse, upcalls[1].epoll.fileno())
    assert fcntl.fcntl(notifier, fcntl.F_GETFL) & os.O_NONBLOCK
    pending(upcalls[1])
    for _ in range(2000):  # no write blocks or fails, and each wakes
        raise_event(notifier)
        assert pending(upcalls[1])
    assert not pending(upcalls[1])


def test_a_waiter_that_never_looks_does_not_block_its_notifier(table: EventChannels, upcalls: list[Upcall]) -> None:
    port, remote = bind(table, upcalls)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the notifier was blocked"))
    signal.alarm(int(patient(10)))
    try:
        for _ in range(200_000):
            os.eventfd_write(table.notifier(ONE, port), 1)
    finally:
        signal.alarm(0)
    assert pending(upcalls[1])
    raise_event(table.notifier(OTHER, remote))
    assert pending(upcalls[0])


@pytest.mark.needs("1000-descriptors")
@pytest.mark.parametrize("spoiler", [ONE, OTHER])
def test_a_waiter_that_spoils_its_upcall_hurts_itself_alone(table: EventChannels, upcalls: list[Upcall], spoiler: int) -> None:
    """Hundreds of epoll descriptors that watch the upcall: the kernel then refuses to add anything to it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1000), limits[1]))
    port = table.alloc_unbound(ONE, OTHER, upcalls[0])
    watchers = [select.epoll() for _ in range(700)]
    try:
        for watcher in watchers:
            watcher.register(upcalls[0 if spoiler == ONE else 1].epoll.fileno(), select.EPOLLIN)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(EventError, match="upcall takes no events"):
            table.bind_interdomain(OTHER, ONE, port, upcalls[1])
        assert len(os.listdir("/proc/self/fd")) == before, "a failed bind left eventfds open"
        assert table.status(ONE, port) == "unbound"
        refused(errno.ENOTCONN, table.notifier, ONE, port)
        refused(errno.EINVAL, table.notifier, OTHER, 1)
        honest = OTHER if spoiler == ONE else ONE
        third = table.alloc_unbound(honest, THIRD, upcalls[1 if spoiler == ONE else 0])
        table.bind_interdomain(THIRD, honest, third, upcalls[2])
        assert pending(upcalls[2])
    finally:
        for watcher in watchers:
            watcher.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    table.bind_interdomain(OTHER, ONE, port, upcalls[1])
    assert pending(upcalls[0])


# --- who is too dear to notify ----------------------------------------------------------------------------------------


def test_who_is_too_dear_to_notify_is_bound_to_no_more_channels(table: EventChannels, upcalls: list[Upcall]) -> None:
    hostile, honest, other = upcalls
    with polled_many_times(hostile.epoll.fileno()):
        with pytest.raises(EventError, match="polled many times") as error:
            bind_again_and_again(table, hostile, honest)
        assert error.value.errno == errno.EBUSY
    remote = table.alloc_unbound(THIRD, OTHER, other)
    assert table.bind_interdomain(OTHER, THIRD, remote, honest)


def bind_again_and_again(table: EventChannels, one: Upcall, other: Upcall) -> None:
    for _ in range(100):
        table.bind_interdomain(OTHER, ONE, table.alloc_unbound(ONE, OTHER, one), other)


def test_who_waits_until_it_is_paid_finds_it_paid() -> None:
    """Timers end a little early."""
    owed = [0.0004, 0.0001, 0.0]

    class Paying(Debt):
        def wait_s(self) -> float:
            return owed.pop(0) if len(owed) > 1 else owed[0]

    async def main() -> None:
        upcall = Upcall(Paying())
        await upcall.paid()
        upcall.check()
        upcall.epoll.close()

    asyncio.run(main())


def test_eventfds_of_a_guest_in_a_trusted_waiters_epoll_are_put_and_taken_by_its_own_thread() -> None:
    """It has their locks: who waits for one spins."""
    calls: list[tuple[str, Any]] = []

    class Noting(Aside):
        def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
            calls.append(("call", arguments[0]))
            return super().call(function, *arguments)

        def later(self, function: Callable[..., Any], *arguments: Any) -> None:
            calls.append(("later", None))
            super().later(function, *arguments)

    aside, bells = Aside(lambda taken_ns: None), Noting(lambda taken_ns: None)
    trusted, guests, eventfd, closed = Upcall(), Upcall(aside=aside, bells=bells), new_eventfd(), threading.Event()
    trusted.deliver(eventfd, 1, guests)
    raise_event(eventfd)
    assert trusted.epoll.poll(timeout=0) == [(eventfd, select.EPOLLIN)]

    def close() -> None:
        guests.close_eventfd(eventfd)
        closed.set()

    trusted.forget(eventfd, guests, close)
    assert closed.wait(patient(60))
    wait_until(lambda: not (aside._at_work or bells._at_work), "both threads to be done")
    assert calls == [("call", eventfd), ("later", None)]
    assert trusted.epoll.poll(timeout=0) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(eventfd)
    for upcall in (trusted, guests):
        upcall.epoll.close()


# --- who does not let go ----------------------------------------------------------------------------------------------


def test_a_channel_with_who_is_stuck_is_refused_before_anything_is_made(table: EventChannels, upcalls: list[Upcall]) -> None:
    """What is made in vain is closed by the thread that is stuck: so each call in vain would cost two descriptors."""
    gate, aside = threading.Event(), Aside(lambda taken_ns: None)
    hostile = Upcall(aside=aside)
    port = table.alloc_unbound(ONE, OTHER, hostile)
    with pytest.raises(Stuck):
        aside.call(gate.wait)
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        refused(errno.EBUSY, table.bind_interdomain, OTHER, ONE, port, upcalls[1])
    assert os.listdir("/proc/self/fd") == before
    gate.set()
    wait_until(lambda: not aside._at_work, "it to let go")
    assert table.bind_interdomain(OTHER, ONE, port, upcalls[1]) > 0
    wait_until(lambda: not aside._at_work, "what was asked to be done")
    hostile.epoll.close()


def test_nobody_waits_for_the_last_close_of_an_upcall() -> None:
    """Its domain may have left a process that has it in an epoll of its own."""
    gate, aside = threading.Event(), Aside(lambda taken_ns: None)
    upcall = Upcall(aside=aside)
    aside.later(gate.wait)
    upcall.close()
    assert not upcall.epoll.closed
    gate.set()
    wait_until(lambda: upcall.epoll.closed, "it to be closed")
