"""The flow hash against a slow model; that it is the same both ways, one for a flow, and spread."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hyp.atomics import load64
from hyp.kernels import entry, i64
from hyp.offload.flow import flow_hash, queue_of
from tests.support import flow_model
from tests.support.drivers import compose
from tests.support.plain_packets import Packet

TCP, UDP = 6, 17
MACS = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


@entry(i64(i64, i64))
def _hash(addr: int, length: int) -> int:
    return flow_hash(load64(addr), load64(addr + 8), addr, length)


@entry(i64(i64, i64, i64))
def _queue(addr: int, length: int, queues: int) -> int:
    return queue_of(load64(addr), load64(addr + 8), addr, length, queues)


def hashed(frame: bytes, behind: bytes = bytes(64)) -> int:
    """What the lab says of a frame; `behind`: what lies after it in memory."""
    memory = np.frombuffer(frame + behind, np.uint8).copy()
    return int(_hash(int(memory.ctypes.data), len(frame)))


def packet(version: int, protocol: int, ports: tuple[int, int] = (1000, 2000)) -> bytes:
    """A TCP or UDP packet."""
    frame = Packet(*MACS, version, protocol, b"payload of it").headers(0) + b"payload of it"
    at = 14 + (20 if version == 4 else 40)
    return frame[:at] + ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + frame[at + 4 :]


def back(frame: bytes) -> bytes:
    """The answer to it: all addresses and ports exchanged."""
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        ip = ip[:12] + ip[16:20] + ip[12:16] + ip[22:24] + ip[20:22] + ip[24:]
    elif kind == b"\x86\xdd":
        ip = ip[:8] + ip[24:40] + ip[8:24] + ip[42:44] + ip[40:42] + ip[44:]
    return frame[6:12] + frame[:6] + kind + ip


KINDS = {
    "TCP over IPv4": packet(4, TCP),
    "UDP over IPv4": packet(4, UDP),
    "TCP over IPv6": packet(6, TCP),
    "UDP over IPv6": packet(6, UDP),
    "ICMP": packet(4, 1),
    "an extension header": packet(6, 43),
    "options": packet(4, TCP)[:14] + b"\x46" + packet(4, TCP)[15:34] + bytes(4) + packet(4, TCP)[34:],
    "a fragment": packet(4, UDP)[:20] + b"\x20\x00" + packet(4, UDP)[22:],
    "a later fragment": packet(4, UDP)[:20] + b"\x00\x03" + packet(4, UDP)[22:],
    "a test frame": compose("02:00:00:00:00:01", "02:00:00:00:00:02", 64, 7, 3),
    "an echo": compose("02:00:00:00:00:01", "02:00:00:00:00:02", 64, 0x8007, 3),
    "ARP": MACS[0] + MACS[1] + b"\x08\x06" + bytes(46),
    "a tag": MACS[0] + MACS[1] + b"\x81\x00\x00\x07" + packet(4, TCP)[12:],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_every_length_of_it_is_as_the_model_says(kind: str) -> None:
    frame = KINDS[kind]
    for length in range(14, len(frame) + 1):
        expected = flow_model.flow_hash(frame[:length])
        assert hashed(frame[:length]) == expected, length
        assert hashed(frame[:length], b"\xff" * 64) == expected, length


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_the_hash_of_its_question(kind: str) -> None:
    if kind not in ("options", "a tag", "ICMP", "an extension header", "a fragment", "a later fragment"):
        assert hashed(back(KINDS[kind])) == hashed(KINDS[kind])


@pytest.mark.parametrize("seed", range(5))
def test_any_bytes_are_as_the_model_says(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(2000):
        kind = chance.choice([b"\x08\x00", b"\x86\xdd", b"\x88\xb5", chance.randbytes(2)])
        frame = chance.randbytes(12) + kind + chance.randbytes(chance.randrange(2, 100))
        if chance.random() < 0.5 and len(frame) > 23:
            at = 23 if kind == b"\x08\x00" else 20
            frame = frame[:at] + bytes([chance.choice([TCP, UDP])]) + frame[at + 1 :]
        assert hashed(frame) == flow_model.flow_hash(frame)


@pytest.mark.parametrize("queues", [2, 3, 8])
def test_flows_are_spread(queues: int) -> None:
    """Ports, and streams of test frames, that differ by one: no queue gets half of its share, or twice."""
    flows = {
        "ports": [packet(4, TCP, (40000 + k, 80)) for k in range(400)],
        "IPv6": [packet(6, UDP, (40000 + k, 53)) for k in range(400)],
        "streams": [compose("02:00:00:00:00:01", "02:00:00:00:00:02", 64, k, 0) for k in range(400)],
    }
    for name, frames in flows.items():
        memories = [np.frombuffer(frame, np.uint8).copy() for frame in frames]
        found = Counter(int(_queue(int(memory.ctypes.data), len(memory), queues)) for memory in memories)
        assert set(found) == set(range(queues)), name
        assert all(200 / queues < n < 800 / queues for n in found.values()), (name, found)


def test_what_is_no_part_of_the_flow_does_not_count() -> None:
    one = Packet(*MACS, 4, TCP, b"x" * 100, sequence=1, ident=1, flags=0x10)
    other = replace(one, sequence=999, ident=77, flags=0x18, options=12, payload=b"y" * 1000)
    assert hashed(one.headers(1) + one.payload) == hashed(other.headers(2) + other.payload)
    streams = [compose("02:00:00:00:00:01", "02:00:00:00:00:02", 64 + k, 5, k) for k in range(20)]
    assert len({hashed(frame) for frame in streams}) == 1
