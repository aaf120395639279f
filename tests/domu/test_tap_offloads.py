"""Unmodified programs whose kernel leaves checksums and segments to the device, on every path, beside guests that do not."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hyp.abi.features import OFFLOADS
from hyp.paths import PATHS
from tests.support.labs import LAUNCH, ROOT, launch, left_behind, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

NAME = "tapoff"
SETS = {"all": tuple(OFFLOADS), "no tso": ("sg", "csum"), "no sg": ("csum",), "none": ()}
GUESTS = [(path, "all") for path in PATHS] + [("split", "none"), ("bypass", "none"), ("bypass", "no tso"), ("split", "no sg")]
NAMES = [f"{path}-{offloads.replace(' ', '-')}" for path, offloads in GUESTS]
BYTES = 3 << 19

ADDRESSES = """
import hashlib, random, socket, sys
own, other, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
VERSIONS = {socket.AF_INET: "10.0.0.", socket.AF_INET6: "fd00::"}
content = random.Random(5).randbytes(size)
"""
SERVE = (
    ADDRESSES
    + """
servers = {family: socket.create_server((prefix + own, 7000), family=family) for family, prefix in VERSIONS.items()}
datagrams = {family: socket.socket(family, socket.SOCK_DGRAM) for family in VERSIONS}
for family, prefix in VERSIONS.items():
    datagrams[family].bind((prefix + own, 7000))
print("ready", flush=True)
for family in VERSIONS:
    stream, _ = servers[family].accept()
    got = b""
    while len(got) < size:
        got += stream.recv(1 << 20)
    stream.sendall(got)
    for _ in range(3):
        datagram, sender = datagrams[family].recvfrom(1 << 16)
        datagrams[family].sendto(datagram, sender)
    print(hashlib.sha256(got).hexdigest() == hashlib.sha256(content).hexdigest())
"""
)
ASK = (
    ADDRESSES
    + """
for family, prefix in VERSIONS.items():
    stream = socket.create_connection((prefix + other, 7000))
    stream.sendall(content)
    got = b""
    while len(got) < size:
        got += stream.recv(1 << 20)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    back = []
    for length in (1, 1001, 40_003):  # short, odd, and in fragments of IP
        datagrams.sendto(content[:length], (prefix + other, 7000))
        back.append(datagrams.recv(1 << 16) == content[:length])
    print(hashlib.sha256(got).hexdigest() == hashlib.sha256(content).hexdigest(), all(back))
"""
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TAP guest for each of GUESTS."""
    with _up(tmp_path_factory, NAME, 1500) as name:
        yield name


@contextmanager
def _up(tmp_path_factory: pytest.TempPathFactory, topology: str, mtu: int) -> Iterator[str]:
    text = f"[nic]\nmtu = {mtu}\n" + "".join(
        f'[[guest]]\nname = "{name}"\npath = "{path}"\nprogram = "tap"\naddress = "10.0.0.{number}/24"\n'
        f'address6 = "fd00::{number}/64"\n'
        f"mtu = {mtu if 'sg' in SETS[offloads] else 1500}\n"
        f"offloads = {json.dumps(SETS[offloads])}\n"
        for number, (name, (path, offloads)) in enumerate(zip(NAMES, GUESTS, strict=True), 1)
    )
    with staying_up(topology_file(tmp_path_factory.mktemp(topology), topology, text)) as (process, _):
        yield unique(topology)
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(60)) == 143
    assert left_behind(unique(topology)) == []


def inside(lab: str, guest: int, script: str, other: int) -> "subprocess.Popen[str]":
    """Start one of the scripts in a guest (numbers from 1)."""
    arguments = [str(guest), str(other), str(BYTES)]
    command = [*LAUNCH, "exec", "--topology", lab, NAMES[guest - 1], "--", sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def exchange(lab: str, one: int, other: int) -> None:
    """A stream there and back, compared by SHA-256, and datagrams; over IPv4, and over IPv6."""
    with inside(lab, other, SERVE, one) as serving:
        assert serving.stdout is not None
        first = serving.stdout.readline()
        assert first == "ready\n", first + serving.stdout.read()
        with inside(lab, one, ASK, other) as asking:
            said, _ = asking.communicate(timeout=patient(60))
            assert said == "True True\n" * 2, said
        said, _ = serving.communicate(timeout=patient(60))
        assert said == "True\n" * 2, said


def counters(lab: str, guest: int) -> dict[str, Any]:
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)
    return next(one["counters"] for one in status["guests"] if one["name"] == NAMES[guest - 1])


CASES = list(itertools.combinations(range(1, len(GUESTS) + 1), 2))
"""Each pair of guests."""


def _named(case: tuple[int, int]) -> str:
    return f"{NAMES[case[0] - 1]} and {NAMES[case[1] - 1]}"


@pytest.mark.parametrize("case", tiered(CASES, [(2, 4)]), ids=_named)
def test_what_is_sent_arrives(lab: str, case: tuple[int, int]) -> None:
    one, other = case
    before = counters(lab, one)
    exchange(lab, one, other)
    wait_until(lambda: counters(lab, one)["tx_bytes"] - before["tx_bytes"] >= 2 * BYTES, "the counters to be published")
    after = counters(lab, one)
    assert after["drops"] == before["drops"]  # some may be of what others' kernels said to everybody while this one started
    each = (after["tx_bytes"] - before["tx_bytes"]) / (after["tx_frames"] - before["tx_frames"])
    if GUESTS[one - 1][1] == "all":
        assert each > 1514, "frames, acknowledgements among them, are no longer than without segmentation offload"
    else:
        assert each <= 1514


@pytest.mark.long
def test_jumbo_frames(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An MTU of 9000, whose frames lie in several fragments on every path, with segmentation offload and without."""
    with _up(tmp_path_factory, "tapjumbo", 9000) as lab:
        jumbo = [number for number, (_, offloads) in enumerate(GUESTS, 1) if "sg" in SETS[offloads]]
        for one, other in zip(jumbo, [*jumbo[1:], jumbo[0]], strict=True):
            before = counters(lab, one)
            exchange(lab, one, other)
            assert counters(lab, one)["drops"] == before["drops"]
