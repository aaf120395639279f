"""A doorbell that rings for nothing is not listened to for a while: its frames are late then and not lost, others' are neither."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hyp.abi.nic import STATUS_OK
from nic.doorbell import MOST_VAIN
from tests.support.beside import beside
from tests.support.guests import WIRE_MAC, Guest, eventually
from tests.support.peers import Bench, bench_of, well

FRAMES = 20 * MOST_VAIN


def is_heard(bench: Bench, guest: Guest) -> bool:
    """Whether the guest's doorbell wakes the engine."""
    (context,) = bench.hypervisor.system.domains[guest.domid].contexts.values()
    upcall = bench.hypervisor.system.nic.engine_upcall(context.engine)
    entered = Path(f"/proc/self/fdinfo/{upcall.epoll.fileno()}").read_text().split("tfd:")[1:]
    return context.doorbell_fd in (int(one.split()[0]) for one in entered)


@contextlib.contextmanager
def ringing(guest: Guest, *, swallowing: bool = False) -> Iterator[None]:
    """In a second thread, its doorbell rings without end; `swallowing`: it also reads what it writes."""
    fd = int(guest.q["doorbell_fd"])

    def ring() -> None:
        os.eventfd_write(fd, 1)
        if swallowing:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)

    with beside(ring):
        yield


def test_who_rings_for_nothing_is_not_heard_for_a_while() -> None:
    with bench_of(3) as (bench, mallory, anna, bert):
        for swallowing in (False, True):
            with ringing(mallory, swallowing=swallowing):
                eventually(lambda: not is_heard(bench, mallory), "its doorbell to be left out")
                assert is_heard(bench, anna)
                well(bench, anna, bert)
            mallory.send(mallory.frame(WIRE_MAC))
            assert mallory.sent(1) == [STATUS_OK]  # late, if nobody else has woken the engine
            eventually(lambda: is_heard(bench, mallory), "its doorbell to be heard again")
        well(bench, mallory, bert)


def test_who_rings_with_a_device_that_does_nothing_is_not_heard_either() -> None:
    """One that is not started yet; one that has failed, whose index says for ever that something is posted."""
    with bench_of(2) as (bench, anna, bert):
        opened, failed = bench.domain(), bench.guest()
        page, doorbell = opened.call("context_open", upcall=0).fds
        opened.q = {"doorbell_fd": doorbell}
        failed.words["sq_prod"] = 1000
        failed.kick()
        eventually(lambda: bench.of(failed).get("faults_protocol") or bench.sync(), "its failure")

        def is_hushed_for_a_while(mallory: Guest) -> None:
            with ringing(mallory):
                eventually(lambda: not is_heard(bench, mallory), "its doorbell to be left out")
                well(bench, anna, bert)
            eventually(lambda: is_heard(bench, mallory), "its doorbell to be heard again")

        is_hushed_for_a_while(opened)
        is_hushed_for_a_while(failed)
        os.close(page)


def test_who_has_gone_meanwhile_is_not_heard_again() -> None:
    with bench_of(2) as (bench, mallory, anna):
        with ringing(mallory):
            eventually(lambda: not is_heard(bench, mallory), "its doorbell to be left out")
        mallory.call("context_close", context=mallory.context)
        other = bench.guest()
        well(bench, other, anna)


def test_who_rings_for_each_frame_is_always_heard() -> None:
    """However short its sends are, and whether the NIC had seen them before it was told."""
    with bench_of(1) as (bench, anna):
        for k in range(FRAMES):
            anna.send(anna.frame(WIRE_MAC, sequence=k))
            assert anna.sent(1) == [STATUS_OK]
            assert is_heard(bench, anna)
        assert not bench.nic._engines[0].contexts["hushed_until"].any()
