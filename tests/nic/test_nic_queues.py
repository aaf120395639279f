"""Guests with several contexts: each frame goes to the one that its flow belongs to, and what one of them does is its affair."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.isolation.drivers import array_at
from hyp.abi.nic import PAGE, STATUS_DROPPED, STATUS_OK
from hyp.abi.sizes import LARGEST_FRAME_BUFFER
from hyp.control import Refused
from hyp.fairness.patience import GRACE_NS, TRUSTED, grace_ends
from nic.state import BUDGET_BYTES, WIRE_BUFFERS
from tests.support.drivers import FINISHED, compose
from tests.support.flow_model import flow_hash
from tests.support.guests import BROADCAST_MAC, WIRE_MAC, Guest, eventually
from tests.support.peers import Bench, well
from tests.support.tiers import tiered


def own(frames: list[bytes], queue: int, queues: int) -> list[bytes]:
    """Those of the frames that belong to this queue of so many."""
    return [frame for frame in frames if flow_hash(frame) % queues == queue]


def streams(sender: Guest, to: str, count: int, first: int = 100, each: int = 1) -> list[bytes]:
    """Frames of so many streams, `each` of every one."""
    return [sender.frame(to, stream=first + k, sequence=n) for n in range(each) for k in range(count)]


def fill(queues: list[Guest], buffers: int = 60) -> None:
    """Receive buffers for all of them."""
    for queue in queues:
        queue.post_buffers(buffers)


@pytest.fixture(params=[1, 2, 3])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with Bench(engines=request.param) as bench:
        yield bench


def left_by_the_wire(bench: Bench) -> list[bytes]:
    """The last WIRE_BUFFERS frames that have, in no order."""
    state = bench.nic._engines[0]
    wire = state.wire[0]
    lengths = array_at(int(wire["lengths"]), np.int64, WIRE_BUFFERS)
    buffers = array_at(int(wire["buffers"]), np.uint8, WIRE_BUFFERS * LARGEST_FRAME_BUFFER).reshape(WIRE_BUFFERS, -1)
    return [buffers[k, : lengths[k]].tobytes() for k in range(WIRE_BUFFERS)]


def test_all_queues_of_a_guest_have_one_turn_together_and_take_it_one_after_the_other() -> None:
    """So it is long busy with what they all have when who has one queue is done."""
    entries, length = 256, 1514
    assert entries * length < 3 * BUDGET_BYTES
    with Bench() as bench:
        many, anna = bench.several(4, queue=entries), bench.guest(queue=entries, memory=16 << 20)
        for guest in (*many, anna):
            for k in range(entries):
                frame = guest.frame(WIRE_MAC, length=length, stream=many.index(guest) if guest in many else 9, sequence=k)
                guest.write(gpa := guest.tx_pool + k * PAGE, frame)
                guest.post(gpa, length)
            guest.words["sq_prod"] = guest.q["sq_rung"] = guest.q["sq_told"] = guest.q["sq_prod"]
        anna.kick()  # which lets the engine see all of it
        bench.at_rest(5 * entries)
        last = left_by_the_wire(bench)
        found = Counter((frame[6:12].hex(":"), int.from_bytes(frame[14:16], "little")) for frame in last)
        assert {mac for mac, _ in found} == {many[0].mac}, "anna was done long before"
        assert len(found) == len(many), "each has had as many turns as the others"


# --- opening and closing ----------------------------------------------------------------------------------------------


def refusal(guest: Guest, op: str, **args: Any) -> str:
    with pytest.raises(Refused) as refused:
        guest.call(op, **args)
    return str(refused.value.name)


def test_contexts_are_opened_in_their_order_and_as_many_as_the_toolstack_says() -> None:
    with Bench(engines=2) as bench:
        anna = bench.domain(memory=4 << 20)
        bench.queues[anna.domid] = 2
        assert refusal(anna, "context_open", upcall=0, queue=1) == "EINVAL"
        assert refusal(anna, "context_open", upcall=0, queue=2) == "EPERM"
        for queue in (-1, 8, "1", True):
            assert refusal(anna, "context_open", upcall=0, queue=queue) == "EINVAL"
        bench.run(anna._open(64, 0, 0))
        assert refusal(anna, "context_open", upcall=0) == "EBUSY"
        other = bench.sibling(anna, 1)
        assert refusal(anna, "context_open", upcall=0, queue=1) == "EBUSY"
        assert refusal(anna, "context_open", upcall=0, queue=2) == "EPERM"
        contexts = bench.hypervisor.system.domains[anna.domid].contexts
        assert {contexts[one.context].engine for one in (anna, other)} == {0, 1}
        assert contexts[anna.context].mac == contexts[other.context].mac == anna.mac


def test_what_a_guest_has_already_is_refused_without_the_toolstack_being_asked(bench: Bench) -> None:
    anna = bench.guest()
    del bench.macs[anna.domid]  # the toolstack would find nothing
    assert refusal(anna, "context_open", upcall=0) == "EBUSY"


def test_contexts_of_guests_that_come_in_between_still_lie_on_different_engines() -> None:
    with Bench(engines=2) as bench:
        first = [bench.guest(memory=4 << 20) for _ in range(3)]
        for guest in first:
            bench.queues[guest.domid] = 2
        for guest in first:
            other = bench.sibling(guest, 1)
            assert (other.context - guest.context) % 2 == 1


def test_contexts_are_started_in_their_order() -> None:
    with Bench() as bench:
        anna = bench.domain(memory=4 << 20)
        bench.queues[anna.domid] = 2
        opened = [anna.call("context_open", upcall=0, queue=queue) for queue in range(2)]
        contexts = [int(reply.value["context"]) for reply in opened]
        places = {"sq": 4096, "scq": 8192, "rq": 12288, "rcq": 16384, "sq_size": 64, "rq_size": 64}
        assert refusal(anna, "context_start", context=contexts[1], **places) == "EINVAL"
        for context in contexts:
            anna.call("context_start", context=context, **places)
        for reply in opened:
            for fd in reply.fds:
                os.close(fd)


def test_all_queues_of_a_guest_have_one_patience_and_none_has_a_grace_of_its_own(bench: Bench) -> None:
    """All wait for a device to which its guest is just moving: a guest that starts a queue again and again moves nowhere."""
    mallory, other = bench.several(2)
    records, standings = bench.nic._engines[0].contexts, bench.nic._engines[0].standings
    assert len({int(records[one.context]["standing"]) for one in (mallory, other, bench.guest())}) == 2
    assert [int(records[one.context]["grace"]) for one in (mallory, other)] == [0, 0]
    standings["patience"][mallory.context] = 1
    mallory.call("context_close", context=other.context)
    again = bench.sibling(mallory, 1)
    assert records[again.context]["standing"] == records[mallory.context]["standing"]
    assert standings["patience"][mallory.context] == 1
    mallory.call("context_close", context=mallory.context)
    mallory.call("context_open", upcall=0)
    assert standings["patience"][mallory.context] == 1
    assert int(records[again.context]["grace"]) == 0


def test_who_moves_is_waited_for_from_the_switch_on_and_less_long_in_a_shared_queue() -> None:
    """Who has frames for others behind that for the one who moves, as Dom0 has, waits no longer than for the platform."""
    with Bench(pause_us=1000) as bench:
        physical, anna, moving = bench.physical_function(), bench.guest(), bench.several(2)
        fill([anna])
        contexts = bench.nic._engines[0].contexts
        of = [contexts[one.context : one.context + 1] for one in (anna, *moving)]
        bench.filters(0, add=(moving[0].mac,))  # it is behind Dom0
        assert [int(record["grace"][0]) for record in of] == [0, 0, 0]
        switched = time.monotonic_ns()
        bench.filters(moving[0].domid, add=(moving[0].mac,))
        assert int(of[0]["grace"][0]) == 0
        assert all(int(record["grace"][0]) >= switched + GRACE_NS for record in of[1:])
        physical.send(*(physical.frame(mac) for mac in (anna.mac, moving[0].mac, anna.mac)))
        assert len(anna.take(2)) == 2
        assert bench.drops() == {"drop_no_buffer": 1}
        assert contexts["shared"][[physical.context, anna.context]].tolist() == [1, 0]  # after a wait, too
    one, most = SimpleNamespace(grace=10 * GRACE_NS), TRUSTED * 1_000_000
    assert [grace_ends.py_func(SimpleNamespace(pause_ns=1_000_000), one, shared) for shared in (0, 1)] == [
        one.grace,
        one.grace - GRACE_NS + most - 1_000_000,  # its patience comes after that
    ]
    assert grace_ends.py_func(SimpleNamespace(pause_ns=GRACE_NS), one, 1) == one.grace


def test_the_first_context_takes_the_others_with_it_and_all_can_be_opened_again(bench: Bench) -> None:
    bert, *others = bench.several(3)
    anna = bench.guest()
    fill([bert, *others])
    bert.call("context_close", context=others[0].context)  # and that of queue 2
    assert refusal(bert, "context_close", context=others[1].context) == "ENODEV"
    frames = streams(anna, bert.mac, 30)
    anna.send(*frames)
    assert anna.sent(30) == [STATUS_OK] * 30
    assert [frame for _, frame in bert.take(30)] == frames
    bert.call("context_close", context=bert.context)
    anna.send(*frames)  # nobody has that address: to the wire
    assert anna.sent(30) == [STATUS_OK] * 30
    bench.at_rest()
    assert bench.drops() == {}
    assert bench.count("rx_frames", "wire") == 30


# --- which queue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [2, 5])
def test_each_flow_stays_in_order_on_the_queue_that_it_belongs_to(bench: Bench, queues: int) -> None:
    several, anna = bench.several(queues), bench.guest()
    fill(several)
    frames = streams(anna, several[0].mac, 20, each=3)
    for sender in (anna, *bench.several(2)):
        mine = [
            compose(several[0].mac, sender.mac, 64, int.from_bytes(frame[14:16], "little"), k) for k, frame in enumerate(frames)
        ]
        sender.send(*mine)
        assert sender.sent(60) == [STATUS_OK] * 60
        for number, queue in enumerate(several):
            expected = own(mine, number, queues)
            assert [frame for _, frame in queue.take(len(expected))] == expected
            queue.post_buffers(len(expected))
    bench.at_rest(180)
    assert bench.drops() == {}


def test_what_comes_from_the_wire_goes_to_the_queue_of_its_flow(bench: Bench) -> None:
    several = bench.several(3)
    fill(several)
    for stream in range(40, 52):
        bench.wire("wire_generate", mac=several[0].mac, frame=64, stream=stream, frames=4)
        number = flow_hash(compose(several[0].mac, WIRE_MAC, 64, stream, 0)) % 3
        taken = several[number].take(4)
        assert [frame for _, frame in taken] == [compose(several[0].mac, WIRE_MAC, 64, stream, k) for k in range(4)]
        several[number].post_buffers(4)
    bench.wire("wire_mode", mode="reflect")
    bench._config["wire"]["mode"] = "reflect"
    for number, queue in enumerate(several):  # an answer comes to the queue that has asked
        asked = own(streams(queue, WIRE_MAC, 60), number, 3)[:10]
        queue.send(*asked)
        queue.sent(len(asked))
        assert [frame[12:] for _, frame in queue.take(len(asked))] == [frame[12:] for frame in asked]
    bench.at_rest()
    assert bench.drops() == {}


def test_a_guests_queues_do_not_reach_each_other(bench: Bench) -> None:
    several = bench.several(2)
    fill(several)
    for queue in several:
        queue.send(*streams(queue, queue.mac, 10))
        assert queue.sent(10) == [STATUS_DROPPED] * 10
    bench.at_rest(20)
    assert bench.drops() == {"drop_same_port": 20}


def test_a_flood_reaches_each_guest_once(bench: Bench) -> None:
    several, others, anna = bench.several(3), bench.several(2), bench.guest()
    fill([*several, *others, anna])
    frames = streams(several[1], BROADCAST_MAC, 20)
    several[1].send(*frames)
    several[1].sent(20)
    for number, queue in enumerate(others):
        expected = own(frames, number, 2)
        assert sorted(frame for _, frame in queue.take(len(expected))) == sorted(expected)
    assert len(anna.take(20)) == 20
    bench.at_rest()
    assert bench.drops() == {}
    assert [queue.waiting() for queue in (*several, *others, anna)] == [0] * 6


# --- queues that stop, or do wrong ------------------------------------------------------------------------------------


def test_a_queue_that_posts_no_buffers_costs_a_pause_and_its_own_frames(bench: Bench) -> None:
    several, anna, carl = bench.several(2), bench.guest(), bench.guest()
    several[0].post_buffers(60)
    frames = streams(anna, several[0].mac, 50)
    live, dead = own(frames, 0, 2), own(frames, 1, 2)
    anna.send(*frames)
    anna.sent(50)
    assert [frame for _, frame in several[0].take(len(live))] == live
    bench.at_rest(50)
    assert bench.drops() == {"drop_no_buffer": len(dead)}
    assert bench.count("pauses") == 1
    well(bench, anna, carl)
    several[0].post_buffers(len(live))
    several[1].post_buffers(40)  # its owner is back
    anna.send(*frames)
    assert anna.sent(50) == [STATUS_OK] * 50
    for queue, expected in zip(several, (live, dead), strict=True):
        assert [frame for _, frame in queue.take(len(expected))] == expected


def test_a_queue_that_breaks_the_protocol_fails_by_itself(bench: Bench) -> None:
    several, anna = bench.several(2), bench.guest()
    fill(several)
    several[1].words["sq_prod"] = 4711
    several[1].kick()

    def failed() -> bool:
        bench.sync()
        return bench.count("faults_protocol") > 0

    eventually(failed, "the fault")
    frames = streams(anna, several[0].mac, 40)
    anna.send(*frames)
    anna.sent(40)
    live = own(frames, 0, 2)
    assert [frame for _, frame in several[0].take(len(live))] == live
    bench.at_rest()
    assert bench.drops() == {"drop_down": 40 - len(live)}
    several[0].send(*streams(several[0], anna.mac, 5))
    anna.post_buffers(5)
    assert len(anna.take(5)) == 5


def test_streams_to_all_queues_at_a_time_arrive_whole(bench: Bench) -> None:
    several, anna, bert = (
        bench.several(2, queue=256),
        bench.guest(queue=256, memory=4 << 20),
        bench.guest(queue=256, memory=4 << 20),
    )
    frames, chosen = 4000, dict[tuple[int, int], int]()
    for sender, guest in enumerate((anna, bert)):
        for stream in range(1, 60):
            chosen.setdefault((sender, flow_hash(guest.frame(several[0].mac, stream=stream)) % 2), stream)
    receivers = [several[k].traffic(expect=frames) for k in range(2)]
    for sender, guest in enumerate((anna, bert)):
        loop = guest.traffic(several[0].mac, frames, stream=chosen[sender, sender])
        assert loop.wait() == FINISHED
    for k, receiver in enumerate(receivers):
        assert receiver.wait() == FINISHED
        report = receiver.report(chosen[k, k])
        assert (report["frames"], report["lost"], report["corrupt"], report["duplicated"]) == (frames, 0, 0, 0)
    bench.at_rest(2 * frames)
    assert bench.drops() == {}


@pytest.mark.usefixtures("nobody_owes")
@pytest.mark.parametrize("seed", tiered(range(2), [0]))
def test_contexts_opened_and_closed_in_any_order_leave_the_others_alone(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Bench(engines=2) as bench:
        anna, bert, mallory = bench.guest(), bench.guest(), bench.domain()
        bench.queues[mallory.domid] = 4
        places = {"sq": 4096, "scq": 8192, "rq": 12288, "rcq": 16384, "sq_size": 64, "rq_size": 64}
        mallory.call("mr_register", addr=4096, length=16384, writable=True)
        for turn in range(150):
            calls = []
            for _ in range(chance.randrange(1, 6)):
                op = chance.choice(["context_open", "context_start", "context_close"])
                if op == "context_open":
                    args: dict[str, Any] = {"upcall": 0, "queue": chance.randrange(4)}
                else:
                    args = {"context": chance.randrange(3, 8), **(places if op == "context_start" else {})}
                calls.append(bench.submit(mallory.hyp.call(op, **args)))
            for call in calls:
                try:
                    for fd in call.result().fds:
                        os.close(fd)
                except Refused:
                    pass
            if turn % 30 == 0:
                well(bench, anna, bert)
        well(bench, anna, bert)
