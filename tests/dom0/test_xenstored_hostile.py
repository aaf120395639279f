"""Hostile, slow and dying clients of xenstored. Each test ends with somebody else being served."""

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.isolation.pollers import polled_many_times
from dom0.xenstore.connection import EVENTS_LIMIT, PAUSE_BYTES, Connection
from dom0.xenstore.server import Xenstored
from dom0.xenstore.turns import SLICE_NS
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType
from hyp.control.descriptors import hang_up
from tests.support.control_ends import lingering
from tests.support.xenstored_process import Raw, Served, forked, succeeded, xenstored

LONG = "x" * 1900  # an event or a value of this size soon fills what may wait unread


@pytest.fixture
def served() -> Iterator[Served]:
    with xenstored([0, 0, 5, 6]) as server:
        yield server


def bystander_is_served(served: Served) -> None:
    bystander = served.raw(6)
    assert bystander.call(MessageType.WRITE, "alive", "yes") == b"OK\0"
    assert bystander.call(MessageType.READ, "alive") == b"yes\0"


@pytest.mark.parametrize("length", [4097, 1 << 31, (1 << 32) - 1])
def test_oversize_length_ends_only_that_connection(served: Served, length: int) -> None:
    hostile = served.raw(5)
    hostile.sock.sendall(struct.pack("<IIII", MessageType.READ, 1, 0, length))
    assert hostile.ended()
    bystander_is_served(served)
    report = served.stop()
    assert report["disconnects"] == {"malformed": 1}
    assert any("domain 5" in line and str(length) in line for line in report["log"])


@pytest.mark.parametrize("type_", [15, 16, 20, 23, 0xFFFF, 0xFFFF_FFFF])
def test_garbage_type_is_answered_and_the_connection_goes_on(served: Served, type_: int) -> None:
    hostile = served.raw(5)
    hostile.send(type_, "x", req=9, tx=4)
    assert hostile.receive() == Message(MessageType.ERROR, 9, 4, b"ENOSYS\0")
    assert hostile.call(MessageType.GET_DOMAIN_PATH, "5") == b"/local/domain/5\0"
    bystander_is_served(served)


def test_garbage_payloads_are_answered(served: Served) -> None:
    hostile = served.raw(5)
    payloads = [b"", b"no nul", b"\0" * 4096, b"\xff" * 4096, b"+1\0", b"99999.\0", b"\xff\0\xff\0", b"/\0\xff\0"]
    valid = {(MessageType.WATCH, b"/\0\xff\0"), (MessageType.UNWATCH, b"/\0\xff\0")}  # any bytes are a token
    for type_ in sorted(set(MessageType) - {MessageType.TRANSACTION_START, MessageType.RESET_WATCHES}):
        for payload in payloads:
            hostile.sock.sendall(xs_wire.pack(type_, 1, 0, payload))
            while (reply := hostile.receive()).type == MessageType.WATCH_EVENT:
                assert reply.payload == b"/\0\xff\0"
            if (type_, payload) in valid:
                assert reply == Message(type_, 1, 0, b"OK\0")
            else:
                assert reply.type == MessageType.ERROR
                assert reply.payload in (b"EINVAL\0", b"EACCES\0", b"ENOSYS\0", b"ENOENT\0")
    bystander_is_served(served)
    assert served.stop()["disconnects"] == {}


def test_half_a_header_then_silence_holds_nobody_up(served: Served) -> None:
    hostile = served.raw(5)
    message = xs_wire.pack(MessageType.GET_DOMAIN_PATH, 3, 0, b"5\0")
    hostile.sock.sendall(message[:9])
    bystander_is_served(served)
    for byte in message[9:]:
        hostile.sock.sendall(bytes([byte]))
    assert hostile.receive().payload == b"/local/domain/5\0"
    hostile.sock.sendall(message[:9])
    hostile.sock.close()
    assert served.raw(0).call(MessageType.RESUME, "5") == b"OK\0"
    assert "malformed" not in served.stop()["disconnects"]


def test_a_byte_that_is_urgent_is_one_as_others(served: Served) -> None:
    """Else one is passed by whenever somebody looks, the stream is readable for good, and xenstored looks without end."""
    hostile = served.raw(5)
    for byte in xs_wire.pack(MessageType.GET_DOMAIN_PATH, 3, 0, b"5\0"):
        with contextlib.suppress(OSError):  # EOPNOTSUPP: the kernel has no such bytes
            hostile.sock.send(bytes([byte]), socket.MSG_OOB)
            continue
        hostile.sock.send(bytes([byte]))
    assert hostile.receive().payload == b"/local/domain/5\0"
    hostile.sock.send(b"!", socket.MSG_OOB)
    bystander_is_served(served)
    assert served.stop()["disconnects"] == {}


def two_clients() -> tuple[Xenstored, Raw, Raw, Connection]:
    """A server in this loop; domain 5, which is hostile, domain 6, and what the server has of the first."""
    server = Xenstored()
    (mallory, theirs), (bystander, its) = socket.socketpair(), socket.socketpair()
    for domid, sock in ((5, theirs), (6, its)):
        server.introduce(domid)
        server.add_connection(domid, sock)
    (connection,) = (one for one in server.connections.values() if one.domid == 5)
    return server, Raw(mallory), Raw(bystander), connection


def test_who_asks_for_much_work_in_one_piece_pays_for_it() -> None:
    """A removal of a thousand nodes, taken back: a piece of work is not interrupted, so others wait for it."""

    async def main() -> None:
        server, hostile, other, connection = two_clients()

        async def call(raw: Raw, *what: Any, tx: int = 0) -> bytes:
            return bytes(await asyncio.to_thread(raw.call, *what, tx=tx))

        for k in range(900):
            assert await call(hostile, MessageType.MKDIR, f"d/{k}") == b"OK\0"
        tx = int((await call(hostile, MessageType.TRANSACTION_START, "")).rstrip(b"\0"))
        before = time.monotonic_ns()
        assert await call(hostile, MessageType.RM, "d", tx=tx) == b"OK\0"
        assert connection.debt._until - before > SLICE_NS, "it took several turns' time, and that is paid many times over"
        connection.debt.owe(10**9)
        hostile.send(MessageType.GET_DOMAIN_PATH, "5")
        for _ in range(3):
            assert await call(other, MessageType.GET_DOMAIN_PATH, "6") == b"/local/domain/6\0"
        assert connection.paused
        server.close()
        hostile.sock.close()
        other.sock.close()

    asyncio.run(main())


def test_a_guest_that_never_reads_its_events_is_told_less_and_holds_no_more(served: Served) -> None:
    """It may be others who cause them: for that nobody is disconnected."""
    slow, dom0 = served.raw(5), served.raw(0)
    assert slow.call(MessageType.WATCH, "noise", "t") == b"OK\0"
    for number in range(600):
        assert dom0.call(MessageType.WRITE, f"/local/domain/5/noise/{number}{LONG}", "") == b"OK\0"
    bystander_is_served(served)
    assert slow.call(MessageType.GET_DOMAIN_PATH, "5") == b"/local/domain/5\0"
    assert slow.bytes_received < 2 * EVENTS_LIMIT
    assert served.stop()["disconnects"] == {}


@pytest.mark.long
def test_domain_0_that_is_slow_loses_detail_not_its_connection(served: Served) -> None:
    slow, guest = served.raw(0), served.raw(5)
    assert slow.call(MessageType.WATCH, "/local/domain/5", "t") == b"OK\0"
    count = 900
    for number in range(count):
        assert guest.call(MessageType.WRITE, f"{number}{LONG}", "") == b"OK\0"
    bystander_is_served(served)
    events = []
    slow.send(MessageType.GET_DOMAIN_PATH, "5")
    while (message := slow.receive()).type == MessageType.WATCH_EVENT:
        events.append(message.payload)
    assert message.payload == b"/local/domain/5\0"
    assert b"/local/domain/5\0t\0" in events[1:], "the watched path stands for what was left out"
    assert slow.bytes_received < count * len(LONG) - EVENTS_LIMIT
    guest.call(MessageType.WRITE, "later", "")
    assert slow.receive().payload == b"/local/domain/5/later\0t\0"
    assert served.stop()["disconnects"] == {}


def test_an_event_that_waits_unread_is_not_queued_again(served: Served) -> None:
    lazy, dom0 = served.raw(5), served.raw(0)
    assert lazy.call(MessageType.WATCH, "node", LONG[:1000]) == b"OK\0"
    for number in range(2000):
        assert dom0.call(MessageType.WRITE, "/local/domain/5/node", str(number)) == b"OK\0"
    assert lazy.call(MessageType.READ, "node") == b"1999\0"
    assert lazy.bytes_received < 2000 * 1000 / 2
    assert served.stop()["disconnects"] == {}


@pytest.mark.parametrize("count", [220, 2000])  # in one read of the server, and in many
def test_requests_wait_while_their_replies_are_not_read(served: Served, count: int) -> None:
    eager = served.raw(5)
    assert eager.call(MessageType.WRITE, "v", LONG) == b"OK\0"
    assert count * len(LONG) > PAUSE_BYTES + EVENTS_LIMIT
    request = xs_wire.pack(MessageType.READ, 1, 0, b"v\0")
    sender = forked(lambda: eager.sock.sendall(request * count))
    bystander_is_served(served)
    for _ in range(count):
        assert len(eager.receive().payload) == len(LONG) + 1
    assert succeeded(sender)
    assert served.stop()["disconnects"] == {}


def test_quotas_hold_over_the_wire(served: Served) -> None:
    hostile = served.raw(5)

    def until_refused(type_: MessageType, strings: Callable[[int], tuple[str, ...]]) -> tuple[int, bytes]:
        for number in range(2000):
            reply = hostile.call(type_, *strings(number))
            if reply.startswith(b"E"):
                return number, reply
        raise AssertionError("no quota")

    assert until_refused(MessageType.MKDIR, lambda n: (f"n{n}",)) == (999, b"ENOSPC\0")
    assert until_refused(MessageType.WATCH, lambda n: (f"w{n}", "t")) == (128, b"E2BIG\0")
    assert until_refused(MessageType.TRANSACTION_START, lambda n: ("",)) == (10, b"ENOSPC\0")
    assert hostile.call(MessageType.WRITE, "n0", "x" * 2048) == b"ENOSPC\0"  # with its NUL one byte too many
    bystander_is_served(served)


def test_the_end_of_a_connection_ends_its_transactions_and_watches_not_its_nodes(served: Served) -> None:
    first, dom0 = served.raw(0), served.raw(0)
    first.call(MessageType.WRITE, "/tool/kept", "1")
    first.call(MessageType.WATCH, "/tool", "t")
    tx = int(first.call(MessageType.TRANSACTION_START, "").rstrip(b"\0"))
    first.call(MessageType.WRITE, "/tool/dropped", "1", tx=tx)
    first.sock.close()
    assert dom0.call(MessageType.READ, "/tool/kept") == b"1\0"
    assert dom0.call(MessageType.READ, "/tool/dropped") == b"ENOENT\0"
    bystander_is_served(served)


def test_a_domain_that_connects_again_has_its_quota_back() -> None:
    with xenstored([5, 5]) as served:
        first, second = served.raw(5), served.raw(5)
        while first.call(MessageType.TRANSACTION_START, "") != b"ENOSPC\0":
            pass
        assert second.call(MessageType.TRANSACTION_START, "") == b"ENOSPC\0"
        first.sock.close()
        replies = (second.call(MessageType.TRANSACTION_START, "") for _ in range(10_000))
        assert any(reply != b"ENOSPC\0" for reply in replies)


@pytest.mark.parametrize("before", [0, 3])
def test_a_descriptor_whose_close_lasts_holds_nobody_up(before: int) -> None:
    """Sent before the socket was the server's, which the kernel does not undo: as where it cannot refuse any."""

    async def main() -> None:
        server = Xenstored()
        (mallory, theirs), (bystander, its) = socket.socketpair(), socket.socketpair()
        for domid in (5, 6):
            server.introduce(domid)
        request = xs_wire.pack(MessageType.READ, 1, 0, b"nothing\0")
        with lingering() as fd:
            for _ in range(before):
                mallory.send(request)
            socket.send_fds(mallory, [request], [fd])
            os.close(fd)
            server.add_connection(6, its)
            held = os.dup(theirs.fileno())  # as the keeper has it
            connection = server.add_connection(5, theirs)
            served = await asyncio.to_thread(Raw(bystander).call, MessageType.GET_DOMAIN_PATH, "6")
            assert served == b"/local/domain/6\0"
            assert connection.closed
            assert server.disconnects == {"error": 1}
            hang_up(socket.socket(fileno=held))
            assert await asyncio.to_thread(Raw(bystander).call, MessageType.GET_DOMAIN_PATH, "5") == b"/local/domain/5\0"
        while any(thread.name == "closing" for thread in threading.enumerate()):  # its peer is gone: it ends
            await asyncio.sleep(0)
        server.close()
        mallory.close()
        bystander.close()

    asyncio.run(main())


def test_who_polls_its_socket_many_times_over_is_answered_late_and_others_as_before() -> None:
    async def main() -> None:
        server, hostile, other, connection = two_clients()
        with polled_many_times(hostile.sock.fileno()):
            asked = 0
            while connection.debt.wait_s() == 0:
                hostile.send(MessageType.GET_DOMAIN_PATH, "5", req=asked)
                asked += 1
                assert await asyncio.to_thread(other.call, MessageType.GET_DOMAIN_PATH, "6") == b"/local/domain/6\0"
            hostile.send(MessageType.GET_DOMAIN_PATH, "5", req=asked)
            assert await asyncio.to_thread(other.call, MessageType.GET_DOMAIN_PATH, "6") == b"/local/domain/6\0"
            assert connection.paused or connection.unread > 0
        for number in range(asked + 1):
            assert (await asyncio.to_thread(hostile.receive)).req_id == number
        server.close()
        hostile.sock.close()
        other.sock.close()

    asyncio.run(main())
