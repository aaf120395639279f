"""Attacks by where memory lies: sound frames and buffers, each in another page of a large memory than the ones before.

Such a page is in no cache, and the processor has no translation of it: to copy it takes a loop ten times as long.
"""

from typing import Any, Final

import numpy as np

from bench.isolation import loops
from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.frames import NOBODY
from domu.frontends.split_state import RX_REF, RX_SLOTS, TX_REF, TX_SLOTS, netfront_at
from hyp.abi.grant import GTF_PERMIT_ACCESS, GTF_READONLY
from hyp.abi.nic import DESC_SIGNALED, PAGE
from hyp.abi.ring import RSP_PROD
from hyp.abi.sizes import FRAME_BUFFER
from hyp.atomics import cpu_relax, load32_acquire, store32, store64_once, u32_sub
from hyp.events import notify_if
from hyp.kernels import compiled, entry, i64
from hyp.ring import next_request, push_requests, ring_at
from hyp.verbs import (
    consume_receives,
    peek_receive,
    poll_sends,
    post_receive,
    post_send,
    qp_at,
    ring_receives,
    ring_sends,
    send_room,
)

PATHS: Final = ("native", "bypass", "trapped", "split")
LARGE: Final = {"memory": "128 MiB"}
ABOVE: Final = 8 << 20
"""From this address on nothing but what is scattered."""
LENGTH: Final = 500
SIGNAL_EVERY: Final = 32
LEAST_ROOM: Final = 16
"""Slots worth it to publish for."""
LINES: Final = 32
"""Of a page where a frame may begin, so that not all begin in the same places of a cache."""


@compiled
def _anywhere(job):
    """A place for a frame in [first, first + size): guest-physical."""
    page = loops.random63(job) % (job.size >> 12)
    return job.first + page * PAGE + page * 13 % LINES * 64


@entry(i64(i64))
def post_frames(address: int) -> int:
    """Send sound frames of `length` bytes from anywhere, as fast as can be, on a queue pair. Number posted."""
    job = loops.job_at(address)
    q = qp_at(job.qp)
    posted = 0
    while not loops.at_end(job):
        poll_sends(q)
        room = send_room(q)
        if room < LEAST_ROOM:
            cpu_relax()
            continue
        for _ in range(room):
            post_send(q, _anywhere(job), job.length, DESC_SIGNALED if posted % SIGNAL_EVERY == SIGNAL_EVERY - 1 else 0)
            posted += 1
        ring_sends(q)
    return posted


@entry(i64(i64))
def request_frames(address: int) -> int:
    """The same on netif's ring: each page is granted for its request."""
    job = loops.job_at(address)
    f = netfront_at(job.front)
    tx = ring_at(f.tx_ring)
    posted = 0
    while not loops.at_end(job):
        room = TX_SLOTS - u32_sub(tx.req_prod_pvt, load32_acquire(tx.sring + RSP_PROD))
        if room < LEAST_ROOM:
            cpu_relax()
            continue
        for _ in range(room):
            place, number = _anywhere(job), tx.req_prod_pvt & (TX_SLOTS - 1)
            store64_once(f.table + (TX_REF + number) * 8, GTF_PERMIT_ACCESS | GTF_READONLY | (place >> 12) << 32)
            slot = next_request(tx)
            store32(slot, TX_REF + number)
            store32(slot + 4, place & (PAGE - 1))
            store32(slot + 8, number | job.length << 16)
            posted += 1
        notify_if(push_requests(tx), f.tx_event_fd, job.counts)
    return posted


@entry(i64(i64))
def post_buffers(address: int) -> int:
    """Post receive buffers anywhere, each as soon as one is used up, on a queue pair. Number posted."""
    job = loops.job_at(address)
    q = qp_at(job.qp)
    posted = 0
    while not loops.at_end(job):
        used = 0
        while used < loops.BATCH and peek_receive(q, 0)[0] >= 0:
            consume_receives(q, 1)
            post_receive(q, _anywhere(job), FRAME_BUFFER)
            used += 1
        if used > 0:
            ring_receives(q)
        else:
            cpu_relax()
        posted += used
    return posted


@entry(i64(i64))
def request_buffers(address: int) -> int:
    """The same on netif's ring: a page is granted for each request, and its grant replaced when it has been answered."""
    job = loops.job_at(address)
    f = netfront_at(job.front)
    rx = ring_at(f.rx_ring)
    posted = 0
    while not loops.at_end(job):
        room = RX_SLOTS - u32_sub(rx.req_prod_pvt, load32_acquire(rx.sring + RSP_PROD))
        if room == 0:
            cpu_relax()
            continue
        for _ in range(room):
            number = rx.req_prod_pvt & (RX_SLOTS - 1)
            store64_once(f.table + (RX_REF + number) * 8, GTF_PERMIT_ACCESS | (_anywhere(job) >> 12) << 32)
            slot = next_request(rx)
            store32(slot, number)
            store32(slot + 4, RX_REF + number)
            posted += 1
        notify_if(push_requests(rx), f.rx_event_fd, job.counts)
    return posted


def _use(a: Attacker, first: int, size: int, *, buffers: bool, frame: bytes = b"") -> None:
    """Frames, which begin with `frame`, or buffers, all over this range."""
    offsets = np.arange(0, size, PAGE)
    offsets += offsets // PAGE * 13 % LINES * 64
    begin: Any = np.frombuffer(frame or a.header(NOBODY, kind=b"\x08\x00"), np.uint8)
    if not buffers:
        a.driver.memory[first + offsets[:, None] + np.arange(len(begin))] = begin
    on_queues, on_rings = (post_buffers, request_buffers) if buffers else (post_frames, request_frames)
    a.loop(on_rings if a.path == "split" else on_queues, first=first, size=size, length=len(frame) or LENGTH)


def use_pool(a: Attacker, *, buffers: bool = False, frame: bytes = b"") -> None:
    """What an honest guest does: as many frames, or buffers, as fast, in the pages that its driver has for that."""
    _use(a, a.driver.rx_pool if buffers else a.driver.tx_pool, 64 * PAGE, buffers=buffers, frame=frame)


def _scatter(a: Attacker, *, buffers: bool) -> None:
    size = a.driver.size - ABOVE
    if a.path == "bypass":
        a.call("mr_register", addr=ABOVE, length=size, writable=buffers)
    _use(a, ABOVE, size, buffers=buffers)


@attack("sound frames that lie all over a large memory, as fast as can be", Door.MEMORY, Control.POOL, paths=PATHS, guest=LARGE)
def scattered_frames(a: Attacker) -> None:
    _scatter(a, buffers=False)


@attack("buffers all over a large memory for what it is sent, as fast as can be", Door.MEMORY, Control.SENDS, paths=PATHS,
        sent_to=True, fast=True, guest=LARGE, split=Control.POOL_BUFFERS, trapped=Control.POOL_BUFFERS)  # fmt: skip
def scattered_buffers(a: Attacker) -> None:
    """Who sends there has more of the NIC's time than to one whose buffers are few, but no more than anybody else who sends.

    Where somebody else hands in what is received, that is work by itself, and its control is who receives as much.
    """
    _scatter(a, buffers=True)
