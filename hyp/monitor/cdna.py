"""Concurrent direct network access: the hypervisor writes the descriptors of a guest's NIC context (the back end of path cdna).

After Willmann, Shafer, Carr, Menon, Rixner, Cox, Zwaenepoel, "Concurrent Direct Network Access for Virtual Machine Monitors" (HPCA
2007): there is no IOMMU; a guest enqueues descriptors by hypercall, the hypervisor checks that their pages are the guest's, pins
them until the NIC is done, numbers them, and writes them into the context's ring. The guest then writes the new producer index to
its own doorbell page. Nobody else touches a frame, but the VMM works in each batch.

As a hypercall runs on the caller's CPU, `enqueue_sends` and `enqueue_receives` run on the caller's thread, pay one system call and
the price of a hypercall each, and work on memory of the hypervisor's: the *pin table* of the guest. One call:

  1. take what the NIC has completed since the last call, by completion queues read with indices of our own: unpin its pages
  2. the sequence number that the caller gives to its first descriptor must be the next one: none is enqueued twice, none left out
  3. copy each request once, check the copy: a length the NIC takes, all of it in the guest's RAM, room in the ring; a chain of
     fragments is checked as a whole, and has to end within the batch
  4. pin its pages, write the descriptor. The first bad frame ends the batch: how many requests were enqueued is the answer

What is in a frame, and so whether its offload can be done, is for the NIC to judge; so is what the driver has accepted.

What this model cannot show here: on hardware the ring and the pin table are out of the guest's reach. A process that runs the
hypervisor's code on its own thread can write whatever that code can, so what *isolates* a cdna guest is what isolates a native one:
the NIC's own check that every address is in the RAM of the context's owner. A guest that writes its ring itself, moves its doorbell
too far, or corrupts its pin table reaches nobody's memory but its own.

Pin table (written by the code below only; one page of indices, then a log, then the counts)::

    offset    field
         0    u64 sends enqueued    next sequence number of the send queue
        64    u64 receives enqueued
       128    u64 sends done        unpinned
       192    u64 receives done
      4096    u64[4096] log of sends: first page | pages << 32, by slot
     36864    u64[4096] log of receives
     69632    u16[pages of RAM] pins of each page
"""

from typing import Any, Final

import numpy as np

from hyp.abi.counters import (
    FAULTS_ADDRESS,
    FAULTS_CHAIN,
    FAULTS_DESCRIPTOR,
    FAULTS_PROTOCOL,
    HYPERCALLS,
    RX_BYTES,
    RX_FRAMES,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.features import SG
from hyp.abi.fragment import LENGTH_MASK, MORE, SIGNALED
from hyp.abi.nic import (
    DESC_BYTES,
    DESC_SIGNALED,
    MAX_FRAME,
    MAX_LONE_FRAME,
    MAX_QUEUE,
    MIN_FRAME,
    PAGE,
    STATUS_BAD_CHAIN,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_OK,
)
from hyp.abi.platform import HYPERCALL_PRICE
from hyp.atomics import load16, load64, load64_once, record_view, store16, store64, sys_getppid, u32_sub
from hyp.control import Answer, Refused
from hyp.counters import count
from hyp.frames import lies_within
from hyp.kernels import compiled, outlined
from hyp.model.price import charge
from hyp.monitor.arguments import own_context
from hyp.monitor.dispatch import Callers, hypercall
from hyp.monitor.domain import Domain
from hyp.monitor.system import System
from hyp.offload.fragments import fragment_fault
from hyp.offload.frame import piece_addr, piece_length, set_piece
from hyp.verbs import consume_receives, peek_fragment, poll_sends, post_receive, post_send, qp_at, send_room

ENQUEUED_SENDS: Final = 0
ENQUEUED_RECEIVES: Final = 64
DONE_SENDS: Final = 128
DONE_RECEIVES: Final = 192
SEND_LOG: Final = PAGE
RECEIVE_LOG: Final = SEND_LOG + 8 * MAX_QUEUE
PINS: Final = RECEIVE_LOG + 8 * MAX_QUEUE
REQUEST_BYTES: Final = DESC_BYTES
"""A request is a descriptor: u64 address, and a fragment word (hyp/abi/fragment.py) that is not SIGNALED; to receive, a length."""
OUT_OF_SEQUENCE: Final = -1
PAGE_SHIFT: Final = 12

CDNA = np.dtype(
    [
        ("table", "i8"),  # address of the pin table
        ("qp", "i8"),  # a QP of the hypervisor's own on the context's queues: what it has enqueued and seen completed
        ("ram_bytes", "i8"),
        ("chain", "i8"),  # PIECES_BYTES (hyp/offload/frame.py): copies of the requests of one frame
        ("platform", "i8"),
        ("counts", "i8"),  # row in which frames are counted that this code has handled, and its shared place
        ("counts_shared", "i8"),
    ]
)
"""What the hypercalls know of their caller; set by its front end, as a page table would be by the hypervisor."""
cdna_at = record_view(CDNA)


def table_bytes(memory: int) -> int:
    """Size of the pin table of a guest with so much RAM, in whole pages."""
    return -(-(PINS + 2 * (memory // PAGE)) // PAGE) * PAGE


@hypercall(Callers.EVERY_DOMAIN, context=own_context)
def cdna_attach(system: System, domain: Domain, context: int) -> Answer:
    """The pin table of one's context, which must be one that the IOMMU lets through. fds: the table (read-write)."""
    if not domain.contexts[context].passthrough:
        raise Refused("EPERM", f"{domain.who}: context {context} is checked by the IOMMU, not by hypercalls")
    return Answer({}, fds=[domain.region("pins", table_bytes(domain.memory)).fd])


@compiled
def _enter(c: Any) -> None:
    """What every hypercall costs: a system call, and the price."""
    sys_getppid()
    charge(c.platform, HYPERCALL_PRICE, c.counts, HYPERCALLS, 1)


@compiled
def _add_pins(c: Any, page: int, pages: int, by: int) -> None:
    for k in range(page, page + pages):
        at = c.table + PINS + 2 * k
        store16(at, load16(at) + by)


@compiled
def _unpin(c: Any, entry: int) -> None:
    """Give back the pins of a log entry. The entry lies in memory that a hostile caller can write: it is checked like a request."""
    page, pages = entry & 0xFFFF_FFFF, entry >> 32
    if 0 < pages <= 2 and page + pages <= c.ram_bytes >> PAGE_SHIFT:
        _add_pins(c, page, pages, -1)


@compiled
def _pin(c: Any, log: int, addr: int, length: int) -> None:
    page = addr >> PAGE_SHIFT
    pages = ((addr + length - 1) >> PAGE_SHIFT) - page + 1
    _add_pins(c, page, pages, 1)
    store64(log, page | (pages << 32))


@compiled
def _reap_sends(c: Any, q: Any) -> None:
    """Unpin what the NIC has sent."""
    first, done = q.sq_done, poll_sends(q)
    for k in range(done):
        _unpin(c, load64(c.table + SEND_LOG + 8 * ((first + k) & (q.sq_size - 1))))
    if done > 0:
        store64(c.table + DONE_SENDS, load64(c.table + DONE_SENDS) + done)


@compiled
def _reap_receives(c: Any, q: Any) -> None:
    """Unpin the buffers that the NIC has filled, and count their frames."""
    done, total = 0, 0
    for _ in range(q.rq_size):
        index, word, status = peek_fragment(q, 0)
        if index < 0:
            break
        _unpin(c, load64(c.table + RECEIVE_LOG + 8 * (index & (q.rq_size - 1))))
        if status == STATUS_OK:
            count(c.counts, RX_FRAMES, 0 if word & MORE else 1)
            total += word & LENGTH_MASK
        consume_receives(q, 1)
        done += 1
    if done > 0:
        count(c.counts, RX_BYTES, total)
        store64(c.table + DONE_RECEIVES, load64(c.table + DONE_RECEIVES) + done)


@compiled
def enqueue_sends(c: Any, requests: int, sequence: int, n: int) -> int:
    """Hypercall: enqueue `n` send requests, whole frames, the last with a completion; the first has number `sequence`.

    Returns how many were enqueued (fewer than `n`: the next frame was bad, or there was no room), or OUT_OF_SEQUENCE.
    """
    _enter(c)
    q = qp_at(c.qp)
    _reap_sends(c, q)
    if sequence != load64(c.table + ENQUEUED_SENDS):
        count(c.counts, FAULTS_PROTOCOL, 1)
        return OUT_OF_SEQUENCE
    done, frames, total, room = 0, 0, 0, min(n, send_room(q))
    while done < room:
        request = requests + done * REQUEST_BYTES
        addr, length = load64_once(request), load64_once(request + 8)
        if length < MIN_FRAME or length > MAX_LONE_FRAME:  # or there are flags
            taken, octets = _enqueue_chain(c, q, request, n - done, room - done)
            if taken == 0:
                break
        elif not lies_within(addr, length, c.ram_bytes):
            count(c.counts, FAULTS_ADDRESS, 1)
            break
        else:
            _enqueue(c, q, addr, length, done == n - 1)
            taken, octets = 1, length
        total += octets
        done += taken
        frames += 1
    store64(c.table + ENQUEUED_SENDS, sequence + done)
    count(c.counts, TX_FRAMES, frames)
    count(c.counts, TX_BYTES, total)
    return done


@compiled
def _enqueue(c: Any, q: Any, addr: int, word: int, signaled: bool) -> None:
    """Pin the pages of a fragment that has been checked, and write its descriptor."""
    _pin(c, c.table + SEND_LOG + 8 * (q.sq_prod & (q.sq_size - 1)), addr, word & LENGTH_MASK)
    post_send(q, addr, word & LENGTH_MASK, (word >> 32) | (DESC_SIGNALED if signaled else 0))


@outlined
def _enqueue_chain(c: Any, q: Any, requests: int, n: int, room: int) -> Any:
    """Enqueue a frame of any number of fragments, the first of `n` requests of which the ring takes `room`.

    Returns (requests, bytes). (0, 0): it is no good, and counted, or there is no room for it; nothing is pinned.
    """
    taken, total, word, status = 0, 0, MORE, STATUS_OK
    while word & MORE != 0 and status == STATUS_OK:
        if taken == n:
            status = STATUS_BAD_CHAIN  # it has no end
            break
        addr, word = load64_once(requests + taken * REQUEST_BYTES), load64_once(requests + taken * REQUEST_BYTES + 8)
        length = word & LENGTH_MASK
        status = STATUS_BAD_FLAGS if word & SIGNALED else fragment_fault(SG, word, taken)
        if status == STATUS_OK and length > MAX_LONE_FRAME:
            status = STATUS_BAD_LENGTH
        if status == STATUS_OK and not lies_within(addr, length, c.ram_bytes):
            count(c.counts, FAULTS_ADDRESS, 1)
            return 0, 0
        if status == STATUS_OK:
            set_piece(c.chain, taken, addr, word)
        total += length
        taken += 1
    if status == STATUS_OK and (total < MIN_FRAME or total > MAX_FRAME):
        status = STATUS_BAD_LENGTH
    if status != STATUS_OK:
        count(c.counts, FAULTS_CHAIN if status == STATUS_BAD_CHAIN else FAULTS_DESCRIPTOR, 1)
        return 0, 0
    if taken > room:
        return 0, 0
    for k in range(taken):
        _enqueue(c, q, piece_addr(c.chain, k), piece_length(c.chain, k), k == n - 1)
    return taken, total


@compiled
def enqueue_receives(c: Any, requests: int, sequence: int, n: int) -> int:
    """Hypercall: enqueue `n` receive buffers; the first has number `sequence`. Returns as `enqueue_sends`."""
    _enter(c)
    q = qp_at(c.qp)
    _reap_receives(c, q)
    if sequence != load64(c.table + ENQUEUED_RECEIVES):
        count(c.counts, FAULTS_PROTOCOL, 1)
        return OUT_OF_SEQUENCE
    done = 0
    room = q.rq_size - u32_sub(q.rq_prod, q.rcq_cons)
    for k in range(min(n, room)):
        addr, length = load64_once(requests + k * REQUEST_BYTES), load64_once(requests + k * REQUEST_BYTES + 8)
        if length <= 0 or length > PAGE:
            count(c.counts, FAULTS_DESCRIPTOR, 1)
            break
        if not lies_within(addr, length, c.ram_bytes):
            count(c.counts, FAULTS_ADDRESS, 1)
            break
        _pin(c, c.table + RECEIVE_LOG + 8 * (q.rq_prod & (q.rq_size - 1)), addr, length)
        post_receive(q, addr, length)
        done += 1
    store64(c.table + ENQUEUED_RECEIVES, sequence + done)
    return done
