"""A wire that leads to the host, whose kernel may cut what it is given: who sends that waits, and others do not."""

import socket
import time
from collections.abc import Iterator

import pytest

from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.fragment import CSUM_BLANK, GSO_TCPV4, MIN_SEGMENT
from hyp.abi.nic import STATUS_OK
from hyp.abi.vnet import VNET_BYTES
from hyp.fairness.cutting import CREDIT_NS, HOST_PART_NS, HOST_PARTS, PART_NS
from nic.engine import WIRE_MODE
from nic.state import TAP
from tests.nic.test_chains import fragments_of, packet
from tests.support.guests import WIRE_MAC, Guest
from tests.support.peers import Bench, bench_of, well

FLAGS = (CSUM_BLANK | GSO_TCPV4) >> 32
FRAMES = 4


@pytest.fixture
def host() -> Iterator[tuple[Bench, Guest, Guest, Guest, socket.socket]]:
    """A bench whose wire is one end of a pair of sockets, as a TAP would be; three guests, and the other end."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    near.setblocking(False)
    with near, far, bench_of(3, mtu=1500, features=SG | CSUM | TSO4 | TSO6, queue=128, memory=4 << 20) as (bench, *guests):
        engine = bench.nic._engines[0]
        engine.attach_tap(near.fileno())
        bench.run(engine.engine.post(WIRE_MODE, mode=TAP, fs_per_byte=0, delay_ns=0))
        yield bench, *guests, far


def sends(bench: Bench, sender: Guest, segment: int, far: socket.socket) -> tuple[int, int]:
    """Send FRAMES as long as there are to the host, which gets them. (Parts of each; ns until the last was there)."""
    one, begun = packet(sender, WIRE_MAC, 64_000), time.monotonic_ns()
    for _ in range(FRAMES):
        sender.send_chain(fragments_of(bytes(one), 4000), FLAGS, segment)
    for _ in range(FRAMES):
        assert far.recv(1 << 17)[VNET_BYTES:] == bytes(one)
    took_ns = time.monotonic_ns() - begun
    assert sender.sent(FRAMES) == [STATUS_OK] * FRAMES
    return len(one.segments(segment)), took_ns


def test_who_has_the_host_cut_frames_into_very_many_waits_and_others_do_not(
    host: tuple[Bench, Guest, Guest, Guest, socket.socket],
) -> None:
    bench, anna, bert, carl, far = host
    parts, _ = sends(bench, carl, MIN_SEGMENT, far)
    well(bench, anna, bert)
    parts, took_ns = sends(bench, carl, MIN_SEGMENT, far)
    assert parts > 1000
    each_ns = parts * PART_NS + (parts - HOST_PARTS) * HOST_PART_NS
    assert each_ns > CREDIT_NS
    assert took_ns >= (FRAMES - 2) * each_ns  # before the first nobody waits, and before the second by the credit less
    assert bench.drops() == {}


def test_who_has_frames_cut_as_drivers_do_waits_for_nothing(host: tuple[Bench, Guest, Guest, Guest, socket.socket]) -> None:
    bench, anna, bert, carl, far = host
    parts, _ = sends(bench, carl, 1448, far)
    record = bench.nic._engines[0].contexts[carl.context]
    assert 1 < parts <= HOST_PARTS
    assert 0 < int(record["cut_until"]) <= time.monotonic_ns() + FRAMES * parts * PART_NS < time.monotonic_ns() + CREDIT_NS
    well(bench, anna, bert)
    assert bench.drops() == {}
