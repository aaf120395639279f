"""A guest that makes its notifications dear, on the NIC and on emulated ones: it is told late, others as before."""

import os
import select
import time
from collections.abc import Callable

import pytest

from bench.isolation.pollers import polled_many_times
from hyp.abi.debts import CREDIT_NS, DEARNESS
from hyp.abi.nic import STATUS_OK
from tests.support.drivers import fence
from tests.support.guests import WRAP, Guest, eventually
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
