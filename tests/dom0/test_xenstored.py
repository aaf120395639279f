"""xenstored as a process of its own: the wire, the asyncio client, and Xen's own tools."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.xenstore import server as servers
from dom0.xenstore.server import Xenstored
from hyp.abi import xs_wire
from hyp.abi.xs_wire import HEADER, Message, MessageType
from hyp.control.limited_log import BURST
from hyp.xenstore.client import MOST_CHANGES, WATCH_BACKLOG, Transaction, Watch, XenstoreClient, XenstoreError
from tests.support.patience import patient
from tests.support.xenstored_process import LOOPS, fails, forked, succeeded, with_clients, xenstored

# The wire.


@pytest.mark.needs("gcc", "xen-headers")
def test_layout_is_that_of_xens_header(tmp_path: Path) -> None:
    numbers = {f"XS_{type_.name}": int(type_) for type_ in MessageType}
    numbers |= {
        "XENSTORE_PAYLOAD_MAX": xs_wire.PAYLOAD_MAX,
        "XENSTORE_ABS_PATH_MAX": xs_wire.ABS_PATH_MAX,
        "XENSTORE_REL_PATH_MAX": xs_wire.REL_PATH_MAX,
        "sizeof(struct xsd_sockmsg)": HEADER.size,
    }
    for index, field in enumerate(["type", "req_id", "tx_id", "len"]):
        numbers[f"offsetof(struct xsd_sockmsg, {field})"] = 4 * index
    checks = "\n".join(f'_Static_assert({expr} == {n}, "{expr}");' for expr, n in numbers.items())
    program = f"""#include <stdio.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <errno.h>
#include <xen/io/xs_wire.h>\n{checks}
#define COUNT (sizeof xsd_errors / sizeof *xsd_errors)
int main(void) {{ for (size_t i = 0; i < COUNT; i++) puts(xsd_errors[i].errstring); }}"""
    source = tmp_path / "check.c"
    source.write_text(program)
    subprocess.run(["gcc", "-o", tmp_path / "check", source], check=True)
    out = subprocess.run([tmp_path / "check"], check=True, capture_output=True, text=True).stdout
    assert set(out.split()) == xs_wire.ERROR_NAMES


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=100)), max_size=8), st.integers(1, 40))
def test_decoder_does_not_care_how_the_stream_is_cut(messages: list[tuple[int, bytes]], size: int) -> None:
    sent = [Message(n, n ^ 1, n ^ 2, payload) for n, payload in messages]
    stream = b"".join(xs_wire.pack(*message) for message in sent)
    decoder = xs_wire.Decoder()
    got = [m for at in range(0, len(stream), size) for m in decoder.feed(stream[at : at + size])]
    assert got == sent
    assert decoder.partial == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(xs_wire.WireError):
        list(xs_wire.Decoder().feed(data))
    with contextlib.suppress(xs_wire.WireError):
        assert xs_wire.join(xs_wire.split(data)) == data
    with contextlib.suppress(xs_wire.WireError):
        assert str(xs_wire.parse_permission(xs_wire.text(data)))[0] in "nrwb"


@pytest.mark.parametrize("string", ["", "r", "5", "x5", "r-1", "r 5", "r٥", "r5 ", "r99999", "r32752", "r1_0", "rr5"])
def test_what_is_not_a_permission(string: str) -> None:
    with pytest.raises(xs_wire.WireError):
        xs_wire.parse_permission(string)


@pytest.mark.parametrize("loop", LOOPS)
def test_every_request_to_the_byte(loop: str) -> None:
    m = MessageType
    with xenstored([0, 5], loop) as served:
        dom0, guest = served.raw(0), served.raw(5)
        assert dom0.call(m.WRITE, "/tool/a", "1") == b"OK\0"
        assert dom0.call(m.READ, "/tool/a") == b"1\0"
        assert dom0.call(m.READ, "/tool/none") == b"ENOENT\0"
        assert dom0.call(m.MKDIR, "/tool/b/c") == b"OK\0"
        assert dom0.call(m.DIRECTORY, "/tool") == b"a\0b\0"
        assert dom0.call(m.DIRECTORY, "/tool/a") == b""
        generation, _, rest = dom0.call(m.DIRECTORY_PART, "/tool", "0").partition(b"\0")
        assert (generation.isdigit(), rest) == (True, b"a\0b\0\0")
        assert dom0.call(m.DIRECTORY_PART, "/tool", "2") == generation + b"\0b\0\0"
        assert dom0.call(m.DIRECTORY_PART, "/tool", "99") == generation + b"\0\0"
        assert dom0.call(m.SET_PERMS, "/tool/a", "n0", "r5") == b"OK\0"
        assert dom0.call(m.GET_PERMS, "/tool/a") == b"n0\0r5\0"
        assert guest.call(m.READ, "/tool/a") == b"1\0"
        assert guest.call(m.WRITE, "/tool/a", "2") == b"EACCES\0"
        assert guest.call(m.GET_DOMAIN_PATH, "5") == b"/local/domain/5\0"
        tx = int(guest.call(m.TRANSACTION_START, "").rstrip(b"\0"))
        assert guest.call(m.TRANSACTION_START, "", tx=tx) == b"EBUSY\0"
        assert guest.call(m.WRITE, "x", "1", tx=tx) == b"OK\0"
        assert dom0.call(m.READ, "/local/domain/5/x") == b"ENOENT\0"
        assert guest.call(m.TRANSACTION_END, "X", tx=tx) == b"EINVAL\0"
        assert guest.call(m.TRANSACTION_END, "T", tx=tx) == b"OK\0"
        assert guest.call(m.TRANSACTION_END, "T", tx=tx) == b"ENOENT\0"
        assert dom0.call(m.RM, "/local/domain/5/x") == b"OK\0"
        assert guest.call(m.READ, "x") == b"ENOENT\0"
        assert dom0.call(m.INTRODUCE, "7", "1", "1") == b"OK\0"
        assert dom0.call(m.INTRODUCE, "7", "1", "1") == b"EEXIST\0"
        assert guest.call(m.IS_DOMAIN_INTRODUCED, "7") == b"T\0"
        assert dom0.call(m.RESUME, "7") == b"OK\0"
        assert dom0.call(m.RELEASE, "7") == b"OK\0"
        assert guest.call(m.IS_DOMAIN_INTRODUCED, "7") == b"F\0"
        assert dom0.call(m.RESUME, "7") == b"ENOENT\0"
        for privileged in (m.RELEASE, m.RESUME):
            assert guest.call(privileged, "0") == b"EACCES\0"
        assert guest.call(m.INTRODUCE, "8", "1", "1") == b"EACCES\0"
        assert dom0.call(m.CONTROL, "help") == b"EINVAL\0"
        guest.send(m.WATCH, "x", "token", req=77)
        assert guest.receive() == Message(m.WATCH, 77, 0, b"OK\0")
        assert guest.receive() == Message(m.WATCH_EVENT, 0, 0, b"x\0token\0")
        dom0.call(m.WRITE, "/local/domain/5/x/y", "1")
        assert guest.receive() == Message(m.WATCH_EVENT, 0, 0, b"x/y\0token\0")
        assert guest.call(m.UNWATCH, "x", "none") == b"ENOENT\0"
        assert guest.call(m.RESET_WATCHES, "") == b"OK\0"
        assert guest.call(m.UNWATCH, "x", "token") == b"ENOENT\0"
        assert dom0.call(m.RELEASE, "5") == b"OK\0"
        assert guest.ended()
        assert served.stop()["disconnects"] == {"released": 1}


# The asyncio client.


@pytest.mark.parametrize("loop", LOOPS)
def test_client_requests(loop: str) -> None:
    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        await guest.write("a/b", "grüße")
        await guest.write("a/raw", b"\x00\xff")
        assert (await dom0.read("/local/domain/5/a/b"), await dom0.read_bytes("/local/domain/5/a/raw")) == (
            "grüße",
            b"\x00\xff",
        )
        assert (await guest.read("a/raw")).encode("utf-8", "surrogateescape") == b"\x00\xff"
        assert await guest.directory("a") == ["b", "raw"]
        assert await guest.directory("a/b") == []
        await guest.set_perms("a", ["n5", "r0"])
        assert await guest.get_perms("a") == ["n5", "r0"]
        error = await fails("EACCES", guest.write("/tool/x", "1"))
        assert (error.path, error.op, str(error)) == ("/tool/x", "WRITE", "xenstore WRITE /tool/x: EACCES")
        await fails("E2BIG", dom0.write("/tool/x", "x" * 4096))
        await fails("EINVAL", dom0.read("/tool/\0x"))
        await guest.rm("a")
        await fails("ENOENT", guest.read("a"))
        await dom0.introduce(9)
        assert await guest.is_introduced(9)
        await dom0.release(9)
        assert not await guest.is_introduced(9)
        assert await guest.domain_path(9) == "/local/domain/9"

    with_clients(loop, [0, 5], body)


@pytest.mark.parametrize("loop", LOOPS)
def test_many_requests_outstanding_find_their_replies(loop: str) -> None:
    async def body(guest: XenstoreClient) -> None:
        await asyncio.gather(*[guest.write(f"n{i}", str(i)) for i in range(500)])
        assert await asyncio.gather(*[guest.read(f"n{i}") for i in range(500)]) == [str(i) for i in range(500)]
        cancelled = asyncio.ensure_future(guest.read("n1"))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await guest.read("n2") == "2"

    with_clients(loop, [5], body)


def test_a_long_directory_comes_in_parts() -> None:
    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        names = [f"{i:04}{'x' * 30}" for i in range(900)]
        await asyncio.gather(*[guest.mkdir(f"d/{name}") for name in names])
        assert await dom0.directory("/local/domain/5/d") == names
        async with dom0.transaction() as tx:
            assert await tx.directory("/local/domain/5/d") == names

    with_clients("uvloop", [0, 5], body)


LONG: Final = [f"{i:04}{'x' * 30}" for i in range(300)]


def read_while(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[XenstoreClient, int], Awaitable[None]]) -> tuple[list[str], int]:
    """A guest's long directory, as Domain 0 reads it, and in how many parts; `meddle` is done before each, but in a transaction."""
    found, parts = list[str](), 0

    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        await asyncio.gather(*[guest.mkdir(f"d/{name}") for name in LONG])
        request = dom0._request

        async def meddled(type_: MessageType, path: str, payload: bytes) -> bytes:
            nonlocal parts
            if type_ == MessageType.DIRECTORY_PART:
                parts += 1
                await meddle(guest, parts)
            return await request(type_, path, payload)

        monkeypatch.setattr(dom0, "_request", meddled)
        found.extend(await asyncio.wait_for(dom0.directory("/local/domain/5/d"), patient(20)))

    with_clients("uvloop", [0, 5], body)
    return found, parts


def test_a_long_directory_that_changes_meanwhile_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def remove_one(guest: XenstoreClient, part: int) -> None:
        if part == 3:
            await guest.rm(f"d/{LONG[0]}")

    assert read_while(monkeypatch, remove_one)[0] == LONG[1:]


def test_a_long_directory_that_changes_all_the_time_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a transaction, after some attempts; a guest that has one changed for ever holds up nobody who lists it."""

    async def change(guest: XenstoreClient, part: int) -> None:
        await (guest.rm("d/one") if part % 2 else guest.mkdir("d/one"))

    found, parts = read_while(monkeypatch, change)
    assert set(LONG) <= set(found) <= {*LONG, "one"}
    assert parts > MOST_CHANGES


@pytest.mark.parametrize("loop", LOOPS)
def test_watch_is_iterated_until_unwatched(loop: str) -> None:
    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        watch = await guest.watch("device", "t")
        await fails("EEXIST", guest.watch("device", "t"))
        same_token = await guest.watch("other", "t")
        assert await watch.get() == "device"
        assert await same_token.get() == "other"
        await dom0.write("/local/domain/5/device/vif/0/state", "4")
        await dom0.write("/local/domain/5/other", "4")
        assert await same_token.get() == "other"

        async def collect() -> list[str]:
            return [path async for path in watch]

        collector = asyncio.ensure_future(collect())
        await guest.read("other")
        await guest.unwatch("device", "t")
        assert await collector == ["device/vif/0/state"]
        await fails("ENOENT", guest.unwatch("device", "t"))

    with_clients(loop, [0, 5], body)


def test_watch_backlog_is_bounded() -> None:
    async def body() -> list[str]:
        watch = Watch("/a", "t")
        for number in range(WATCH_BACKLOG + 5):
            watch._fire(f"/a/{number}")
            watch._fire("/a/0")
        return [await watch.get() for _ in range(len(watch._paths))]

    paths = asyncio.run(body())
    assert paths[0] == "/a", "which stands for all that were dropped"
    assert len(paths) <= 8


def test_transaction_of_the_client() -> None:
    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        async with guest.transaction() as tx:
            await tx.write("a", "1")
            await fails("ENOENT", guest.read("a"))
        assert await guest.read("a") == "1"

        async def abandoned() -> None:
            async with guest.transaction() as tx:
                await tx.write("a", "2")
                raise KeyError("mine")

        for _ in range(20):  # more than a guest's quota: each is over
            with pytest.raises(KeyError):
                await abandoned()
        assert await guest.read("a") == "1"

        async def conflicting() -> None:
            async with guest.transaction() as tx:
                await tx.read("a")
                await dom0.write("/local/domain/5/a", "3")

        for _ in range(20):
            await fails("EAGAIN", conflicting())

        async def always(tx: Transaction) -> None:
            await tx.read("a")
            await dom0.write("/local/domain/5/a", "4")

        await fails("EAGAIN", guest.retry(always, attempts=3))

    with_clients("uvloop", [0, 5], body)


def test_no_increment_is_lost_between_processes() -> None:
    rounds, processes = 40, 3

    def increment(sock: socket.socket) -> None:
        uvloop.run(increments(sock))

    async def increments(sock: socket.socket) -> None:
        async def once(tx: Transaction) -> None:
            await tx.write("/tool/counter", str(int(await tx.read("/tool/counter")) + 1))

        async with await XenstoreClient.open(sock) as client:
            for _ in range(rounds):
                await client.retry(once, attempts=10_000)

    with xenstored([0] * (processes + 1)) as served:
        dom0 = served.raw(0)
        dom0.sock.sendall(xs_wire.pack(MessageType.WRITE, 1, 0, b"/tool/counter\x000"))
        assert dom0.receive().payload == b"OK\0"
        pids = [forked(partial(increment, sock)) for sock in served.clients[0]]
        assert [succeeded(pid) for pid in pids] == [True] * processes
        assert dom0.call(MessageType.READ, "/tool/counter") == str(rounds * processes).encode()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_death_of_xenstored_is_an_error_at_once(loop: str) -> None:
    with xenstored([5], loop) as served:

        async def body() -> None:
            async with await XenstoreClient.open(served.clients[5].pop()) as client:
                watch = await client.watch("a", "t")
                await watch.get()
                waiting = asyncio.ensure_future(watch.get())
                os.kill(served.pid, signal.SIGKILL)
                await fails("EIO", waiting)
                error = await fails("EIO", client.read("a"))
                assert error.path == "a"
                with pytest.raises(XenstoreError):
                    async for _ in watch:
                        pass

        LOOPS[loop](body())


# A listening socket, and Xen's own tools on it.


def tool(path: Path, *command: str, status: int = 0) -> str:
    environment = {**os.environ, "XENSTORED_PATH": str(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patient(30))
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.needs("xenstore")
def test_xens_own_tools(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with xenstored([5], path=str(path)) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        guest = served.raw(5)
        tool(path, "xenstore-write", "/tool/a", "one", "/tool/b/c", "two")
        assert tool(path, "xenstore-read", "/tool/a", "/tool/b/c") == "one\ntwo\n"
        assert tool(path, "xenstore-list", "/tool") == "a\nb\n"
        assert tool(path, "xenstore-ls", "/tool") == 'a = "one"\nb = ""\n c = "two"\n'
        tool(path, "xenstore-chmod", "/tool/a", "n0", "r5")
        assert guest.call(MessageType.READ, "/tool/a") == b"one"
        assert tool(path, "xenstore-ls", "-fp", "/tool").split()[:4] == ["/tool/a", "=", '"one"', "(n0,r5)"]
        tool(path, "xenstore-exists", "/tool/none", status=1)
        tool(path, "xenstore-rm", "/tool/b")
        assert tool(path, "xenstore-list", "/tool") == "a\n"
        names = [f"{i:04}{'x' * 30}" for i in range(300)]
        for name in names:
            guest.call(MessageType.MKDIR, f"d/{name}")
        assert tool(path, "xenstore-list", "/local/domain/5/d").split() == names
        watch = tool(path, "xenstore-watch", "-n", "1", "/tool")
        assert watch == "/tool\n"
    assert not path.exists()


def test_who_connects_in_vain_again_and_again_does_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setattr(servers, "CONNECTIONS_MAX", 0)

    async def main() -> None:
        server = Xenstored()
        await server.serve_unix(path)
        for _ in range(2 * BURST):
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b""
            writer.close()
        server.close()

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == ["xenstored: connection refused, 0 are open"] * BURST


def test_a_dead_servers_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def serve(path: Path) -> None:
        server = Xenstored()
        try:
            await server.serve_unix(str(path))
        finally:
            server.close()

    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    asyncio.run(serve(path))
    assert not path.exists()
    with xenstored([0], path=str(path)), pytest.raises(OSError, match="in use"):
        asyncio.run(serve(path))
    path.write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        asyncio.run(serve(path))
    assert path.read_text() == "not a socket"
