"""A peer that asks for what takes long pays for it: it is not read until it has, and nobody else waits for it."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from hyp.abi.debts import CREDIT_NS, DEARNESS, MOST_NS
from hyp.abi.domids import DOMID_FIRST_RESERVED
from hyp.control import Channel, Refused, socketpair
from hyp.control import channel as channels
from hyp.control.debt import ASKED_NS, BILLED, FAIR_TURN_NS, PAYER, Bill, Debt
from hyp.control.served import LEEWAY_NS, LONGEST_NS, TURNS, Served, ServedGuest, new_pages
from tests.support.control_ends import run

pytestmark = pytest.mark.usefixtures("settled", "no_descriptor_is_left")

MS = 1_000_000
DEAR_NS = CREDIT_NS // DEARNESS + 2 * FAIR_TURN_NS
"""Beyond what is fair this is more than all of the credit."""


class Clocks:
    """The time of day and the CPU's, as the test says."""

    def __init__(self) -> None:
        self.now = self.used = 0

    def debt(self, served: ServedGuest | None = None) -> Debt:
        return Debt(clock=lambda: self.now, used=lambda: self.used, served=served)

    def work(self) -> None:
        self.used += DEAR_NS


class Ends:
    """A server's channels, of a guest and of a bystander, and the peers' ends of both."""

    def __init__(self, handlers: dict[str, Callable[..., Any]]) -> None:
        pairs = socketpair(), socketpair()
        self.served = [Channel(near, handlers, untrusted=True, bills=True) for near, _ in pairs]
        self.guest, self.bystander = (Channel(far) for _, far in pairs)

    async def close(self) -> None:
        for channel in (self.guest, self.bystander, *self.served):
            channel.close()
            await channel.closed


@pytest.mark.parametrize("op", ["dear", "dear in a later step"])
def test_who_asks_for_what_takes_long_is_not_read_until_that_is_paid(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    cheap: list[str] = []
    monkeypatch.setattr(channels, "Debt", clocks.debt)

    async def later() -> None:
        await asyncio.sleep(0)
        clocks.work()
        await asyncio.sleep(0)

    handlers: dict[str, Callable[..., Any]] = {"dear": clocks.work, "dear in a later step": later}
    handlers["cheap"] = lambda object: cheap.append(object)

    async def main() -> None:
        ends = Ends(handlers)
        dear = asyncio.ensure_future(ends.guest.call(op))
        while clocks.used == 0:
            await asyncio.sleep(0)
        asked = asyncio.ensure_future(ends.guest.call("cheap", object="guest"))
        for _ in range(100):
            await ends.bystander.call("cheap", object="bystander")
        assert cheap == ["bystander"] * 100
        clocks.now = DEARNESS * DEAR_NS
        await dear
        await asked
        assert cheap[100:] == ["guest"]
        await ends.close()

    run(main())


def test_what_is_fair_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(channels, "Debt", clocks.debt)

    def fair() -> None:
        clocks.used += FAIR_TURN_NS

    async def main() -> None:
        ends = Ends({"fair": fair})
        for _ in range(1000):
            await ends.guest.call("fair")
        await ends.close()

    run(main())
    assert clocks.used == 1000 * FAIR_TURN_NS


def test_a_request_that_takes_long_to_read_is_paid_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, unpacked = Clocks(), msgpack.unpackb

    def slow(packet: bytes, **how: Any) -> Any:
        message = unpacked(packet, **how)
        if message.get("op") == "long":
            clocks.work()
        return message

    monkeypatch.setattr(channels, "Debt", clocks.debt)
    monkeypatch.setattr(msgpack, "unpackb", slow)

    async def main() -> None:
        ends = Ends({"cheap": lambda: None})
        refused = asyncio.ensure_future(ends.guest.call("long"))
        while clocks.used == 0:
            await asyncio.sleep(0)
        asked = asyncio.ensure_future(ends.guest.call("cheap"))
        for _ in range(100):
            await ends.bystander.call("cheap")
        assert not asked.done()
        clocks.now = DEARNESS * DEAR_NS
        await asked
        with pytest.raises(Refused, match="there is no operation"):
            await refused
        await ends.close()

    run(main())


def test_what_it_costs_to_receive_is_paid_too_by_who_asks_for_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that polls its socket many times over has the kernel go through all places when a packet is taken from it."""
    clocks, told, receive = Clocks(), [0], Channel._receive

    def slow(channel: Channel) -> Any:
        packet = receive(channel)
        if packet[0] is not None and b"nothing" in packet[0]:
            told[0] += 1
            clocks.work()
        return packet

    monkeypatch.setattr(channels, "Debt", clocks.debt)
    monkeypatch.setattr(Channel, "_receive", slow)

    async def main() -> None:
        ends = Ends({"cheap": lambda: None})
        for _ in range(5):
            ends.guest.tell("nothing")
        for _ in range(100):
            await ends.bystander.call("cheap")
        assert told == [1]
        clocks.now = DEARNESS * DEAR_NS
        while told == [1]:
            await asyncio.sleep(0)
        assert told == [2]
        await ends.close()

    run(main())


def test_a_channel_that_ends_while_its_peer_owes(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(channels, "Debt", clocks.debt)

    async def main() -> None:
        ends = Ends({"dear": clocks.work})
        await ends.guest.call("dear")
        asked = asyncio.ensure_future(ends.guest.call("dear"))
        await asyncio.sleep(0)
        ends.served[0].close()
        with pytest.raises(Exception, match="is gone"):
            await asked
        await ends.close()

    run(main())


class Step:
    """An awaitable with one step, that notes what is thrown into it."""

    def __init__(self, ends: BaseException | str) -> None:
        self.ends = ends
        self.thrown: list[type[BaseException]] = []

    def __await__(self) -> Any:
        try:
            yield
        except BaseException as error:
            self.thrown.append(type(error))
            raise
        if isinstance(self.ends, BaseException):
            raise self.ends
        return self.ends


def test_a_machine_that_stood_still_costs_nobody_most_of_an_hour() -> None:
    clocks = Clocks()
    debt = clocks.debt()
    with debt.pays():
        clocks.used += 52_000_000_000
    assert 0 < debt.wait_s() <= DEARNESS * MOST_NS / 1e9
    for _ in range(8):  # what is dear time and again is owed for each time
        with debt.pays():
            clocks.used += MOST_NS
    assert debt.wait_s() > 8 * DEARNESS * MOST_NS / 1e9


def test_what_is_charged_ends_as_it_would() -> None:
    async def main() -> None:
        assert await Debt().charged(Step("its result")) == "its result"
        with pytest.raises(KeyError):
            await Debt().charged(Step(KeyError("its error")))
        cancelled = Step("never")
        task = asyncio.ensure_future(Debt().charged(cancelled))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled.thrown == [asyncio.CancelledError]

    run(main())


@pytest.mark.parametrize("how", ["at once", "later", "refused", "for nothing"])
def test_what_is_asked_of_others_for_a_peer_is_paid_and_nothing_of_it_is_fair(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what the NIC does for a guest's context. No step takes longer than is fair; of bill and asking nothing is."""
    cost = DEARNESS * (ASKED_NS + (0 if how == "for nothing" else BILLED * FAIR_TURN_NS))
    clocks, created, free = Clocks(), 0, CREDIT_NS // cost

    class OfTheseClocks(Bill):
        def __init__(self) -> None:
            super().__init__(used=lambda: clocks.used)

    monkeypatch.setattr(channels, "Debt", clocks.debt)
    monkeypatch.setattr(channels, "Bill", OfTheseClocks)

    def create() -> None:
        nonlocal created
        created += 1
        if how != "for nothing":
            clocks.used += FAIR_TURN_NS
        if how == "refused":
            raise Refused("ENOSPC", "there is no room")

    async def create_later() -> None:
        await asyncio.sleep(0)
        create()

    async def main() -> None:
        near, far = socketpair()
        device, of_device = Channel(near), Channel(far, {"create": create_later if how == "later" else create})

        async def context_open() -> None:
            await asyncio.sleep(0)
            await device.call("create")

        ends = Ends({"context_open": context_open, "cheap": lambda: None})
        for _ in range(free):
            await asyncio.gather(ends.guest.call("context_open"), return_exceptions=True)
        assert (PAYER.get(), created) == (None, free)
        late = asyncio.ensure_future(ends.guest.call("context_open"))
        for _ in range(100):
            await ends.bystander.call("cheap")
        assert created == free + 1
        assert not late.done()
        clocks.now = cost
        await asyncio.gather(late, return_exceptions=True)
        for channel in (device, of_device):
            channel.close()
            await channel.closed
        await ends.close()

    run(main())


def two_planes() -> tuple[Clocks, list[Debt]]:
    """Two control planes' debts of one guest, and their clocks."""
    clocks, pages = Clocks(), new_pages()
    planes = [Served(pages) for _ in range(2)]
    os.close(pages)
    return clocks, [clocks.debt(plane.of(3)) for plane in planes]


def test_a_guest_is_served_by_one_control_plane_at_a_time() -> None:
    """Who waits for its answers lets nobody wait; two who are asked at once share what one would have had: a third of the time."""
    clocks, (one, other) = two_planes()
    for _ in range(1000):
        with one.pays():
            clocks.now += MS
        clocks.now += (TURNS - 1) * MS  # of its own
        assert one.wait_s() == other.wait_s() == 0
    for asked in ([one], [one, other]):
        served, began = dict.fromkeys(asked, 0), clocks.now
        while clocks.now - began < 1000 * MS:  # each has a CPU
            with contextlib.ExitStack() as both:
                for debt in [debt for debt in asked if debt.wait_s() == 0]:
                    both.enter_context(debt.pays())
                    served[debt] += MS
                clocks.now += MS
        assert abs(sum(served.values()) - 1000 * MS // TURNS) <= LEEWAY_NS + 2 * MS
        assert min(served.values()) > 0


def test_a_turn_within_a_turn_counts_once_and_one_that_the_machine_slept_through_is_short() -> None:
    clocks, (one, other) = two_planes()
    with one.pays():
        clocks.now += 6 * MS
        with one.pays():
            clocks.now += 3 * MS
    assert other.wait_s() == 0
    clocks.now -= 9 * MS
    with one.pays():
        clocks.now += 60_000 * MS
    clocks.now -= 60_000 * MS  # so that what it counts for is seen
    assert other.wait_s() * 1e9 == pytest.approx(TURNS * (9 * MS + LONGEST_NS) - LEEWAY_NS)
    with other.pays():
        clocks.now += MS
    assert one.wait_s() * 1e9 == pytest.approx(TURNS * (10 * MS + LONGEST_NS) - LEEWAY_NS - MS)


def test_each_guest_has_a_place_of_its_own() -> None:
    clocks, served = Clocks(), Served()
    busy, idle = (clocks.debt(served.of(domid)) for domid in (1, DOMID_FIRST_RESERVED - 1))
    for _ in range(5):
        with busy.pays():
            clocks.now += LONGEST_NS
        clocks.now -= LONGEST_NS
    assert busy.wait_s() > 0
    assert idle.wait_s() == 0
