"""The command line's manners: signals, `stop`, `exec`, `status`, and a sentence, not a traceback, for what a user gets wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.command import clients
from lab.rundir import RunDir
from tests.support.labs import (
    LAUNCH,
    ROOT,
    launch,
    left_behind,
    machine_of_its_own,
    processes,
    run,
    start,
    staying_up,
    topology_file,
    unique,
    wait_until,
)
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("warm")

PAIR = '[[guest]]\nname = "anna"\npath = "split"\n[[guest]]\nname = "carl"\npath = "bypass"\n'
TAPS = "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\nprogram = "tap"\naddress = "10.0.0.{host}/24"\n'
    for host, (name, path) in enumerate((("alice", "split"), ("carol", "bypass")), 1)
)


def ignoring(*numbers: int) -> "dict[str, object]":
    """Options to start a process as a shell or nohup does: with signals ignored."""
    return {"preexec_fn": lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers]}


def status_of(name: str) -> dict[str, Any]:
    every: list[dict[str, Any]] = json.loads(launch("status", "--json").stdout)
    return next(status for status in every if status["name"] == name)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (signal.SIGINT, "interrupted"),
        *(pytest.param(number, "terminated", marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_each_signal_takes_everything_down_and_a_second_one_changes_nothing(tmp_path: Path, number: int, word: str) -> None:
    """SIGINT although a shell has ignored it for a job in the background."""
    name = unique(f"signal{number}")
    with staying_up(topology_file(tmp_path, f"signal{number}", PAIR), **ignoring(signal.SIGINT)) as (process, lines):
        process.send_signal(number)
        wait_until(lambda: is_going(name), "the end to begin")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(patient(30)) == 128 + number
        assert left_behind(name) == []  # at once: it waited for the keeper
    assert lines[-1] == f"{word}; everything has been taken down\n"
    assert not any("Traceback" in line for line in lines)


def is_going(name: str) -> bool:
    run_dir = RunDir(name)
    return not run_dir.is_alive() or not any("anna" in line for line in processes(name).values())


@pytest.mark.long
def test_nohup_is_heeded(tmp_path: Path) -> None:
    with staying_up(topology_file(tmp_path, "nohup", PAIR), **ignoring(signal.SIGHUP)) as (process, _):
        process.send_signal(signal.SIGHUP)
        assert launch("status").returncode == 0
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143


# --- stop ------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_topology_and_its_owner(tmp_path: Path) -> None:
    name = unique("stop")
    with staying_up(topology_file(tmp_path, "stop", PAIR)) as (process, lines):
        done = launch("stop", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{name} has been taken down\n"
        assert not RunDir(name).is_alive()
        assert process.wait(patient(30)) == 143
    assert lines[-1] == "terminated; everything has been taken down\n"
    assert left_behind(name) == []
    again = launch("stop", name)
    assert again.returncode == 1
    assert f"no topology named '{name}' is running" in again.stderr


@pytest.mark.long
@pytest.mark.needs("mounts")
def test_stop_all_names_what_it_stops_and_asks(tmp_path: Path) -> None:
    """On a machine of its own, since it is about all topologies that there are."""
    names = [unique("all1"), unique("all2")]
    with machine_of_its_own() as within:
        assert launch("stop", "--all", within=within).stdout == "no topology is running\n"
        with (
            staying_up(topology_file(tmp_path, "all1", PAIR), within=within) as (one, _),
            staying_up(topology_file(tmp_path, "all2", PAIR), within=within) as (two, _),
        ):
            which = launch("stop", within=within)
            assert which.returncode == 2
            assert names[0] in which.stderr
            unasked = launch("stop", "--all", within=within, stdin=subprocess.DEVNULL)
            assert unasked.returncode == 2
            told = unasked.stderr.splitlines()
            assert (told[0], told[-1]) == ("stop --all takes down:", "without a terminal to ask on, say --yes")
            for name, line in zip(names, told[1:-1], strict=True):
                assert re.fullmatch(rf"  {name}: up for \d+ s: anna \(split\), carl \(bypass\)", line)
            assert answered(within, "no") == (1, True)
            assert answered(within, "") == (1, True)
            assert (one.poll(), two.poll()) == (None, None)
            assert answered(within, "y") == (0, True)
            assert (one.wait(patient(30)), two.wait(patient(30))) == (143, 143)
        with staying_up(topology_file(tmp_path, "all1", PAIR), within=within) as (one, _):
            assert launch("stop", "--all", "--yes", within=within).stdout == f"{names[0]} has been taken down\n"
            assert one.wait(patient(30)) == 143
        assert subprocess.run([*within, "ls", "/dev/shm"], capture_output=True, text=True).stdout == ""


def answered(within: list[str], answer: str) -> tuple[int, bool]:
    """What `stop --all` at a terminal does when it is answered so: its status, and whether it had named both topologies."""
    ours, theirs = os.openpty()
    process = start("stop", "--all", within=within, stdin=theirs)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    output, _ = process.communicate(timeout=patient(60))
    os.close(ours)
    assert ("nothing was stopped" in output) == (answer != "y")
    return process.returncode, all(f"  {unique(name)}: up for" in output for name in ("all1", "all2"))


@pytest.mark.long
def test_stop_after_the_owner_was_killed(tmp_path: Path) -> None:
    """The keeper stopped, so that the end that the owner's death begins is still to come."""
    name = unique("orphan")
    with staying_up(topology_file(tmp_path, "orphan", PAIR)) as (process, _):
        keeper = next(pid for pid, line in processes(name).items() if line.split("\0")[0].split()[2:3] == ["keeper"])
        os.kill(keeper, signal.SIGSTOP)
        process.kill()
        process.wait(patient(10))
        stopping = start("stop", name)
        os.kill(keeper, signal.SIGCONT)
        output, _ = stopping.communicate(timeout=patient(60))
        assert stopping.returncode in (0, 1), output  # 1: it was gone before
        assert "Traceback" not in output
    wait_until(lambda: left_behind(name) == [], "nothing to be left")


def test_a_keeper_that_does_not_answer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = unique("hung")
    monkeypatch.setattr(clients, "STOP_TIMEOUT_S", 0.3)
    with staying_up(topology_file(tmp_path, "hung", PAIR)) as (process, _):
        keeper = next(pid for pid, line in processes(name).items() if line.split()[2:3] == ["keeper"])
        os.kill(keeper, signal.SIGSTOP)
        run(clients.stop(RunDir(name)))
        assert process.wait(patient(30)) == 1
    assert left_behind(name) == []


# --- exec and status -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(taps: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """Two TAP guests and one with the traffic program; its name, and what `run` printed."""
    text = TAPS + '[[guest]]\nname = "anna"\npath = "split"\n'
    with staying_up(topology_file(tmp_path_factory.mktemp("cli"), "cli", text)) as (process, lines):
        yield unique("cli"), lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143
    assert left_behind(unique("cli")) == []


def execute(*arguments: str) -> "subprocess.CompletedProcess[str]":
    done = launch("exec", *arguments)
    assert "Traceback" not in done.stderr
    return done


def test_exec_has_a_shell_s_exit_statuses(lab: tuple[str, list[str]], tmp_path: Path) -> None:
    name = lab[0]
    plain = tmp_path / "plain"
    plain.write_text("")
    for program, status in (
        (["nosuch"], 127),
        ([str(plain)], 126),
        (["/"], 126),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
    ):
        done = execute("--topology", name, "alice", "--", *program)
        assert done.returncode == status
        assert (f"alice: {program[0]}: " in done.stderr) == (status in (126, 127))


def test_exec_passes_on_what_is_not_utf_8(lab: tuple[str, list[str]]) -> None:
    done = subprocess.run(
        [*LAUNCH, "exec", "--topology", lab[0], "alice", "--", "sh", "-c", 'printf %s "$1$ODD"', "sh", b"\xff"],
        env={**os.environb, b"ODD": b"\xfe"}, capture_output=True, timeout=patient(60), cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"\xff\xfe"), done.stderr


@pytest.mark.parametrize("place", [["--topology", "{}", "alice"], ["alice", "--topology", "{}"], ["alice", "--topology={}"]])
def test_the_topology_may_stand_on_either_side_of_the_guest(lab: tuple[str, list[str]], place: list[str]) -> None:
    done = execute(*(word.format(lab[0]) for word in place), "--", "echo", "--topology", "x")
    assert (done.returncode, done.stdout) == (0, "--topology x\n")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["alice", "--topology", "nix", "--", "true"], 1, "no topology named 'nix' is running"),
        (["nobody", "--topology", "{}", "true"], 1, "no guest named 'nobody'|a guest named 'nobody'; there are alice, anna, carol"),
        (["anna", "--topology", "{}", "true"], 1, 'anna has program = "traffic"'),
        (["alice", "--topology"], 2, "--topology needs a name"),
        (["alice", "--"], 2, ""),
    ],
)
def test_exec_says_what_is_wrong(lab: tuple[str, list[str]], arguments: list[str], status: int, reason: str) -> None:
    done = execute(*(word.format(lab[0]) for word in arguments))
    assert done.returncode == status
    assert re.search(reason, done.stderr), done.stderr


def test_the_hint_works_and_names_the_topology_where_it_must(lab: tuple[str, list[str]], tmp_path: Path) -> None:
    """As typed, in the folder that it was printed in; a second topology with the same guests says which it means."""
    with staying_up(topology_file(tmp_path, "cli2", TAPS)) as (process, lines):
        for printed, topology in ((lab[1], None), (lines, unique("cli2"))):
            hint = next(line.partition("try: ")[2] for line in printed if line.startswith("  alice"))
            if topology is not None:  # the first one names its topology only if others have an alice, as those of other tests may
                assert f"--topology {topology} " in hint
                done = subprocess.run(shlex.split(hint), capture_output=True, text=True, timeout=patient(60), cwd=ROOT)
                assert done.returncode == 0, done.stderr
                assert "eth0" in done.stdout
        several = execute("alice", "true")
        assert several.returncode == 1
        assert "say which with --topology" in several.stderr
        process.send_signal(signal.SIGTERM)
        process.wait(patient(30))


@pytest.mark.long
def test_status_has_counters_of_tap_guests(lab: tuple[str, list[str]]) -> None:
    name = lab[0]
    script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.0.0.2', 9)); s.recv(99)"
    listening = start("exec", "carol", "--topology", name, "--", sys.executable, "-c", script)
    send = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x' * 50, ('10.0.0.2', 9))"

    def received() -> bool:
        execute("--topology", name, "alice", "--", sys.executable, "-c", send)
        return listening.poll() is not None

    wait_until(received, "a datagram to arrive")
    assert listening.communicate(timeout=patient(30))[0] == ""
    wait_until(lambda: counters(name, "carol")["rx_frames"] >= 2, "the counters to be published")  # ARP, and the datagram

    def steady() -> tuple[dict[str, Any], list[str]] | None:
        """The same before and after: what the kernel sends by itself (ARP) may come in between."""
        before, lines = counters(name, "alice"), launch("status").stdout.splitlines()
        lines = lines[next(k for k, line in enumerate(lines) if line.startswith(f"{name}:")) :]  # others may run here too
        return (before, lines) if counters(name, "alice") == before else None

    found = wait_until(steady, "alice's counters to stand still")
    assert found is not None
    sent, lines = found
    assert sent["tx_bytes"] >= 42 + 92
    assert sent["drops"] == {}
    row = next(line.split() for line in lines if line.split()[:1] == ["alice"] and "tap," not in line)
    assert [int(word.replace(",", "")) for word in row[1:]] == [
        sent[c] for c in ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes")
    ] + [0]
    silent = counters(name, "anna")  # who has sent nothing; broadcasts of the others reach it
    assert (silent["tx_frames"], silent["tx_bytes"], silent["drops"]) == (0, 0, {})


def counters(name: str, guest: str) -> dict[str, Any]:
    every: list[dict[str, Any]] = status_of(name)["guests"]
    return next(dict(one["counters"]) for one in every if one["name"] == guest)


def test_processes_are_told_apart_in_ps(lab: tuple[str, list[str]]) -> None:
    name = lab[0]
    lines = {line.replace("\0", " ").strip() for line in processes(name).values()}
    parts = ("keeper", "forkserver", "hyp", "xenstored", "nic", "dom0", "domu:alice", "domu:carol", "domu:anna")
    assert lines >= {f"xen-bypass-lab {name} {part}" for part in parts}


@pytest.mark.needs("taps")
def test_deaths_are_said_and_stay_in_the_status(tmp_path: Path) -> None:
    """A guest with a TAP, then the fork server: data goes on, and `exec` in the other guest."""
    name = unique("deaths")
    with staying_up(topology_file(tmp_path, "deaths", TAPS)) as (process, lines):
        pids = {one["name"]: one["pid"] for one in status_of(name)["processes"]}
        os.kill(pids["alice"], signal.SIGKILL)
        wait_until(lambda: status_of(name)["state"] == "degraded", "alice's death to be noticed")
        dead = execute("alice", "--topology", name, "true")
        assert (dead.returncode, dead.stderr) == (1, "alice died (signal 9)\n")
        forkserver = next(pid for pid, line in processes(name).items() if "forkserver" in line)
        os.kill(forkserver, signal.SIGKILL)
        wait_until(lambda: len(status_of(name)["dead"]) == 2, "the fork server's death to be noticed")
        told = "forkserver died (signal 9): new processes cannot be started; data goes on"
        assert f"{name}: degraded: alice died (signal 9); {told}" in launch("status").stdout.splitlines()
        assert execute("carol", "--topology", name, "--", "echo", "here").stdout == "here\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(patient(30)) == 130
    assert [line for line in lines if "died" in line] == ["alice died (signal 9)\n", f"{told}\n"]
    assert left_behind(name) == []


@pytest.mark.long
@pytest.mark.needs("taps")
def test_exec_while_the_topology_starts(tmp_path: Path) -> None:
    """It starts for long, since its cache of compiled code is empty."""
    name = unique("slow")
    process = start("run", topology_file(tmp_path, "slow", TAPS), env={**os.environ, "XBL_CACHE": str(tmp_path / "cache")})
    try:
        wait_until(lambda: RunDir(name).socket_path.exists(), "the keeper to listen")
        done = execute("alice", "--topology", name, "true")
        assert done.returncode == 1
        assert f"topology {name} is starting" in done.stderr
        assert f"{name}: starting" in launch("status").stdout
        assert launch("stop", name).returncode == 0
        output, _ = process.communicate(timeout=patient(30))
        assert process.returncode == 143, output
    finally:
        process.kill()
        process.wait()
    assert left_behind(name) == []


# --- what a user gets wrong ------------------------------------------------------------------------------------------

DEMO = str(ROOT / "topologies" / "demo.toml")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["run", DEMO, "--json", "/nosuch/out.json"], 2, "--json /nosuch/out.json: No such file or directory"),
        (["run", DEMO, "--json", "/"], 2, "--json /: Is a directory"),
        (["demo", "--json", "/proc/version/x"], 2, "--json /proc/version/x: Not a directory"),
        (["demo", "--seconds", "nan"], 2, "--seconds nan: more than 0, and at most 3600"),
        (["demo", "--seconds", "inf"], 2, "--seconds inf"),
        (["demo", "--seconds", "0"], 2, "--seconds 0"),
        (["demo", "--seconds", "-1"], 2, "--seconds -1"),
        (["demo", "--seconds", "3601"], 2, "--seconds 3601"),
        (["run", "/"], 2, "cannot be read: Is a directory"),
        (["check", "/nosuch"], 2, "cannot be read: No such file or directory"),
        (["check", "/bin/sh"], 2, "is not a TOML file"),
        (["stop", "x", "--all"], 2, "either a name or --all"),
        (["stop", "../x"], 1, "no topology named '../x' is running"),
        (["exec", "alice"], 2, ""),
    ],
)
def test_mistakes_are_told_before_anything_is_started(arguments: list[str], status: int, reason: str) -> None:
    done = launch(*arguments)
    assert done.returncode == status
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.needs("mounts")
@pytest.mark.parametrize("command", [["check", DEMO], ["status"], ["status", "--json"], ["stop"], ["--help"], ["clean"]])
def test_output_that_nobody_takes(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with machine_of_its_own() as within, open("/dev/full", "w") as full:
            for stream in (writer, full):
                done = subprocess.run(
                    [*within, *LAUNCH, *command], stdout=stream, stderr=subprocess.PIPE, text=True, timeout=patient(60), cwd=ROOT
                )
                assert done.returncode == 1, done.stderr
                assert done.stderr == ("" if stream is writer else "standard output: No space left on device\n")
    finally:
        os.close(writer)


def test_a_run_whose_reader_has_gone_takes_everything_down(tmp_path: Path) -> None:
    file = topology_file(tmp_path, "head", PAIR)
    reader, writer = os.pipe()
    os.close(reader)
    command = [*LAUNCH, "run", str(file)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=patient(60), cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    assert left_behind(unique("head")) == []


def test_results_that_cannot_be_written_are_an_error_after_they_were_shown(tmp_path: Path) -> None:
    file = topology_file(tmp_path, "full", PAIR + '[[workload]]\nkind = "stream"\nfrom = "carl"\nto = "wire"\nframes = 1\n')
    done = launch("run", file, "--json", "/dev/full")
    assert (done.returncode, done.stderr) == (1, "--json /dev/full: No space left on device\n")
    assert "stream carl → wire, 64 B, 1 frame:" in done.stdout
    assert left_behind(unique("full")) == []


def test_each_command_has_one_line_in_the_help() -> None:
    lines = launch("--help", env={**os.environ, "COLUMNS": "80"}).stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "demo",
        "run",
        "exec",
        "forward",
        "web",
        "move",
        "status",
        "top",
        "trace",
        "explain",
        "capture",
        "stop",
        "check",
        "new",
        "explain-topology",
        "clean",
        "completion",
        "store",
    ]
    assert all(line.endswith((".", "?")) and not line.endswith("...") and line[2] != " " for line in lines if line)
