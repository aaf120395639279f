"""Upcalls and event channels as the hypervisor has them: where a domain's events arrive, and which port is bound to which.

What loops do with them, and why an eventfd has one notifier and one waiter: hyp/events.py.
"""

import asyncio
import contextlib
import errno
import functools
import os
import select
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hyp.control.aside import Aside, Stuck
from hyp.control.debt import Debt
from hyp.events import new_eventfd, raise_event

PAID_S = 1.0
"""For how long somebody waits for a waiter that is too dear to notify."""
MAX_EVENT_PORTS = 4096
"""Ports of a domain, port 0 included, which nobody has: as many as Xen's two-level bitmap has. Dom0 has some of each guest's."""


class EventError(OSError):
    """An event-channel operation was refused; errno as Xen's interface gives it."""


class Upcall:
    """Where the events of one engine of a domain arrive: an epoll descriptor that the hypervisor fills.

    A guest has it, too, and with it locks for which epoll_ctl(2) and close(2) wait: both are called aside (hyp/control/aside.py).
    Into a trusted domain's guests' eventfds are put, for whose locks epoll_ctl(2) spins: the guest's thread does that, too.
    """

    def __init__(self, debt: Debt | None = None, aside: Aside | None = None, bells: Aside | None = None) -> None:
        """`debt`, `aside`, `bells`: its domain's, with the hypervisor. None: the domain is trusted."""
        self._debt, self._aside, self._bells = debt or Debt(), aside, bells
        self.epoll = select.epoll(flags=select.EPOLL_CLOEXEC)

    def _changed_by(self, holder: "Upcall | None") -> Aside | None:
        """Who puts an eventfd of `holder`'s domain into it, or takes it out."""
        if self._aside is not None:
            return self._aside
        return None if holder is None else holder._bells

    def deliver(self, eventfd: int, port: int, holder: "Upcall | None" = None) -> None:
        """From now on a write to `eventfd` wakes the waiter. EventError if the waiter has spoilt its epoll descriptor.

        `holder`: an upcall of the domain that has the eventfd, too.
        """
        how, aside = (eventfd, select.EPOLLIN | select.EPOLLET), self._changed_by(holder)
        try:
            if aside is None:
                self.epoll.register(*how)
            else:
                aside.call(self.epoll.register, *how)
        except ValueError:
            raise EventError(errno.EBADF, f"port {port}: the waiter is gone") from None
        except Stuck as error:
            raise EventError(errno.EBUSY, f"port {port}: the waiter's upcall does not let go ({error})") from error
        except OSError as error:
            raise EventError(error.errno, f"port {port}: the waiter's upcall takes no events ({error.strerror})") from error

    def deliver_later(self, eventfd: int, holder: "Upcall") -> None:
        """`deliver` of one that has been forgotten for a while, or is not to be had; nobody waits for it."""

        def register() -> None:
            with contextlib.suppress(OSError, ValueError):  # EEXIST: it was forgotten twice
                self.epoll.register(eventfd, select.EPOLLIN | select.EPOLLET)

        aside = self._changed_by(holder)
        if aside is None:
            register()
        else:
            aside.later(register)

    async def paid(self) -> None:
        """Wait until its events are no longer too dear, for a while at most: that can be due to a slow machine, too."""
        until = asyncio.get_running_loop().time() + PAID_S
        while (wait_s := self._debt.wait_s()) > 0 and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(min(wait_s, PAID_S))  # which may end a little early

    def check(self) -> None:
        """EventError if its events are too dear just now, or its domain's thread is stuck: before anything is made for it.

        What is made in vain is closed by that thread, too.
        """
        if any(aside is not None and aside.is_stuck for aside in (self._aside, self._bells)):
            raise EventError(errno.EBUSY, "an upcall of who has it does not let go")
        if (wait_s := self._debt.wait_s()) > 0:
            raise EventError(
                errno.EBUSY, f"to notify who has the upcall is too dear, for {wait_s:.1f} s: is it polled many times over?"
            )

    def wake(self, eventfd: int) -> None:
        """Set pending, at the expense of who has the upcall."""
        with self._debt.pays():
            raise_event(eventfd)

    def forget(self, eventfd: int, holder: "Upcall | None" = None, then: Callable[[], None] | None = None) -> None:
        """The inverse of `deliver`; nothing happens if it is gone already. `then` is called once that is so."""

        def unregister() -> None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: closed, its domain has ended
                self.epoll.unregister(eventfd)
            if then is not None:
                then()

        aside = self._changed_by(holder)
        if aside is None:
            unregister()
        else:
            aside.later(unregister)

    def close_eventfd(self, eventfd: int) -> None:
        """Close one that the waiter may have, too."""
        if self._aside is None:
            os.close(eventfd)
        else:
            self._aside.later(os.close, eventfd)

    def close(self) -> None:
        """Close it; aside, too, as its domain may have left a process that has put it into an epoll of its own."""
        if self._aside is None:
            self.epoll.close()
        else:
            self._aside.later(self.epoll.close)


@dataclass(slots=True)
class Port:
    """One end of a channel. `notifier` is the eventfd by which this end wakes the other."""

    domid: int
    number: int
    remote: int
    upcall: Upcall
    peer: "Port | None" = None
    notifier: int = -1


@dataclass(slots=True)
class EventChannels:
    """Ports of all domains. Every method checks what a domain says; EventError otherwise."""

    limit: int = MAX_EVENT_PORTS
    _ports: dict[tuple[int, int], Port] = field(default_factory=dict)
    _open: Counter[int] = field(default_factory=Counter)  # how many of each domain

    def count(self, domid: int) -> int:
        """How many ports a domain has open."""
        return self._open[domid]

    def alloc_unbound(self, domid: int, remote: int, upcall: Upcall) -> int:
        """A port that `remote` may bind to (EVTCHNOP_alloc_unbound)."""
        number = self._free_number(domid)
        self._add(Port(domid, number, remote, upcall))
        return number

    def bind_interdomain(self, domid: int, remote: int, remote_port: int, upcall: Upcall) -> int:
        """Bind a new port of `domid` to an unbound one of `remote` (EVTCHNOP_bind_interdomain); both ends become pending."""
        theirs = self._ports.get((remote, remote_port))
        if theirs is None or theirs.remote != domid or theirs.peer is not None:
            raise EventError(errno.EINVAL, f"domain {domid}: port {remote_port} of domain {remote} is not open to it")
        theirs.upcall.check()
        upcall.check()
        ours = Port(domid, self._free_number(domid), remote, upcall)
        try:
            ours.notifier = new_eventfd()
            theirs.notifier = new_eventfd()
            theirs.upcall.deliver(ours.notifier, theirs.number, upcall)
            ours.upcall.deliver(theirs.notifier, ours.number, theirs.upcall)
        except OSError:
            self._disconnect(ours, theirs)
            raise
        ours.peer, theirs.peer = theirs, ours
        self._add(ours)
        theirs.upcall.wake(ours.notifier)
        ours.upcall.wake(theirs.notifier)
        return ours.number

    def notifier(self, domid: int, number: int) -> int:
        """The eventfd by which `domid` signals through its port (owned by the table). EventError while it is unbound."""
        port = self._port(domid, number)
        if port.peer is None:
            raise EventError(errno.ENOTCONN, f"domain {domid}: port {number} is not bound yet")
        return port.notifier

    def status(self, domid: int, number: int) -> str:
        """``"unbound"`` or ``"interdomain"`` (EVTCHNOP_status)."""
        return "unbound" if self._port(domid, number).peer is None else "interdomain"

    def close(self, domid: int, number: int) -> None:
        """Close a port; the other end falls back to unbound (EVTCHNOP_close)."""
        port = self._ports.pop((domid, self._port(domid, number).number))
        self._open[domid] -= 1
        peer = port.peer
        if peer is not None:
            self._disconnect(port, peer)
            port.peer = peer.peer = None

    def close_all(self, domid: int) -> None:
        """Close every port of a domain that ended; the other ends fall back to unbound."""
        for owner, number in [key for key in self._ports if key[0] == domid]:
            self.close(owner, number)

    def _add(self, port: Port) -> None:
        self._ports[port.domid, port.number] = port
        self._open[port.domid] += 1

    @staticmethod
    def _disconnect(one: Port, other: Port) -> None:
        for end, far in ((one, other), (other, one)):
            if end.notifier >= 0:
                far.upcall.forget(end.notifier, end.upcall, functools.partial(end.upcall.close_eventfd, end.notifier))
                end.notifier = -1

    def _port(self, domid: int, number: int) -> Port:
        try:
            return self._ports[domid, number]
        except KeyError:
            raise EventError(errno.EINVAL, f"domain {domid} has no port {number}") from None

    def _free_number(self, domid: int) -> int:
        for number in range(1, self.limit):
            if (domid, number) not in self._ports:
                return number
        raise EventError(errno.ENOSPC, f"domain {domid} has all its {self.limit - 1} ports open")
