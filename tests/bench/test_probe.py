"""The probe's readings and labels, and the fingerprint."""

import dataclasses
import gzip
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from bench.method.probe import FAR_NS, GONE_NS, MachineProbe, Reading, regime, steal_share, steal_ticks
from lab.fingerprint import fingerprint, thread_clocks

CPUS = sorted(os.sched_getaffinity(0))


def reading(pingpong_ns: float | None = 120.0, slowdown: float = 1.0, steal: int = 0, at: float = 0.0) -> Reading:
    return Reading(at, pingpong_ns, (3800.0 * slowdown,) * 2, (3800.0,) * 2, steal, 0)


def test_readings_are_sane() -> None:
    threads = threading.active_count()
    with MachineProbe(CPUS) as probe:
        first, second = probe.read(), probe.read()
        assert probe.regime(first, second) in {"apart", "far", "together", "mixed", "stolen"}
    assert threading.active_count() == threads, "the probe's threads are still there"
    assert len(first.work_ns) == len(CPUS)
    assert all(time > 0 for time in first.work_ns + first.alone_ns)
    assert second.at > first.at
    assert second.steal_ticks >= first.steal_ticks >= 0
    assert first.ctx >= 0
    assert first.pingpong_ns is None or first.pingpong_ns > 0


def test_one_cpu_has_no_ping_pong_and_a_label_of_its_own() -> None:
    with MachineProbe(CPUS[:1]) as probe:
        found = probe.read()
    assert found.pingpong_ns is None
    assert found.placement == "one"
    with pytest.raises(ValueError, match="at least one CPU"):
        MachineProbe([])


@pytest.mark.needs("two-cpus")
def test_two_threads_on_two_cpus_do_meet() -> None:
    """In ten readings at least one ping-pong must come back, whatever the host does."""
    with MachineProbe(CPUS) as probe:
        assert any(probe.read().pingpong_ns is not None for _ in range(10))


@pytest.mark.parametrize(
    ("before", "after", "label"),
    [
        (reading(), reading(FAR_NS - 1), "apart"),
        (reading(FAR_NS), reading(480.0), "far"),
        (reading(60.0, 1.98), reading(60.0, 1.98), "together"),
        (reading(None), reading(GONE_NS), "together"),
        (reading(), reading(480.0), "mixed"),
        (reading(), reading(60.0, 1.98), "mixed"),
    ],
)
def test_a_slice_is_labelled_by_both_readings(before: Reading, after: Reading, label: str) -> None:
    assert regime(before, dataclasses.replace(after, at=0.4)) == label


def test_stolen_time_is_in_the_label_and_outweighs_everything_if_it_is_much() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    before, after = reading(steal=100), reading(steal=105, at=250 * tick)  # 5 ticks of 2 × 250
    assert steal_share(before, after) == pytest.approx(0.01)
    assert regime(before, after) == "apart"
    assert regime(before, dataclasses.replace(after, steal_ticks=111)) == "apart, stolen"
    assert regime(before, dataclasses.replace(after, steal_ticks=100 + 151)) == "starved"  # of 500
    soon = dataclasses.replace(after, at=10 * tick)
    assert regime(before, dataclasses.replace(soon, steal_ticks=101)) == "apart"  # one tick of 20 may be of what came before
    assert regime(before, dataclasses.replace(soon, steal_ticks=102)) == "apart, stolen"


def test_steal_is_that_of_the_used_cpus() -> None:
    stat = "cpu  1 2 3 4 5 6 7 80 0 0\ncpu0 1 2 3 4 5 6 7 50 0 0\ncpu1 1 2 3 4 5 6 7 30 0 0\ncpu10 0 0 0 0 0 0 0 9 0 0\nctxt 5\n"
    assert steal_ticks([1], stat) == 30
    assert steal_ticks([0, 1], stat) == 80


def test_the_fingerprint_says_what_the_machine_is() -> None:
    found = fingerprint()
    assert found["cores"] == len(CPUS) == len(found["affinity"])
    assert found["kernel"] == os.uname().release
    assert found["versions"]["numpy"] == np.__version__
    assert 0 <= found["steal_share"] < 1
    has_huge_pages = found["huge_pages"]["shmem"] in ("always", "within_size", "force")
    assert ("no huge pages" in found["huge_pages"]["note"]) != has_huge_pages
    assert {"cpu", "python", "siblings", "caches", "load", "virtualised", "clocksource"} <= found.keys()


@pytest.mark.parametrize(
    ("config", "line", "found"),
    [
        (b"#\nCONFIG_PARAVIRT_TIME_ACCOUNTING=y\n", "quiet", "leave stolen time out"),
        (b"#\nCONFIG_PARAVIRT_TIME_ACCOUNTING=y\n", "quiet no-steal-acc ro", "count stolen time"),
        (b"#\n# CONFIG_PARAVIRT_TIME_ACCOUNTING is not set\n", "quiet", "count stolen time"),
        (None, "quiet", "not known"),
    ],
)
@pytest.mark.parametrize("name", ["/proc/config.gz", "/boot/config-6.1"])
def test_whether_threads_clocks_count_stolen_time(
    monkeypatch: pytest.MonkeyPatch, name: str, config: bytes | None, line: str, found: str
) -> None:
    def read_bytes(path: Path) -> bytes:
        if str(path) != name or config is None:
            raise FileNotFoundError
        return gzip.compress(config) if name.endswith(".gz") else config

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert thread_clocks("6.1", line).startswith(found)
