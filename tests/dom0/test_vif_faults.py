"""A vif in this process, with a store that is real and a hypervisor that fails when told to: whatever fails, nothing stays held."""

import asyncio
import logging
import random
from collections.abc import Callable

import pytest

from dom0.rate import UNLIMITED, Rate
from dom0.toolstack.libxl import create_vif
from dom0.vif_connection import VifError, _is_set
from dom0.vifs import Cause
from hyp.abi.netif import REQUEST_MULTICAST_CONTROL
from hyp.control import PeerGone, Refused
from hyp.control.debt import Debt
from hyp.control.limited_log import BURST
from hyp.xenstore.client import Transaction, XenstoreError
from hyp.xenstore.xenbus import XenbusState as S
from hyp.xenstore.xenbus import error_path
from tests.support.labs import until
from tests.support.patience import patient
from tests.support.tiers import tiered
from tests.support.vif_alone import ALL, BACK, CALLS, DOMID, GUEST, NOTHING, Front, drive


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: Refused("ENOSPC", "all are taken"), "28 all are taken"),
        (lambda: PeerGone("it died"), "5 it died"),
        (lambda: RuntimeError("ours"), "5 connecting: ours"),
    ],
    ids=["refused", "gone", "ours"],
)
def test_whatever_fails_while_connecting_gives_back_what_was_taken(
    call: str, error: Callable[[], Exception], told: str, no_descriptor_is_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(front: Front) -> None:
        await front.told(S.INIT_WAIT)
        await front.connect()
        await front.state(S.INITIALISING)
        await front.told(S.INIT_WAIT)
        front.world.fails[call] = error()
        await front.state(S.CONNECTED)
        await front.told(S.CLOSING)
        assert await front.dom0.read(error_path(BACK)) == told
        assert any(told.split(" ", 1)[1] in record.getMessage() for record in caplog.records)
        front.world.fails.clear()
        assert front.world.held() == NOTHING
        await front.connect()

    drive(body)
    caplog.clear()  # a traceback keeps what it shows


@pytest.mark.parametrize("call", ["evtchn_close", "filter_change, the inverse"])
def test_what_cannot_be_given_back_does_not_keep_the_rest(call: str) -> None:
    async def body(front: Front) -> None:
        await front.connect()
        front.world.fails[call] = PeerGone("the hypervisor died")
        await front.state(S.CLOSING)
        await front.told(S.CLOSING)
        pinned, ports, macs, bridge, view = front.world.held()
        assert (pinned, bridge, view) == (0, 0, 0)
        assert (ports, macs) == ((1, 0) if call == "evtchn_close" else (0, 1))
        front.world.fails.clear()
        front.world.ports.clear()
        front.world.macs.clear()

    drive(body)


@pytest.mark.parametrize("seed", tiered(range(12), [0]))
def test_sequences_of_six_with_failures_in_between_never_leave_it_stuck(seed: int, no_descriptor_is_left: None) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def body(front: Front) -> None:
        world = front.world

        async def toolstack(online: int, state: int) -> None:
            async def write(transaction: Transaction) -> None:
                await transaction.write(f"{BACK}/online", str(online))
                await transaction.write(f"{BACK}/state", str(state))

            await front.dom0.retry(write)

        for _ in range(40):
            for _ in range(6):
                world.fails = {chance.choice(CALLS): Refused("ENOSPC", "full")} if chance.random() < 0.1 else {}
                act = chance.random()
                if act < 0.7:
                    await front.write(state=chance.choice([None, "", *"012345678", "4", "4", "1", "1"]))
                elif act < 0.8:
                    await front.write(
                        **{chance.choice(["tx_ring_ref", "event_channel"]): chance.choice(["8", "3", "77777", "x", None])}
                    )
                elif act < 0.85:
                    world.overrun()
                elif act < 0.9:
                    world.engine.ports[1]["failed"] = 1
                    front.vif.check_port()
                else:
                    await toolstack(*chance.choice([(0, 5), (1, 1), (1, 5), (0, 1)]))
                for _ in range(chance.randrange(30)):
                    await asyncio.sleep(0)
            world.fails = {}
            await toolstack(1, 1)
            await front.connect()

    drive(body)


@pytest.mark.long
def test_a_device_made_anew_at_any_moment_is_on_offer_wherever_it_waits(no_descriptor_is_left: None) -> None:
    """As tests/models/reconnect.pml: the back end is in the middle of something, and tells its state afterwards."""

    async def body(front: Front) -> None:
        async def offered(transaction: Transaction) -> bool:
            if await transaction.read(f"{BACK}/state") != str(int(S.INIT_WAIT)):
                return False
            assert await transaction.read(f"{BACK}/feature-rx-copy") == "1"
            return True

        async def waits_with_offers() -> bool:
            return await front.dom0.retry(offered)

        for turns in range(0, 120, 2):
            await front.connect()
            await front.state(S.INITIALISING if turns % 4 else S.CLOSING)
            for _ in range(turns):
                await asyncio.sleep(0)
            await create_vif(front.dom0, DOMID, 0, str(GUEST["mac"]))
            await until(waits_with_offers, f"InitWait, after {turns} turns")
            assert front.world.held() == NOTHING

    drive(body)


@pytest.mark.parametrize("state", [S.INITIALISING, S.CONNECTED, S.CLOSING, S.CLOSED, S.UNKNOWN])
def test_a_guest_may_die_in_any_state(state: S, no_descriptor_is_left: None) -> None:
    async def body(front: Front) -> None:
        await front.connect()
        await front.state(state)

    drive(body)


def test_a_vif_outlives_xenstored_and_is_given_back_all_the_same(no_descriptor_is_left: None) -> None:
    async def body(front: Front) -> None:
        await front.connect()
        front.server.close()

        async def lost() -> bool:
            return bool(front.dom0.lost)

        await until(lost, "the connection to be lost")
        assert front.world.held() == ALL

    drive(body)


@pytest.mark.parametrize("guest_dies", [False, True])
def test_a_vif_that_fails_while_it_waits_for_xenstored_gives_back_at_once(guest_dies: bool, no_descriptor_is_left: None) -> None:
    """It looks at its front end, and xenstored does not answer that before it can be told."""

    async def body(front: Front) -> None:
        await front.connect()
        read, asked, answers = front.dom0.read, asyncio.Event(), asyncio.Event()

        async def wait_for_it(path: str) -> str:
            asked.set()
            await answers.wait()
            return await read(path)

        async def nothing_is_held() -> bool:
            return front.world.held() == NOTHING

        front.dom0.read = wait_for_it  # type: ignore[method-assign]
        front.vif.wake(Cause.FRONT)
        await asyncio.wait_for(asked.wait(), patient(20))
        front.world.engine.ports[1]["failed"] = 1
        front.vif.check_port()
        await until(nothing_is_held, "what it held to be given back")
        front.dom0.read = read  # type: ignore[method-assign]
        if guest_dies:
            front.vif.wake(Cause.GONE)
        answers.set()
        if not guest_dies:
            await front.told(S.CLOSING)
            assert (await read(error_path(BACK))).startswith("5 a ring's producer index ran ahead")
            await front.connect()

    drive(body)


def test_a_front_end_that_closes_while_its_vif_fails_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """Its vif was about to look at that: it begins anew, without an error."""

    async def body(front: Front) -> None:
        await front.connect()
        front.world.engine.ports[1]["failed"] = 1
        disconnected = front.vif._disconnect

        async def fail_first(why: str) -> None:
            front.vif.check_port()
            while front.vif._connection is not None:
                await asyncio.sleep(0)
            await disconnected(why)

        front.vif._disconnect = fail_first  # type: ignore[method-assign]
        await front.state(S.INITIALISING)
        await front.told(S.INIT_WAIT)
        front.vif._disconnect = disconnected  # type: ignore[method-assign]
        await front.connect()
        with pytest.raises(XenstoreError, match="ENOENT"):
            await front.dom0.read(error_path(BACK))

    drive(body)


def test_a_front_end_may_come_as_late_as_it_likes() -> None:
    """In InitWait nothing waits for a time."""

    async def body(front: Front) -> None:
        await front.told(S.INIT_WAIT)
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert [timer for timer in timers if not timer.cancelled()] == []
        await front.connect()

    drive(body)


def test_the_rate_is_read_when_it_connects_and_when_it_is_written(caplog: pytest.LogCaptureFixture) -> None:
    async def body(front: Front) -> None:
        rates = front.world.rates

        async def told(rate: Rate) -> None:
            async def is_last() -> bool:
                return rates[-1] == rate

            await until(is_last, f"the rate {rate}")

        await front.connect()
        await told(UNLIMITED)
        await front.dom0.write(f"{BACK}/rate", "5000,20000")
        await told(Rate(5000, 20000))
        await front.state(S.INITIALISING)
        await front.told(S.INIT_WAIT)
        await front.dom0.write(f"{BACK}/rate", "6000,20000")
        rates.clear()
        await front.connect()
        assert rates[0] == Rate(6000, 20000)
        await front.dom0.write(f"{BACK}/rate", "6000")
        await told(UNLIMITED)
        assert any("'6000' is not BYTES,USECS" in record.getMessage() for record in caplog.records)
        await front.dom0.write(f"{BACK}/rate", "7000,1")
        await told(Rate(7000, 1))
        await front.dom0.rm(f"{BACK}/rate")
        await told(UNLIMITED)

    drive(body)


@pytest.mark.long
def test_a_front_end_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dom0.vifs")

    async def body(front: Front) -> None:
        for number in range(50 * BURST):
            await front.state(S.RECONFIGURED)
            if number % 10 == 0:
                await front.told(S.CLOSING)
        await front.connect()

    drive(body)
    assert 0 < len(caplog.records) < 5 * BURST


def test_nor_by_what_fails_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async def body(front: Front) -> None:
        await front.connect()
        front.world.fails["foreign_view"] = RuntimeError("ours")
        for _ in range(2 * BURST):
            await front.state(S.INITIALISING)
            await front.told(S.INIT_WAIT)
            await front.state(S.CONNECTED)
            await front.told(S.CLOSING)

    drive(body)
    assert len([record for record in caplog.records if record.exc_info]) == BURST
    caplog.clear()  # a traceback keeps what it shows


def test_a_debt_that_runs_out_between_two_looks_at_it_leaves_nobody_waiting() -> None:
    class AlmostPaid(Debt):
        """It has run out by the time it is looked at once more."""

        looks = 0

        def wait_s(self) -> float:
            self.looks += 1
            return 1e-4 * (self.looks % 2)

    async def body(front: Front) -> None:
        front.vif._debt = debt = AlmostPaid()
        await front.connect()
        assert debt.looks > 1

    drive(body)


class _Store:
    """A front end's answer."""

    def __init__(self, answer: str | None) -> None:
        self._answer = answer

    async def read(self, path: str) -> str:
        if self._answer is None:
            raise XenstoreError("ENOENT", path, "read")
        return self._answer


ANSWERS: dict[str | None, bool | None] = {"1": True, "0": False, None: False, **dict.fromkeys(("2", "yes", "-1", ""), None)}


@pytest.mark.parametrize(("answer", "taken_as"), ANSWERS.items())
def test_what_a_front_end_may_answer(answer: str | None, taken_as: bool | None) -> None:
    asked = _is_set(_Store(answer), "device/vif/0", REQUEST_MULTICAST_CONTROL)  # type: ignore[arg-type]
    if taken_as is None:
        with pytest.raises(VifError, match=f"device/vif/0/{REQUEST_MULTICAST_CONTROL}"):
            asyncio.run(asked)
    else:
        assert asyncio.run(asked) is taken_as
