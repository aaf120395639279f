"""Peers that do not keep to the control channel's protocol: they lose their channel, and others are served."""

import asyncio
import socket
import tempfile
from collections.abc import Awaitable
from typing import Any

import msgpack
import pytest

from hyp.control import (
    MAX_MESSAGE,
    MAX_PENDING,
    MAX_UNSENT,
    Channel,
    PeerGone,
    Refused,
    Reply,
    socketpair,
)
from hyp.control.channel import MAX_ITEMS
from hyp.control.errors import MAX_NAME, MAX_REASON
from hyp.control.words import MAX_WORDS, printable
from tests.support.control_ends import attack, close, ended, fill, receive, run, send, still_serves

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


@pytest.mark.parametrize("packet", [
    msgpack.packb({"id": 1, "op": "add", "args": {"a": [0] * (MAX_ITEMS + 1)}}),
    b"\xdd\x00\x00\x7f\xff" * 400 + b"\xc0" * 32768,
    b"\xdf\x00\x00\x7f\xff\xa1x" * 400 + b"\xc0" * 32768,
])  # fmt: skip
def test_who_is_not_trusted_sends_no_arrays_of_more_than_anybody_says(packet: bytes) -> None:
    """An array is made as long as it says to be, and each of those within it."""

    async def main() -> None:
        _, hostile, sock, bystander = await attack(guarded=True)
        await send(sock, packet)
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


def test_a_peer_that_never_reads_is_not_read_until_it_does() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack(guarded=True)
        big = msgpack.packb({"id": 1, "op": "slow", "args": {"value": b"x" * 10_000}})
        sent = await fill(sock, big, beside=bystander)
        assert sent < 10 * (MAX_UNSENT + MAX_PENDING), "its requests wait in its own socket"
        assert len(hostile._outbox) <= MAX_UNSENT + MAX_PENDING
        for _ in range(sent):
            assert len(msgpack.unpackb(await receive(sock))["ok"]) == 10_000
        await still_serves(bystander)
        close(hostile, bystander)
        sock.close()

    run(main())


def test_a_peer_that_never_reads_keeps_none_of_our_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        sends = 0
        send_fds = socket.send_fds

        def counted(*args: Any) -> int:
            nonlocal sends
            sends += args[0] is hostile._sock
            return send_fds(*args)

        monkeypatch.setattr(socket, "send_fds", counted)
        calls = [asyncio.ensure_future(hostile.call("whatever", value=b"x" * 50_000)) for _ in range(50)]
        for _ in range(20):
            await still_serves(bystander)
        assert 0 < sends < 10, "what waits for room asks for it again and again"
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert len(hostile._outbox) == 0, "nobody waits for it any more"
        close(hostile, bystander)
        sock.close()

    run(main())


def test_a_message_that_is_too_long_is_its_callers_error() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        long = b"x" * MAX_MESSAGE
        with pytest.raises(Refused, match=r"whatever: a message of \d+ bytes to the guest is too long") as error:
            await hostile.call("whatever", value=long)
        assert error.value.name == "EMSGSIZE"
        hostile.tell("whatever", value=long)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
        await send(sock, msgpack.packb({"id": 1, "op": "twice", "args": {"value": b"x" * 100_000}}))
        assert msgpack.unpackb(await receive(sock))["error"][0] == "EMSGSIZE"
        await send(sock, msgpack.packb({"id": 2, "op": "refuse", "args": {"name": "x" * 150_000}}))
        name, text = msgpack.unpackb(await receive(sock))["error"]
        assert name == "x" * MAX_NAME
        assert text == "because of " + "x" * (MAX_REASON - 11)
        await still_serves(bystander)
        close(hostile, bystander)
        sock.close()

    run(main())


def test_what_a_peer_says_is_cut_and_shows_what_it_is() -> None:
    assert printable("a\x1b[2Kb\nc\rd\u202e") == "a\\x1b[2Kb\\nc\\rd\\u202e"
    assert printable("größe 1 µs") == "größe 1 µs"
    assert printable("x" * 200_000) == "x" * (MAX_WORDS - 1) + "…"
    assert len(printable("\U0010ffff" * 200_000)) == MAX_WORDS
    assert printable(b"\xff" * 60_000) == "<bytes>"
    assert printable({"a": [1] * 1000}) == "<dict>"


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
