"""What the ends of a workload report is judged: who lies fails his own workload, and spoils nobody's records."""

import asyncio
import functools
import itertools
import json
from pathlib import Path
from typing import Any, Final, cast

import pytest

from lab.command.screen import Screen
from lab.command.session import run_workloads
from lab.ledger import Snapshot, difference
from lab.workloads import MOST_SAID, PeerDied, WorkloadError
from lab.workloads.report import MOST_BUCKETS, MOST_OF_A_FILE, MOST_TEXT, RECEIVED, judged
from tests.lab.test_paths import check, running
from tests.support.labs import run, workload
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("warm")

NESTED: Final = json.loads("[" * 500 + "]" * 500)
NAN: Final = float("nan")
HISTOGRAM: dict[str, Any] = {"p50": 1, "p90": 1, "p99": 1, "p999": 1, "max": 1, "counts": [[1, 1]]}
TIMES: dict[str, Any] = {"p50": 1.0, "p90": 1.0, "p99": 1.0, "p999": 1.0, "mean": 1.0, "max": 1.0}
COUNTS: list[Any] = [NAN, 2**70, -1, "x", None, True, 1.0, {"a": 1}, b"1"]
LIES: dict[tuple[str, str], list[Any]] = {
    ("send_stream", "sent"): COUNTS,
    ("send_stream", "units"): [*COUNTS, 0, "\x1b[2J"],
    ("send_stream", "lag_ns"): [*COUNTS, "\x1b[2J"],
    **{("received", name): COUNTS for name in ("frames", "bytes", "corrupt", "duplicated", "first_ns", "last_ns")},
    ("received", "latency"): [
        *(b"\xff", [[]], {"p50": 1}, NESTED),
        *(HISTOGRAM | {"counts": counts} for counts in ([[1, NAN]], [[1]], [1], [[1, 1]] * (MOST_BUCKETS + 1))),
    ],
    ("round_trips", "latency"): [b"\xff\xfe", HISTOGRAM | {"p999": -1}],
    ("round_trips", "rtt_us"): [{"x": 1.0}, [1.0], *(TIMES | {"mean": time} for time in (NAN, 1e308, -1.0, "1", True))],
    ("round_trips", "seconds"): [NAN, -1.0, 1e300, None],
}
"""What an end of a workload says in place of what is so: by operation and name."""


def test_a_guest_that_reports_nonsense_fails_its_workload_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(tmp_path, "liar") as runner:
            call = runner.lab.call

            async def lying(about: str, what: str, lie: Any, name: str, op: str, /, **args: Any) -> Any:
                report = await call(name, op, **args)
                return {**report, what: lie} if op == about else report

            for about, what, lie in ((*told, lie) for told, lies in LIES.items() for lie in lies):
                load = workload("rr" if about == "round_trips" else "stream", "anna", "bert", frames=10)
                with monkeypatch.context() as patched:
                    patched.setattr(runner.lab, "call", functools.partial(lying, about, what, lie))
                    with pytest.raises(WorkloadError, match="makes no sense") as told:
                        await runner.run(load)
                    assert "\x1b" not in str(told.value)
                    assert len(str(told.value)) <= MOST_SAID
            for kind in ("stream", "rr"):
                record = await runner.run(workload(kind, "anna", "bert", frames=10))
                check(record)
                json.dumps(record, allow_nan=False)

    run(main())


def test_what_a_report_has_besides_is_nobodys_to_read() -> None:
    received = dict.fromkeys(RECEIVED, 1)
    report = judged({"sent": 1, "received": received | {"digest": b"\xff"}, "shares": "\x1b", "rtt_us": TIMES | {"x": NAN}})
    assert report == {"sent": 1, "units": 1, "received": received, "latency": None, "rtt_us": TIMES}
    file = {f"count {number}": 1 for number in range(MOST_OF_A_FILE)}
    for wrong in (file | {"cut": None, "more": 1}, {"frames": NAN}, "frames"):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            judged({"sent": 1, "received": received, "replay": wrong})
    about = judged({"sent": 1, "received": received, "replay": {"frames": 1, "\x1b": 2, "cut": "\x1b[2J" * MOST_TEXT}})["replay"]
    assert "\x1b" not in str(about)
    assert len(about["cut"]) <= MOST_TEXT


def test_a_guest_that_is_no_end_of_a_workload_holds_it_up_by_nothing_that_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes its counters all the time; what is at rest is known all the same."""

    async def main() -> None:
        async with running(tmp_path, "scribe") as runner:
            pages, looks = runner._counters._page, itertools.count()

            def scribbled(name: str) -> bytes:
                return next(looks).to_bytes(8, "little") + pages(name)[8:] if name == "bert" else pages(name)

            monkeypatch.setattr(runner._counters, "_page", scribbled)
            monkeypatch.setattr("lab.workloads.runner.REST_TIMEOUT_S", float("inf"))
            check(await asyncio.wait_for(runner.run(workload("stream", "anna", "wire", frames=10)), patient(60)))

    run(main())


def test_what_is_refused_or_dropped_of_others_is_in_nobodys_record_but_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bert breaks rules, at the NIC, at Dom0 and at a device model, while others exchange frames."""

    def broken(after: Snapshot, before: Snapshot) -> Snapshot:
        found = dict(difference(after, before))
        for row in ("nic/ctx7:bert", "nic/ctx8:bert.vmm", "dom0/vif7:bert", "hyp/vmm7:bert", "hyp/uplink7:bert"):
            found[row] = dict.fromkeys(found["nic/engine0"], 0) | {"faults_protocol": 3, "drop_spoofed": 7}
        return found

    async def main() -> None:
        async with running(tmp_path, "others") as runner:
            monkeypatch.setattr("lab.workloads.runner.difference", broken)
            record = await runner.run(workload("stream", "anna", "wire", frames=10))
            check(record)
            assert record["drops"] == {}
            own = await runner.run(workload("stream", "bert", "wire", frames=10))
            assert own["drops"] == {"spoofed": 35}
            assert len([error for error in own["errors"] if "faults_protocol 3" in error]) == 5, own["errors"]

    run(main())


def test_when_a_workload_fails_the_others_go_on_and_have_records() -> None:
    ended, failed = list[str](), list[WorkloadError]()

    class Failing:
        """A runner whose second workload fails, and whose third finds its sender dead."""

        async def run(self, load: dict[str, Any]) -> dict[str, Any]:
            if load["from"] != "anna":
                raise {"bert": WorkloadError("it makes no sense"), "carl": PeerDied("carl died")}[load["from"]]
            return {"path": "bypass", "mpps": 1.0, "rtt_us": None, "frames": load["frames"]}

        async def end(self, load: dict[str, Any]) -> None:
            ended.append(load["from"])

    loads = [workload("stream", sender, "wire", frames=n) for n, sender in enumerate(("anna", "bert", "carl", "anna"), 1)]
    records = run(run_workloads(cast(Any, Failing()), loads, Screen(), failed=failed))
    assert [record["frames"] for record in records] == [1, 4]
    assert [str(error) for error in failed] == ["it makes no sense", "carl died"]
    assert ended == ["bert", "carl"]
    with pytest.raises(WorkloadError, match="makes no sense"):
        run(run_workloads(cast(Any, Failing()), loads, Screen()))
