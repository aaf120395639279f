"""The role of a guest with a split front end that posts whatever it is told, for fuzzing netback. Its own loop never runs.

Operations of its console; an *entry* is [reference, flags, domid, frame], written into the grant table first:

An operation is for queue 0 of the device unless `queue` says another.

transmit {entries, frames, requests}   frames to write: [address, length, to, stream, sequence]; requests: [gref, offset, flags, id,
                                       size]. Answers once all are answered: [[id, status], …]
post {entries, requests, quiet}        receive requests: [id, gref]; quiet: without an event
received {count, frames}               waits for so many receive responses: [[id, offset, status, whole], …]. whole: the page has
                                       the frame that was expected in it: [page, from, length, stream, sequence]
slots {writes, slots}                  [address, bytes] to write into RAM; transmit slots, as bytes. Answers as `transmit` does
publish {slots}                        the same, without waiting
responses {count}                      waits for so many receive responses, as bytes
read {at, length}                      bytes of RAM
overrun {ring}                         claim more requests of ring "tx" or "rx" than it has
pools {}                               {"tx", "rx": first frame of the pool, "ram": frames of RAM}
"""

import asyncio
import ctypes
import os
from typing import Any

import numpy as np

from domu.frontends import split
from domu.guest import Guest
from hyp.abi.grant import GRANT_ENTRY, PAGE_BYTES
from hyp.abi.netif import RX_REQUEST, RX_RESPONSE, TX_REQUEST, TX_RESPONSE
from hyp.abi.ring import FIRST_SLOT, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hyp.process import Process
from tests.support.drivers import compose, fence, header, sleep_until_event

WRAP = 1 << 32
LEAST_TEST_FRAME = 48


def _bytes_at(address: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, np.uint8)


class RingEnd:
    """A front end's end of a ring, without a thought for what the protocol allows."""

    def __init__(self, page: int, entries: int, request: "np.dtype[Any]", response: "np.dtype[Any]") -> None:
        self._page = _bytes_at(page, PAGE_BYTES)
        self._words = self._page.view("<u4")
        self._entries, self._request, self._response = entries, request, response
        self.produced = self.consumed = 0

    def begin(self, start: int) -> None:
        """Initialise the shared page with all indices at `start`."""
        self._page[:FIRST_SLOT] = 0
        self._words[[REQ_PROD // 4, RSP_PROD // 4]] = start
        self._words[[REQ_EVENT // 4, RSP_EVENT // 4]] = (start + 1) % WRAP
        self.produced = self.consumed = start

    def _slot(self, index: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        at = FIRST_SLOT + index % self._entries * self._request.itemsize
        return self._page[at : at + size]

    def post(self, requests: "list[tuple[int, ...]]") -> None:
        """Write requests, then publish them."""
        self.post_raw([np.array([request], self._request).tobytes() for request in requests])

    def post_raw(self, slots: list[bytes]) -> None:
        """The same, of slots."""
        for slot in slots:
            self._slot(self.produced, self._request.itemsize)[:] = np.frombuffer(slot, np.uint8)
            self.produced = (self.produced + 1) % WRAP
        fence()
        self._words[REQ_PROD // 4] = self.produced

    def slots(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """All slots, as bytes."""
        return self._page[FIRST_SLOT : FIRST_SLOT + self._entries * self._request.itemsize]

    def answered(self) -> int:
        """Up to which index responses are published."""
        return int(self._words[RSP_PROD // 4])

    def are_answered(self, upto: int) -> bool:
        """Whether all requests before `upto` are; if not, the back end will tell of the last one."""
        if self._words[RSP_PROD // 4] == upto:
            return True
        self._words[RSP_EVENT // 4] = upto
        fence()
        return bool(self._words[RSP_PROD // 4] == upto)

    def take(self, count: int) -> list[tuple[int, ...]]:
        """The next responses, field by field."""
        return [tuple(int(value) for value in np.frombuffer(raw, self._response)[0]) for raw in self.take_raw(count)]

    def take_raw(self, count: int) -> list[bytes]:
        """The same, as bytes."""
        found = []
        for _ in range(count):
            found.append(self._slot(self.consumed, self._response.itemsize).tobytes())
            self.consumed = (self.consumed + 1) % WRAP
        return found

    def overrun(self) -> None:
        """Claim one more request than there can be."""
        self._words[REQ_PROD // 4] = (self.consumed + self._entries + 1) % WRAP


class QueueEnds:
    """Both rings of one queue, and what goes with them."""

    def __init__(self, memory: "split._Memory") -> None:
        row = memory.record[0]
        page = int(row["ram"]) + memory.ring_pages
        self.rings = {
            "tx": RingEnd(page, split.TX_SLOTS, TX_REQUEST, TX_RESPONSE),
            "rx": RingEnd(page + PAGE_BYTES, split.RX_SLOTS, RX_REQUEST, RX_RESPONSE),
        }
        self.pools = {way: int(row[f"{way}_pool"]) // PAGE_BYTES for way in ("tx", "rx")}
        self.event_fds = {way: int(row[f"{way}_event_fd"]) for way in ("tx", "rx")}

    def tell(self, way: str) -> None:
        """Notify the back end of requests."""
        fence()
        os.eventfd_write(self.event_fds[way], 1)


class Poster:
    """What the console's operations work on. `frames`: of the grant table."""

    def __init__(
        self, process: Process, guest: Guest, memories: "list[split._Memory]", mac: str, frames: int = split.GRANT_FRAMES
    ) -> None:
        row = memories[0].record[0]
        self._mac, self._epoll = mac, guest.engine.epoll
        self._entries = _bytes_at(int(row["table"]), frames * PAGE_BYTES).view(GRANT_ENTRY)
        self._ram = _bytes_at(int(row["ram"]), guest.ram.size)
        self._queues = [QueueEnds(memory) for memory in memories]
        for op in (
            self.pools,
            self.transmit,
            self.post,
            self.received,
            self.slots,
            self.publish,
            self.responses,
            self.read,
            self.overrun,
        ):
            process.serve(op.__name__, op)

    def pools(self, queue: int = 0) -> dict[str, int]:
        """The first frame of each pool, and the number of frames in RAM."""
        return {**self._queues[queue].pools, "ram": len(self._ram) // PAGE_BYTES}

    def _write_entries(self, entries: list[list[int]]) -> None:
        for ref, *values in entries:
            self._entries[ref] = tuple(values)

    async def _answers(self, ring: RingEnd, count: int) -> list[tuple[int, ...]]:
        await self._answered(ring, count)
        return ring.take(count)

    async def _answered(self, ring: RingEnd, count: int) -> None:
        upto = (ring.consumed + count) % WRAP
        while not ring.are_answered(upto):
            await asyncio.to_thread(sleep_until_event, self._epoll, 100_000_000)

    async def transmit(
        self, entries: list[list[int]], frames: list[list[Any]], requests: list[list[int]], queue: int = 0, source: str = ""
    ) -> list[Any]:
        source = source or self._mac
        for at, length, to, stream, sequence in frames:
            whole = length >= LEAST_TEST_FRAME
            content = compose(to, source, length, stream, sequence) if whole else header(to, source) + bytes(length)
            self._ram[at : at + length] = np.frombuffer(content[:length], np.uint8)
        self._write_entries(entries)
        ring = self._queues[queue].rings["tx"]
        ring.post([(gref, offset, flags, number, size) for gref, offset, flags, number, size in requests])
        self._queues[queue].tell("tx")
        return await self._answers(ring, len(requests))

    def post(self, entries: list[list[int]], requests: list[list[int]], quiet: bool = False, queue: int = 0) -> None:
        self._write_entries(entries)
        self._queues[queue].rings["rx"].post([(number, 0, gref) for number, gref in requests])
        if not quiet:
            self._queues[queue].tell("rx")

    async def received(self, count: int, frames: list[list[Any]], queue: int = 0) -> list[Any]:
        found = []
        for (number, offset, _, status), (page, sender, length, stream, sequence) in zip(
            await self._answers(self._queues[queue].rings["rx"], count), frames, strict=True
        ):
            at = page * PAGE_BYTES + offset
            frame = compose(self._mac, sender, length, stream, sequence)
            found.append([number, offset, status, self._ram[at : at + length].tobytes() == frame])
        return found

    async def slots(self, writes: list[list[Any]], slots: list[bytes], queue: int = 0) -> list[Any]:
        for at, content in writes:
            self._ram[at : at + len(content)] = np.frombuffer(content, np.uint8)
        ring = self._queues[queue].rings["tx"]
        ring.post_raw(slots)
        self._queues[queue].tell("tx")
        return await self._answers(ring, len(slots))

    def publish(self, slots: list[bytes]) -> None:
        self._queues[0].rings["tx"].post_raw(slots)
        self._queues[0].tell("tx")

    async def responses(self, count: int, queue: int = 0) -> list[bytes]:
        ring = self._queues[queue].rings["rx"]
        await self._answered(ring, count)
        return ring.take_raw(count)

    def read(self, at: int, length: int) -> bytes:
        return self._ram[at : at + length].tobytes()

    def overrun(self, ring: str, queue: int = 0) -> None:
        self._queues[queue].rings[ring].overrun()
        self._queues[queue].tell(ring)


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest: connect, with an empty receive ring, and leave the rest to the console."""
    vars(split)["_post_all_receives"] = lambda device: None
    guest = Guest(process, config)
    await guest.boot()
    await guest.connect()
    poster = Poster(process, guest, [guest.device.keep[-2]], guest.device.mac)
    process.ready()
    await process.stopped.wait()
    del poster
    await guest.engine.stop()
