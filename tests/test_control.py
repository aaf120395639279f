"""The control channel: calls both ways, errors by name, the end of a peer, and peers that do not keep to the protocol."""

import array
import asyncio
import errno
import gc
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import msgpack
import pytest
import uvloop

from hyp.control import MAX_FDS, MAX_MESSAGE, MAX_PENDING, Answer, Channel, PeerGone, Refused, Reply, describe, socketpair

TIMEOUT_S = 20.0


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in time; what it leaves unhandled is an error."""
    unhandled: list[dict[str, Any]] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(TIMEOUT_S):
            await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
        gc.collect()  # futures whose exception nobody fetched complain when they go
    assert unhandled == []


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """The first loop of a process opens descriptors that stay; and what exists already need not be looked at by each collection."""
    uvloop.new_event_loop().close()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


class Server:
    """Handlers as a trusted process has them."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.gate = asyncio.Event()
        self.most = self.running = 0
        self.closed: list[str] = []

    def handlers(self) -> dict[str, Callable[..., Any]]:
        names = ("add", "fail", "refuse", "slow", "note", "sizes", "file", "gated")
        return {name: getattr(self, name) for name in names}

    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise RuntimeError("our own mistake")

    def refuse(self, name: str) -> None:
        raise Refused(name, f"because of {name}")

    async def slow(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    async def gated(self, value: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.gate.wait()
        self.running -= 1
        return value

    def note(self, value: int) -> None:
        self.events.append(value)

    def sizes(self, fds: list[int]) -> list[int]:
        found = [os.fstat(fd).st_size for fd in fds]
        for fd in fds:
            os.close(fd)
        return found

    def file(self, content: str) -> Answer:
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(content.encode())
            fd = os.dup(file.fileno())
        return Answer({"length": len(content)}, fds=[fd], close=[fd])

    def channel(self, sock: socket.socket) -> Channel:
        return Channel(sock, self.handlers(), name="the guest", generation=5, takes_fds=frozenset({"sizes"}))


def serve() -> tuple[Server, Channel, Channel]:
    """A server, its channel, and a client's channel to it."""
    server = Server()
    ours, theirs = socketpair()
    return server, server.channel(ours), Channel(theirs, {"echo": lambda value: value}, name="the hypervisor")


async def attack() -> tuple[Server, Channel, socket.socket, Channel]:
    """A server with a hostile peer on a raw socket, and its channel to that; and a bystander's channel to the same server."""
    server = Server()
    ours, theirs = socketpair()
    hostile = server.channel(ours)
    ours2, theirs2 = socketpair()
    server.channel(ours2)
    return server, hostile, theirs, Channel(theirs2, name="the hypervisor")


async def still_serves(bystander: Channel) -> None:
    assert (await bystander.call("add", a=20, b=3)).value == 23


async def ended(channel: Channel) -> str:
    return str(await asyncio.wait_for(asyncio.shield(channel.closed), TIMEOUT_S))


async def send(sock: socket.socket, packet: bytes) -> None:
    while True:
        try:
            sock.send(packet)
            return
        except BlockingIOError:
            await asyncio.sleep(0)


def close(*channels: Channel) -> None:
    for channel in channels:
        channel.close()


# --- well-behaved ends -----------------------------------------------------------------------------------------------


def test_calls_go_both_ways_and_overlap() -> None:
    async def main() -> None:
        _, ours, client = serve()
        assert (await client.call("add", a=2, b=3)).value == 5
        assert (await ours.call("echo", value=[1, {"x": b"y"}, None, 2.5])).value == [1, {"x": b"y"}, None, 2.5]
        calls = [client.call("slow", value=k) for k in range(500)] + [ours.call("echo", value=k) for k in range(500)]
        values = await asyncio.gather(*calls)
        assert [reply.value for reply in values] == [*range(500), *range(500)]
        assert {reply.generation for reply in values[:500]} == {5}
        close(ours, client)

    run(main())


def test_answers_come_in_the_order_in_which_handlers_end() -> None:
    async def main() -> None:
        server, ours, client = serve()
        gated = asyncio.ensure_future(client.call("gated", value=1))
        assert (await client.call("add", a=1, b=1)).value == 2
        assert not gated.done()
        server.gate.set()
        assert (await gated).value == 1
        close(ours, client)

    run(main())


def test_events_are_not_answered() -> None:
    async def main() -> None:
        server, ours, client = serve()
        for k in range(40):
            client.tell("note", value=k)
        client.tell("nothing of the kind")
        client.tell("fail")
        await client.call("add", a=0, b=0)
        assert server.events == list(range(40))
        close(ours, client)

    run(main())


@pytest.mark.parametrize(("op", "args", "name", "text"), [
    ("refuse", {"name": "ENOSPC"}, "ENOSPC", "because of ENOSPC"),
    ("unheard", {}, "ENOSYS", "no operation 'unheard'"),
    ("add", {"a": 1}, "EINVAL", "missing 1 required"),
    ("add", {"a": 1, "b": 2, "c": 3}, "EINVAL", "unexpected keyword"),
    ("add", {"a": 1, "b": "x"}, "EINVAL", "unsupported operand"),
    ("fail", {}, "EFAULT", "our own mistake"),
])  # fmt: skip
def test_errors_have_a_name_and_say_why(op: str, args: dict[str, Any], name: str, text: str) -> None:
    async def main() -> None:
        _, ours, client = serve()
        with pytest.raises(Refused, match=text) as refused:
            await client.call(op, **args)
        assert refused.value.name == name
        assert (await client.call("add", a=1, b=2)).value == 3
        close(ours, client)

    run(main())


def test_every_kind_of_exception_has_a_name() -> None:
    assert describe(OSError(errno.ENOSPC, "full"))[0] == "ENOSPC"
    assert describe(FileNotFoundError(errno.ENOENT, "gone"))[0] == "ENOENT"
    assert describe(TimeoutError())[0] == "ETIMEDOUT"
    assert describe(PeerGone("dead"))[0] == "ENOTCONN"
    assert describe(KeyError("x")) == ["EINVAL", "KeyError: 'x'"]
    assert describe(OSError("no number"))[0] == "EFAULT"


def test_descriptors_travel_both_ways_and_belong_to_who_gets_them() -> None:
    async def main() -> None:
        _, ours, client = serve()
        reply = await client.call("file", content="hello")
        assert reply.value == {"length": 5}
        assert os.pread(reply.fds[0], 10, 0) == b"hello"
        assert not os.get_inheritable(reply.fds[0])
        assert (await client.call("sizes", fds=reply.fds * 3)).value == [5, 5, 5]
        assert (await client.call("add", fds=reply.fds * 4, a=1, b=1)).value == 2  # taken by nobody: closed there
        os.close(reply.fds[0])
        close(ours, client)

    run(main())


def test_fds_cannot_be_given_as_an_argument() -> None:
    async def main() -> None:
        _, hostile, sock, bystander = await attack()
        await send(sock, msgpack.packb({"id": 1, "op": "sizes", "args": {"fds": [0, 1, 2]}}))
        assert msgpack.unpackb(await receive(sock))["ok"] == []
        await still_serves(bystander)
        close(hostile, bystander)
        sock.close()

    run(main())


async def receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            await asyncio.sleep(0)


def test_the_end_of_a_peer_ends_calls_under_way_and_later_ones() -> None:
    async def main() -> None:
        gone: list[int] = []
        server = Server()
        one, other = socketpair()
        ours = server.channel(one)
        client = Channel(other, name="the hypervisor", on_close=lambda: gone.append(1))
        calls = [asyncio.ensure_future(client.call("gated", value=k)) for k in range(3)]
        await client.call("add", a=0, b=0)
        ours.close()
        for call in calls:
            with pytest.raises(PeerGone, match="the hypervisor"):
                await call
        with pytest.raises(PeerGone, match="was not sent"):
            await client.call("add", a=1, b=1)
        client.tell("note", value=1)
        client.close()
        assert gone == [1]
        server.gate.set()  # the handlers end, and have nobody to answer

    run(main())


def test_a_process_that_dies_is_gone() -> None:
    async def main() -> None:
        ours, theirs = socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            theirs.setblocking(True)
            theirs.recv(MAX_MESSAGE)
            os._exit(0)
        theirs.close()
        channel = Channel(ours, name="the child")
        with pytest.raises(PeerGone):
            await channel.call("add", a=1, b=1)
        os.waitpid(pid, 0)

    run(main())


def test_a_burst_of_calls_waits_for_room() -> None:
    async def main() -> None:
        _, ours, client = serve()
        block = b"x" * 20_000
        replies = await asyncio.gather(*(client.call("slow", value=block) for _ in range(300)))
        assert all(reply.value == block for reply in replies)
        close(ours, client)

    run(main())


def test_a_call_that_was_given_up_does_not_disturb_the_next() -> None:
    async def main() -> None:
        server, ours, client = serve()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.call("gated", value=1), 0.01)
        server.gate.set()
        assert (await client.call("add", a=4, b=4)).value == 8
        close(ours, client)

    run(main())


# --- hostile peers ---------------------------------------------------------------------------------------------------

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
