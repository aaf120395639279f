"""Attacks by what is in frames, by how many there are, and by not taking those that come."""

import time
from typing import Final

import numpy as np

from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import TEST_ETHERTYPE, Attacker

BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
NOBODY: Final = "02:00:00:00:77:77"
INVENTED: Final = 1500
DRIP_S: Final = 0.015
RANDOM_LENGTHS: Final = (46, 1400)
"""Bytes behind the header, at least and less than."""


def _test_frame(a: Attacker, to: str, source: str, stream: int, sequence: int) -> bytes:
    """A frame that a receiver takes for one of that stream, with a checksum that is wrong."""
    return a.header(to, source) + stream.to_bytes(2, "little") + sequence.to_bytes(8, "little") + bytes(40)


@attack("frames in its neighbours' names, to each other and to the wire", Door.FRAMES, Control.SENDS)
def spoofed_source(a: Attacker) -> None:
    anna, bert = a.macs["anna"], a.macs["bert"]
    frames = [
        _test_frame(a, to, source, stream, 1 << 40)
        for to, source in ((bert, anna), (anna, bert), (a.macs["wire"], anna), (BROADCAST, bert), (anna, a.macs["wire"]))
        for stream in a.streams
    ]
    while a.goes_on():
        a.send_all(frames)


@attack(
    "frames from fifteen hundred addresses that there are not, so that who belongs where is forgotten", Door.FRAMES, Control.SENDS
)
def invented_addresses(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        sources = [f"06:66:00:00:{(number + k) % INVENTED >> 8:02x}:{(number + k) % INVENTED & 255:02x}" for k in range(32)]
        number += 32
        a.send_all([(a.header(NOBODY, source) + bytes(64))[:64] for source in sources])


@attack("broadcasts without end", Door.FRAMES, Control.SENDS)
def broadcast_storm(a: Attacker) -> None:
    frames = [(a.header(BROADCAST, kind=b"\x08\x06") + bytes(64))[:64]] * 32
    while a.goes_on():
        a.send_all(frames)


@attack("long broadcasts without end", Door.FRAMES, Control.SENDS)
def long_broadcasts(a: Attacker) -> None:
    frames = [(a.header(BROADCAST, kind=b"\x08\x06") + bytes(1514))[:1514]] * 32
    while a.goes_on():
        a.send_all(frames)


@attack("frames to a thousand groups and to the addresses that bridges keep for themselves", Door.FRAMES, Control.SENDS)
def group_storm(a: Attacker) -> None:
    groups = [f"01:80:c2:00:00:{k:02x}" for k in range(16)] + [f"01:00:5e:00:{k:02x}:01" for k in range(16)]
    frames = [(a.header(group, kind=b"\x88\xcc") + bytes(64))[:64] for group in groups]
    while a.goes_on():
        a.send_all(frames)


@attack("frames to addresses that nobody has, which are passed on to all", Door.FRAMES, Control.SENDS)
def unknown_destinations(a: Attacker) -> None:
    frames = [(a.header(f"02:99:00:00:00:{k:02x}") + bytes(64))[:64] for k in range(32)]
    while a.goes_on():
        a.send_all(frames)


@attack("frames to itself, without end", Door.FRAMES, Control.SENDS)
def frames_to_itself(a: Attacker) -> None:
    frames = [(a.header(a.mac) + bytes(64))[:64]] * 32
    while a.goes_on():
        a.send_all(frames)


@attack("tagged frames, once and twice, with its neighbours' addresses inside and outside", Door.FRAMES, Control.SENDS)
def vlan_escape(a: Attacker) -> None:
    tags = (b"\x81\x00\x00\x01", b"\x88\xa8\x0f\xff\x81\x00\x00\x02", b"\x81\x00\xff\xff" * 4)
    bert, anna = a.macs["bert"], a.macs["anna"]
    inside = {
        to: _test_frame(a, bert, source, a.streams[0], 1) for to, source in ((bert, anna), (BROADCAST, a.mac))
    }  # no canary to all
    frames = [a.header(to, source, tag) + inside[to] for tag in tags for to in inside for source in (None, anna)]
    while a.goes_on():
        a.send_all(frames)


@attack(
    "its own frames under the numbers of its neighbours' streams, and numbers that fall together with theirs",
    Door.FRAMES,
    Control.ADDRESSES,
)
def forged_streams(a: Attacker) -> None:
    numbers = [(stream + add) % (1 << 14) for stream in a.streams for add in (0, 64, 128)]
    frames = [_test_frame(a, a.macs[to], a.mac, number, 1 << 40) for number in numbers for to in ("anna", "bert")]
    while a.goes_on():
        a.send_all(frames)


@attack("frames of random bytes behind a header that is sound", Door.FRAMES, Control.ADDRESSES)
def random_contents(a: Attacker) -> None:
    frames = of_random_lengths(a, sound=False)
    while a.goes_on():
        a.send_all(frames)


def of_random_lengths(a: Attacker, *, sound: bool) -> list[bytes]:
    """Frames of several kinds to a neighbour, whose contents are random, or, if they are `sound`, zeros behind the first two bytes.

    Those of the lab's own kind are test frames then, with a right checksum, and ask for an answer where the random ones do: their
    receiver's program has as much to do for these as for those.
    """
    noise = np.random.default_rng(2)
    kinds = (b"\x08\x00", b"\x86\xdd", b"\x81\x00", TEST_ETHERTYPE, b"\x00\x2e", b"\xb5\x88")
    contents = [noise.bytes(int(noise.integers(*RANDOM_LENGTHS))) for _ in range(32)]
    if sound:
        contents = [one[:2].ljust(len(one), b"\0") for one in contents]
    return [a.header(a.macs["anna"], kind=kinds[k % len(kinds)]) + one for k, one in enumerate(contents)]


@attack("frames longer than the network takes", Door.FRAMES, Control.SENDS)
def beyond_the_mtu(a: Attacker) -> None:
    long = a.header(a.macs["anna"], kind=b"\x08\x00") + bytes(2030)
    while a.goes_on():
        a.send_all([long[:1400], long[:1519], long[:2000], long])


# --- not taking what comes --------------------------------------------------------------------------------------------


@attack("is sent frames and posts no buffer for them", Door.FRAMES, Control.QUIET, sent_to=True)
def never_posting(a: Attacker) -> None:
    while a.goes_on(0):
        a.attempts += a.driver.drain()
        a.rest(0.001)


@attack("is sent frames and posts one buffer every 15 ms", Door.FRAMES, Control.QUIET, sent_to=True)
def dripping_buffers(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        a.driver.drain()
        a.driver.post(a.driver.buffer(number))
        a.driver.publish()
        number += 1
        a.rest(DRIP_S)


@attack("is sent frames, and posts its buffers one by one, each with a notification", Door.FRAMES, sent_to=True)
def buffers_one_by_one(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        for _ in range(a.driver.drain()):
            a.driver.post(a.driver.buffer(number))
            a.driver.publish()
            a.driver.notify()
            number += 1
        time.sleep(0)
