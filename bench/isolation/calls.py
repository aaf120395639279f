"""Attacks through the doors of the control plane: hypercalls, event channels, the store, the console."""

import contextlib
import itertools
import os
import select
import socket
import threading
from typing import Any, Final

import msgpack

from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.drivers import array_at
from bench.isolation.pollers import places, polled_many_times
from domu.guest import Guest
from hyp.abi.nic import CONTEXTS, PAGE
from hyp.control import close_all
from hyp.events import WAIT

UNDER_WAY: Final = 64
MANY_PORTS: Final = 15
TIMES_POLLED: Final = 10
"""An eventfd, by an epoll that is polled 320,000 times."""
LINGER_S: Final = 60
PLACES: Final = {"sq": PAGE, "scq": 2 * PAGE, "rq": 3 * PAGE, "rcq": 4 * PAGE, "sq_size": 64, "rq_size": 64}


# --- hypercalls -------------------------------------------------------------------------------------------------------


@attack("as many hypercalls at a time as may be under way", Door.CALLS, Control.CALLS)
def hypercall_storm(a: Attacker) -> None:
    while a.goes_on(UNDER_WAY):
        a.calls([("domain_info", {})] * UNDER_WAY)


@attack("hypercalls that are refused", Door.CALLS, Control.CALLS)
def refused_calls(a: Attacker) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("emulation_attach", {"interrupts": 0, "answers": 99, **PLACES}), ("no_such_call", {}), ("mr_register", {"addr": 1}),
        ("evtchn_close", {"port": 1000}), ("gnttab_setup", {"frames": 1 << 40}), ("context_start", {"context": -1}),
        ("filter_change", {"domid": 1, "add": ["02:00:00:00:00:01"], "remove": []}), ("foreign_view", {"domid": 1}),
        ("spin_limit", {"limit_us": 1000}), ("toolstack_ready", {}), ("domain_destroy", {"domid": 1}),
    ]  # fmt: skip
    while a.goes_on(UNDER_WAY):
        a.calls(list(itertools.islice(itertools.cycle(bad), UNDER_WAY)))


@attack("starts, opens and closes contexts of others, of nobody and of its own, many at a time", Door.CALLS, Control.CALLS)
def others_contexts(a: Attacker) -> None:
    number = 0
    while a.goes_on(UNDER_WAY):
        number += 1
        some = [(number * 7 + k) % CONTEXTS for k in range(20)]
        calls: list[tuple[str, dict[str, Any]]] = [("context_close", {"context": k}) for k in some]
        calls += [("context_start", {"context": k, **PLACES}) for k in some]
        calls += [("dma_attach", {"context": k}) for k in some[:8]] + [("cdna_attach", {"context": k}) for k in some[:8]]
        a.calls([*calls, *[("context_open", {"upcall": 0})] * 8])


@attack("closes its context sixty times at once, and opens it again", Door.CALLS, Control.CALLS, paths=("bypass", "native"))
def context_churn(a: Attacker) -> None:
    while a.goes_on(UNDER_WAY):
        opened = a.call("context_open", upcall=a.guest.upcall)
        numbers = [int(opened["context"])] if opened else list(range(1, 9))
        a.calls([("context_close", {"context": k}) for k in numbers for _ in range(UNDER_WAY // len(numbers))])


@attack("registers and lets go of memory until there is no more room for it", Door.CALLS, Control.CALLS)
def registrations_without_end(a: Attacker) -> None:
    key = 0
    while a.goes_on(UNDER_WAY):
        whole = {"addr": 0, "length": a.driver.size, "writable": True}
        a.calls([("mr_register", whole)] * (UNDER_WAY // 2))
        a.calls([("mr_deregister", {"key": key + k}) for k in range(UNDER_WAY // 2)])
        key += UNDER_WAY // 4


@attack("uses up event channels, both ends its own, and upcalls", Door.CALLS, Control.CALLS)
def event_channels_used_up(a: Attacker) -> None:
    domid = a.guest.domid
    while a.goes_on():
        a.call("upcall_create", keep=True)
        made = a.call("evtchn_alloc_unbound", remote=domid, upcall=a.guest.upcall)
        if made is None:
            if not a.rest(0.001):
                return
            continue
        a.call("evtchn_bind_interdomain", remote=domid, remote_port=made["port"], upcall=a.guest.upcall, keep=True)


@attack("binds event channels with itself and closes them, many at a time", Door.CALLS, Control.CALLS)
def channel_churn(a: Attacker) -> None:
    me, upcall = a.guest.domid, a.guest.upcall
    while a.goes_on(MANY_PORTS):
        unbound = a.calls([("evtchn_alloc_unbound", {"remote": me, "upcall": upcall})] * MANY_PORTS, "port")
        bound = a.calls(
            [("evtchn_bind_interdomain", {"remote": me, "remote_port": port, "upcall": upcall}) for port in unbound], "port"
        )
        a.calls([("evtchn_close", {"port": port}) for port in (*bound, *unbound)])


@attack("sends itself events without end, over many ports", Door.CALLS)
def event_storm(a: Attacker) -> None:
    ends = []
    for _ in range(32):
        made = a.call("evtchn_alloc_unbound", remote=a.guest.domid, upcall=a.guest.upcall)
        if made is None:
            break
        a.call("evtchn_bind_interdomain", remote=a.guest.domid, remote_port=made["port"], upcall=a.guest.upcall, keep=True)
        ends.append(a.kept[-1])
    while a.goes_on(len(ends) or 1):
        for fd in ends:
            os.eventfd_write(fd, 1)


@attack("has two thousand pollers wait upon the upcall that others notify", Door.CALLS, Control.NOTIFIED, sent_to=True)
def pollers_on_its_upcall(a: Attacker) -> None:
    _have_pollers(a, 2000)


@attack("has so many pollers wait upon its upcall that it is just fair to notify it", Door.CALLS, Control.NOTIFIED, sent_to=True)
def pollers_just_fair(a: Attacker) -> None:
    _have_pollers(a, 150)


def _have_pollers(a: Attacker, number: int) -> None:
    epoll = upcall_of(a.guest)
    try:
        for _ in range(number):
            poller = select.epoll()
            poller.register(epoll, select.EPOLLIN)
            a.kept.append(poller)
            a.attempts += 1
    except OSError as error:
        a.got[str(error.strerror)] += 1
    a.be_notified()


@attack("polls its upcall 320,000 times at once, which who notifies it pays for", Door.CALLS, Control.NOTIFIED, sent_to=True)
def duplicate_polls(a: Attacker) -> None:
    try:
        with polled_many_times(upcall_of(a.guest)):
            a.attempts += places()
            a.be_notified()
    except OSError as error:
        a.got[str(error)] += 1


@attack("writes to eventfds polled three million times, for whose locks who takes them back spins", Door.CALLS, Control.CALLS)
def locks_of_eventfds(a: Attacker) -> None:
    polled = select.epoll()
    a.kept.append(polled)
    before = len(a.kept)
    with polled_many_times(polled.fileno()):
        while a.goes_on():
            back = _eventfd_shared(a)
            if not back:
                continue
            eventfd, over = a.kept[-1], threading.Event()
            dups = [os.dup(eventfd) for _ in range(TIMES_POLLED)]
            for one in dups:
                polled.register(one, select.EPOLLIN | select.EPOLLET)
            writer = threading.Thread(target=_write_until, args=(eventfd, over))
            writer.start()
            for op, arguments in back:
                a.call(op, **arguments)
            over.set()
            writer.join()
            close_all([*dups, *a.kept[before:]])
            del a.kept[before:]


def _eventfd_shared(a: Attacker) -> list[tuple[str, dict[str, Any]]]:
    """Have one, of a context or else of an event channel, put into `kept`; by which calls it is given back. Empty: try again."""
    if a.path in ("bypass", "native"):
        opened = a.call("context_open", upcall=a.guest.upcall, keep=True)
        if opened is None:
            a.calls([("context_close", {"context": k}) for k in range(1, 9)])
            return []
        return [("context_close", {"context": opened["context"]})]
    made = a.call("evtchn_alloc_unbound", remote=a.guest.domid, upcall=a.guest.upcall)
    if made is None:
        a.rest(0.001)
        return []
    bound = a.call("evtchn_bind_interdomain", remote=a.guest.domid, remote_port=made["port"], upcall=a.guest.upcall, keep=True)
    if bound is None:
        a.call("evtchn_close", port=made["port"])
        return []
    return [("evtchn_close", {"port": end["port"]}) for end in (bound, made)]


def _write_until(eventfd: int, over: threading.Event) -> None:
    while not over.is_set():
        os.eventfd_write(eventfd, 1)


def upcall_of(guest: Guest) -> int:
    """Descriptor of the first upcall."""
    return int(array_at(guest.wait, WAIT, 1)[0]["epoll"])


# --- messages ---------------------------------------------------------------------------------------------------------


def _raw(a: Attacker, purpose: str) -> socket.socket:
    """One of the guest's sockets, to write anything to."""
    if purpose == "xenstore" and a.store is not None:  # its client has it
        return socket.socket(fileno=os.dup(a.store.fileno()))
    return socket.socket(fileno=os.dup(a.process.sockets[purpose]))


@attack(
    "tells the keeper that it has failed, for a cause of 60 kB, with markup, newlines and bytes that are no text",
    Door.CALLS,
    Control.QUIET,
)
def enormous_cause(a: Attacker) -> None:
    with _raw(a, "console") as console:
        for cause in ("[red]" + "x\n\x1b[2J" * 20_000, b"\xff" * 60_000, "y" * 163_000, {"a": ["b"] * 1000}, 7, None):
            message = msgpack.packb({"op": "failed", "args": {"cause": cause}})
            a.goes_on()
            try:
                console.send(message)
            except OSError as error:
                a.got[str(error.strerror)] += 1
    a.rest()


@attack(
    "messages that are none: random bytes, maps of other types, unknown operations, to hypervisor and keeper",
    Door.CALLS,
    Control.QUIET,
)
def senseless_messages(a: Attacker) -> None:
    messages = [
        b"", b"\xc1", os.urandom(2000), msgpack.packb([1, 2]), msgpack.packb({"id": "x", "op": 5, "args": []}),
        msgpack.packb({"id": 2**63, "op": "a" * 100_000, "args": {}}), msgpack.packb({"op": "ready", "args": {"a": 1}}),
        msgpack.packb({"id": 1, "gen": 9, "ok": None}), msgpack.packb({"id": 3, "op": "__class__", "args": {}}),
    ]  # fmt: skip
    for purpose in ("hypercalls", "console"):
        with _raw(a, purpose) as end:
            for message in messages:
                a.goes_on()
                try:
                    end.send(message)
                except OSError as error:
                    a.got[str(error.strerror)] += 1
    a.rest()


@attack("asks without reading any answer", Door.CALLS, Control.CALLS)
def answers_unread(a: Attacker) -> None:
    with _raw(a, "hypercalls") as end:
        for number in itertools.count(10_000):
            if not a.goes_on():
                return
            try:
                end.send(msgpack.packb({"id": number, "op": "domain_info", "args": {}}))
            except OSError as error:
                a.got[str(error.strerror)] += 1
                a.rest(0.001)


@attack("asks hypervisor, store and keeper all at once, each without end", Door.CALLS, Control.CALLS)
def all_doors_at_once(a: Attacker) -> None:
    others = [threading.Thread(target=_tell_without_end, args=(a, purpose)) for purpose in ("hypercalls", "console")]
    for other in others:
        other.start()
    while a.goes_on(UNDER_WAY):
        a.asks([("read", a.home("name"))] * UNDER_WAY)
    for other in others:
        other.join()


@attack("polls its sockets 320,000 times each for nothing, and asks hypervisor, keeper and store", Door.CALLS, Control.CALLS)
def packets_dear_to_receive(a: Attacker) -> None:
    with contextlib.ExitStack() as polled:
        for purpose in ("hypercalls", "console", "xenstore"):
            with _raw(a, purpose) as end:
                polled.enter_context(polled_many_times(end.fileno(), events=0))
        all_doors_at_once(a)


def _tell_without_end(a: Attacker, purpose: str) -> None:
    """Messages that nobody answers."""
    message = msgpack.packb({"op": "nothing", "args": {}})
    with _raw(a, purpose) as end:
        while a.goes_on():
            try:
                end.send(message)
            except BlockingIOError:
                a.rest(0.0005)
            except OSError as error:
                a.got[str(error.strerror)] += 1
                return


@attack("sends sockets that take a minute to close, where no descriptor is asked for", Door.CALLS, Control.QUIET)
def lingering_descriptors(a: Attacker) -> None:
    with socket.create_server(("127.0.0.1", 0)) if _has_loopback() else socket.socket() as server:
        for purpose in ("hypercalls", "console", "xenstore"):
            with _raw(a, purpose) as end:
                near, far = _unread_pair(server)
                a.kept += [far]
                try:
                    socket.send_fds(end, [msgpack.packb({"op": "ready", "args": {}})], [near.fileno()])
                    a.attempts += 1
                except OSError as error:
                    a.got[str(error.strerror)] += 1
                near.detach()
    a.rest()


def _has_loopback() -> bool:
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError:
        return False
    return True


def _unread_pair(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A TCP connection with data that nobody reads, whose end lingers; two ends of a Unix socket where there is no network."""
    if server.family != socket.AF_INET:
        return socket.socketpair()
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0" + LINGER_S.to_bytes(4, "little"))
    near.setblocking(False)
    try:
        while True:
            near.send(bytes(1 << 16))
    except BlockingIOError:
        return near, far


@attack("parks more than a thousand descriptors in flight", Door.CALLS, Control.QUIET)
def parked_descriptors(a: Attacker) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.kept += [near, far]
    near.setblocking(False)
    one = os.open(os.devnull, os.O_RDONLY)
    a.kept.append(one)
    for _ in range(12):
        inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.kept += inner
        inner[0].setblocking(False)
        try:
            for _ in range(10):
                socket.send_fds(inner[0], [b"x"], [one] * 200)
                a.attempts += 200
        except OSError as error:
            a.got[str(error.strerror)] += 1
    a.rest()


# --- the store --------------------------------------------------------------------------------------------------------


@attack("fills its directory in the store and lists it without end", Door.CALLS, Control.READS)
def large_directories(a: Attacker) -> None:
    for number in range(2000):
        if not a.goes_on() or (a.ask("write", a.home(f"data/{'n' * 40}{number}"), "x" * 1000) is None and a.got["ENOSPC"]):
            break
    while a.goes_on():
        a.ask("directory", a.home("data"))


@attack("as many watches as it may have, and writes that fire all of them", Door.CALLS, Control.READS)
def watches_without_end(a: Attacker) -> None:
    for number in range(256):
        a.ask("watch", a.home("data"), f"token{number}")
        if a.got["E2BIG"] + a.got["EQUOTA"] + a.got["ENOSPC"]:
            break
    number = 0
    while a.goes_on():
        a.ask("write", a.home("data/w"), str(number))
        number += 1


@attack("watches what others write", Door.CALLS, Control.READS)
def watches_on_others(a: Attacker) -> None:
    for number in range(128):
        a.ask(
            "watch",
            ("/", "/local", "/local/domain", "/local/domain/0", "@introduceDomain", "@releaseDomain")[number % 6],
            f"t{number}",
        )
    while a.goes_on():
        a.ask("read", a.home("name"))


@attack("writes without end what others' transactions have read", Door.CALLS, Control.READS)
def conflicting_writes(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        number += 1
        a.ask("write", a.home("data/conflict"), str(number))
        a.ask("write", f"{a.front}/state", "4")


@attack("requests to the store that are none: types, lengths, paths and permissions of every kind", Door.CALLS, Control.READS)
def senseless_requests(a: Attacker) -> None:
    paths = ["", "/" * 3000, "/local/domain/../../0", "/\0/", "/tool", "@x", "/local/domain/0/backend", "a" * 4000]
    while a.goes_on():
        for path in paths:
            a.ask("read", path)
            a.ask("rm", path)
            a.ask("set_perms", path, ["n0", "b1", "w9999999999"])
            a.ask("write", path, "x" * 5000)


@attack("every state of a device, in any order, with keys that say anything", Door.CALLS, Control.READS, paths=("split",))
def states_at_random(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        number = (number * 1103515245 + 12345) & 0x7FFF_FFFF
        key = ("state", "tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy", "feature-sg", "multi-queue-num-queues")[
            number % 7
        ]
        a.ask("write", f"{a.front}/{key}", str((number >> 8) % 9))
