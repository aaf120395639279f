"""Peers that do not keep to the control channel's protocol: they lose their channel, and others are served."""

import array
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable
from typing import Any

import msgpack
import pytest

from hyp.control import (
    MAX_FDS,
    MAX_MESSAGE,
    MAX_PENDING,
    MAX_UNSENT,
    MAX_UNSENT_FDS,
    Channel,
    PeerGone,
    Refused,
    Reply,
    close_all,
    socketpair,
)
from hyp.control.channel import MAX_ITEMS
from hyp.control.descriptors import hang_up
from hyp.control.errors import MAX_NAME, MAX_REASON
from hyp.control.words import MAX_WORDS, printable
from tests.support.control_ends import Server, attack, close, ended, lingering, receive, run, send, still_serves
from tests.support.labs import ROOT
from tests.support.patience import patient

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


def opened() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


async def fill(sock: socket.socket, packet: bytes, beside: Channel | None = None) -> int:
    """Send a packet until there has been no room for it in a hundred turns of the loop; how many there were.

    `beside`: who is served meanwhile.
    """
    sent = turns_full = 0
    while turns_full < 100:
        try:
            sock.send(packet)
            sent, turns_full = sent + 1, 0
        except BlockingIOError:
            turns_full += 1
        await asyncio.sleep(0)
        if beside is not None and sent % 50 == 0:
            await still_serves(beside)
    return sent


async def take(sock: socket.socket) -> tuple[Any, int]:
    """The next reply of a raw socket, and how many descriptors came with it, which are closed."""
    while True:
        try:
            packet, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, MAX_FDS)
        except BlockingIOError:
            await asyncio.sleep(0)
        else:
            close_all(fds)
            return msgpack.unpackb(packet), len(fds)


def test_a_peer_that_does_not_take_its_descriptors_makes_us_keep_few() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack(guarded=True)
        before = opened()
        sent = await fill(sock, msgpack.packb({"id": 1, "op": "file", "args": {"content": "x"}}))
        assert 0 < hostile._outbox.descriptors <= MAX_UNSENT_FDS
        assert opened() - before <= MAX_UNSENT_FDS
        await still_serves(bystander)
        for _ in range(sent):
            answer, fds = await take(sock)
            assert (answer["ok"], fds) == ({"length": 1}, 1)
        assert opened() == before
        close(hostile, bystander)
        sock.close()

    run(main())


def test_descriptors_of_what_is_under_way_when_it_ceases_to_take_them_are_few_too() -> None:
    async def main() -> None:
        server, hostile, sock, bystander = await attack(guarded=True)
        for _ in range(MAX_PENDING - 1):
            await send(sock, msgpack.packb({"id": 1, "op": "gated_file", "args": {"content": "x"}}))
        while server.running < MAX_PENDING - 1:
            await asyncio.sleep(0)
        before = opened()
        sent = await fill(sock, msgpack.packb({"id": 2, "op": "file", "args": {"content": "x"}}))
        server.gate.set()
        while hostile._inbox.tasks:
            await asyncio.sleep(0)
        assert opened() - before <= MAX_UNSENT_FDS
        await still_serves(bystander)
        came = [await take(sock) for _ in range(sent + MAX_PENDING - 1)]
        refused = [answer for answer, fds in came if fds == 0]
        assert len(refused) >= MAX_PENDING - 1 - MAX_UNSENT_FDS
        assert {(answer["id"], answer["error"][0]) for answer in refused} == {(1, "ENOBUFS")}
        assert opened() == before
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


def sendmsg(sock: socket.socket, packet: bytes, fds: list[int]) -> None:
    sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_nobody_takes_descriptors_from_a_peer_that_has_none_to_send() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack(guarded=True)
        try:
            sendmsg(sock, msgpack.packb({"id": 1, "op": "add", "args": {"a": 1, "b": 1}}), [0])
        except PermissionError:  # by the kernel
            await send(sock, msgpack.packb({"id": 1, "op": "add", "args": {"a": 1, "b": 1}}))
            assert msgpack.unpackb(await receive(sock))["ok"] == 2
            close(hostile)
        else:
            assert "descriptors" in await ended(hostile)
        await still_serves(bystander)
        close(bystander)
        sock.close()

    run(main())


@pytest.mark.parametrize("packet", [b"", b"\xc1", msgpack.packb({"id": 1, "op": "add", "args": {"a": 1, "b": 1}})])
@pytest.mark.parametrize("before", [0, 3])
def test_a_descriptor_whose_close_lasts_holds_nobody_up(packet: bytes, before: int) -> None:
    """Sent before the socket was guarded, which the kernel does not undo: as where it cannot refuse any."""

    async def main() -> None:
        server = Server()
        ours, theirs = socketpair()
        ours2, theirs2 = socketpair()
        server.channel(ours2)
        bystander = Channel(theirs2, name="the hypervisor")
        with lingering() as fd:
            for _ in range(before):
                theirs.send(msgpack.packb({"id": 1, "op": "add", "args": {"a": 1, "b": 1}}))
            sendmsg(theirs, packet, [fd])
            os.close(fd)
            held = os.dup(ours.fileno())  # as the keeper has it
            hostile = server.guarded(ours)
            assert "descriptors" in await ended(hostile)
            await still_serves(bystander)
            hang_up(socket.socket(fileno=held))
            await still_serves(bystander)
        while any(thread.name == "closing" for thread in threading.enumerate()):  # its peer is gone: it ends
            await asyncio.sleep(0)
        close(bystander)
        theirs.close()

    run(main())


PARKING = """
import asyncio, os, resource, socket, sys
sys.path.insert(0, sys.argv[1])
from hyp.control import Channel, Refused
from hyp.control.channel import socketpair
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(54322, 54322, 54322)
    os.setresuid(54322, 54322, 54322)

def take(fds):
    os.close(fds[0])
    return 1

async def main():
    parked, _there = socketpair()
    while True:
        try:
            socket.send_fds(parked, [b"x"], [0] * 30)
        except OSError as error:
            print("parked", error.strerror, flush=True)
            break
    ours, theirs = socketpair()
    peer = Channel(theirs, {"takes": take, "add": lambda: 2}, takes_fds=frozenset({"takes"}))
    channel = Channel(ours)
    calls = [asyncio.ensure_future(channel.call("takes", fds=[0])), asyncio.ensure_future(channel.call("add"))]
    await asyncio.wait(calls)
    print(calls[0].exception().name, calls[0].exception(), calls[1].result().value, flush=True)
    call = asyncio.ensure_future(channel.call("takes", fds=[0]))
    await asyncio.sleep(0.05)  # it is being tried again
    parked.close()
    _there.close()
    print((await call).value, peer.closed.done(), channel.closed.done(), flush=True)

asyncio.run(main())
"""


@pytest.mark.long
def test_descriptors_parked_under_way_end_no_channel() -> None:
    command = [sys.executable, "-c", PARKING, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), cwd="/")
    assert done.returncode == 0, done.stderr
    parked, refused, taken = done.stdout.splitlines()
    assert parked == "parked Too many references: cannot splice"
    assert refused.startswith("ETOOMANYREFS takes: not sent to peer: this user has more descriptors under way")
    assert refused.endswith(" 2"), "what came behind it was sent"
    assert taken == "1 False False", "one that was tried again"


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
