"""What one guest does with its own queues and calls is no other guest's affair: the NIC. Bystanders exchange verified frames."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hyp.abi.nic import STATUS_OK
from hyp.control import Refused, close_all
from hyp.monitor.domain import Domain
from tests.support.beside import beside
from tests.support.guests import WRAP, Guest, eventually
from tests.support.peers import bench_of, well

# --- a number that is somebody else's by now -------------------------------------------------------------------------


def test_frames_that_wait_for_a_context_never_reach_who_has_its_number_next() -> None:
    with bench_of(4, engines=2, pause_us=60_000_000) as (bench, anna, bert, carl, dora):
        # In the crossing to the engine of bert and dora: a frame for dora, who has no buffer, and behind it some for bert
        anna.send(anna.frame(dora.mac), *(anna.frame(bert.mac, sequence=k) for k in range(5)))
        assert anna.sent(6) == [STATUS_OK] * 6
        bench.run(bench.hypervisor.domain_destroy(bert.domid))
        emil = bench.guest()
        assert emil.context == bert.context
        emil.post_buffers(8)
        dora.post_buffers(1)
        assert dora.take(1) == [(STATUS_OK, anna.frame(dora.mac))]
        anna.send(anna.frame(emil.mac, sequence=7))
        assert emil.take(1) == [(STATUS_OK, anna.frame(emil.mac, sequence=7))]
        bench.at_rest(7)
        assert bench.drops() == {"drop_down": 5}
        well(bench, carl, emil)


@pytest.mark.usefixtures("nobody_owes")
def test_a_context_is_closed_once_however_often_it_is_asked_for() -> None:
    with bench_of(2) as (bench, anna, bert):
        mallory = bench.domain()

        async def attack() -> list[Any]:
            context = (await mallory.hyp.call("context_open", upcall=mallory.upcall)).value["context"]
            calls = [mallory.hyp.call("context_close", context=context) for _ in range(62)]
            *closed, opened = await asyncio.gather(*calls, _open_again(mallory), return_exceptions=True)
            assert isinstance(opened, int), opened
            return closed

        for _ in range(10):
            refused = [result for result in bench.run(attack()) if isinstance(result, BaseException)]
            assert len(refused) == 61
            assert {error.name for error in refused if isinstance(error, Refused)} <= {"EBUSY", "ENODEV"}
            assert len(bench.nic._mappings) == 3, "the context that was opened meanwhile has gone"
            bench.run(_close_all(mallory))
        # Asked for while there was one, begun when there is none any more
        system = bench.hypervisor.system
        with pytest.raises(Refused, match="context 3 is closed already"):
            bench.run(system.contexts.close_context(system.domains[mallory.domid], 3))
        well(bench, anna, bert)


def test_who_was_allowed_a_context_before_they_were_taken_away_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench_of(2) as (bench, anna, bert):
        mallory = bench.domain()
        contexts = bench.contexts
        domain, policy_for = bench.hypervisor.system.domains[mallory.domid], contexts.policy_for

        async def allowed(domain: Domain, *, emulated: bool) -> tuple[str, bool, int]:
            answer = await policy_for(domain, emulated=emulated)
            await contexts.revoke_contexts(domain)
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(contexts, "policy_for", allowed)
            with pytest.raises(Refused, match="no context any more"):
                bench.run(mallory.hyp.call("context_open", upcall=mallory.upcall))
        close_all(bench.run(mallory.hyp.call("context_open", upcall=mallory.upcall)).fds)
        bench.run(contexts.revoke_contexts(domain))
        assert domain.contexts == {}
        well(bench, anna, bert)


async def _open_again(guest: Guest) -> int:
    """Ask for a context until there is one: it has the number of the one that is being closed."""
    while True:
        try:
            reply = await guest.hyp.call("context_open", upcall=guest.upcall)
        except Refused as error:
            if error.name != "EBUSY":
                raise
            continue
        close_all(reply.fds)
        return int(reply.value["context"])


async def _close_all(guest: Guest) -> None:
    for number in list(guest.bench.hypervisor.system.domains[guest.domid].contexts):
        await guest.hyp.call("context_close", context=number)


# --- a receiver that holds others up ---------------------------------------------------------------------------------


@contextmanager
def dripping(guest: Guest, every_s: float = 0.015) -> Iterator[None]:
    """`guest` posts one buffer every 15 ms, less than the 20 ms that a sender waits, and takes what comes."""

    def drip() -> None:
        guest.post_buffers(1)
        guest.q["rcq_cons"] = (int(guest.q["rcq_cons"]) + guest.waiting()) % WRAP

    with beside(drip, every_s):
        yield


def test_who_drips_buffers_holds_up_no_other_engines_frames() -> None:
    pause_us, every_s = 200_000, 0.15  # longer than an honest bystander has to wait for a CPU of a busy machine
    with bench_of(4, engines=2, pause_us=pause_us) as (bench, anna, mallory, carl, bert), dripping(mallory, every_s):
        flood = carl.traffic(mallory.mac, 1 << 40, stream=5)
        eventually(lambda: bench.count("drop_no_buffer") or bench.sync(), "a frame for who drips has been dropped")
        well(bench, anna, bert, 20_000)  # which would take an hour, a crossing's frames a drip
        assert flood.stop()


def test_who_drips_buffers_holds_up_nobody_behind_the_physical_function() -> None:
    with bench_of(2, pause_us=20_000) as (bench, bert, mallory), dripping(mallory):
        uplink = bench.physical_function()
        bert.post_buffers(40)
        for k in range(200):
            uplink.send(uplink.frame(mallory.mac), uplink.frame(bert.mac, sequence=k))
            uplink.sent(2)
            assert bert.take(1) == [(STATUS_OK, uplink.frame(bert.mac, sequence=k))]
            bert.post_buffers(1)
        bench.sync()
        assert bench.count("pauses") < 100, "each frame but the first ones waited"
        assert set(bench.drops()) == {"drop_no_buffer"}


def test_a_wait_for_a_context_that_is_closed_is_its_guests() -> None:
    with bench_of(2, pause_us=60_000_000) as (bench, anna, mallory):
        standings = bench.nic._engines[0].standings
        before = standings[mallory.context].tolist()
        anna.send(anna.frame(mallory.mac))
        eventually(lambda: bench.count("pauses") or bench.sync(), "a frame waits for mallory")
        mallory.call("context_close", context=mallory.context)
        anna.sent(1)
        after = standings[mallory.context].tolist()
        assert after[0] < before[0]
        assert after[1:] == before[1:], "nobody has waited in a shared queue"
