"""Figures from readings of counters: rates, what is under way, restarts, and guests whose counts are made up. Pure."""

import os
from typing import Any

import pytest

from hyp.abi.counters import Count
from lab.api.tables import topology_of
from lab.counters import CounterReader
from lab.ledger import Snapshot
from lab.view.ends import Ends
from lab.view.events import KEPT, EventLog, event
from lab.view.picture import picture
from lab.view.samples import MOST_ROWS, Sample, Sampler, Use
from tests.lab.test_ledger import page_of

NOTHING = {count.name.lower(): 0 for count in Count}
HUGE = (1 << 63) - 1


def sampler(**guests: Any) -> Sampler:
    topology = topology_of(None, "looked-at", guests or {"anna": "split"}, {}).plain()
    return Sampler(picture(topology["name"], topology["guest"], topology["nic"]))


def row(**counts: int) -> dict[str, int]:
    return {**NOTHING, **counts}


def readings(looking: Sampler, *snapshots: Snapshot, seconds: float = 2.0, **use: str) -> list[Sample]:
    """Samples of readings so far apart, with processes in such states."""
    processes = {name: Use(1, 0, state) for name, state in use.items()}
    return [looking.take(100 + seconds * k, 1e9 + seconds * k, counts, processes) for k, counts in enumerate(snapshots)]


def split(sent: int, taken: int, **more: int) -> Snapshot:
    return {"anna/device": row(tx_frames=sent), "dom0/vif1:anna": row(tx_frames=taken, tx_bytes=100 * taken, **more)}


def test_rates_are_of_the_time_between() -> None:
    looking = sampler()
    first, second = readings(looking, split(1000, 1000), split(3000, 2990))
    hop = second["hops"]["anna>dom0"]
    assert (first["seconds"], first["hops"]["anna>dom0"]["fps"], first["hops"]["anna>dom0"]["frames"]) == (0, 0, 1000)
    assert (second["seconds"], hop["fps"], hop["frames"]) == (2, 995, 2990)
    assert hop["gbps"] == pytest.approx(995 * 800 / 1e9)
    assert second["guests"]["anna"]["tx"] == {"frames": 2990, "fps": 995, "gbps": hop["gbps"]}


def test_notifications_and_what_was_left_out() -> None:
    looking = sampler(carl="bypass")
    posted = {"carl/device": row(), "nic/ctx1:carl": row()}
    later = {"carl/device": row(notifications=10, suppressed=30, tx_frames=1000), "nic/ctx1:carl": row(tx_frames=1000)}
    hop = readings(looking, posted, later)[1]["hops"]["carl>nic"]
    assert (hop["notifications_s"], hop["per_frame"], hop["suppressed"]) == (5, 0.01, 0.75)
    quiet = readings(looking, later)[0]["hops"]["carl>nic"]
    assert (quiet["per_frame"], quiet["suppressed"]) == (None, None)


def test_in_flight_is_what_was_handed_over_and_not_taken() -> None:
    looking = sampler()
    found = [one["hops"]["anna>dom0"]["in_flight"] for one in readings(looking, split(7, 0), split(500, 300), split(500, 501))]
    assert found == [7, 200, 0]
    together = looking.take(200.0, 1e9, split(10_000, 1000), {}, {"anna>dom0": (10_000, 9_950)})
    assert together["hops"]["anna>dom0"]["in_flight"] == 50


def test_in_flight_of_who_began_again_is_not_known_before_it_was_at_rest() -> None:
    looking = sampler()
    readings(looking, split(1000, 1000))
    looking.begun_again(["anna"])

    def in_flight(*snapshots: Snapshot, anna: str = "S") -> list[int | None]:
        return [one["hops"]["anna>dom0"]["in_flight"] for one in readings(looking, *snapshots, anna=anna)]

    assert in_flight(split(50, 1010), split(60, 1015)) == [None, None]
    assert in_flight(split(60, 1015), anna="T") == [None]  # it is stopped, with frames in its ring perhaps
    assert in_flight(split(60, 1015)) == [0]
    assert in_flight(split(70, 1020)) == [5]


def test_counts_of_a_process_that_began_again_go_on() -> None:
    looking = sampler(carl="bypass")
    before, after, later = ({"nic/ctx1:carl": row(tx_frames=n, drop_spoofed=d)} for n, d in ((1000, 3), (10, 1), (30, 1)))
    samples = readings(looking, before, after, {}, later)
    hops = [one["hops"]["carl>nic"] for one in samples]
    assert [hop["frames"] for hop in hops] == [1000, 1010, 1010, 1030]
    assert [hop["fps"] for hop in hops] == [0, 5, 0, 10]
    assert [hop["drops"]["spoofed"]["total"] for hop in hops] == [3, 4, 4, 4]


def test_drops_and_faults_are_told_by_name() -> None:
    looking = sampler()
    _, second = readings(looking, split(0, 0), split(10, 10, drop_spoofed=4, faults_grant=2))
    hop = second["hops"]["anna>dom0"]
    assert hop["drops"] == {"spoofed": {"s": 2, "total": 4}}
    assert hop["faults"] == {"grant": {"s": 1, "total": 2}}
    assert second["guests"]["anna"]["drops"] == {"spoofed": 4}


@pytest.mark.parametrize("made_up", [-1, HUGE, -HUGE - 1])
def test_what_a_guest_makes_up_makes_no_figure(made_up: int) -> None:
    looking = sampler(anna="split", cora="cdna", emil="trapped")
    honest: Snapshot = {"dom0/vif1:anna": row(tx_frames=5), "nic/ctx2:cora": row(tx_frames=5), "hyp/vmm3:emil": row(tx_frames=5)}
    lies = {name: dict.fromkeys(NOTHING, made_up) for name in ("anna/device", "cora/device", "cora/enqueue", "emil/device")}
    *_, last = readings(looking, honest, {**honest, **lies}, {**honest, **{name: row() for name in lies}}, {**honest, **lies})
    for name, hop in last["hops"].items():
        assert hop["in_flight"] is None or 0 <= hop["in_flight"] <= 256, name
        for figure in ("fps", "gbps", "notifications_s", "wakeups_s", "calls_s"):
            assert hop[figure] is None or 0 <= hop[figure] <= 1e13, (name, figure)
    assert last["hops"]["anna>dom0"]["frames"] == 5


def test_a_guest_that_names_its_rows_anew_each_time_takes_no_room_without_end() -> None:
    looking = sampler()
    for k in range(20):
        named = {f"anna/device{k}.{n}": row(tx_frames=k) for n in range(160)}
        sample = looking.take(k, 1e9 + k, {**named, "dom0/vif1:anna": row(tx_frames=k, tx_bytes=k)}, {})
    assert len(looking._grown) == MOST_ROWS + 1
    assert looking._last is not None
    assert len(looking._last.counts) == MOST_ROWS + 1
    assert sample["hops"]["anna>dom0"]["frames"] == 19


def test_cpu_of_processes() -> None:
    looking = sampler()
    first = looking.take(1.0, 1.0, {}, {"nic": Use(10, 5_000_000_000, "R"), "dom0": Use(11, 1_000_000_000, "S")})
    second = looking.take(3.0, 3.0, {}, {"nic": Use(10, 6_000_000_000, "R"), "dom0": Use(12, 1_500_000_000, "S")})
    third = looking.take(4.0, 4.0, {}, {"nic": Use(10, 0, "")})
    assert first["processes"]["nic"]["cpu"] == 0
    assert second["processes"] == {
        "nic": {"pid": 10, "state": "R", "cpu": 0.5},
        "dom0": {"pid": 12, "state": "S", "cpu": 0},  # another one by now
    }
    assert third["processes"] == {"nic": {"pid": 10, "state": "", "cpu": 0}}


# --- events ----------------------------------------------------------------------------------------------------------


def test_a_drop_is_an_event_when_it_begins() -> None:
    looking, log = sampler(), EventLog()
    for sample in readings(looking, *(split(10 * k, 10 * k, drop_spoofed=max(0, k - 1)) for k in range(5)), seconds=1.0):
        log.compare(looking.picture, sample)
    assert [(one["kind"], one["who"], one["what"]) for one in log.since()] == [
        ("drops", "anna", "frames are dropped as spoofed (anna → dom0, 1 a second)")
    ]


def test_a_signal_is_an_event() -> None:
    looking, log = sampler(), EventLog()
    for state in "SSTTSR":
        log.compare(looking.picture, readings(looking, {}, dom0=state)[0])
    assert [(one["kind"], one["who"]) for one in log.since()] == [("stopped", "dom0"), ("continued", "dom0")]


def test_a_port_that_comes_is_an_event() -> None:
    log = EventLog()
    log.ports(1.0, {"anna": "dom0/vif1:anna", "bert": None})
    log.ports(2.0, {"anna": "dom0/vif1:anna", "bert": "dom0/vif2:bert"})
    assert [(one["kind"], one["who"], one["what"]) for one in log.since()] == [("connected", "bert", "its port is dom0/vif2:bert")]


def test_events_are_bounded_and_fit_to_be_shown() -> None:
    log = EventLog()
    for number in range(2 * KEPT):
        log.add(event(1.0, "notice", "mallory", f"{number}\x1b[2J\n" + "x" * 10_000))
    assert (log.number, len(log.since()), len(log.since(2 * KEPT - 3)), log.since(2 * KEPT)) == (2 * KEPT, KEPT, 3, [])
    assert all(one["what"].isprintable() and len(one["what"]) <= 400 for one in log.since())


# --- both ends of a hop ----------------------------------------------------------------------------------------------


def test_both_ends_are_read_where_they_are_and_again_where_they_have_moved() -> None:
    looking, ends = sampler(carl="bypass"), Ends()

    def pairs(handed: int, taken: int, before: bytes = b"") -> Any:
        pages = {"carl": page_of({b"device": handed}), "nic": page_of({name: taken for name in (before, b"ctx1:carl") if name})}
        reader = CounterReader(pages)
        return ends.read(reader, looking.picture, reader.read())

    assert pairs(7, 5) == {"carl>nic": (7, 5), "nic>carl": (5, 7)}
    assert pairs(9, 9, b"engine0") == {"carl>nic": (9, 9), "nic>carl": (9, 9)}


def test_a_page_that_was_cut_off_has_nothing_at_its_end() -> None:
    looking, ends = sampler(carl="bypass"), Ends()
    page = page_of({b"device": 7})
    reader = CounterReader({"carl": page, "nic": page_of({b"ctx1:carl": 5})})
    counts = reader.read()
    assert ends.read(reader, looking.picture, counts)["carl>nic"] == (7, 5)
    os.ftruncate(page, 0)
    assert ends.read(reader, looking.picture, counts)["carl>nic"] == (0, 5)
