"""Many received frames written to a TAP by one system call, or by one each, as the topology says and the kernel has it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domu.netns import tried
from domu.programs.tap import WORTH_A_BATCH
from hyp.uring.ring import why_plain
from tests.support.labs import LAUNCH, ROOT, launch, processes, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

NAME = "tapbatch"
BURST = 40
RECEIVERS = [(path, batches) for path in ("split", "bypass") for batches in (True, False)]
RECEIVE = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
sock.bind(("0.0.0.0", 7000))
print("ready", flush=True)
got = [sock.recv(2000) for _ in range(int(sys.argv[1]))]
print(got == [bytes([k]) * (1 + 30 * k) for k in range(len(got))])
"""
SEND = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for k in range(int(sys.argv[2])):
    sock.sendto(bytes([k]) * (1 + 30 * k), (sys.argv[1], 7000))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A sender on each path and, for each, a receiver with batches and one without."""
    rows = [(path, True) for path in ("split", "bypass")] + RECEIVERS
    tables = [
        f'[[guest]]\nname = "g{number}"\npath = "{path}"\nprogram = "tap"\naddress = "10.0.0.{number}/24"\n'
        f"batches = {json.dumps(batches)}\n"
        for number, (path, batches) in enumerate(rows, 1)
    ]
    with staying_up(topology_file(tmp_path_factory.mktemp(NAME), NAME, "\n".join(tables))):
        yield unique(NAME)


def popen(lab: str, guest: int, script: str, *argv: object) -> "subprocess.Popen[str]":
    command = [*LAUNCH, "exec", "--topology", lab, f"g{guest}", "--", sys.executable, "-c", script, *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def rings(pid: int) -> list[str]:
    """A process's rings on a TAP (libuv has others), as /proc tells of them: "CqTail: 40" and the like."""
    fds = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(fd) == "anon_inode:[io_uring]"]
    return [told for fd in fds if "/dev/net/tun" in (told := Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text())]


def completed(pid: int) -> int:
    """Requests that the kernel has carried out for a process's only ring on a TAP."""
    (told,) = rings(pid)
    return next(int(line.split()[1]) for line in told.splitlines() if line.startswith("CqTail:"))


def neighbours_known(lab: str, sender: int, receiver: int) -> None:
    """A frame there, so that what follows is not held back for want of an address."""
    with popen(lab, receiver, RECEIVE, 1) as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == "ready\n"
        with popen(lab, sender, SEND, f"10.0.0.{receiver}", 1) as sending:
            assert sending.wait(patient(60)) == 0
        assert receiving.stdout.read() == "True\n"


def frames_sent(lab: str, guest: int) -> int:
    """Frames that a guest's TAP program has handed to its device, as published."""
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)
    return int(next(one["counters"]["tx_frames"] for one in status["guests"] if one["name"] == f"g{guest}"))


@pytest.mark.parametrize("who", tiered(RECEIVERS, RECEIVERS[2:3]), ids=str)
def test_a_burst_arrives_whole_and_in_order(lab: str, who: tuple[str, bool]) -> None:
    path, batches = who
    sender, receiver = (1 if path == "split" else 2), 3 + RECEIVERS.index(who)
    (pid,) = [pid for pid, line in processes(lab).items() if f"domu:g{receiver}" in line.split()]
    reason = tried(lambda tap: why_plain(tap.fd))
    neighbours_known(lab, sender, receiver)
    assert len(rings(pid)) == (batches and reason is None), reason
    before = completed(pid) if rings(pid) else 0
    with popen(lab, receiver, RECEIVE, BURST) as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == "ready\n"
        os.kill(pid, signal.SIGSTOP)  # what is sent meanwhile waits for it as one burst
        try:
            sent = frames_sent(lab, sender)
            with popen(lab, sender, SEND, f"10.0.0.{receiver}", BURST) as sending:
                assert sending.wait(patient(60)) == 0
            wait_until(lambda: frames_sent(lab, sender) - sent >= BURST, "the sender's frames to be on their way")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert receiving.stdout.read() == "True\n"
    if rings(pid):
        assert completed(pid) - before >= WORTH_A_BATCH
