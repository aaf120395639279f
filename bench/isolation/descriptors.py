"""Attacks by rings and descriptors: indices, lengths, addresses, chains, and memory that changes under the device's eyes."""

import threading
from typing import Final

import numpy as np

from bench.isolation import loops
from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.drivers import WRAP, RingDriver
from bench.isolation.frames import NOBODY
from hyp.abi.fragment import MIN_SEGMENT
from hyp.abi.netif import EXTRA_TYPE_GSO, EXTRA_TYPE_HASH, TXF_CSUM_BLANK, TXF_EXTRA_INFO, TXF_MORE_DATA
from hyp.abi.nic import PAGE

FRAME: Final = 200
SPLIT: Final = ("split",)
QUEUES: Final = ("native", "bypass", "trapped")
"""Paths on which buffers of any size are the guest's to post as it likes."""


def _frame(a: Attacker, length: int = FRAME) -> bytes:
    """A sound frame to the wire's side, which nobody takes for a test frame."""
    return (a.header(NOBODY, kind=b"\x08\x00") + bytes(length))[:length]


def _keep_sending(a: Attacker, lengths: list[int], *, at: int = 0, more: bool = False) -> None:
    """Sends of these lengths from a page of one's own, again and again."""
    number = 0
    a.driver.write(a.driver.page(0), _frame(a))
    while a.goes_on():
        for _ in range(min(a.driver.room(), 32)):
            a.driver.send(a.driver.page(number) + at, lengths[number % len(lengths)], more=more)
            number += 1
        a.driver.publish()


def _keep_addressing(a: Attacker, addresses: list[int]) -> None:
    """Sends from, and buffers at, these addresses."""
    number = 0
    while a.goes_on():
        for _ in range(min(a.driver.room(), 16)):
            a.driver.send(addresses[number % len(addresses)], FRAME)
            number += 1
        for _ in range(a.driver.drain()):
            a.driver.post(addresses[number % len(addresses)])
            number += 1
        a.driver.publish()


# --- indices ----------------------------------------------------------------------------------------------------------


@attack("its producer indices run ahead of its rings: by one, by far, by half the range", Door.RINGS, Control.QUIET)
def index_ahead(a: Attacker) -> None:
    for ahead in (1, a.driver.slots + 1, 1000, WRAP // 2):
        for receives in (False, True):
            a.driver.claim(ahead, receives=receives)
            a.goes_on()
    a.rest()


@attack("its producer indices run backwards", Door.RINGS, Control.QUIET)
def index_behind(a: Attacker) -> None:
    for behind in (1, 7, a.driver.slots):
        for receives in (True, False):
            a.driver.claim(-behind, receives=receives)
            a.goes_on()
    a.rest()


@attack("claims new indices without end, with nothing behind them", Door.RINGS, Control.SENDS)
def indices_without_end(a: Attacker) -> None:
    ahead = 0
    while a.goes_on():
        ahead += a.driver.slots // 2
        a.driver.claim(ahead)


@attack("sends a whole ring and never takes an answer", Door.RINGS, Control.SENDS)
def never_reaping(a: Attacker) -> None:
    a.driver.write(a.driver.page(0), _frame(a))
    for _ in range(a.driver.room()):
        a.driver.send(a.driver.page(0), FRAME)
    a.driver.publish()
    while a.goes_on():
        a.driver.notify()


# --- chains -----------------------------------------------------------------------------------------------------------


@attack("a chain that has no end", Door.RINGS, Control.POSTS)
def endless_chain(a: Attacker) -> None:
    _keep_sending(a, [FRAME], more=True)


@attack("a chain of a whole ring, the end of which is taken back while it is read", Door.RINGS)
def chain_taken_back(a: Attacker) -> None:
    while a.goes_on():
        for number in range(a.driver.room()):
            a.driver.send(a.driver.page(number), 60, more=True)
        a.driver.publish()
        for back in range(64):
            a.driver.claim(-(back % 3))


@attack("chains of more fragments than one may have, ended and not", Door.RINGS, Control.POSTS)
def overlong_chain(a: Attacker) -> None:
    while a.goes_on():
        if a.driver.room() >= 60:
            for k in range(60):
                a.driver.send(a.driver.page(k), 64, more=k < 59)
            a.driver.publish()


@attack("chains whose fragments are all the same page", Door.RINGS, Control.POSTS)
def looping_chain(a: Attacker) -> None:
    a.driver.write(a.driver.page(0), _frame(a))
    while a.goes_on():
        if a.driver.room() >= 18:
            for k in range(17):
                a.driver.send(a.driver.page(0), 2000, more=k < 16)
            a.driver.publish()


@attack("fragments of zero bytes, alone and in chains", Door.RINGS, Control.POSTS)
def zero_length(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        for _ in range(min(a.driver.room(), 16)):
            a.driver.send(a.driver.page(number), 0, more=number % 3 == 0)
            number += 1
        a.driver.publish()


@attack("a header that is spread over two fragments", Door.RINGS, Control.POSTS)
def header_in_two(a: Attacker) -> None:
    a.driver.write(a.driver.page(0), _frame(a))
    while a.goes_on():
        for number in range(min(a.driver.room() // 2, 8)):
            length = (1, 5, 13)[number % 3]
            a.driver.send(a.driver.page(0), FRAME if isinstance(a.driver, RingDriver) else length, more=True)
            a.driver.send(a.driver.page(0), FRAME - length)
        a.driver.publish()


@attack("extra infos without end, of types that there are and are not", Door.RINGS, Control.POSTS, paths=SPLIT)
def endless_extras(a: Attacker) -> None:
    driver = a.driver
    assert isinstance(driver, RingDriver)
    while a.goes_on():
        if driver.room() >= 40:
            driver.send(driver.page(0), FRAME, flags=TXF_EXTRA_INFO)
            for kind in range(20):
                driver.extra(kind % (EXTRA_TYPE_HASH + 3), kind, more=True)
            driver.extra(EXTRA_TYPE_GSO, 0)
            driver.publish()


# --- lengths and addresses --------------------------------------------------------------------------------------------


@attack("frames longer than any may be, in one piece", Door.RINGS, Control.POSTS)
def overlong_length(a: Attacker) -> None:
    _keep_sending(a, [4097, 0xFFFF, 1 << 16, (1 << 31) - 1, 1 << 31, WRAP - 1])


@attack("lengths that leave the page, or RAM, behind their address", Door.RINGS, Control.POSTS)
def offset_and_length(a: Attacker) -> None:
    _keep_sending(a, [4000, 4096, 60_000], at=PAGE - 16)


@attack("addresses whose sum with the length wraps around", Door.RINGS, Control.POSTS)
def address_overflow(a: Attacker) -> None:
    _keep_addressing(a, [(1 << 64) - 32, (1 << 63) - 16, -8, (1 << 44) - 1, (1 << 52) + a.driver.page(0)])


@attack("pages that it has not granted or registered", Door.RINGS, Control.POSTS)
def page_not_granted(a: Attacker) -> None:
    driver, number = a.driver, 0
    if not isinstance(driver, RingDriver):
        free = driver.size - 64 * PAGE
        return _keep_addressing(a, [free + k * PAGE for k in range(32)])
    while a.goes_on():
        for _ in range(min(driver.room(), 16)):
            driver.request([0, 1, 7, 1500, 2047, 2048, 65_535, WRAP - 1][number % 8], 0, FRAME, number=number % 256)
            number += 1
        driver.publish()
    return None


@attack(
    "addresses and grants of memory that is somebody else's: beyond its RAM, for another domain, of another's number",
    Door.RINGS,
    Control.POSTS,
)
def somebody_elses(a: Attacker) -> None:
    driver = a.driver
    beyond = [driver.size + k * PAGE for k in range(16)] + [driver.size * k for k in range(1, 16)]
    if isinstance(driver, RingDriver):
        driver.table["domid"][300:] = [k % 5 for k in range(len(driver.table) - 300)]
    _keep_addressing(a, beyond)


@attack("pages that may only be read, as receive buffers", Door.RINGS, sent_to=True)
def read_only_buffers(a: Attacker) -> None:
    driver = a.driver
    while a.goes_on():
        for k in range(driver.drain()):
            driver.post(driver.page(k))
            if isinstance(driver, RingDriver):
                driver.grant(int(driver.buffers[(driver.posted - 1) % len(driver.buffers)]["gref"]), driver.page(k), writable=False)
        driver.publish()


@attack("one receive buffer, posted again and again, while it is read", Door.RINGS, sent_to=True)
def buffer_reused(a: Attacker) -> None:
    seed = 0
    while a.goes_on():
        for _ in range(a.driver.drain()):
            a.driver.post(a.driver.buffer(0))
        seed += 1
        a.driver.memory[a.driver.buffer(0) : a.driver.buffer(0) + 64] = seed & 255
        a.driver.publish()


@attack("receive buffers of no length, or of more than there is", Door.RINGS, sent_to=True)
def senseless_buffers(a: Attacker) -> None:
    number = 0
    while a.goes_on():
        for _ in range(a.driver.drain()):
            number += 1
            a.driver.post(a.driver.buffer(number), (0, 1, 63, 1 << 20, WRAP - 1)[number % 5])
        a.driver.publish()


@attack("receive buffers of a byte, as many as there is room for", Door.RINGS, sent_to=True)
def shortest_buffers(a: Attacker) -> None:
    while a.goes_on():
        for _ in range(a.driver.drain()):
            a.driver.post(a.driver.buffer(0), 1)
        a.driver.publish()


@attack("receive buffers of a byte, posted as fast as they are used, sent to as fast as can be", Door.RINGS, Control.TAKES,
        paths=QUEUES, sent_to=True, fast=True)  # fmt: skip
def bytes_for_buffers(a: Attacker) -> None:
    a.loop(loops.post_again, size=1)


@attack("the same request number, and one that there is not, in every request", Door.RINGS, Control.POSTS)
def duplicate_numbers(a: Attacker) -> None:
    driver, number = a.driver, 0
    a.driver.write(driver.page(0), _frame(a))
    while a.goes_on():
        for _ in range(min(driver.room(), 16)):
            number += 1
            if isinstance(driver, RingDriver):
                driver.grant(10, driver.page(0), writable=False)  # each time, as its control does: in the same time as many
                driver.request(10, 0, FRAME, number=(7, 0xFFFF)[number & 1])
            else:
                driver.send(driver.page(0), FRAME)
        driver.publish()


# --- a second thread --------------------------------------------------------------------------------------------------


@attack("takes the pages' grants or registrations away while they are used", Door.RINGS, Control.CALLS, split=Control.POSTS)
def revoked_in_flight(a: Attacker) -> None:
    frames = [_frame(a)] * 32
    while a.goes_on():
        a.send_all(frames)
        a.driver.revoke()


@attack("rewrites slots and descriptors after they were published", Door.RINGS, Control.POSTS)
def rewritten_after_the_check(a: Attacker) -> None:
    frames, seed = [_frame(a)] * 16, 0
    while a.goes_on():
        a.send_all(frames)
        for _ in range(8):
            seed += 1
            a.driver.rewrite(seed)


@attack("writes answers, completions and the other side's indices itself", Door.RINGS, Control.POSTS)
def forged_answers(a: Attacker) -> None:
    frames, seed = [_frame(a)] * 8, 0
    while a.goes_on():
        a.send_all(frames)
        seed += 1
        a.driver.forge(seed)
        a.driver.notify()


@attack("changes a frame's source address to and fro while it is read", Door.RINGS, Control.POSTS)
def header_rewritten(a: Attacker) -> None:
    victim, other = a.macs["anna"], a.macs["bert"]
    first = a.driver.page(0)
    head0, head1 = _head_words(a, other, a.mac)
    other0, other1 = _head_words(a, other, victim)
    a.driver.write(first, a.header(other) + bytes(64))
    row = a.driver.job[0]
    for name, value in (("head0", head0), ("head1", head1), ("other0", other0), ("other1", other1), ("first", first), ("stop", 0)):
        row[name] = value
    flipping = threading.Thread(target=loops.flip, args=(int(a.driver.job.ctypes.data),))
    flipping.start()
    try:
        while a.goes_on():
            for _ in range(min(a.driver.room(), 16)):
                a.driver.send(first, 64)
            a.driver.publish()
    finally:
        row["stop"] = 1
        flipping.join()


def _head_words(a: Attacker, to: str, source: str) -> tuple[int, int]:
    """A header to an address from another, as two words, the second with two bytes of nothing behind it."""
    raw = a.header(to, source) + bytes(2)
    return int.from_bytes(raw[:8], "little", signed=True), int.from_bytes(raw[8:], "little", signed=True)


@attack("descriptors and requests of every kind, rewritten as they are read, at full speed", Door.RINGS, Control.SENDS)
def garbage(a: Attacker) -> None:
    a.loop(loops.post_ring_garbage if isinstance(a.driver, RingDriver) else loops.post_garbage)


@attack("random words all over its rings, queues, pools and doorbells, at full speed", Door.RINGS)
def scribble(a: Attacker) -> None:
    first = min(at for at, _ in a.driver.shared())
    last = max(at + size for at, size in a.driver.shared())
    if isinstance(a.driver, RingDriver):
        a.loop(loops.scribble_memory, first=first, size=last - first)
    else:
        a.loop(loops.scribble, first=first, size=last - first)


@attack("rings its doorbell, or sends its event, without end", Door.RINGS)
def doorbell_storm(a: Attacker) -> None:
    while a.goes_on():
        a.driver.notify()


# --- offloads ---------------------------------------------------------------------------------------------------------


@attack("frames to be cut into segments of 1, 47 or 65,535 bytes, with headers that say anything", Door.RINGS, Control.POSTS)
def segment_nonsense(a: Attacker) -> None:
    noise = np.random.default_rng(1)
    frames = [a.header(NOBODY, kind=b"\x08\x00") + noise.bytes(1400) for _ in range(8)]
    frames += [a.header(NOBODY, kind=b"\x08\x00") + b"\x45" + bytes(8) + b"\x06" + noise.bytes(1400) for _ in range(8)]
    number = 0
    while a.goes_on():
        number += 1
        a.send_all(frames, segment=(1, 47, 48, 1000, 65_535)[number % 5])


@attack("sound frames, as long as there are, to be cut into segments as short as there are", Door.RINGS, Control.SEGMENTS)
def shortest_segments(a: Attacker) -> None:
    send_to_be_cut(a, MIN_SEGMENT)


def send_to_be_cut(a: Attacker, segment: int) -> None:
    """TCP frames to nobody on the wire, as long as there are, a few at a time, to be cut into segments of so many bytes."""
    driver = a.driver
    length = 4000 if isinstance(driver, RingDriver) else min(0xFFFF, driver.pages * PAGE)
    driver.write(driver.page(0), _to_be_cut(a, length))
    slots = 2 if isinstance(driver, RingDriver) else 1  # a request, and an extra info
    while a.goes_on():
        for _ in range(min(driver.room() // slots, 16)):
            driver.send(driver.page(0), length, segment=segment)
        driver.publish()


def _to_be_cut(a: Attacker, length: int) -> bytes:
    """Headers of a TCP frame of so many bytes."""
    ip = bytes.fromhex("4500") + (length - 14).to_bytes(2) + bytes.fromhex("00004000 40060000 0a000001 0a000002")
    tcp = bytes.fromhex("10001001 00000000 00000000 5010ffff 00000000")
    return a.header(NOBODY, kind=b"\x08\x00") + ip + tcp


@attack("chains as long as there are, to be cut into segments as short as there are", Door.RINGS, Control.CHAINS, paths=SPLIT)
def longest_chains_cut(a: Attacker) -> None:
    send_chains_to_be_cut(a, MIN_SEGMENT)


def send_chains_to_be_cut(a: Attacker, segment: int) -> None:
    """`send_to_be_cut`, of 64 KiB over as many slots of netif's ring as they take."""
    driver = a.driver
    assert isinstance(driver, RingDriver)
    lengths = [PAGE] * 15 + [0xFFFF - 15 * PAGE]
    driver.write(driver.page(0), _to_be_cut(a, sum(lengths)))
    while a.goes_on():
        for _ in range(driver.room() // (len(lengths) + 1)):
            driver.request(driver.granted_send(driver.page(0)), 0, sum(lengths), TXF_EXTRA_INFO | TXF_MORE_DATA | TXF_CSUM_BLANK)
            driver.extra(EXTRA_TYPE_GSO, segment)
            for k in range(1, len(lengths)):
                driver.request(driver.granted_send(driver.page(k)), 0, lengths[k], TXF_MORE_DATA if k < len(lengths) - 1 else 0)
        driver.publish()


@attack("flags that there are not, or that were not agreed upon", Door.RINGS, Control.POSTS)
def unknown_flags(a: Attacker) -> None:
    number, frames = 0, [_frame(a)] * 8
    while a.goes_on():
        number += 1
        a.send_all(frames, flags=(1 << (number % 16)) & ~TXF_MORE_DATA)
