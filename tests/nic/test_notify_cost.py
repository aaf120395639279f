"""A guest that makes its notifications dear, on the NIC and on emulated ones: it is told late, others as before."""

import ctypes
import os
import select
import time
from collections.abc import Callable

import pytest

from bench.isolation.pollers import polled_many_times
from hyp.abi.debts import CREDIT_NS, DEARNESS
from hyp.abi.nic import STATUS_OK
from nic.state import HELD
from tests.support.drivers import fence
from tests.support.guests import NOBODY, WRAP, Guest, eventually
from tests.support.patience import patient
from tests.support.peers import Bench, bench_of, well
from tests.support.trapped_guests import of, trapped

pytestmark = pytest.mark.usefixtures("warm")


def owes(bench: Bench, guest: Guest, ns: int) -> None:
    """Let a guest owe so much that it is not notified for `ns`."""
    bench.nic._engines[0]._debts["until"][guest.context] = time.monotonic_ns() + CREDIT_NS + ns


def asks(guest: Guest) -> select.epoll:
    """It wants to be told of the next frame received, and nothing is pending at its upcall, which is returned."""
    guest.words["rcq_event"] = (int(guest.q["rcq_cons"]) + 1) % WRAP
    fence()
    guest.bench.sync()
    upcall = select.epoll.fromfd(os.dup(guest.epoll))
    while upcall.poll(0):
        pass
    return upcall


def test_a_notification_that_is_put_off_comes_by_itself_and_others_do_not_wait_for_it() -> None:
    with bench_of(3) as (bench, anna, bert, mallory):
        mallory.post_buffers(8)
        upcall = asks(mallory)
        begun = time.monotonic_ns()
        owes(bench, mallory, 500_000_000)
        anna.send(anna.frame(mallory.mac))
        anna.sent(1)
        well(bench, anna, bert)
        assert upcall.poll(patient(20)), "it was never told"
        assert time.monotonic_ns() - begun >= 500_000_000, "it was told at once"
        upcall.close()
        assert mallory.take(1) == [(STATUS_OK, anna.frame(mallory.mac))]


def test_what_is_put_off_ends_with_the_context_and_the_debt_does_not() -> None:
    with bench_of(3, memory=4 << 20) as (bench, anna, bert, mallory):
        mallory.post_buffers(8)
        asks(mallory).close()
        owes(bench, mallory, 3_600_000_000_000)
        anna.send(anna.frame(mallory.mac))
        anna.sent(1)
        number = mallory.context
        mallory.call("context_close", context=number)
        bench.run(mallory._open(64, 0, 0))
        assert mallory.context == number
        assert bench.nic._engines[0]._debts["until"][number] > time.monotonic_ns() + CREDIT_NS
        well(bench, anna, bert)
        bench.run(bench.hypervisor.domain_destroy(mallory.domid))
        carl = bench.guest()
        assert carl.context == number
        assert bench.nic._engines[0]._debts["until"][number] == 0
        well(bench, anna, carl)


@pytest.mark.parametrize("first", [0, 1])
def test_a_queue_that_is_closed_while_another_ones_notification_is_dear_is_forgotten(first: int) -> None:
    """Both are held back, and may be told again when one is closed: what the other is told then is too dear for this one."""
    with bench_of(2, memory=4 << 20) as (bench, anna, bert):
        one = bench.domain(None, 4 << 20)
        bench.queues[one.domid] = 2
        bench.run(one._open(64, 0, 0))
        mallory = [one, bench.sibling(one, 1)]
        engine = bench.nic._engines[0]
        debts, contexts = engine._debts, engine.contexts
        with polled_many_times(mallory[0].epoll), polled_many_times(mallory[1].epoll):
            debts["until"][mallory[0].context] = time.monotonic_ns() + CREDIT_NS + 3_600_000_000_000
            for queue in (mallory[first], mallory[1 - first]):
                queue.words["scq_event"] = (int(queue.q["scq_cons"]) + 1) % WRAP
                fence()
                queue.send(queue.frame(NOBODY))
                eventually(lambda queue=queue: int(contexts[queue.context]["scq_prod"]) == 1, "it is sent")  # type: ignore[misc]
            bench.sync()
            assert [int(contexts[queue.context]["dirty"]) for queue in mallory] == [HELD, HELD]
            debts["until"][mallory[0].context] = time.monotonic_ns() + CREDIT_NS  # the engine sleeps for an hour yet
            closed = mallory[1].context
            mallory[1].call("context_close", context=closed)
            assert int(contexts[closed]["dirty"]) == 0
            listed = (ctypes.c_int64 * int(engine._record[0]["dirty_count"])).from_address(int(engine._record[0]["dirty"]))
            assert closed not in list(listed)
        debts["until"][mallory[0].context] = 0
        well(bench, anna, bert)


def test_others_beside_who_polls_its_upcall_many_times_over() -> None:
    with bench_of(3) as (bench, anna, bert, mallory):
        make_dear(anna, mallory, lambda: bench.of(mallory).get("notify_ns", 0))
        well(bench, anna, bert)


@pytest.mark.long
def test_others_beside_an_emulated_nics_guest_that_does_so() -> None:
    with Bench() as bench:
        mallory, carl, anna, bert = trapped(bench), trapped(bench), bench.guest(), bench.guest()
        make_dear(anna, mallory, lambda: of(bench, mallory).get("notify_ns", 0))
        well(bench, carl, bert)
        well(bench, anna, carl)


def make_dear(sender: Guest, mallory: Guest, beyond_fair: Callable[[], int]) -> None:
    """Send to one who polls its upcall many times over, until it is in debt for longer than it has credit."""
    with polled_many_times(mallory.epoll):

        def in_debt() -> bool:
            mallory.post_buffers(1)
            mallory.words["rcq_event"] = (int(mallory.q["rcq_cons"]) + 1) % WRAP
            sender.send(sender.frame(mallory.mac))
            sender.sent(1)
            mallory.take(1)
            return beyond_fair() > CREDIT_NS // DEARNESS

        eventually(in_debt, "notifications are too dear")
