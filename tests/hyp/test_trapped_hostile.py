"""Guests that attack their emulated NIC or go in mid-traffic: it alone fails, by name, and others' traffic arrives whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bench.isolation.loops import post_garbage, scribble
from hyp.abi.nic import (
    DESC_SIGNALED,
    MAX_LONE_FRAME,
    PAGE,
    RQ_PROD,
    SCQ_EVENT,
    SQ_PROD,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_OK,
)
from hyp.abi.trap import ANSWERED, SEQUENCE
from tests.support.drivers import head_words
from tests.support.guests import WIRE_MAC, WRAP, Guest, Loop, eventually
from tests.support.peers import Bench, well
from tests.support.trapped_guests import counted, faults_and_drops, of, trap, trapped

pytestmark = pytest.mark.usefixtures("warm")


@contextmanager
def attacked(**options: Any) -> Iterator[tuple[Bench, Guest]]:
    """A guest to attack with; two others, one of them trapped, whose traffic has to arrive whole afterwards."""
    with Bench(**options) as bench:
        mallory, anna, bert = trapped(bench), trapped(bench), bench.guest()
        yield bench, mallory
        well(bench, anna, bert)
        well(bench, bert, anna)
        assert faults_and_drops(bench, anna) == {}


def test_bad_send_descriptors_drop_by_name() -> None:
    with attacked() as (bench, mallory):
        size, ok = mallory.mapping.size, mallory.tx_pool
        attacks = [
            (ok, 0, DESC_SIGNALED, STATUS_BAD_LENGTH), (ok, 13, DESC_SIGNALED, STATUS_BAD_LENGTH),
            (ok, MAX_LONE_FRAME + 1, DESC_SIGNALED, STATUS_BAD_LENGTH), (ok, (1 << 32) - 1, DESC_SIGNALED, STATUS_BAD_LENGTH),
            (ok, 64, 2, STATUS_BAD_FLAGS), (ok, 64, 0xFFFF, STATUS_BAD_FLAGS),
            (size, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS), (size - 63, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS),
            (-1, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS), ((1 << 63) - 1, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS),
            (1 << 63, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS), (-64, MAX_LONE_FRAME, DESC_SIGNALED, STATUS_BAD_ADDRESS),
        ]  # fmt: skip
        for addr, length, flags, status in attacks:
            assert mallory.send_one(addr, length, flags) == status, (addr, length, flags)
        counted(bench, mallory, {
            "faults_descriptor": 6, "faults_address": 6, "drop_bad_frame": 4, "drop_oversize": 2, "drop_bad_address": 6,
        })  # fmt: skip
        assert mallory.send_one(size - 64, 64) == STATUS_OK  # the last bytes of RAM are its own


def test_bad_receive_buffers_drop_by_name_and_are_used_up() -> None:
    with attacked() as (bench, mallory):
        size, sender = mallory.mapping.size, bench.guests[1]
        attacks = [
            (mallory.rx_pool, 63, 0, STATUS_BAD_LENGTH), (mallory.rx_pool, 64, 1, STATUS_BAD_LENGTH),
            (size - 63, PAGE, 0, STATUS_BAD_ADDRESS), (-8, PAGE, 0, STATUS_BAD_ADDRESS),
            ((1 << 63) - 8, PAGE, 0, STATUS_BAD_ADDRESS),
        ]  # fmt: skip
        for addr, length, flags, _ in attacks:
            mallory.post_buffer(addr, length, flags)
        mallory.post_buffers(1)
        sender.send(*(sender.frame(mallory.mac, sequence=k) for k in range(6)))
        sender.sent(6)
        taken = mallory.take(6)
        assert [status for status, _ in taken] == [*(status for *_, status in attacks), STATUS_OK]
        assert taken[-1][1] == sender.frame(mallory.mac, sequence=5)
        counted(bench, mallory, {
            "faults_descriptor": 2, "faults_address": 3, "drop_small_buffer": 2, "drop_bad_address": 3,
        })  # fmt: skip


@pytest.mark.parametrize(("register", "value"), [
    (SQ_PROD, 65), (SQ_PROD, WRAP - 1), (SQ_PROD, 0x8000_0000), (RQ_PROD, 65), (RQ_PROD, WRAP - 1),
    (4, 0), (0x1000, 1), (WRAP - 1, 0),
])  # fmt: skip
def test_a_write_that_makes_no_sense_fails_the_device(register: int, value: int) -> None:
    with attacked() as (bench, mallory):
        sender = bench.guests[1]
        trap(mallory.vcpu.address, register, value)  # type: ignore[attr-defined]
        counted(bench, mallory, {"faults_protocol": 1})
        mallory.send(mallory.frame(WIRE_MAC))  # traps are answered and do nothing
        mallory.post_buffers(4)
        sender.send(*(sender.frame(mallory.mac) for _ in range(3)))
        sender.sent(3)
        eventually(lambda: of(bench, mallory).get("drop_down") == 3, "frames for a failed device to drop by name")
        counted(bench, mallory, {"faults_protocol": 1, "drop_down": 3})
        assert "tx_frames" not in of(bench, mallory)


@pytest.mark.parametrize("sequence", [0, 2, 77, WRAP - 1])
def test_a_trap_out_of_order_fails_the_device(sequence: int) -> None:
    with attacked() as (bench, mallory):
        trap(mallory.vcpu.address, SCQ_EVENT, 1)  # type: ignore[attr-defined]
        words = np.frombuffer(mallory.pair.doorbell.array, "<u4")
        words[SEQUENCE // 4] = sequence if sequence != 2 else 3
        mallory.kick()
        eventually(lambda: faults_and_drops(bench, mallory) == {"faults_protocol": 1}, "the device to fail")
        eventually(lambda: words[ANSWERED // 4] == words[SEQUENCE // 4], "the answer")


def test_garbage_at_full_speed() -> None:
    with attacked() as (bench, mallory):
        mallory.post_buffers(mallory.entries)
        sender = bench.guests[1]
        garbage = Loop(post_garbage, mallory, mallory.job())
        for _ in range(5):
            sender.send(*(sender.frame(mallory.mac) for _ in range(16)))
            sender.sent(16)
        eventually(lambda: faults_and_drops(bench, mallory).get("drop_bad_address", 0) > 1000, "attacks to arrive")
        garbage.job[0]["stop"] = 1
        assert garbage.wait() > 1000
        assert "faults_protocol" not in faults_and_drops(bench, mallory)


def test_scribbling_over_trap_page_and_queues() -> None:
    with attacked(pause_us=100_000) as (bench, mallory):
        scribbler = Loop(scribble, mallory, mallory.job(first=0, size=mallory.rx_pool))

        def failed() -> int | None:
            mallory.kick()  # again and again: the scribbler may not have begun, or just written what makes sense
            return faults_and_drops(bench, mallory).get("faults_protocol")

        eventually(failed, "the device to fail")
        well(bench, bench.guests[1], bench.guests[2])
        scribbler.job[0]["stop"] = 1
        scribbler.wait()


def test_the_end_of_a_guest_takes_its_machine_away() -> None:
    with attacked() as (bench, mallory):
        head0, head1 = head_words(bench.guests[2].mac, mallory.mac)
        sending = Loop(post_garbage, mallory, mallory.job(head0=head0, head1=head1))
        eventually(lambda: of(bench, mallory).get("traps", 0) > 100, "traps")
        bench.run(bench.hypervisor.domain_destroy(mallory.domid))
        assert mallory.domid not in bench.hypervisor.system.emulation._machines
        traps = of(bench, mallory)["traps"]
        sending.job[0]["stop"] = 1
        sending.wait()  # its channel is closed: the virtual CPU is let go
        assert of(bench, mallory)["traps"] == traps
        again = trapped(bench)  # the place in the loop can be used again
        well(bench, again, bench.guests[2])
