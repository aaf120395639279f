"""Peers that do not keep to the control channel's protocol: they lose their channel, and others are served."""

import array
import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable
from typing import Any

import msgpack
import pytest

from hyp.control import MAX_FDS, MAX_MESSAGE, MAX_PENDING, Channel, PeerGone, Reply, socketpair
from tests.support.control_ends import attack, close, ended, receive, run, send, still_serves

pytestmark = pytest.mark.usefixtures("settled", "no_descriptor_is_left")

GARBAGE: dict[str, bytes] = {
    "no msgpack": b"\xc1",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "cut short": msgpack.packb({"id": 1, "op": "add"})[:-2],
    "more behind it": msgpack.packb({"id": 1, "op": "add"}) + b"\x00",
    "a list": msgpack.packb([1, 2]),
    "an integer": b"\x05",
    "nil": b"\xc0",
    "an empty map": msgpack.packb({}),
    "a map that says a billion": b"\xdf\x40\x00\x00\x00",
    "an array that says four billion": b"\xdd\xff\xff\xff\xff",
    "bytes that say four billion": b"\xc6\xff\xff\xff\xff",
    "deeply nested": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa1x" * 30_000 + b"\xc0",
    "keys that are integers": msgpack.packb({1: 2, "op": "add", "id": 1}),
    "op is a number": msgpack.packb({"id": 1, "op": 7}),
    "op is a list": msgpack.packb({"id": 1, "op": ["add"]}),
    "op is nil": msgpack.packb({"id": 1, "op": None}),
    "args is a list": msgpack.packb({"id": 1, "op": "add", "args": [1, 2]}),
    "args is nil": msgpack.packb({"id": 1, "op": "add", "args": None}),
    "id is a string": msgpack.packb({"id": "1", "op": "add"}),
    "id is a map": msgpack.packb({"id": {}, "op": "add"}),
    "a reply without an id": msgpack.packb({"ok": 1}),
    "a reply whose id is a list": msgpack.packb({"id": [1], "ok": 1}),
    "text that is no UTF-8": msgpack.packb({"op": b"\xff\xfe"}, use_bin_type=False),
    "a packet that is too long": msgpack.packb({"id": 1, "op": "add", "args": {"a": b"x" * MAX_MESSAGE}}),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_the_channel_of_its_sender_alone(what: str) -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
        await send(sock, GARBAGE[what])
        assert await ended(hostile)
        await still_serves(bystander)
        close(bystander)
        sock.close()

    run(main())


@pytest.mark.parametrize("what", [
    msgpack.packb({"id": 99, "ok": 1}), msgpack.packb({"id": -1, "error": ["EIO", "?"]}),
    msgpack.packb({"id": 1 << 63, "ok": None}), msgpack.packb({"id": True, "ok": 1}),
])  # fmt: skip
def test_a_reply_to_nothing_is_ignored(what: bytes) -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        await send(sock, what)
        await send(sock, msgpack.packb({"id": 5, "op": "add", "args": {"a": 1, "b": 1}}))
        assert msgpack.unpackb(await receive(sock)) == {"id": 5, "gen": 5, "ok": 2}
        await still_serves(bystander)
        close(hostile, bystander)
        sock.close()

    run(main())


@pytest.mark.parametrize("reply", [
    {"error": 5}, {"error": []}, {"error": ["EIO"]}, {"error": None}, {"ok": 1, "gen": "x"}, {"ok": 1, "gen": None},
    {"ok": 1, "gen": [1]},
])  # fmt: skip
def test_a_malformed_reply_ends_the_call_and_the_channel(reply: dict[str, Any]) -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        call = asyncio.ensure_future(hostile.call("whatever"))
        request = msgpack.unpackb(await receive(sock))
        with tempfile.TemporaryFile() as file:
            socket.send_fds(sock, [msgpack.packb({"id": request["id"], **reply})], [file.fileno()] * 3)
        with pytest.raises(PeerGone):
            await call
        await still_serves(bystander)
        close(bystander)
        sock.close()

    run(main())


@pytest.mark.parametrize("op", ["add", "sizes", "unheard", "fail"])
def test_a_flood_of_descriptors_is_closed(op: str) -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        before = len(os.listdir("/proc/self/fd"))
        with tempfile.TemporaryFile() as file:
            many = [file.fileno()] * min(MAX_FDS, 200)
            for number in range(30):
                packet = msgpack.packb({"id": number, "op": op})
                while not hostile.closed.done():
                    try:
                        socket.send_fds(sock, [packet], many)
                        break
                    except (BlockingIOError, OSError):
                        await asyncio.sleep(0)
                reply = msgpack.unpackb(await receive(sock))
                assert ("ok" in reply) == (op == "sizes")
        assert len(os.listdir("/proc/self/fd")) <= before
        await still_serves(bystander)
        close(hostile, bystander)
        sock.close()

    run(main())


def test_descriptors_of_events_and_of_stray_replies_are_closed() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        before = len(os.listdir("/proc/self/fd"))
        with tempfile.TemporaryFile() as file:
            event, unheard = {"op": "note", "args": {"value": 1}}, {"op": "unheard"}
            for message in (event, unheard, {"id": 77, "ok": 1}, {"id": 78, "error": ["EIO", ""]}):
                socket.send_fds(sock, [msgpack.packb(message)], [file.fileno()] * 20)
        await send(sock, msgpack.packb({"id": 5, "op": "add", "args": {"a": 1, "b": 1}}))
        await receive(sock)
        await still_serves(bystander)
        assert len(os.listdir("/proc/self/fd")) == before
        close(hostile, bystander)
        sock.close()

    run(main())


def test_an_empty_packet_with_descriptors() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        before = len(os.listdir("/proc/self/fd"))
        with tempfile.TemporaryFile() as file:
            rights = array.array("i", [file.fileno()] * 10)
            sock.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        await ended(hostile)
        assert len(os.listdir("/proc/self/fd")) == before - 1, "its own socket is closed, and what came with the packet"
        await still_serves(bystander)
        close(bystander)
        sock.close()

    run(main())


def test_a_peer_that_never_reads_is_dropped() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        big = msgpack.packb({"id": 1, "op": "slow", "args": {"value": b"x" * 10_000}})
        for _ in range(1000):
            if hostile.closed.done():
                break
            try:
                sock.send(big)
            except (BlockingIOError, BrokenPipeError):
                pass
            await asyncio.sleep(0)
        assert "does not read" in await ended(hostile)
        await still_serves(bystander)
        close(bystander)
        sock.close()

    run(main())


def test_ten_thousand_requests_at_once_hold_nobody_up() -> None:
    async def main() -> None:
        server, hostile, sock, bystander = await attack()
        total, answered, sent = 10_000, 0, 0
        request = msgpack.packb({"id": 1, "op": "gated", "args": {"value": 1}})
        while sent < MAX_PENDING * 3:  # nobody answers yet: all that may be under way is
            try:
                sock.send(request)
                sent += 1
            except BlockingIOError:
                break
        for _ in range(20):
            await still_serves(bystander)
        assert server.running == MAX_PENDING
        assert not hostile.closed.done()
        server.gate.set()
        turns = 0
        while answered < total:
            for _ in range(100):
                try:
                    if sent < total:
                        sock.send(request)
                        sent += 1
                except BlockingIOError:
                    break
            await asyncio.sleep(0)
            while answered < sent:
                try:
                    assert msgpack.unpackb(sock.recv(MAX_MESSAGE))["ok"] == 1
                    answered += 1
                except BlockingIOError:
                    break
            turns += 1
            if turns % 10 == 0:
                await still_serves(bystander)
        assert server.most <= MAX_PENDING
        close(hostile, bystander)
        sock.close()

    run(main())


def test_a_peer_that_goes_with_requests_under_way() -> None:
    async def main() -> None:
        server, hostile, sock, bystander = await attack()
        for number in range(MAX_PENDING):
            await send(sock, msgpack.packb({"id": number, "op": "gated", "args": {"value": 1}}))
        while server.running < MAX_PENDING:
            await asyncio.sleep(0)
        sock.close()
        server.gate.set()
        await ended(hostile)
        await still_serves(bystander)
        close(bystander)

    run(main())


def test_a_channel_that_is_closed_while_it_is_paused() -> None:
    async def main() -> None:
        server, hostile, sock, bystander = await attack()
        for number in range(MAX_PENDING + 10):
            await send(sock, msgpack.packb({"id": number, "op": "gated", "args": {"value": 1}}))
        while server.running < MAX_PENDING:
            await asyncio.sleep(0)
        hostile.close()
        server.gate.set()
        await still_serves(bystander)
        close(bystander)
        sock.close()

    run(main())


def test_a_call_whose_peer_goes_while_it_waits_for_room() -> None:
    async def main() -> None:
        ours, theirs = socketpair()
        channel = Channel(ours, name="the hypervisor")
        calls: list[Awaitable[Reply]] = [asyncio.ensure_future(channel.call("x", value=b"x" * 50_000)) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        theirs.close()
        for call in calls:
            with pytest.raises(PeerGone):
                await call

    run(main())
