"""`launch.py forward`: a guest's TCP port on loopback, with clients, guests and ports that are not as one would wish."""

import contextlib
import itertools
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.labs import LAUNCH, ROOT, launch, left_behind, processes, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.screens import state

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

GUESTS = """
[[guest]]
name = "alice"
path = "bypass"
program = "tap"
address = "10.0.0.1/24"
[[guest]]
name = "carl"
path = "bypass"
"""
LISTENING = {7000: "0.0.0.0", 7001: "127.0.0.1", 7002: "10.0.0.1", 7003: "::1"}
SERVE = """
import asyncio
kept = []  # the loop has weak references only
async def serve(reader, writer):
    kept.append(asyncio.current_task())
    try:
        wanted = await reader.readexactly(1)
        if wanted == b"n":  # read nothing
            await asyncio.Event().wait()
        if wanted == b"e":  # echo, once all is there
            writer.write(await reader.read(-1))
            await writer.drain()
            writer.close()
            return
        while True:  # or send for ever
            writer.write(bytes(65536))
            await writer.drain()
    except OSError:
        print("broken off", flush=True)
async def main():
    for port, address in LISTENING.items():
        kept.append(await asyncio.start_server(serve, address, port))
    print("listening", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
""".replace("LISTENING", repr(LISTENING))
NOBODY = 7999
MOST = 256 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TAP guest, alice, who is killed in the end, and one that is none; the topology's name."""
    name = unique("forward")
    with staying_up(topology_file(tmp_path_factory.mktemp("forward"), "forward", GUESTS)) as (process, _):
        yield name
        process.send_signal(signal.SIGTERM)
        process.wait(patient(30))
    assert left_behind(name) == []


@pytest.fixture(scope="module")
def server(lab: str) -> "Iterator[subprocess.Popen[str]]":
    """A program in alice that listens on each port of LISTENING, and says what breaks off."""
    command = [*LAUNCH, "exec", "--topology", lab, "alice", "--", sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield process
        process.terminate()


@contextmanager
def forwarding(lab: str, port: int, *before: str) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """`launch.py forward`, serving, begun by the command `before`; and its port."""
    command = [*before, *LAUNCH, "forward", "--topology", lab, f"alice:{port}", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert f"leads to alice:{port}" in said, said
        try:
            yield process, int(said.split(":")[2].split("/")[0])
        finally:
            process.kill()
            assert process.stderr is not None
            print("forward said:", process.stderr.read())  # shown if the test fails


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, port), timeout=patient(30))


def echoed(sock: socket.socket, content: bytes) -> bytes:
    """What comes back after the end of sending."""
    with sock:
        sock.sendall(b"e" + content)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))


@pytest.mark.usefixtures("server")
@pytest.mark.needs("ipv6")
@pytest.mark.parametrize("port", LISTENING)
def test_whatever_its_program_listens_on_is_reached(lab: str, port: int) -> None:
    """And an end of sending, which goes through, is not the connection's."""
    content = random.Random(port).randbytes(3 << 20)
    with forwarding(lab, port) as (_, local):
        for address in ("127.0.0.1", "::1"):
            assert echoed(connect(local, address), content) == content


@pytest.mark.usefixtures("server")
def test_many_at_once(lab: str) -> None:
    with forwarding(lab, 7000) as (_, local):
        clients = [connect(local) for _ in range(100)]
        for number, client in enumerate(clients):
            assert echoed(client, b"%d" % number) == b"%d" % number


def test_a_client_that_goes_away_breaks_off_the_other_side(lab: str, server: "subprocess.Popen[str]") -> None:
    """While it is sent what it does not read; and the others go on."""
    assert server.stdout is not None
    with forwarding(lab, 7000) as (_, local):
        stays = connect(local)
        for _ in range(2):
            with connect(local) as client:
                client.sendall(b"s")
                client.recv(1)
            assert server.stdout.readline() == "broken off\n"
        assert echoed(stays, b"here") == b"here"


@pytest.mark.long
@pytest.mark.usefixtures("server")
def test_who_reads_nothing_holds_up_who_sends(lab: str) -> None:
    """No more is under way than buffers hold."""
    with forwarding(lab, 7000) as (_, local), connect(local) as client:
        client.sendall(b"n")
        client.setblocking(False)
        sent, writable = 0, select.poll()
        writable.register(client, select.POLLOUT)
        while sent < MOST and writable.poll(1000 * patient(1)):
            sent += client.send(bytes(1 << 20))
    assert sent < MOST


def test_a_port_that_nobody_listens_on_is_told(lab: str) -> None:
    with forwarding(lab, NOBODY) as (process, local):
        with connect(local) as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert process.stderr is not None
        assert process.stderr.readline() == f"alice:{NOBODY}: Connection refused\n"
        assert process.poll() is None


@pytest.mark.usefixtures("server")
def test_a_server_that_never_closes_does_not_keep_others_from_theirs(lab: str) -> None:
    """Not by the descriptors of those who have gone, though there be more of them than can be open."""
    with forwarding(lab, 7000, "sh", "-c", 'ulimit -n 300 && exec "$@"', "sh") as (_, local):
        for _ in range(300):
            with connect(local) as client, contextlib.suppress(ConnectionError):
                client.sendall(b"n")

        def served() -> bool:
            with contextlib.suppress(OSError):
                return [echoed(one, b"here") for one in [connect(local) for _ in range(10)]] == [b"here"] * 10
            return False

        wait_until(served, "those who come later to be served")


def test_without_descriptors_who_connects_is_told_and_not_left_waiting(lab: str, server: "subprocess.Popen[str]") -> None:
    with forwarding(lab, 7000) as (process, local):
        with connect(local) as stays:
            stays.sendall(b"s")
            stays.recv(1)  # now all is open that there is without others
            limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            free = (number for number in itertools.count() if not os.path.lexists(f"/proc/{process.pid}/fd/{number}"))
            next(free)  # for the client
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (next(free), limits[1]))
            with connect(local) as client, contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            assert process.stderr is not None
            assert "can have no more descriptors: the limit of one process (ulimit -n)" in process.stderr.readline()
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        assert server.stdout is not None
        assert server.stdout.readline() == "broken off\n"
        assert echoed(connect(local), b"again") == b"again"


def test_refusals(lab: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            ("alice:7000", str(port)): (1, f"port {port} of 127.0.0.1 is in use: say another one (0: any that is free)"),
            ("carl:7000", "0"): (1, 'carl has program = "traffic"; programs are run in guests with program = "tap"'),
            ("alcie:7000", "0"): (1, "guest named 'alcie'"),
            ("alice", "0"): (2, "'alice' is not GUEST:PORT, such as alice:8000"),
            ("alice:0", "0"): (2, "'alice:0' is not GUEST:PORT"),
            ("alice:70000", "0"): (2, "'alice:70000' is not GUEST:PORT"),
        }
        for arguments, (status, reason) in cases.items():
            done = launch("forward", "--topology", lab, *arguments)
            assert (done.returncode, reason in done.stderr) == (status, True), done.stderr


def test_it_ends_with_ctrl_c_and_leaves_nothing(lab: str) -> None:
    with forwarding(lab, 7000) as (process, local):
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(patient(30)) == 130
        wait_until(lambda: state(child) in ("", "Z"), "its child to end")
        with pytest.raises(ConnectionRefusedError):
            connect(local)


def test_it_ends_with_its_guest(lab: str) -> None:
    with forwarding(lab, 7000) as (process, _):
        guest = next(pid for pid, line in processes(lab).items() if "domu:alice" in line.split())
        os.kill(guest, signal.SIGKILL)
        assert process.stderr is not None
        assert process.stderr.readline() == "alice is gone\n"
        assert process.wait(patient(30)) == 1
