"""A wire that leads to the host: what guests and the host say to each other, and what is left. In networks of the test's own."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hyp.paths import PATHS
from tests.support.labs import (
    LAUNCH,
    ROOT,
    launch,
    left_behind,
    network_of_its_own,
    processes,
    staying_up,
    topology_file,
    unique,
    wait_until,
)
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps", "mounts", "ipv6", "ip")]

FAR = "192.0.2.1"
BYTES = 3 << 20
WIRE = """
[nic]
engines = 2
[nic.wire]
mode = "tap"
interface = "lab0"
address = "10.0.0.254/24"
address6 = "fd00::fe/64"
"""
GUESTS = [*PATHS, "bypass"]
NUMBERED = list(enumerate(GUESTS, 1))
TOPOLOGY = WIRE + "".join(
    f'[[guest]]\nname = "g{number}"\npath = "{path}"\nprogram = "tap"\naddress = "10.0.0.{number}/24"\n'
    f'address6 = "fd00::{number}/64"\ngateway = "10.0.0.254"\ngateway6 = "fd00::fe"\n'
    + ('offloads = ["sg"]\n' if number > len(PATHS) else "")
    for number, path in NUMBERED
)
SERVE = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 7000), family=int(sys.argv[2])) as server:
    print("listening", flush=True)
    stream, sender = server.accept()
    got = b""
    while data := stream.recv(1 << 20):
        got += data
    stream.sendall(hashlib.sha256(got).digest() + got)
    print(sender[0], hashlib.sha256(got).hexdigest())
"""
ASK = """
import hashlib, random, socket, sys
content = random.Random(7).randbytes(int(sys.argv[2]))
stream = socket.create_connection((sys.argv[1], 7000))
stream.sendall(content)
stream.shutdown(socket.SHUT_WR)
back = b"".join(iter(lambda: stream.recv(1 << 20), b""))
print(back == hashlib.sha256(content).digest() + content)
"""
Lab = tuple[str, list[str]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A guest on each path and one that accepts no offloads; the topology's name, and what the host's commands begin with."""
    file = topology_file(tmp_path_factory.mktemp("wiretap"), "wiretap", TOPOLOGY)
    with network_of_its_own() as within:
        subprocess.run([*within, "ip", "address", "add", f"{FAR}/32", "dev", "lo"], check=True)
        with staying_up(file, within=within) as (process, _):
            yield unique("wiretap"), within
            nic = next(pid for pid, line in processes(unique("wiretap")).items() if line.split()[-1] == "nic")
            number = index(within)
            os.kill(nic, signal.SIGKILL)
            wait_until(lambda: index(within) != number, "the interface to be gone with the NIC, whose next one makes another")
            process.send_signal(signal.SIGTERM)
            process.wait(patient(30))
    assert left_behind(unique("wiretap")) == []


def index(within: list[str]) -> str | None:
    """The number of the interface on the wire; None if there is none."""
    found = [line for line in interfaces(within).splitlines() if " lab0 " in line]
    return found[0].split(":")[0] if found else None


def interfaces(within: list[str]) -> str:
    return subprocess.run([*within, "ip", "-o", "address"], check=True, capture_output=True, text=True).stdout


def in_guest(lab: Lab, guest: int, *program: str) -> list[str]:
    return [*LAUNCH, "exec", "--topology", lab[0], f"g{guest}", "--", *program]


def exchange(server: list[str], client: list[str], address: str) -> str:
    """A stream there and back; returns where it came from, as the server saw it."""
    family = "10" if ":" in address else "2"
    with subprocess.Popen(
        [*server, sys.executable, "-c", SERVE, address, family], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "listening\n"
        asked = subprocess.run(
            [*client, sys.executable, "-c", ASK, address, str(BYTES)], capture_output=True, text=True, timeout=patient(60), cwd=ROOT
        )
        assert asked.stdout == "True\n", asked.stderr
        sender, digest = serving.stdout.read().split()
    assert digest == hashlib.sha256(random.Random(7).randbytes(BYTES)).hexdigest()
    return sender


def counters(lab: Lab, guest: int) -> dict[str, Any]:
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab[0])
    return next(one["counters"] for one in status["guests"] if one["name"] == f"g{guest}")


@pytest.mark.parametrize("numbered", tiered(NUMBERED, NUMBERED[:2]), ids=lambda one: f"{one[1]}-{one[0]}")
def test_the_host_and_a_guest_exchange_streams(lab: Lab, numbered: tuple[int, str]) -> None:
    """Both ways to begin, one over IPv4 and one over IPv6. Segments are left to the device on both sides, if the guest does."""
    (_, within), (guest, _) = lab, numbered
    assert exchange(in_guest(lab, guest), within, f"10.0.0.{guest}") == "10.0.0.254"
    assert exchange(within, in_guest(lab, guest), "fd00::fe") == f"fd00::{guest}"
    moved = counters(lab, guest)
    assert moved["drops"].keys() <= {"queue_full"}  # a copy of a broadcast, which waits for nobody
    if guest <= len(PATHS):
        assert moved["tx_bytes"] / moved["tx_frames"] > 1514


def test_a_gateway_leads_beyond_the_host(lab: Lab) -> None:
    assert exchange(lab[1], in_guest(lab, 2), FAR) == "10.0.0.2"


@pytest.mark.needs("ping")
def test_the_wire_has_a_name_in_guests(lab: Lab) -> None:
    done = subprocess.run(in_guest(lab, 1, "ping", "-c", "1", "-W", "5", "wire"), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_interface_is_what_the_topology_says(lab: Lab) -> None:
    found = [line.split()[1:4] for line in interfaces(lab[1]).splitlines()]
    assert ["lab0", "inet", "10.0.0.254/24"] in found
    assert [line[2] for line in found if line[:2] == ["lab0", "inet6"]] == ["fd00::fe/64"]


def test_a_name_that_is_taken_is_refused(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = topology_file(tmp_path_factory.mktemp("second"), "second", WIRE + '[[guest]]\nname = "gus"\npath = "bypass"\n')
    done = launch("run", file, within=lab[1])
    assert done.returncode == 3
    assert (
        "nic could not start: cannot create the TAP lab0: Device or resource busy; there is an interface of that name"
        in done.stdout + done.stderr
    )


@pytest.mark.long
@pytest.mark.needs("root", "util-linux")
def test_without_privilege_it_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = topology_file(tmp_path_factory.mktemp("denied"), "denied", WIRE + '[[guest]]\nname = "gus"\npath = "bypass"\n')
    done = launch("run", file, within=["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
    assert done.returncode == 3
    assert (
        "cannot create the TAP lab0: Operation not permitted; a wire to the host takes CAP_NET_ADMIN" in done.stdout + done.stderr
    )
    assert left_behind(unique("denied")) == []
