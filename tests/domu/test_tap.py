"""Unmodified programs in TAP guests, on both paths: ping, iperf3 both ways, a download compared by SHA-256."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.labs import LAUNCH, ROOT, launch, left_behind, start, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

PAIRS = {"split": ("alice", "bob"), "bypass": ("carol", "dave")}
ADDRESS = {"alice": "10.0.0.1", "bob": "10.0.0.2", "carol": "10.0.0.3", "dave": "10.0.0.4"}
NAME = "tap"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """topologies/tap.toml, up, under a name of our own."""
    text = (ROOT / "topologies" / "tap.toml").read_text()
    file = topology_file(tmp_path_factory.mktemp("tap"), NAME, text)
    process = start("run", file)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        wait_until(lambda: any("Ctrl-C" in line for line in lines) or process.poll() is not None, "the topology to be up")
        assert process.poll() is None, "".join(lines)
        yield unique(NAME)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(patient(30))
        reader.join(patient(10))
        process.stdout.close()  # type: ignore[union-attr]
    assert process.returncode == 130, "".join(lines)
    assert left_behind(unique(NAME)) == []


def inside(lab: str, guest: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a guest by launch.py exec."""
    command = [*LAUNCH, "exec", "--topology", lab, guest, "--", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=patient(60), cwd=ROOT)


def serve(lab: str, guest: str, *argv: str) -> "subprocess.Popen[str]":
    """Start a server in a guest."""
    command = [*LAUNCH, "exec", "--topology", lab, guest, "--", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


@pytest.mark.needs("ping")
@pytest.mark.parametrize(("one", "other"), [*PAIRS.values(), ("alice", "dave"), ("carol", "bob")])
def test_ping(lab: str, one: str, other: str) -> None:
    done = inside(lab, one, "ping", "-c", "3", "-i", "0.05", "-W", "5", ADDRESS[other])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0% packet loss" in done.stdout


@pytest.mark.needs("ping")
def test_ping_of_an_address_that_nobody_has(lab: str) -> None:
    done = inside(lab, "alice", "ping", "-c", "1", "-W", "1", "10.0.0.99")
    assert done.returncode == 1
    assert "100% packet loss" in done.stdout


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize("path", PAIRS)
@pytest.mark.parametrize("reverse", tiered([False, True], [False]))
def test_iperf3(lab: str, path: str, reverse: bool) -> None:
    client, server = PAIRS[path]
    serving = serve(lab, server, "iperf3", "-s", "-1", "--forceflush")
    with serving:
        assert serving.stdout is not None
        while "Server listening" not in (line := serving.stdout.readline()):
            assert line, "iperf3 -s ended"
        done = inside(lab, client, "iperf3", "-J", "-t", "1", "-c", ADDRESS[server], *(["-R"] if reverse else []))
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["end"]["sum_received"]["bytes"] > 1_000_000
        serving.stdout.read()
        assert serving.wait(patient(30)) == 0


@pytest.mark.needs("curl")
@pytest.mark.parametrize("path", tiered(PAIRS, ["bypass"]))
def test_download_has_the_same_sha256(lab: str, path: str, tmp_path: Path) -> None:
    client, server = PAIRS[path]
    data = os.urandom(1 << 20) * 64
    (tmp_path / "data").write_bytes(data)
    serving = serve(lab, server, sys.executable, "-u", "-m", "http.server", "-d", str(tmp_path), "8000")
    with serving:
        assert serving.stdout is not None
        assert "Serving" in serving.stdout.readline()
        target = tmp_path / "copy"
        done = inside(lab, client, "curl", "-sS", "--fail", "-o", str(target), f"http://{ADDRESS[server]}:8000/data")
        serving.send_signal(signal.SIGINT)
        serving.stdout.read()
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(data).digest()


RECEIVE = """
import hashlib, socket
with socket.create_server(("", 7000)) as server:
    print("listening", flush=True)
    stream, _ = server.accept()
    digest = hashlib.sha256()
    while data := stream.recv(1 << 20):
        digest.update(data)
    print(digest.hexdigest())
"""
CHANGE = """
import fcntl, hashlib, random, socket, struct, sys
content = random.Random(3).randbytes(9 << 20)
stream = socket.create_connection((sys.argv[1], 7000))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for part, mtu in enumerate((1000, 9000, 1500)):
    stream.sendall(content[part * 3 << 20 : (part + 1) * 3 << 20])
    fcntl.ioctl(stream, 0x8922, struct.pack("16si20x", b"eth0", mtu))  # SIOCSIFMTU, while what was sent is under way
    for size in (900, 2000, 8000):
        datagrams.sendto(bytes(size), (sys.argv[1], 9))
print(hashlib.sha256(content).hexdigest())
"""


@pytest.mark.parametrize("path", tiered(PAIRS, ["bypass"]))
def test_an_mtu_changed_in_mid_traffic(lab: str, path: str) -> None:
    """Lowered, raised beyond the guest's, and as it was: a stream goes on, and what no longer fits is dropped under a name."""
    client, server = PAIRS[path]
    before = drops_of(lab, client)
    with serve(lab, server, sys.executable, "-c", RECEIVE) as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == "listening\n"
        done = inside(lab, client, sys.executable, "-c", CHANGE, ADDRESS[server])
        assert (done.returncode, done.stderr) == (0, "")
        assert receiving.stdout.read() == done.stdout
    wait_until(lambda: drops_of(lab, client).get("oversize", 0) > before.get("oversize", 0), "the counters to be published")
    dropped = Counter(drops_of(lab, client)) - Counter(before)
    assert dropped == {"oversize": 2}  # datagrams of 2000 and of 8000 bytes, when eth0 took 9000


def drops_of(lab: str, guest: str) -> dict[str, int]:
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)
    return next(one["counters"]["drops"] for one in status["guests"] if one["name"] == guest)


def test_exec_gives_output_status_and_signals(lab: str) -> None:
    done = inside(lab, "alice", "sh", "-c", "cat; echo err >&2; exit 7")
    assert (done.returncode, done.stderr) == (7, "err\n")
    assert inside(lab, "alice", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert inside(lab, "alice", "/no/such/program").returncode == 127
    sleeping = serve(lab, "alice", "sh", "-c", "echo up; exec sleep 1000")
    with sleeping:
        assert sleeping.stdout is not None
        assert sleeping.stdout.readline() == "up\n"
        sleeping.send_signal(signal.SIGINT)
        assert sleeping.wait(patient(30)) == 128 + signal.SIGINT


@pytest.mark.needs("util-linux")
def test_a_program_does_not_outlive_the_exec_that_was_killed(lab: str, tmp_path: Path) -> None:
    mark = f"{tmp_path}/held"
    Path(mark).touch()
    holding = serve(lab, "bob", "sh", "-c", f"echo up; exec 3<>{mark}; flock 3; echo held; exec sleep 1000")
    with holding:
        assert holding.stdout is not None
        assert [holding.stdout.readline(), holding.stdout.readline()] == ["up\n", "held\n"]
        holding.kill()
    wait_until(lambda: subprocess.run(["flock", "-n", mark, "true"]).returncode == 0, "the program to end with its exec")


def test_exec_in_a_guest_that_does_not_exist(lab: str) -> None:
    done = inside(lab, "alcie", "true")
    assert done.returncode == 1
    assert "alcie" in done.stderr
    assert "alice" in done.stderr
