"""Frames longer than the guest's MTU: a program that raises the MTU of its `eth0` loses them whole, by name, on every path."""

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hyp.counters import CounterPage
from hyp.memory import Mapping, create_region
from hyp.paths import PATHS
from tests.support.labs import launch, left_behind, start, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

NAME = "oversize"
MTU = 1000
RAISED = 9000

SEND = """
import fcntl, socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
fcntl.ioctl(s, 0x8922, struct.pack("16si12x", b"eth0", {raised}))  # SIOCSIFMTU
s.bind(("eth0", 0))
source = s.getsockname()[4]
for length, tag in {frames}:
    head = bytes.fromhex("{target}") + source + (b"\\x81\\x00\\x00\\x05" if tag else b"") + b"\\x88\\xb5"
    s.send(head + bytes(k & 255 for k in range(length - len(head))))
"""
RECEIVE = """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 3))
s.settimeout(60)
print("ready", flush=True)
lengths = []
while not lengths or lengths[-1] != 64:
    frame = s.recv(70000)
    body = frame[14:]
    assert body == bytes(k & 255 for k in range(len(body))), "not whole"
    lengths.append(len(frame))
print(lengths)
"""


@pytest.fixture(scope="module", params=tiered(sorted(PATHS), ["split"]))
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, taps: None) -> Iterator[str]:
    """Two TAP guests of a path with a small MTU."""
    guest = '[[guest]]\nname = "{}"\npath = "{}"\nprogram = "tap"\naddress = "10.0.0.{}/24"\nmtu = {}\n'
    text = guest.format("one", request.param, 1, MTU) + guest.format("two", request.param, 2, MTU)
    with staying_up(topology_file(tmp_path_factory.mktemp(NAME), NAME, text)) as (process, _):
        yield unique(NAME)
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(60)) == 143
    assert left_behind(unique(NAME)) == []


def counters(lab: str) -> dict[str, dict[str, Any]]:
    """By guest."""
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)
    return {one["name"]: one["counters"] for one in status["guests"]}


def test_frames_beyond_the_mtu_are_dropped_whole_and_by_name(lab: str) -> None:
    """Just allowed, one byte more, past each path's buffers, as long as the MTU in the guest allows; last a short one."""
    longest = MTU + 14
    beyond = (longest + 1, 1514, 2113, 3073, 4097, RAISED + 14)
    frames = [(longest, False), *((length, False) for length in beyond), (longest + 4, True), (longest + 5, True), (64, False)]
    receiver = start("exec", "two", "--topology", lab, "--", sys.executable, "-c", RECEIVE)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "ready\n"
    script = SEND.format(raised=RAISED, frames=frames, target="020000000002")
    done = launch("exec", "one", "--topology", lab, "--", sys.executable, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    output, _ = receiver.communicate(timeout=patient(60))
    assert receiver.returncode == 0, output
    assert json.loads(output) in ([longest, longest + 4, 64], [longest, longest, 64])  # the kernel takes a tag off
    found: dict[str, dict[str, Any]] = {}

    def are_published() -> bool:
        found.update(counters(lab))
        return found["one"]["tx_frames"] >= len(frames)

    wait_until(are_published, "the counters to be published")
    assert found["one"]["drops"] == {"oversize": len(beyond) + 1}
    assert found["one"]["tx_frames"] == len(frames)
    assert found["two"]["drops"] == {}
    assert found["two"]["rx_frames"] == 3


def test_a_row_s_name_is_never_cut() -> None:
    from hyp.abi.counters import COUNTERS_BYTES, NAME_BYTES, read_rows

    region = create_region("sealed", unique("rows"), "x", "counters", COUNTERS_BYTES)
    page = CounterPage(Mapping(region.fd, COUNTERS_BYTES))
    longest = f"ctx4095:{'n' * 31}.vmm"
    assert len(longest) <= NAME_BYTES
    page.row(longest)
    page.row("x" * NAME_BYTES)
    with pytest.raises(ValueError, match="64 bytes at most"):
        page.row("x" * (NAME_BYTES + 1))
    assert list(read_rows(Mapping(region.fd, COUNTERS_BYTES).array.data)) == [longest, "x" * NAME_BYTES]
    region.close()
