"""The store of a running topology: `launch.py store`, Xen's own tools and pyxs at its socket, and who may connect."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0.xenstore.server import Xenstored
from lab.command.store import shown
from lab.rundir import RunDir
from tests.support.labs import launch, start, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.xenstored_process import forked, succeeded

TEXT = '[[guest]]\nname = "anna"\npath = "split"\n[[guest]]\nname = "carl"\npath = "bypass"\n'
FRONT, BACK = "/local/domain/1/device/vif/0", "/local/domain/0/backend/vif/1/0"


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Iterator[str]:
    """A running topology."""
    with staying_up(topology_file(tmp_path_factory.mktemp("store"), "store", TEXT)):
        yield unique("store")


def store(name: str, *arguments: str, status: int = 0) -> str:
    command, *rest = arguments
    done = launch("store", command, "--topology", name, *rest)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_ls_read_write_rm_and_their_mistakes(name: str) -> None:
    assert store(name, "read", f"{BACK}/state", f"{FRONT}/state") == "4\n4\n"
    store(name, "write", "/tool/a", "one", "/tool/b/c", 'tab\tand "quote"\\')
    assert store(name, "ls", "/tool") == 'a = "one"\nb = ""\n c = "tab\\tand "quote"\\\\"\n'
    assert store(name, "ls", "-fp", "/tool").splitlines()[0] == '/tool/a = "one"   (n0)'
    assert "/local/domain/1/device/vif/0/state" in store(name, "ls", "-f")
    assert store(name, "rm", "/tool/a", "/tool/none", status=1) == "xenstore READ /tool/none: ENOENT\n"
    assert store(name, "read", "/tool/a") == "one\n"
    store(name, "rm", "/tool/a", "/tool/b")
    assert store(name, "read", "/tool/a", status=1) == "xenstore READ /tool/a: ENOENT\n"
    assert "has no value" in store(name, "write", "/tool/a", status=2)
    assert store("none", "ls", status=1).startswith("no topology named 'none' is running")


def test_watch_tells_each_path_once_at_first_and_as_it_is_written(name: str) -> None:
    with start("store", "watch", "--topology", name, "-n", "2", "/tool/watched") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "/tool/watched\n"
        store(name, "write", "/tool/watched/x", "1")
        assert process.stdout.readline() == "/tool/watched/x\n"
        assert process.wait(patient(20)) == 0
    told = store(name, "watch", "-n", "1", "--json", "/tool/watched")
    assert json.loads(told) == {"path": "/tool/watched"}
    store(name, "rm", "/tool/watched")


def test_status_shows_where_the_store_is(name: str) -> None:
    statuses = json.loads(launch("status", "--json").stdout)
    path = next(status["store"] for status in statuses if status["name"] == name)
    assert path == str(RunDir.of(name).store_path)
    assert f"  store: {path}" in launch("status").stdout.splitlines()
    found = os.stat(path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700


def tool(name: str, *command: str) -> str:
    environment = {**os.environ, "XENSTORED_PATH": str(RunDir.of(name).store_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patient(30))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.needs("xenstore")
def test_xens_own_tools_on_a_running_topology(name: str) -> None:
    assert tool(name, "xenstore-read", f"{FRONT}/backend", "/local/domain/0/name") == f"{BACK}\nDomain-0\n"
    assert tool(name, "xenstore-list", "/local/domain/1/device/vif") == "0\n"
    assert tool(name, "xenstore-ls", "-fp") == store(name, "ls", "-fp")
    assert tool(name, "xenstore-ls", "/local/domain/2") == store(name, "ls", "/local/domain/2")
    tool(name, "xenstore-write", "/tool/x", "1")
    tool(name, "xenstore-chmod", "/tool/x", "n0", "r1")
    assert store(name, "ls", "-p", "/tool") == 'x = "1"   (n0,r1)\n'
    tool(name, "xenstore-rm", "/tool/x")
    assert tool(name, "xenstore-watch", "-n", "1", f"{BACK}/state") == f"{BACK}/state\n"
    tool(name, "xenstore-write", f"{BACK}/online", "0", f"{BACK}/state", "5")  # takes the device back
    wait_until(lambda: tool(name, "xenstore-read", f"{BACK}/state", f"{FRONT}/state") == "6\n6\n", "both ends to be closed")


PYXS = """
import sys
from pyxs import Client
with Client(unix_socket_path=sys.argv[1]) as client:
    assert client[b"/local/domain/1/name"] == b"anna"
    assert client.list(b"/local/domain/1/device/vif") == [b"0"]
    assert client.get_perms(b"/local/domain/1/device/vif/0") == [b"n1", b"r0"]
    client.transaction()
    client[b"/tool/pyxs"] = b"1"
    client.commit()
    assert client.exists(b"/tool/pyxs")
    client.delete(b"/tool/pyxs")
    with client.monitor() as monitor:
        monitor.watch(b"/tool", b"token")
        path, token = next(monitor.wait())
        assert (path, token) == (b"/tool", b"token")
print("all is well")
"""


@pytest.mark.needs("pyxs")
def test_pyxs_on_a_running_topology(name: str) -> None:
    command = [sys.executable, "-c", PYXS, str(RunDir.of(name).store_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(30))
    assert done.stdout == "all is well\n", done.stderr


@pytest.mark.needs("root")
def test_nobody_but_the_user_is_served() -> None:
    """Another user, who has come by the socket all the same: here, by a name that is in no folder."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0xen-bypass-lab-{os.getpid()}")
    listener.listen()

    def come() -> None:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(listener.getsockname())
            assert sock.recv(1) == b""

    async def serve(pid: int) -> None:
        server = Xenstored()
        server.listen(listener)
        assert await asyncio.to_thread(succeeded, pid)
        assert not server.connections
        server.close()

    asyncio.run(serve(forked(come)))


@pytest.mark.parametrize(
    ("value", "line"),
    [(b"plain ~", "plain ~"), (b"\0\x07\x08\x1f\x7f\xff", r"\000\007\x08\x1f\x7f\xff"), (b"\t\n\r\\", r"\t\n\r\\")],
)
def test_values_are_shown_as_xens_tools_show_them(value: bytes, line: str) -> None:
    assert shown(value) == line
