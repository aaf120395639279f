"""`launch.py exec` on a terminal, in a confined guest: the program's terminal is its own, and what it leaves behind has that."""

import os
import shlex
import signal
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.test_terminal import CONFINED, guest_of, guests_up, line, program_of, status_is, words
from tests.support.labs import SAID_PROCESS, staying_up, topology_file, unique, wait_until
from tests.support.screens import PROMPT, Screen, screen, shell, state
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("confinement", "taps")]

RAW = termios.ICANON | termios.ECHO | termios.ISIG


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with guests_up(tmp_path_factory.mktemp("confined"), "confterm") as name:
        yield name


def is_raw(shown: Screen) -> bool:
    return not shown.modes() & RAW


# --- what it is for --------------------------------------------------------------------------------------------------

LEFT_BEHIND = """
import os

typed, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    print("left " + "behind", flush=True)
    os.read(typed, 1)
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
os.write(told, b"x")
"""
"""Both ends of a program may read what is typed while it runs: the one that stays begins when the other has had its key."""


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


# --- and is otherwise as the caller's (test_terminal.py) --------------------------------------------------------------


def test_an_editors_modes_are_not_the_programs(lab: str) -> None:
    """A shell that edits lines has its terminal so while a job begins in the background."""
    with screen("bash", "--norc", "-i", PS1=PROMPT) as shown:
        shown.expect(PROMPT)
        shown.enter(line(lab, "exec sh -c \"read answer; echo ans''wer \\$answer\"") + " & echo exec $!,")
        front = int(shown.expect(r"exec (\d+),")[1])
        program = program_of(shown)
        wait_until(lambda: state(program) == state(front) == "T", "the program to be stopped, since it reads")
        shown.enter("fg")
        wait_until(lambda: state(program) == "S", "the program to go on")
        shown.type("yes\r")
        shown.expect("answer yes")


def test_what_is_not_to_be_shown_is_not(lab: str) -> None:
    """Where its output is none of the terminal's it may still ask for a password there."""
    with shell() as shown:
        asks = "import getpass; print('given', getpass.getpass('what''ever? '))"
        shown.enter(f"{shlex.join(words(lab, '/usr/bin/python3', '-c', asks))} | cat")
        shown.expect(r"whatever\? ")
        shown.enter("hidden")
        shown.expect("given hidden")
        assert shown.shown.count("hidden") == 1


APART = "import os, sys; os.fork() and os._exit(0); os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])"
SETSID = shlex.join([sys.executable, "-c", APART])
"""setsid(1), which not every machine has."""


def test_another_sessions_terminal_is_not_read(lab: str) -> None:
    """A program that has it as its standard input, as one started by setsid(1) has: the keys are the shell's."""
    with shell() as shown:
        shown.enter(SETSID + " " + line(lab, "read answer; echo go''t $answer") + " &")
        shown.expect(SAID_PROCESS)
        for _ in range(20):
            shown.enter("echo se''en")
            shown.expect("seen")
        assert "got" not in shown.shown


def test_all_that_it_has_written_is_shown_at_its_end(lab: str) -> None:
    with shell() as shown:
        count = "k=0; while [ $k -lt 20000 ]; do k=$((k + 1)); echo $k; done"
        shown.enter(line(lab, f"{count}; printf %5000s las''t") + "; echo en''d")
        shown.expect(SAID_PROCESS)
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
    with staying_up(topology_file(tmp_path, "confdeath", CONFINED)), shell() as shown:
        before = shown.modes()
        shown.enter(line(name, "exec sleep 1000"))
        program_of(shown)
        wait_until(lambda: is_raw(shown), "the terminal to be the program's")
        os.kill(guest_of(name, "alice"), signal.SIGKILL)
        shown.expect("alice is gone")
        shown.expect(PROMPT)
        status_is(shown, 1)
        assert shown.modes() == before
