"""launch.py as a user meets it: results, refusals, Ctrl-C, kill -9 of anything, and nothing left behind (R5)."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from lab.command.session import run_topology
from tests.support.labs import (
    GUESTS,
    launch,
    left_behind,
    processes,
    run,
    start,
    staying_up,
    topology,
    topology_file,
    unique,
    wait_until,
)
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

FIELDS = {
    "path", "workload", "frame", "frames", "seconds", "mpps", "gbps", "rtt_us", "cpu_us_per_frame", "per_frame", "lost", "corrupt",
    "duplicated", "drops",
}  # fmt: skip
STREAM = '[[workload]]\nkind = "stream"\nfrom = "{}"\nto = "{}"\n{}\n'


def gone(name: str) -> None:
    wait_until(lambda: left_behind(name) == [], f"{name} to leave nothing behind: {left_behind(name)}")


def pids_of(name: str) -> dict[str, int]:
    statuses = json.loads(launch("status", "--json").stdout)
    status = next(status for status in statuses if status["name"] == name)
    return {process["name"]: process["pid"] for process in status["processes"]}


def test_run_writes_a_record_per_workload(tmp_path: Path) -> None:
    loads = STREAM.format("anna", "bert", "frames = 5000") + STREAM.format("carl", "wire", "frames = 5000")
    loads += '[[workload]]\nkind = "rr"\nfrom = "carl"\nto = "dora"\nframes = 200\n'
    file, out = topology_file(tmp_path, "json", GUESTS + loads), tmp_path / "out.json"
    done = launch("run", file, "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(out.read_text())["workloads"]
    assert [(record["path"], record["workload"], record["frames"]) for record in records] == [
        ("split", "stream", 5000), ("bypass", "stream", 5000), ("bypass", "rr", 200),
    ]  # fmt: skip
    for record in records:
        assert record.keys() >= FIELDS
        assert record["per_frame"].keys() == {
            "dom0_frames", "vmm_frames", "copies", "notifications", "hypercalls", "traps", "wakeups",
        }  # fmt: skip
        assert (record["rtt_us"] is not None) == (record["workload"] == "rr")
    assert left_behind(unique("json")) == []


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        (GUESTS.replace("name = ", "nmae = ", 1), "guest[0].nmae", "name"),
        ('[[guest]]\nname = "a"\npath = "split"\nmac = "02:00:00:00:00:09"\n' * 2, "guest[1].mac", "02:00:00:00:00:09"),
        (GUESTS + STREAM.format("anna", "brt", "frames = 1"), "workload[0].to", "bert"),
        (GUESTS + 'memory = "3 KiB"\n', "guest[3].memory", ""),
        ('[[guest]]\nname = "t"\npath = "split"\nprogram = "tap"\naddress = "10.0.0.300/24"\n', "guest[0].address", ""),
        ("nic.queue = 4096\n" + GUESTS, "guest[2].memory", '"17156 KiB"'),
    ],
)
def test_a_wrong_topology_is_refused_before_anything_is_spawned(tmp_path: Path, text: str, key: str, reason: str) -> None:
    file = topology_file(tmp_path, "wrong", text)
    for command in ("check", "run"):
        done = launch(command, file)
        assert done.returncode == 2
        assert str(file) in done.stderr
        assert key in done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    assert left_behind(unique("wrong")) == []


def test_a_guest_that_cannot_start_names_itself_and_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` lets no such topology through, so it is given to what comes after it."""
    plain = topology(tmp_path, "tiny", '[[guest]]\nname = "tiny"\npath = "bypass"\n[[guest]]\nname = "other"\npath = "split"\n')
    plain["guest"][0]["memory"] = 1 << 20
    assert run(run_topology(plain, None)) == 3
    output = capsys.readouterr().out
    assert "tiny could not start" in output
    assert "RAM" in output
    assert left_behind(unique("tiny")) == []


@pytest.mark.long
def test_a_frame_lost_without_a_name_is_an_exit_status(tmp_path: Path) -> None:
    """A guest killed in mid-workload: the run fails and says who died."""
    file = topology_file(tmp_path, "dying", GUESTS + STREAM.format("carl", "dora", "seconds = 600"))
    process = start("run", file)
    try:
        name = unique("dying")
        wait_until(lambda: process.poll() is not None or _up(name), "the topology to be up")
        os.kill(pids_of(name)["carl"], signal.SIGKILL)
        output, _ = process.communicate(timeout=patient(60))
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, output
    assert output.count("carl died (signal 9)") == 1, output
    assert "cannot go on" in output
    gone(name)


def _up(name: str) -> bool:
    statuses = json.loads(launch("status", "--json").stdout)
    return any(status["name"] == name and status.get("state") == "up" for status in statuses)


@pytest.mark.parametrize("moment", tiered(["at once", "starting", "up"], ["starting"]))
def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path: Path, moment: str) -> None:
    name = unique(f"ctrlc-{moment[:2]}")
    file = topology_file(tmp_path, f"ctrlc-{moment[:2]}", GUESTS + STREAM.format("carl", "dora", "seconds = 600"))
    process = start("run", file, start_new_session=True)
    if moment == "starting":
        wait_until(lambda: processes(name), "the keeper")
    elif moment == "up":
        wait_until(lambda: _up(name), "the topology to be up")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody in the foreground
    output, _ = process.communicate(timeout=patient(60))
    not_yet = moment == "at once" and "init_import_site" in output  # the interpreter had not begun with anything of ours
    assert not_yet or process.returncode in (130, -signal.SIGINT), output
    gone(name)


def test_kill_9_of_launch_leaves_nothing_after_clean(tmp_path: Path) -> None:
    file = topology_file(tmp_path, "killed", GUESTS)
    with staying_up(file) as (process, _):
        process.kill()
        process.wait()
        gone(unique("killed"))
    assert launch("clean").returncode == 0


def test_kill_9_of_everything_at_once_is_swept_by_launch(tmp_path: Path) -> None:
    """The keeper's parent, which is waited for, may be gone before the keeper is, which still holds the lock."""
    name = unique("keeper")
    with staying_up(topology_file(tmp_path, "keeper", GUESTS)) as (process, lines):
        pids = pids_of(name)
        for pid in processes(name):
            with contextlib.suppress(ProcessLookupError):  # the death of one ends others
                os.kill(pid, signal.SIGKILL)
        process.wait(patient(30))
        assert process.returncode == 1, "".join(lines)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), "all processes to end")
    assert left_behind(name) == []


@pytest.mark.parametrize("victim", tiered(["hyp", "dom0", "nic", "xenstored", "dora"], ["dora"]))
def test_kill_9_of_any_process_leaves_nothing(tmp_path: Path, victim: str) -> None:
    name = unique(f"kill-{victim}")
    text = "[supervisor]\nrestart = false\n" + GUESTS
    with staying_up(topology_file(tmp_path, f"kill-{victim}", text)) as (process, lines):
        os.kill(pids_of(name)[victim], signal.SIGKILL)
        wait_until(lambda: any(f"{victim} died" in line for line in lines), f"the death of {victim} to be reported")
        shown = launch("status")
        assert f"{name}: degraded: {victim} died (signal 9)" in shown.stdout.splitlines(), shown.stdout + shown.stderr
        process.send_signal(signal.SIGINT)
        process.wait(patient(60))
    assert [line for line in lines if "died" in line] == [f"{victim} died (signal 9)\n"]
    assert left_behind(name) == []


@pytest.mark.long
def test_what_a_machine_wide_kill_left_is_swept_by_the_next_run_and_by_clean(tmp_path: Path) -> None:
    name = unique("swept")
    file = topology_file(tmp_path, "swept", GUESTS + STREAM.format("carl", "dora", "frames = 100"))
    for sweeper in ("clean", "run"):
        with staying_up(topology_file(tmp_path, "swept", GUESTS)) as (process, _):
            everything = [process.pid, *processes(name)]
            for pid in everything:
                os.kill(pid, signal.SIGSTOP)
            for pid in everything:
                with contextlib.suppress(ProcessLookupError):  # the death of a PID namespace's first process has ended it
                    os.kill(pid, signal.SIGKILL)
            process.wait(patient(30))
        wait_until(lambda: not processes(name), "all processes to end")
        assert left_behind(name) != []
        file.write_text(GUESTS + STREAM.format("carl", "dora", "frames = 100"))
        assert launch(*(["clean"] if sweeper == "clean" else ["run", file])).returncode == 0
        assert left_behind(name) == []


@pytest.mark.long
def test_two_topologies_side_by_side_and_clean_touches_neither(tmp_path: Path) -> None:
    with (
        staying_up(topology_file(tmp_path, "one", GUESTS)),
        staying_up(topology_file(tmp_path, "two", GUESTS)) as (two, _),
    ):
        before = {name: left_behind(unique(name)) for name in ("one", "two")}
        assert all(before.values())
        assert launch("clean").returncode == 0
        assert {name: left_behind(unique(name)) for name in ("one", "two")} == before
        again = launch("run", topology_file(tmp_path, "one", GUESTS))
        assert again.returncode == 3
        assert "is running" in again.stdout
        two.send_signal(signal.SIGINT)
        two.wait(patient(30))
        assert _up(unique("one"))


def test_help_and_usage() -> None:
    for command in ([], ["run"], ["exec"], ["status"], ["clean"], ["check"], ["demo"]):
        assert launch(*command, "--help").returncode == 0
    assert launch("run").returncode == 2
    assert launch("frobnicate").returncode == 2
    assert launch("run", "/no/such/file.toml").returncode == 2
