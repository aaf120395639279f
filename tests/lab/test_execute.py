"""`launch.py exec` without a terminal: what the program inherits, who holds its streams, whom signals reach, how it ends."""

import asyncio
import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyp.control import Reply
from lab.command.clients import ClientError
from lab.execute import front
from lab.owner import Lab
from lab.programs import run_in_guest
from tests.support.labs import (
    LAUNCH,
    ROOT,
    SAY_PROCESS,
    launch,
    left_behind,
    process_said,
    processes,
    run,
    staying_up,
    topology,
    topology_file,
    unique,
    wait_until,
)
from tests.support.patience import patient
from tests.support.screens import state
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

GUEST = '[[guest]]\nname = "alice"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.1/24"\n'
GRACE = 30


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TAP guest, alice; the topology's name."""
    with staying_up(topology_file(tmp_path_factory.mktemp("execute"), "execute", GUEST)) as (process, _):
        yield unique("execute")
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143
    assert left_behind(unique("execute")) == []


def command(lab: str, *program: str) -> list[str]:
    return [*LAUNCH, "exec", "--topology", lab, "alice", "--", *program]


def inside(lab: str, *program: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command(lab, *program), capture_output=True, text=True, timeout=patient(60), cwd=ROOT, **options)
    assert "Traceback" not in done.stderr
    return done


def running(lab: str, script: str, **options: Any) -> "tuple[subprocess.Popen[str], int]":
    """A shell script in the guest that has said its process id, as the test's /proc numbers it."""
    process = subprocess.Popen(
        command(lab, "sh", "-c", SAY_PROCESS + script),
        stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=default_signals, **options,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process_said(process.stdout.readline())


def default_signals() -> None:
    """Whatever the test itself was started with."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


# --- what the program inherits ---------------------------------------------------------------------------------------

PROBE = """
umask; ulimit -aS; ulimit -aH; nice; pwd; echo "$#"; env | sort
grep -E "^(Sig(Blk|Ign)|Cpus_allowed_list|NoNewPrivs|Groups)" /proc/self/status
cat /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/self/cgroup; cut -d" " -f7 /proc/self/stat
ls /proc/self/fd; cat <&7; cat
"""


def unusual(folder: Path) -> None:
    """Make this process another than most in all that a program inherits."""
    os.umask(0o027)
    for limit, value in ((resource.RLIMIT_NOFILE, 321), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 4 << 20)):
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
    os.nice(3)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    Path("/proc/self/oom_score_adj").write_text("77")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR2, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGWINCH})
    os.chdir(folder)
    os.dup2(os.open(folder / "seven", os.O_RDONLY), 7)


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C.UTF-8", "ODD": "a\nb", "EMPTY": ""},
        {},  # Python sets LC_CTYPE here
        {"LC_CTYPE": "C", "HOME": "/nowhere"},
    ],
)
def test_all_that_a_program_inherits_is_the_callers(lab: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """The same script, started here and in the guest, says the same."""
    (tmp_path / "seven").write_text("from descriptor 7\n")
    runtime = {name: value for name, value in os.environ.items() if name in ("PATH", "XDG_RUNTIME_DIR")}
    said = []
    for argv in (["sh", "-c", PROBE, "sh", "", "x y"], command(lab, "sh", "-c", PROBE, "sh", "", "x y")):
        done = subprocess.run(
            argv, input="from standard input\n", env=runtime | environment, capture_output=True, text=True, timeout=patient(60),
            preexec_fn=lambda: unusual(tmp_path), close_fds=False, pass_fds=(),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout.splitlines())
    assert said[0][-2:] == ["from descriptor 7", "from standard input"]
    assert said[1] == said[0]


@pytest.mark.needs("venv")
def test_it_is_the_callers_also_when_another_python_was_called(lab: str) -> None:
    """One without packages (-S), from which launch.py goes on in that of .venv, without PYTHONPATH."""
    script = "env | sort; grep ^SigIgn /proc/self/status; for fd in 0 1 2; do test -e /proc/self/fd/$fd && echo $fd; done; true"
    said = []
    for argv in (["sh", "-c", script], [sys.executable, "-S", *command(lab, "sh", "-c", script)[1:]]):
        done = subprocess.run(
            argv, env={"PATH": os.environ["PATH"], "PYTHONPATH": "/nowhere"}, capture_output=True, text=True, timeout=patient(60),
            preexec_fn=ignoring_and_closing, cwd=ROOT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout.splitlines())
    assert "PYTHONPATH=/nowhere" in said[0]
    assert said[1] == said[0]


def ignoring_and_closing() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.close(0)


def test_it_ends_with_a_program_that_is_killed_while_it_is_stopped(lab: str) -> None:
    """By a process that it has left in another session, when it has stopped itself; nobody continues it."""
    killer = "until grep -q '^State:.T' /proc/$1/status; do :; done; kill -9 $1"
    done = inside(lab, "sh", "-c", f'setsid sh -c "{killer.replace("$", chr(92) + "$")}" sh $$ <&- >&- 2>&- & kill -STOP $$')
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGKILL, "", "")


def test_long_environments_and_argument_lists(lab: str) -> None:
    environment = {f"LONG{number}": "x" * 6000 for number in range(30)}
    done = inside(lab, "sh", "-c", 'echo "$LONG29" | wc -c', env={**os.environ, **environment})
    assert (done.returncode, done.stdout.strip()) == (0, "6001")
    done = inside(lab, "sh", "-c", 'echo $# "${20000}"', "sh", *map(str, range(1, 20001)))
    assert (done.returncode, done.stdout) == (0, "20000 20000\n")


def test_more_than_execve_takes_is_told_as_a_shell_does(lab: str) -> None:
    """Of an argument longer than any that could have got here; the same way as for any error of execve's."""
    script = (
        "import asyncio, sys; from lab.execute import front as execute\n"
        f"found = asyncio.run(execute.find_guest('alice', {lab!r}))\n"
        "sys.exit(execute.run_inside(found, 'alice', [b'true', b'x' * (32 * 4096)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patient(60), cwd=ROOT)
    assert (done.returncode, done.stderr) == (126, f"alice: true: {os.strerror(errno.E2BIG)}\n")
    done = inside(lab, "")
    assert (done.returncode, done.stderr) == (127, "alice: : No such file or directory\n")


def test_the_folder_may_have_been_removed(lab: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'cd "$0"; rmdir "$0"; exec "$@"', str(gone), *command(lab, "readlink", "/proc/self/cwd")],
        capture_output=True, text=True, timeout=patient(60), cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{gone} (deleted)\n"), done.stderr


# --- who holds its streams -------------------------------------------------------------------------------------------


def test_a_daemon_that_let_go_of_its_streams_does_not_hold_the_callers(lab: str) -> None:
    """What was started returns its caller's pipes at their end, although the daemon lives."""
    started = inside(lab, "sh", "-c", f"sh -c '{SAY_PROCESS} exec sleep 1000 >/dev/null 2>&1 </dev/null' & wait_for=$!; sleep 0")
    daemon = process_said(started.stdout)
    try:
        assert started.returncode == 0
        assert state(daemon) in "RSD"
    finally:
        os.kill(daemon, signal.SIGKILL)


@pytest.mark.parametrize("which", [1, 2])
def test_a_program_that_closes_a_stream_closes_it_for_the_caller(lab: str, which: int) -> None:
    reader, writer = os.pipe()
    streams: dict[str, Any] = {{1: "stdout", 2: "stderr"}[which]: writer}
    with open(reader, "rb") as pipe:
        process = subprocess.Popen(
            command(lab, "sh", "-c", f"echo said >&{which}; exec sleep 1000 >/dev/null 2>&1"), cwd=ROOT, **streams
        )
        os.close(writer)
        try:
            assert pipe.read() == b"said\n"  # to its end
            assert process.poll() is None
        finally:
            process.terminate()
            assert process.wait(patient(GRACE)) == 128 + signal.SIGTERM


def test_a_program_that_closes_its_input_closes_it_for_the_caller(lab: str) -> None:
    process, _ = running(lab, "exec <&-; echo closed; exec sleep 1000", stdin=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == "closed\n"
            wait_until(lambda: has_no_reader(process.stdin), "nobody to have its end of the pipe any more")
        finally:
            process.terminate()


def has_no_reader(pipe: Any) -> bool:
    poll = select.poll()
    poll.register(pipe.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


# --- whom signals reach ----------------------------------------------------------------------------------------------


def test_a_signal_to_the_callers_job_reaches_the_program_once(lab: str) -> None:
    process, _ = running(
        lab, "trap 'echo hup' HUP; trap 'echo usr; exit 5' USR1; echo up; while :; do sleep 0.05; done", start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGHUP)
        assert process.stdout.readline() == "hup\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == "usr\n"
        assert process.wait(patient(GRACE)) == 5


def test_the_program_and_its_children_end_with_an_exec_that_is_killed(lab: str) -> None:
    process, program = running(lab, f"sh -c '{SAY_PROCESS} exec sleep 1000'; true")
    with process:
        assert process.stdout is not None
        child = process_said(process.stdout.readline())
        process.kill()
        assert process.stdout.read() == ""  # nobody has it any more
    wait_until(lambda: state(program) == state(child) == "", "the program and its child to end")


def test_the_program_ends_with_its_supervisor(lab: str) -> None:
    process, program = running(lab, "exec sleep 1000")
    with process:
        supervisor = int(Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1])
        assert supervisor != process.pid
        assert os.getsid(program) == os.getsid(process.pid)
        os.kill(supervisor, signal.SIGKILL)
        assert process.wait(patient(GRACE)) == 128 + signal.SIGKILL
    wait_until(lambda: state(program) == "", "the program to end")


def test_the_program_ends_with_its_guest_which_is_said(tmp_path: Path) -> None:
    """On whatever is the program's standard error then, since nobody else has the caller's."""
    name = unique("mortal")
    with staying_up(topology_file(tmp_path, "mortal", GUEST)) as (process, _):
        exec_, program = running(name, "exec sleep 1000", stderr=subprocess.PIPE)
        guest = next(pid for pid, line in processes(name).items() if "domu:alice" in line.split())
        os.kill(guest, signal.SIGKILL)
        _, told = exec_.communicate(timeout=GRACE)
        assert (exec_.returncode, told) == (1, "alice is gone\n")
        assert state(program) == ""
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(GRACE)) == 143
    assert left_behind(name) == []


# --- from Python -----------------------------------------------------------------------------------------------------


def test_a_program_run_from_python_gives_status_and_output_and_ends_when_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with Lab(topology(tmp_path, "python", GUEST)) as lab:
            done = await run_in_guest(lab, "alice", ["sh", "-c", "echo out; echo err >&2; exit 5"])
            assert done == (5, "out\nerr\n")
            said = tmp_path / "said"
            os.mkfifo(said)
            sleeping = asyncio.create_task(
                run_in_guest(lab, "alice", ["sh", "-c", f"{{ {SAY_PROCESS} }} >{said}; exec sleep 1000"])
            )
            program = process_said(await asyncio.to_thread(said.read_text))
            assert state(program) in ("R", "S", "D")
            sleeping.cancel()
            await asyncio.wait({sleeping})
            await asyncio.to_thread(wait_until, lambda: state(program) == "", "the program to end")

    run(main())
    assert left_behind(unique("python")) == []


# --- closed standard streams -----------------------------------------------------------------------------------------


def closing(*fds: int) -> Callable[[], None]:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    return close


@pytest.mark.parametrize("fds", tiered([(0,), (1,), (2,), (0, 1, 2)], [(0, 1, 2)]))
@pytest.mark.parametrize(
    "arguments",
    [
        [LAUNCH[1], "status", "--json"],
        [LAUNCH[1], "stop", "nosuch"],
        [LAUNCH[1], "exec", "nobody", "true"],
        [LAUNCH[1], "clean"],
        [LAUNCH[1], "check", "topologies/demo.toml"],
        [LAUNCH[1], "--help"],
        ["-m", "bench", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[-2:]),
)
def test_commands_do_without_standard_streams(arguments: list[str], fds: tuple[int, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=patient(60), cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, preexec_fn=closing(*fds),
    )  # fmt: skip
    fails = arguments[1] in ("stop", "exec")
    assert (done.returncode, bool(done.stderr)) == (int(fails), fails and 2 not in fds)
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (not fails and 1 not in fds)


@pytest.mark.parametrize("fds", tiered([(0,), (0, 1, 2)], [(0, 1, 2)]))
def test_a_topology_runs_without_standard_streams(tmp_path: Path, fds: tuple[int, ...]) -> None:
    guest = '[[guest]]\nname = "carl"\npath = "bypass"\n[[workload]]\nkind = "stream"\nfrom = "carl"\nto = "wire"\nframes = 1\n'
    done = launch("run", topology_file(tmp_path, "closed", guest), "--json", tmp_path / "out", preexec_fn=closing(*fds))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"frames"' in (tmp_path / "out").read_text()
    assert left_behind(unique("closed")) == []


@pytest.mark.parametrize("fds", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_program_has_those_streams_that_the_caller_has(lab: str, fds: tuple[int, ...], tmp_path: Path) -> None:
    here = tmp_path / "here"
    script = f"for fd in 0 1 2; do test -e /proc/self/fd/$fd && echo $fd; done >{here}; exit 3"
    done = inside(lab, "sh", "-c", script, preexec_fn=closing(*fds))
    assert (done.returncode, done.stderr) == (3, "")
    assert here.read_text().split() == [str(fd) for fd in range(3) if fd not in fds or fd == 1]


def test_a_guest_need_not_do_anything_for_it(lab: str) -> None:
    """Nor can it keep anybody from it, then: by standing still, or by what it or another one like it has done to its limits."""
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)
    pid = next(process["pid"] for process in status["processes"] if process["name"] == "alice")
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(pid) == "T", "the guest's process to be stopped")
        done = inside(lab, "hostname")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (0, "alice\n"), done.stderr


def test_a_guest_that_was_started_again_is_another_machine(tmp_path: Path) -> None:
    async def main() -> None:
        async with Lab(topology(tmp_path, "again", GUEST + "restart = true\n")) as lab:
            for times in (1, 2):
                os.kill((await lab.pids())["alice"], signal.SIGKILL)
                await lab.restarted("alice", times)
                assert await run_in_guest(lab, "alice", "hostname") == (0, "alice\n")

    run(main())


class Late:
    """A keeper's channel on which two processes are named of which the guest and its init had the numbers once."""

    async def call(self, op: str, guest: str) -> Reply:
        assert (op, guest) == ("machine", "alice")
        return Reply(None, [os.pidfd_open(os.getpid()), os.pidfd_open(1), os.dup(0)])

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_a_number_that_is_somebody_elses_by_now(lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is started there: it would have that process's network, files and name."""

    async def connected(*_: Any) -> Late:
        return Late()

    monkeypatch.setattr(front, "connect", connected)
    with pytest.raises(ClientError, match="alice is gone"):
        run(front.find_guest("alice", lab))
