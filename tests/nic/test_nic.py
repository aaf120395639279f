"""The NIC: switching, broadcast and filters, the wire."""

import random

import pytest

from hyp.abi.nic import MAX_LONE_FRAME, MIN_FRAME, PAGE, STATUS_BAD_LENGTH, STATUS_DROPPED, STATUS_OK, STATUS_SPOOFED, mac_to_int
from hyp.control import Refused
from tests.support.drivers import FINISHED, compose, header
from tests.support.guests import BROADCAST_MAC, JUST_BELOW_WRAP, NOBODY, WIRE_MAC, Guest, eventually
from tests.support.peers import Bench, bench_of, well

SEED = 20120413


# --- switching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [MIN_FRAME, 15, 16, 17, 23, 60, 64, 65, 1514, MAX_LONE_FRAME - 1, MAX_LONE_FRAME])
def test_a_frame_arrives_as_it_was_sent(pair: tuple[Bench, Guest, Guest], length: int) -> None:
    bench, anna, bert = pair
    frame = header(bert.mac, anna.mac) + random.Random(length).randbytes(length - 14)
    bert.post_buffers(3)
    anna.send(frame, frame[:14] + bytes(length - 14), frame)
    assert anna.sent(3) == [STATUS_OK] * 3
    assert bert.take(3) == [(STATUS_OK, frame), (STATUS_OK, frame[:14] + bytes(length - 14)), (STATUS_OK, frame)]
    assert anna.waiting() == 0
    bench.at_rest(3)
    assert bench.drops() == {}
    assert bench.of(anna)["tx_bytes"] == bench.of(bert)["rx_bytes"] == bench.of(bert)["copied_bytes"] == 3 * length
    assert bench.of(bert)["copies"] == 3


def test_nothing_is_written_behind_a_received_frame(pair: tuple[Bench, Guest, Guest]) -> None:
    _, anna, bert = pair
    for length in (14, 15, 16, 17, 31, 64, 1001):
        slot = int(bert.q["rq_prod"]) % bert.entries
        at = bert.rx_pool + slot * PAGE
        bert.write(at, b"\xaa" * PAGE)
        bert.post_buffer(at + 100, length)
        bert.ring_buffers()
        frame = header(bert.mac, anna.mac) + b"\x55" * (length - 14)
        anna.send(frame)
        assert bert.take(1) == [(STATUS_OK, frame)]
        assert bert.read(at, PAGE) == b"\xaa" * 100 + frame + b"\xaa" * (PAGE - 100 - length)
        anna.sent(1)


def test_a_completion_stands_for_the_unsignalled_sends_before_it(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.post_buffers(40)
    for k in range(10):
        anna.send(*(anna.frame(bert.mac, sequence=4 * k + i) for i in range(3)), flags=0)
        anna.send(anna.frame(bert.mac, sequence=4 * k + 3))
        assert anna.sent(1) == [STATUS_OK]
        assert int(anna.q["sq_done"]) == int(anna.q["sq_prod"])
    bench.at_rest(40)
    assert not anna._is_new(anna.scq, int(anna.q["scq_cons"])), "an unsignalled send was completed by itself"
    assert [frame for _, frame in bert.take(40)] == [anna.frame(bert.mac, sequence=k) for k in range(40)]


def test_a_failed_send_is_completed_even_if_unsignalled(pair: tuple[Bench, Guest, Guest]) -> None:
    _, anna, _ = pair
    assert anna.send_one(anna.tx_pool, 1, flags=0) == STATUS_BAD_LENGTH


def test_streams_both_ways_over_the_wrap_of_all_indices(start: int) -> None:
    with bench_of(2, start=start) as (bench, anna, bert):
        one = anna.traffic(bert.mac, 20_000, 20_000, stream=1, length=1514)
        other = bert.traffic(anna.mac, 20_000, 20_000, stream=2, length=77)
        assert (one.wait(), other.wait()) == (FINISHED, FINISHED)
        for end, stream in ((one, 2), (other, 1)):
            assert {end.report(stream)[name] for name in ("lost", "corrupt", "duplicated")} == {0}
        bench.at_rest(40_000)
        assert bench.drops() == {}


def test_large_queues_and_small_windows() -> None:
    with bench_of(2, queue=1024, start=JUST_BELOW_WRAP, memory=16 << 20) as (bench, anna, bert):
        well(bench, anna, bert, 30_000)
        again, one_by_one = bert.traffic(expect=500), anna.traffic(bert.mac, 500, stream=2, window=1)
        assert (one_by_one.wait(), again.wait()) == (FINISHED, FINISHED)
        bench.at_rest(30_500)


def test_a_frame_for_oneself_is_dropped_by_name(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    anna.post_buffers(1)
    anna.send(anna.frame(anna.mac))
    assert anna.sent(1) == [STATUS_DROPPED]
    bench.at_rest(1)
    assert bench.drops() == {"drop_same_port": 1}


def test_a_frame_for_a_closed_context_goes_to_the_wire(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.call("context_close", context=bert.context)
    anna.send(anna.frame(bert.mac))
    assert anna.sent(1) == [STATUS_OK]
    bench.at_rest(1)
    assert bench.count("rx_frames", "wire") == 1


# --- broadcast and filters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("group", [BROADCAST_MAC, "33:33:00:00:00:01", "01:00:5e:00:00:fb"])
def test_broadcast_reaches_all_but_the_sender_and_the_wire(engines: int, group: str) -> None:
    with bench_of(4, engines=engines) as (bench, *guests):
        dom0 = bench.physical_function()
        for guest in (*guests, dom0):
            guest.post_buffers(4)
        for sender in guests:
            sender.send(sender.frame(group, 100))
            assert sender.sent(1) == [STATUS_OK]
        bench.at_rest(4)
        for guest in guests:
            expected = sorted(other.frame(group, 100) for other in guests if other is not guest)
            assert sorted(frame for _, frame in guest.take(3)) == expected
            assert guest.waiting() == 0
        assert len(dom0.take(4)) == 4
        assert bench.count("rx_frames", "wire") == 4
        assert bench.count("replicated") == 16
        assert bench.drops() == {}


@pytest.mark.parametrize("engines", [1, 2])
def test_broadcast_never_pauses(engines: int) -> None:
    with bench_of(3, engines=engines, pause_us=60_000_000) as (bench, anna, bert, carl):
        carl.post_buffers(20)
        for k in range(20):
            anna.send(anna.frame(BROADCAST_MAC, sequence=k))
            assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(20)
        assert len(carl.take(20)) == 20
        assert bench.count("pauses") == 0
        assert bench.drops() == {"drop_queue_full": 20}
        assert bench.of(bert) == {"drop_queue_full": 20}


@pytest.mark.parametrize("engines", [1, 2])
def test_filters_are_added_moved_and_removed(engines: int) -> None:
    extra = "02:00:00:00:33:01"
    with bench_of(3, engines=engines) as (bench, anna, bert, carl):
        for guest in (bert, carl):
            guest.post_buffers(4)
        bench.filters(bert.domid, add=(extra,))
        anna.send(anna.frame(extra))
        assert bert.take(1) == [(STATUS_OK, anna.frame(extra))]
        bench.filters(carl.domid, add=(extra,))
        bench.filters(bert.domid, remove=(extra,))  # no longer its own: nothing happens
        anna.send(anna.frame(extra, sequence=1))
        assert carl.take(1) == [(STATUS_OK, anna.frame(extra, sequence=1))]
        bench.filters(carl.domid, remove=(extra,))
        anna.send(anna.frame(extra), anna.frame(bert.mac))
        assert anna.sent(4) == [STATUS_OK] * 4
        assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
        bench.at_rest(4)
        assert bench.count("rx_frames", "wire") == 1


def test_filters_that_come_and_go_leave_no_trace() -> None:
    rng = random.Random(SEED)
    macs = [f"02:00:{rng.randrange(256):02x}:{k >> 8:02x}:{k & 255:02x}:01" for k in range(2400)]
    with bench_of(2) as (bench, anna, bert):
        for k in range(0, len(macs), 300):
            bench.filters(bert.domid, add=tuple(macs[k : k + 300]))
            bench.filters(bert.domid, remove=tuple(macs[k : k + 300]))
        last = macs[-300:]
        bench.filters(bert.domid, add=tuple(last))
        for mac in last:
            bert.post_buffers(1)
            anna.send(anna.frame(mac))
            assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(300)
        assert bench.count("rx_frames", "wire") == 0
        assert bench.of(bert)["rx_frames"] == 300
        bench.filters(bert.domid, remove=tuple(last[::2]))
        for k, mac in enumerate(last):
            if k % 2:
                bert.post_buffers(1)
            anna.send(anna.frame(mac))
            assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(600)
        assert bench.count("rx_frames", "wire") == 150
        assert bench.drops() == {}


def test_too_many_filters_are_refused_and_the_old_ones_stay() -> None:
    with bench_of(2) as (bench, anna, bert):
        macs = [f"02:00:00:01:{k >> 8:02x}:{k & 255:02x}" for k in range(600)]
        with pytest.raises(Refused, match="filters") as refused:
            bench.filters(bert.domid, add=tuple(macs))
        assert refused.value.name == "ENOSPC"
        bert.post_buffers(2)
        anna.send(anna.frame(macs[0]), anna.frame(bert.mac))
        assert len(bert.take(2)) == 2


def test_filter_for_who_has_closed_its_context_is_not_the_next_ones() -> None:
    with bench_of(2) as (bench, anna, bert):
        carl = bench.guest()
        carl.call("context_close", context=carl.context)
        with pytest.raises(Refused, match="no open context") as refused:
            bench.filters(carl.domid, add=(NOBODY,))
        assert refused.value.name == "ENODEV"
        late = {"context": anna.context, "generation": 1 << 40, "add": [mac_to_int(NOBODY)], "remove": []}
        with pytest.raises(Refused, match="there is no generation") as refused:  # asked for before a context had its number
            bench.run(bench.hypervisor.system.nic.call("filter_change", **late))
        assert refused.value.name == "ENODEV"
        well(bench, anna, bert)


def test_the_zero_address_is_nobodys(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    dom0 = bench.physical_function()
    dom0.post_buffers(1)
    anna.send(anna.frame("00:00:00:00:00:00"))
    assert anna.sent(1) == [STATUS_OK]
    bench.at_rest(1)
    assert bench.count("rx_frames", "wire") == 1
    assert dom0.waiting() == 0


def test_spoofed_source_is_refused_and_seen_by_nobody(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.post_buffers(4)
    forged = [bert.mac, WIRE_MAC, "00:00:00:00:00:00", anna.mac[:-2] + "ff", BROADCAST_MAC]
    anna.send(*(anna.frame(bert.mac, source=mac) for mac in forged), anna.frame(BROADCAST_MAC, source=bert.mac))
    assert anna.sent(6) == [STATUS_SPOOFED] * 6
    anna.send(anna.frame(bert.mac))
    assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
    bench.at_rest(7)
    assert bench.drops() == {"drop_spoofed": 6}
    assert bench.count("rx_frames", "wire") == 0


def test_the_physical_function_sends_for_others_and_takes_what_is_nobodys() -> None:
    with bench_of(1) as (bench, anna):
        dom0 = bench.physical_function()
        anna.post_buffers(1)
        dom0.post_buffers(4)
        dom0.send(compose(anna.mac, NOBODY))
        assert anna.take(1) == [(STATUS_OK, compose(anna.mac, NOBODY))]
        bench.wire("wire_generate", mac=NOBODY, frame=64, stream=3, frames=4)
        assert [frame for _, frame in dom0.take(4)] == [compose(NOBODY, WIRE_MAC, 64, 3, k) for k in range(4)]
        bench.at_rest(5)


# --- the wire --------------------------------------------------------------------------------------------------------


def test_the_sink_verifies_what_leaves_the_machine(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    lengths = (48, 49, 55, 56, 64, 1000, 1514, MAX_LONE_FRAME)
    good = [anna.frame(WIRE_MAC, length, stream=5, sequence=k) for k, length in enumerate(lengths)]
    broken = bytearray(anna.frame(WIRE_MAC, 200, stream=5, sequence=8))
    broken[150] ^= 1
    foreign = header(NOBODY, anna.mac)[:12] + b"\x08\x00" + bytes(50)
    anna.send(*good, bytes(broken), anna.frame(NOBODY, stream=5, sequence=10), good[0], foreign)
    assert anna.sent(12) == [STATUS_OK] * 12
    bench.at_rest(12)
    report = bench.wire("wire_report", stream=5)["received"]
    assert {name: report[name] for name in ("frames", "lost", "duplicated", "corrupt")} == {
        "frames": 9,
        "lost": 2,
        "duplicated": 1,
        "corrupt": 1,
    }  # fmt: skip  (the broken frame and number 9 count as lost)
    assert [bench.count(name, "wire") for name in ("checked", "corrupt", "duplicated", "foreign")] == [11, 1, 1, 1]


def test_every_flipped_byte_is_seen_by_the_sink(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    whole = anna.frame(WIRE_MAC, 77, stream=6)
    for at in range(24, 77):  # the checksum and all that it covers but the sequence number
        broken = bytearray(whole)
        broken[at] ^= 0x40
        anna.send(bytes(broken))
        anna.sent(1)
    bench.at_rest(77 - 24)
    assert bench.count("corrupt", "wire") == 77 - 24


@pytest.mark.parametrize("engines", [1, 2])
def test_reflected_frames_come_back_with_their_addresses_swapped(engines: int) -> None:
    with bench_of(2, engines=engines, wire="reflect") as (bench, anna, bert):
        for guest in (anna, bert):
            guest.post_buffers(8)
        for guest in (anna, bert):
            guest.send(guest.frame(WIRE_MAC, 1514), guest.frame(NOBODY, 64), guest.frame(BROADCAST_MAC, 99))
            assert guest.sent(3) == [STATUS_OK] * 3
        bench.at_rest(12)
        for guest, other in ((anna, bert), (bert, anna)):
            sent = ((WIRE_MAC, WIRE_MAC, 1514), (NOBODY, NOBODY, 64), (WIRE_MAC, BROADCAST_MAC, 99))
            back = [header(guest.mac, source) + guest.frame(to, length)[14:] for source, to, length in sent]
            assert sorted(frame for _, frame in guest.take(4)) == sorted([*back, other.frame(BROADCAST_MAC, 99)])
        assert bench.drops() == {}


def test_a_reflected_frame_without_a_buffer_is_dropped_by_name(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    bench.wire("wire_mode", mode="reflect")
    anna.send(anna.frame(WIRE_MAC))
    assert anna.sent(1) == [STATUS_OK]
    bench._config["wire"]["mode"] = "reflect"
    bench.at_rest(2)
    assert bench.drops() == {"drop_queue_full": 1}
    assert bench.count("pauses") == 0


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("pps", [0, 20_000])
def test_the_generator_sends_a_stream_to_a_guest(engines: int, pps: int) -> None:
    with bench_of(2, engines=engines) as (bench, anna, bert):
        for guest, length in ((anna, 64), (bert, MAX_LONE_FRAME)):
            receiver = guest.traffic(expect=2000)
            bench.wire("wire_generate", mac=guest.mac, frame=length, stream=4, frames=2000, pps=pps)
            assert receiver.wait() == FINISHED
            assert receiver.report(4)["bytes"] == 2000 * length
            assert receiver.report(4)["lost"] == receiver.report(4)["corrupt"] == 0
        bench.at_rest(4000)
        assert bench.wire("wire_report", stream=4)["left"] == 0


def test_the_generator_pauses_for_a_full_receiver_then_drops() -> None:
    with bench_of(1, pause_us=2000) as (bench, anna):
        bench.wire("wire_generate", mac=anna.mac, frame=64, stream=4, frames=100)
        bench.at_rest(100)
        assert bench.drops() == {"drop_no_buffer": 100}
        assert bench.count("pauses") == 1, "the receiver was known to be full after the first pause"


@pytest.mark.parametrize("mode", ["sink", "reflect"])
def test_a_paused_generator_keeps_its_frame_while_others_use_the_wire(mode: str) -> None:
    with bench_of(2, pause_us=60_000_000, wire=mode) as (bench, anna, bert):
        bench.wire("wire_generate", mac=bert.mac, frame=100, stream=4, frames=3)
        eventually(lambda: bench.count("pauses") or bench.sync(), "the generator pauses")
        anna.send(*(anna.frame(WIRE_MAC, 90, stream=7, sequence=k) for k in range(5)))
        anna.sent(5)
        bert.post_buffers(3)
        assert [frame for _, frame in bert.take(3)] == [compose(bert.mac, WIRE_MAC, 100, 4, k) for k in range(3)]
        bench.at_rest()
