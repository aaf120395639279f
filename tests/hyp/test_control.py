"""The control channel: calls both ways, errors by name, and the end of a peer."""

import asyncio
import errno
import os
import socket
from typing import Any

import msgpack
import pytest

from hyp.control import MAX_MESSAGE, Channel, PeerGone, Refused, describe, socketpair
from tests.support.control_ends import Server, attack, close, receive, run, send, serve, still_serves

pytestmark = pytest.mark.usefixtures("settled", "no_descriptor_is_left")


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


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_what_a_peer_said_before_it_went_is_heard_though_sending_finds_it_gone(unread: bool, asked: bool) -> None:
    async def main() -> None:
        here, there = socketpair()
        heard: list[str] = []
        channel = Channel(here, {"failed": lambda cause: heard.append(cause)}, name="one that fails")
        if unread:
            channel.tell("hello")
        there.send(msgpack.packb({"op": "failed", "args": {"cause": "no memory"}}))
        there.close()
        if asked:
            with pytest.raises(PeerGone, match="one that fails is gone"):
                await channel.call("hello")
        else:
            channel.tell("hello")
            await channel.closed
        assert heard == ["no memory"]
        assert channel.closed.done()

    run(main())


def test_who_does_not_read_for_good_is_gone_though_it_could_still_say_something() -> None:
    async def main() -> None:
        here, there = socketpair()
        channel = Channel(here, name="a deaf one")
        there.shutdown(socket.SHUT_RD)
        with pytest.raises(PeerGone, match="Broken pipe"):
            await channel.call("hello")
        there.close()

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


def test_descriptors_of_an_answer_to_a_call_that_is_given_up_as_it_comes_are_closed() -> None:
    """In one turn of the loop the answer is read, and its caller cancelled."""

    async def main() -> None:
        loop, (ours, peer) = asyncio.get_running_loop(), socketpair()
        client, now = Channel(ours, name="the hypervisor"), os.eventfd(0, os.EFD_NONBLOCK)
        for number in range(1, 9):
            call = asyncio.ensure_future(client.call("file"))
            asked = msgpack.unpackb(await receive(peer))
            loop.add_reader(now, call.cancel)
            socket.send_fds(peer, [msgpack.packb({"id": asked["id"], "ok": number})], [now])
            os.eventfd_write(now, 1)
            with pytest.raises(asyncio.CancelledError):
                await call
            loop.remove_reader(now)
            os.eventfd_read(now)
        os.close(now)
        peer.close()
        client.close()

    run(main())
