"""`launch.py exec` on a terminal, in a confined guest: the program's terminal is its own, and what it leaves behind has that."""

import os
import shlex
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.test_terminal import INSIDE, guest_of, has_terminal, parent, program_of, status_is, words
from tests.support.labs import SAID_PROCESS, SAY_PROCESS, launch, left_behind, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.screens import PROMPT, START, Screen, screen, shell, state
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("confinement", "taps")]

GUESTS = """
memory.backing = "sealed"

[[guest]]
name = "alice"
path = "bypass"
confined = true
program = "tap"
address = "10.0.0.1/24"
"""
FEW = tiered(START, ["dash"], **{name: pytest.mark.needs(name) for name in START})
RAW = termios.ICANON | termios.ECHO | termios.ISIG


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A confined TAP guest, alice; the topology's name."""
    with staying_up(topology_file(tmp_path_factory.mktemp("confined"), "confterm", GUESTS)) as (process, _):
        yield unique("confterm")
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143
    assert left_behind(unique("confterm")) == []


def line(lab: str, script: str) -> str:
    return shlex.join(words(lab, "sh", "-c", SAY_PROCESS + script))


def is_raw(shown: Screen) -> bool:
    return not shown.modes() & RAW


def in_foreground(pid: int) -> bool:
    """The process's group has the terminal that is its session's."""
    group, _, _, foreground = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[2:6]
    return group == foreground


# --- what it is for --------------------------------------------------------------------------------------------------

LEFT_BEHIND = """
import os

if os.fork() == 0:
    os.setsid()
    print("left " + "behind", flush=True)
    for fd in range(3):
        try:
            while os.read(fd, 1):
                pass
            how = "at its end"
        except OSError as error:
            how = error.strerror
        with open("/dev/shm/found", "a") as file:
            file.write(f"{fd} {how}\\n")
    os._exit(0)
os.read(0, 1)
"""


@pytest.mark.parametrize("streams", tiered(["", " | cat", " 2>/dev/null"], [""]))
def test_what_it_leaves_behind_reads_nothing_of_what_is_typed_later(lab: str, streams: str) -> None:
    with shell() as shown:
        shown.enter(f"{shlex.join(words(lab, 'rm', '-f', '/dev/shm/found'))}")
        shown.expect(PROMPT)
        shown.enter(shlex.join(words(lab, "/usr/bin/python3", "-c", LEFT_BEHIND)) + streams)
        shown.expect("left behind")
        shown.enter("")
        shown.expect(PROMPT)
        shown.enter("echo sec''ret")
        shown.expect("secret")
        shown.expect(PROMPT)
        waits = "while ! grep -q ^2 /dev/shm/found; do :; done; cat /dev/shm/found; echo sa''id"
        shown.enter(shlex.join(words(lab, "sh", "-c", waits)))
        shown.expect("said")
        assert "0 Input/output error" in shown.shown or "0 at its end" in shown.shown


def test_the_callers_terminal_cannot_be_opened(lab: str) -> None:
    """Nor through the descriptor that anybody has of who stands for it, when no stream is a terminal."""
    with shell() as shown:
        opens = "sh -c 'exec 3<>/dev/tty' 2>&1; echo ope''ned $?"
        shown.enter(f"{shlex.join(words(lab, 'sh', '-c', opens))} </dev/null 2>/dev/null | cat")
        shown.expect(r"opened [^0]")
        shown.expect(PROMPT)
        shown.enter(shlex.join(words(lab, "sh", "-c", "echo it''s mine >/dev/tty")))
        shown.expect("its mine")
        shown.expect(PROMPT)


def test_every_descriptor_that_is_a_terminal_is_the_programs(lab: str) -> None:
    """The same one, and not that of the caller."""
    with shell() as shown:
        shown.enter("tty")
        outer = shown.expect(r"/dev/pts/\d+")[0]
        look = "import os, sys; print('th' 'ey are', *sorted({os.fstat(fd).st_rdev for fd in (0, 1, 2, 5)}), 'al' 'l')"
        shown.enter(shlex.join(words(lab, "/usr/bin/python3", "-c", look)) + " 5<>/dev/tty")
        found = shown.expect(r"they are (\d+) all")[1]
        assert int(found) != os.stat(outer).st_rdev


# --- as on the caller's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_an_interactive_shell_has_job_control(lab: str, name: str) -> None:
    with screen(*words(lab, name, *START[name]), PS1=INSIDE, ENV="") as shown:
        shown.expect(INSIDE)
        assert "job control" not in shown.shown  # that there is none
        shown.enter("stty size")
        shown.expect(r"24 80\r\n")
        shown.resize(33, 101)
        shown.enter("stty size")
        shown.expect(r"33 101\r\n")
        shown.enter(f"sh -c '{SAY_PROCESS} exec sleep 1000'")
        sleeping = program_of(shown)
        wait_until(lambda: state(sleeping) == "S", "it to sleep")
        shown.type("\x1a")
        shown.expect("Stopped")
        shown.expect(INSIDE)
        assert state(sleeping) == "T"
        shown.enter("bg; echo do''ne")
        shown.expect(r"done\r\n")
        wait_until(lambda: state(sleeping) == "S", "the job to run in the background")
        shown.enter("fg")
        wait_until(lambda: in_foreground(sleeping), "the job to have the terminal")
        shown.type("\x03")
        shown.expect(INSIDE)
        wait_until(lambda: state(sleeping) == "", "the job to end")
        shown.enter("exit 3")
        assert shown.wait() == 3


@pytest.mark.parametrize("name", FEW)
def test_a_plain_program_is_stopped_and_continued_with_its_exec(lab: str, name: str) -> None:
    with shell(name) as shown:
        before = shown.modes()
        shown.enter(line(lab, "exec sleep 1000"))
        program = program_of(shown)
        for _ in range(2):
            wait_until(lambda: is_raw(shown) and state(program) == "S", "the program to go on")
            shown.type("\x1a")
            shown.expect("Stopped")
            shown.expect(PROMPT)
            assert state(program) == "T"
            assert shown.modes() & RAW == before & RAW
            shown.enter("fg")
        wait_until(lambda: is_raw(shown) and state(program) == "S", "the program to go on")
        shown.type("\x03")
        shown.expect(PROMPT)
        status_is(shown, 128 + signal.SIGINT)
        assert state(program) == ""
        assert has_terminal(shown, shown.pid)


def test_a_program_where_no_shell_could_continue_it_is_not_stopped(lab: str) -> None:
    with screen(*words(lab, "sh", "-c", SAY_PROCESS + "read answer; echo ans''wer $answer")) as shown:
        program_of(shown)
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        shown.type("\x1a")
        shown.expect(r"\^Z")
        shown.enter("yes")
        shown.expect("answer yes")
        assert shown.wait() == 0


@pytest.mark.parametrize("name", FEW)
def test_in_the_background_it_writes_but_takes_no_keystrokes(lab: str, name: str) -> None:
    with shell(name) as shown:
        shown.enter(line(lab, "echo writ''ing; read answer; echo ans''wer $answer") + " & echo exec $!,")
        front = int(shown.expect(r"exec (\d+),")[1])
        program = program_of(shown)
        shown.expect("writing")
        wait_until(lambda: state(program) == state(front) == "T", "the program to be stopped, since it reads")
        shown.enter("echo the she''ll")
        shown.expect("the shell")
        assert not is_raw(shown)
        shown.enter("fg")
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        shown.enter("yes")
        shown.expect("answer yes")
        shown.expect(PROMPT)


def test_brought_to_the_foreground_while_it_runs_it_reads(lab: str) -> None:
    with shell() as shown:
        shown.enter(line(lab, "while ! [ -e /dev/shm/go ]; do :; done; read answer; echo ans''wer $answer; rm /dev/shm/go") + " &")
        program_of(shown)
        shown.enter("fg")
        shown.expect(r"fg\r\n")
        wait_until(lambda: not has_terminal(shown, shown.pid), "the shell to have let go of the terminal")
        assert launch("exec", "--topology", lab, "alice", "--", "touch", "/dev/shm/go").returncode == 0
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        shown.enter("yes")
        shown.expect("answer yes")
        shown.expect(PROMPT)


def test_an_editors_modes_are_not_the_programs(lab: str) -> None:
    """A shell that edits lines has its terminal so while a job begins in the background."""
    with screen("bash", "--norc", "-i", PS1=PROMPT) as shown:
        shown.expect(PROMPT)
        shown.enter(line(lab, "exec sh -c \"read answer; echo ans''wer \\$answer\"") + " &")
        program = program_of(shown)
        wait_until(lambda: state(program) == "T", "the program to be stopped, since it reads")
        shown.enter("fg")
        wait_until(lambda: state(program) == "S", "the program to go on")
        shown.type("yes\r")
        shown.expect("answer yes")


def test_in_a_pipeline_the_terminal_is_whose_wants_it(lab: str) -> None:
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
        program_of(shown)
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        shown.enter("y")
        shown.expect("piped key y")
        shown.expect(PROMPT)
        shown.enter(f"{line(lab, 'cat')} | sed 's/^/pip/'")
        shown.expect("pip.*\n")
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        shown.enter("ed")
        shown.expect("piped\r")
        shown.type("\x04")
        shown.expect(PROMPT)


def test_what_is_not_to_be_shown_is_not(lab: str) -> None:
    """Where its output is none of the terminal's it may still ask for a password there."""
    with shell() as shown:
        asks = "import getpass; print('given', getpass.getpass('what''ever? '))"
        shown.enter(f"{shlex.join(words(lab, '/usr/bin/python3', '-c', asks))} | cat")
        shown.expect(r"whatever\? ")
        shown.enter("hidden")
        shown.expect("given hidden")
        assert shown.shown.count("hidden") == 1


def test_another_sessions_terminal_is_not_read(lab: str) -> None:
    """A program that has it as its standard input, as one started by setsid(1) has: the keys are the shell's."""
    with shell() as shown:
        shown.enter("setsid " + line(lab, "read answer; echo go''t $answer") + " &")
        shown.expect(SAID_PROCESS)
        for _ in range(20):
            shown.enter("echo se''en")
            shown.expect("seen")
        assert "got" not in shown.shown


def test_all_that_it_has_written_is_shown_at_its_end(lab: str) -> None:
    with shell() as shown:
        shown.enter(line(lab, "seq 20000; printf %5000s las''t") + "; echo en''d")
        program_of(shown)
        shown.expect(r"\n20000\r\n {4996}lastend\r\n")
        found = shown.shown.split()
        assert [number for number in found if number.isdigit()][-20_000:] == [str(k) for k in range(1, 20_001)]


@pytest.mark.long
def test_more_is_typed_than_there_is_room_for(lab: str) -> None:
    """It waits, and is not lost; nor is what is shown meanwhile."""
    keys = 50_000
    with shell() as shown:
        shown.enter(line(lab, f"stty raw -echo; echo rea''dy; sleep 0.2; head -c {keys} | wc -c; stty sane; echo re''ad"))
        shown.expect("ready")
        for _ in range(keys // 1000):
            shown.type("x" * 1000)
        shown.expect(rf"{keys}\D*read")
        shown.expect(PROMPT)


ENDS = ["the program is killed", "the exec is terminated", "the supervisor is killed"]


@pytest.mark.parametrize("end", tiered(ENDS, ENDS[1:2]))
def test_the_terminal_is_as_it_was(lab: str, end: str) -> None:
    with shell() as shown:
        before = shown.modes()
        shown.enter(line(lab, "exec sleep 1000"))
        program = program_of(shown)
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        supervisor = parent(program)
        front = parent(supervisor)
        which = {"the program is killed": (program, signal.SIGKILL), "the exec is terminated": (front, signal.SIGTERM)}
        os.kill(*which.get(end, (supervisor, signal.SIGKILL)))
        shown.expect(PROMPT)
        wait_until(lambda: shown.modes() == before, "the terminal's modes to be as before")
        assert has_terminal(shown, shown.pid)
        wait_until(lambda: state(program) == "", "the program to end")


@pytest.mark.long
def test_the_terminals_hangup_ends_a_program(lab: str) -> None:
    with shell() as shown:
        shown.enter(line(lab, "exec sleep 1000"))
        program = program_of(shown)
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
    wait_until(lambda: state(program) == "", "the program to end")


@pytest.mark.long
def test_what_cannot_be_executed_is_said(lab: str) -> None:
    with shell() as shown:
        before = shown.modes()
        shown.enter(shlex.join(words(lab, "/usr/bin/nothing-of-that-name")))
        shown.expect("No such file or directory")
        shown.expect(PROMPT)
        status_is(shown, 127)
        assert shown.modes() == before


def test_the_guests_death_is_said(tmp_path: Path) -> None:
    name = unique("confdeath")
    with staying_up(topology_file(tmp_path, "confdeath", GUESTS)), shell() as shown:
        before = shown.modes()
        shown.enter(line(name, "exec sleep 1000"))
        program_of(shown)
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        os.kill(guest_of(name, "alice"), signal.SIGKILL)
        shown.expect("alice is gone")
        shown.expect(PROMPT)
        status_is(shown, 1)
        assert shown.modes() == before
