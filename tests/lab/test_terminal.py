"""`launch.py exec` on a terminal: interactive shells and plain programs, stopped, continued, in the background, killed."""

import os
import re
import shlex
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.labs import (
    LAUNCH,
    SAID_PROCESS,
    SAY_PROCESS,
    launch,
    left_behind,
    process_said,
    processes,
    staying_up,
    topology_file,
    unique,
    wait_until,
)
from tests.support.patience import patient
from tests.support.screens import PROMPT, START, Screen, screen, shell, state
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

GUESTS = "".join(
    f'[[guest]]\nname = "{name}"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.{host}/24"\n'
    for host, name in enumerate(("alice", "bob"), 1)
)
INSIDE = "inside> "
SHELLS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in START]


CONFINED = 'confined = true\nmemory.backing = "sealed"\n' + GUESTS
KINDS = {"terminal": GUESTS, "confterm": CONFINED}
"""Topologies: the program's terminal is the caller's own, or one that stands for it (lab/execute/relay.py)."""


@contextmanager
def guests_up(folder: Path, kind: str) -> Iterator[str]:
    """Two TAP guests of a kind, alice and bob; the topology's name."""
    with staying_up(topology_file(folder, kind, KINDS[kind])) as (process, _):
        yield unique(kind)
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143
    assert left_behind(unique(kind)) == []


@pytest.fixture(scope="module", params=tiered(KINDS, ["terminal"], confterm=pytest.mark.needs("confinement")))
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Guests of either kind."""
    with guests_up(tmp_path_factory.mktemp(request.param), request.param) as name:
        yield name


def words(lab: str, *program: str, guest: str = "alice") -> list[str]:
    return [*LAUNCH, "exec", "--topology", lab, guest, "--", *program]


def line(lab: str, script: str, guest: str = "alice") -> str:
    """A command line that runs a shell script in a guest; the script says its process id first."""
    return shlex.join(words(lab, "sh", "-c", SAY_PROCESS + script, guest=guest))


def program_of(shown: Screen) -> int:
    """The process id, as this test's /proc has it, of the program that has just said it."""
    return process_said(shown.expect(SAID_PROCESS)[0])


def has_terminal(shown: Screen, group: int) -> bool:
    return os.tcgetpgrp(shown.master) == group


def is_lent(program: int) -> bool:
    """Its group is in the foreground of its terminal, the caller's or its own."""
    group, _, _, foreground = Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[2:6]
    return group == foreground


def status_is(shown: Screen, status: int) -> None:
    shown.enter("echo sta''tus $?")
    shown.expect(rf"status {status}\r\n")
    shown.expect(PROMPT)


# --- interactive shells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHELLS)
def test_an_interactive_shell_has_job_control(lab: str, name: str) -> None:
    """Straight on a terminal, without a shell around: as from a terminal emulator, or script(1)."""
    with screen(*words(lab, name, *START[name]), PS1=INSIDE, ENV="") as shown:
        shown.expect(INSIDE)
        assert "job control" not in shown.shown  # that there is none
        if lab == unique("terminal"):  # in whose guests terminals have names
            shown.enter("tty")
            shown.expect(r"/dev/pts/\d+\r\n")
        shown.enter("stty size")
        shown.expect(r"24 80\r\n")
        shown.resize(33, 101)
        shown.enter("stty size")
        shown.expect(r"33 101\r\n")
        shown.enter(f"sh -c '{SAY_PROCESS} exec sleep 1000'")
        sleeping = program_of(shown)
        shown.type("\x1a")
        shown.expect("Stopped")
        shown.expect(INSIDE)
        assert state(sleeping) == "T"
        shown.enter("jobs")
        shown.expect("Stopped.*sleep")
        shown.enter("bg; echo do''ne")
        shown.expect(r"done\r\n")
        shown.expect(INSIDE)
        wait_until(lambda: state(sleeping) == "S", "the job to run in the background")
        shown.enter("fg")
        wait_until(lambda: is_lent(sleeping), "the job to have the terminal")
        shown.type("\x03")
        shown.expect(INSIDE)
        wait_until(lambda: state(sleeping) == "", "the job to end")
        shown.enter("exit 3")
        assert shown.wait() == 3


def test_a_shell_in_a_guest_gives_the_terminal_back(lab: str) -> None:
    with shell() as shown:
        shown.enter(shlex.join(words(lab, "env", f"PS1={INSIDE}", "sh", "-i")))
        shown.expect("\n" + INSIDE)
        shown.enter("exit 4")
        shown.expect(PROMPT)
        assert has_terminal(shown, shown.pid)
        status_is(shown, 4)


# --- stop and continue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHELLS)
def test_a_plain_program_is_stopped_and_continued_with_its_exec(lab: str, name: str) -> None:
    with shell(name) as shown:
        shown.enter(line(lab, "exec sleep 1000"))
        program = program_of(shown)
        for _ in range(2):  # one that is stopped still is not stopped again, and what is typed then is lost when it goes on
            wait_until(lambda: is_lent(program) and state(program) == "S", "the program to go on, with the terminal")
            shown.type("\x1a")
            shown.expect("Stopped")
            shown.expect(PROMPT)
            assert state(program) == "T"
            shown.enter("fg")
        wait_until(lambda: is_lent(program) and state(program) == "S", "the program to go on")
        shown.type("\x03")
        shown.expect(PROMPT)
        status_is(shown, 128 + signal.SIGINT)
        assert state(program) == ""


def test_a_program_that_handles_ctrl_z_is_not_stopped(lab: str) -> None:
    with shell() as shown:
        shown.enter(line(lab, "trap 'echo hand''led' TSTP; echo rea''dy; while ! read answer; do :; done; echo ans''wer $answer"))
        program = program_of(shown)
        shown.expect("ready")
        wait_until(lambda: is_lent(program), "the program to have the terminal")
        shown.type("\x1a")
        shown.expect("handled")
        shown.enter("yes")
        shown.expect("answer yes")
        shown.expect(PROMPT)


def test_stopped_and_continued_by_signals_to_the_exec(lab: str) -> None:
    with shell() as shown:
        shown.enter(line(lab, "exec sleep 1000") + " </dev/null & echo exec $!,")
        front = int(shown.expect(r"exec (\d+),")[1])
        program = program_of(shown)
        os.kill(front, signal.SIGTSTP)
        wait_until(lambda: state(program) == state(front) == "T", "both to be stopped")
        os.kill(front, signal.SIGCONT)
        wait_until(lambda: state(program) == state(front) == "S", "both to go on")
        os.kill(program, signal.SIGSTOP)
        wait_until(lambda: state(front) == "T", "the exec to be stopped with its program")
        os.kill(program, signal.SIGCONT)
        wait_until(lambda: state(program) == state(front) == "S", "the exec to go on with its program")
        os.kill(front, signal.SIGTERM)
        wait_until(lambda: state(program) == "", "the program to end")


def test_a_program_where_no_shell_could_continue_it_is_not_stopped(lab: str) -> None:
    """As the kernel has it for any program whose process group is orphaned."""
    with screen(*words(lab, "sh", "-c", SAY_PROCESS + "read answer; echo ans''wer $answer")) as shown:
        program = program_of(shown)
        wait_until(lambda: is_lent(program), "the program to have the terminal")
        shown.type("\x1a")
        shown.expect(r"\^Z")
        shown.enter("yes")
        shown.expect("answer yes")
        assert shown.wait() == 0


# --- in the background -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHELLS)
def test_in_the_background_it_writes_but_takes_no_keystrokes(lab: str, name: str) -> None:
    with shell(name) as shown:
        shown.enter(line(lab, "echo writ''ing; read answer; echo ans''wer $answer") + " & echo exec $!,")
        front = int(shown.expect(r"exec (\d+),")[1])
        program = program_of(shown)
        shown.expect("writing")
        wait_until(lambda: state(program) == state(front) == "T", "the program to be stopped, since it reads")
        shown.enter("echo the she''ll")
        shown.expect("the shell")
        shown.enter("jobs")
        shown.expect("Stopped")
        shown.enter("fg")
        wait_until(lambda: is_lent(program), "the program to have the terminal")
        shown.enter("yes")
        shown.expect("answer yes")
        shown.expect(PROMPT)


def test_brought_to_the_foreground_while_it_runs_it_reads(lab: str) -> None:
    """Of its shell it has the terminal, or is continued as well (dash), or not (bash)."""
    with shell() as shown:
        script = "trap go=1 USR1; until [ $go ]; do sleep 0.1; done; read answer; echo ans''wer $answer"
        shown.enter(line(lab, script) + " &")
        program = program_of(shown)
        shown.enter("fg")
        shown.expect(r"fg\r\n")
        wait_until(lambda: not has_terminal(shown, shown.pid), "the shell to have let go of the terminal")
        os.kill(program, signal.SIGUSR1)
        wait_until(lambda: is_lent(program), "the program to have the terminal")
        shown.enter("yes")
        shown.expect("answer yes")
        shown.expect(PROMPT)


ASKED_BEFORE_IT_WAS_LENT = """
import os, signal, socket, time
from lab.execute import front, supervisor
from lab.execute.terminal import Terminal

signal.signal(signal.SIGTTOU, signal.SIG_IGN)
program = os.fork()
if program == 0:
    while True:
        time.sleep(1000)
os.setpgid(program, program)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
standing = front._Front(ours, Terminal.controlling(), supervisor.Arrivals(), program)
print("lent", os.tcgetpgrp(0) == program, supervisor.hear(theirs))
standing._stopped(signal.SIGTTIN)
print("heard", os.tcgetpgrp(0) == program, supervisor.hear(theirs))
os.kill(program, signal.SIGKILL)
"""


def test_a_program_that_asked_for_the_terminal_just_before_it_had_it_goes_on() -> None:
    """A shell that continues a job gives it the terminal first: the program may ask for it in between."""
    with screen(sys.executable, "-c", ASKED_BEFORE_IT_WAS_LENT) as shown:
        shown.expect(r"lent True \(<Message.GO: 1>, 0\)\r\n")
        shown.expect(rf"heard True \(<Message.SIGNAL: 2>, {signal.SIGCONT.value}\)\r\n")
        assert shown.wait() == 0


def test_nohup_outlives_the_terminal(lab: str) -> None:
    with shell() as shown:
        shown.enter(f"nohup {line(lab, 'exec sleep 1000')} 2>/dev/null </dev/null | cat & ")
        program = program_of(shown)
    # the terminal has been hung up
    try:
        assert state(program) in ("R", "S", "D")
    finally:
        front = parent(parent(program))
        os.kill(front, signal.SIGTERM)
    wait_until(lambda: state(program) == "", "the program to end")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_terminals_hangup_ends_a_program(lab: str) -> None:
    with shell() as shown:
        shown.enter(line(lab, "exec sleep 1000"))
        program = program_of(shown)
        wait_until(lambda: is_lent(program), "the program to have the terminal")
    wait_until(lambda: state(program) == "", "the program to end")


# --- among other programs --------------------------------------------------------------------------------------------


def test_in_a_pipeline_the_terminal_is_whose_wants_it(lab: str) -> None:
    """The neighbour's, until the program asks; and Ctrl-C is for both."""
    with shell() as shown:
        shown.enter(line(lab, "exec sleep 1000") + " | sh -c 'read pid; echo $pid; read key </dev/tty; echo k''ey $key; exec cat'")
        program = program_of(shown)
        shown.enter("x")
        shown.expect("key x")
        shown.type("\x1a")
        shown.expect("Stopped")
        shown.expect(PROMPT)
        wait_until(lambda: state(program) == "T", "the program to be stopped")
        shown.enter("fg")
        wait_until(lambda: state(program) == "S", "the program to go on")
        shown.type("\x03")
        shown.expect(PROMPT)
        wait_until(lambda: state(program) == "", "the program to end")
        shown.enter(f"echo piped | {line(lab, 'read text; read key </dev/tty; echo $text key $key')}")
        program = program_of(shown)
        wait_until(lambda: is_lent(program), "the program to have the terminal")
        shown.enter("y")
        shown.expect("piped key y")
        shown.expect(PROMPT)
        shown.enter(f"{line(lab, 'cat')} | sed 's/^/pip/'")  # which shows lines meanwhile
        shown.expect("pip.*\n")
        shown.enter("ed")
        shown.expect("piped\r")
        shown.type("\x04")
        shown.expect(PROMPT)


def test_ctrl_c_ends_a_scripts_loop_with_the_program_in_it(lab: str, tmp_path: Path) -> None:
    script = tmp_path / "loop"
    script.write_text(f"while :; do {line(lab, 'exec sleep 1000')}; done\n")
    with shell() as shown:
        shown.enter(f"sh {script}")
        program = program_of(shown)
        wait_until(lambda: is_lent(program), "the program to have the terminal")
        shown.type("\x03")
        shown.expect(PROMPT)
        status_is(shown, 128 + signal.SIGINT)


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["the program is killed", "the exec is terminated", "the supervisor is killed"])
def test_the_terminal_is_as_it_was(lab: str, end: str) -> None:
    """After a program that had made it raw."""
    with shell() as shown:
        before = shown.modes()
        shown.enter(line(lab, "stty raw -echo; echo ra''w; exec sleep 1000"))
        program = program_of(shown)
        shown.expect("raw")
        assert not shown.modes() & termios.ICANON
        if end == "the program is killed":
            os.kill(program, signal.SIGKILL)
        elif end == "the exec is terminated":
            os.kill(parent(parent(program)), signal.SIGTERM)
        else:
            os.kill(parent(program), signal.SIGKILL)
        shown.expect(re.escape(PROMPT))
        wait_until(lambda: shown.modes() == before, "the terminal's modes to be as before")
        assert has_terminal(shown, shown.pid)
        if end == "the supervisor is killed":  # who would have reaped it
            wait_until(lambda: state(program) == "", "the program to end")
        assert state(program) == ""


def test_deaths_with_a_terminal(tmp_path: Path) -> None:
    """A guest's, which is said, with the terminal as it was; then the topology's, which a program that is stopped does not keep."""
    name = unique("deaths")
    with staying_up(topology_file(tmp_path, "deaths", GUESTS)) as (process, _), shell() as shown:
        before = shown.modes()
        shown.enter(line(name, "exec sleep 1000"))
        stopped = program_of(shown)
        wait_until(lambda: is_lent(stopped), "the program to have the terminal")
        shown.type("\x1a")
        shown.expect("Stopped")
        shown.enter(line(name, "stty raw -echo; echo ra''w; exec sleep 1000", guest="bob"))
        program_of(shown)
        shown.expect("raw")
        os.kill(guest_of(name, "bob"), signal.SIGKILL)
        shown.expect("bob is gone")
        shown.expect(PROMPT)
        wait_until(lambda: shown.modes() == before, "the terminal's modes to be as before")
        done = launch("stop", name)
        assert (done.returncode, done.stdout) == (0, f"{name} has been taken down\n"), done.stderr
        assert state(stopped) == ""
        process.wait(patient(30))
        shown.enter("fg")
        shown.expect(PROMPT)
        status_is(shown, 1)
    assert left_behind(name) == []


def guest_of(topology: str, guest: str) -> int:
    return next(pid for pid, line in processes(topology).items() if f"domu:{guest}" in line.split())
