"""Descriptors with a control channel's messages: from peers that ought to send none, and to peers that do not take theirs."""

import array
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Any

import msgpack
import pytest

from hyp.control import (
    MAX_FDS,
    MAX_MESSAGE,
    MAX_PENDING,
    MAX_UNSENT_FDS,
    Channel,
    close_all,
    socketpair,
)
from hyp.control.descriptors import hang_up
from tests.support.control_ends import Server, attack, close, ended, fill, lingering, receive, run, send, still_serves
from tests.support.labs import ROOT
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("settled", "no_descriptor_is_left")


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


def opened() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


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
