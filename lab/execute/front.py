"""What launch.py does for a program in a guest: finds the guest, starts the program, stands for it in the caller's job."""

import asyncio
import errno
import os
import select
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from domu.confinement import syscalls
from domu.programs.table import program_of, those
from hyp import linux
from hyp.control import ControlError, close_all
from lab.command.clients import HOW_TO_START, ClientError, connect, living, not_running, silent
from lab.execute import inherited, supervisor
from lab.execute.relay import Relay, terminals
from lab.execute.supervisor import Machine, Message
from lab.execute.terminal import Terminal
from lab.rundir import RunDir

FAILED = 1
ANSWER_S = 10.0
FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTSTP,
    signal.SIGWINCH, signal.SIGIO, signal.SIGPWR, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
}  # fmt: skip
AT_TERMINAL = (signal.SIGTTIN, signal.SIGTTOU)


# --- which guest -----------------------------------------------------------------------------------------------------


async def find_guest(guest: str, topology: str | None) -> Machine:
    """The machine that `guest` is, which can run programs. ClientError, saying why, if there is none to be had."""
    every = await living()
    statuses = [status for status in every if topology in (None, status["name"])]
    if not statuses:
        what = (
            not_running(topology, [status["name"] for status in every]) if topology else f"no topology is running: {HOW_TO_START}"
        )
        raise ClientError(what)
    found = [status for status in statuses if guest in {one["name"] for one in status["guests"]}]
    if not found:
        known = sorted(one["name"] for status in statuses for one in status["guests"])
        unready = [f"topology {status['name']} is {status['state']}" for status in statuses if not status["guests"]]
        there = "; ".join([f"there are {', '.join(known)}"] * bool(known) + unready)
        raise ClientError(f"no running topology has a guest named {guest!r}; {there}")
    if len(found) > 1:
        names = ", ".join(status["name"] for status in found)
        raise ClientError(f"topologies {names} have a guest named {guest!r}: say which with --topology")
    _check_guest(guest, found[0])
    table = next(one for one in found[0]["guests"] if one["name"] == guest)
    addresses = tuple(table[key].partition("/")[0] for key in ("address", "address6") if table[key])
    cpus = found[0]["cpu"]["programs"].get(guest)
    machine = await _machine_of(guest, RunDir.of(found[0]["name"]), addresses, cpus)
    if not table["confined"]:
        return machine
    try:
        syscalls.library()  # while its file can be read
    except RuntimeError as error:
        raise ClientError(f"{guest} is confined, and {error}") from None
    return replace(machine, confined=True)


def _check_guest(guest: str, status: dict[str, Any]) -> None:
    """ClientError unless the guest runs programs, now."""
    if status["state"] not in ("up", "degraded"):
        raise ClientError(f"topology {status['name']} is {status['state']}; {guest} runs programs once it is up")
    program = program_of(next(one["program"] for one in status["guests"] if one["name"] == guest))
    if not program.addressed:
        wanted = those("addressed")
        raise ClientError(f'{guest} has program = "{program.name}"; programs are run in guests with program = {wanted}')
    state = next(process["state"] for process in status["processes"] if process["name"] == guest)
    if state != "ready":
        raise ClientError(f"{guest} {state}")


async def _machine_of(guest: str, run: RunDir, addresses: tuple[str, ...], cpus: list[int] | None) -> Machine:
    keeper = await connect(run)
    try:
        async with asyncio.timeout(ANSWER_S):
            fds = (await keeper.call("machine", guest=guest)).fds
    except ControlError as error:
        raise ClientError(f"{guest}: {error}") from error
    except TimeoutError as error:
        raise silent(run.name, error) from error
    finally:
        keeper.close()
    process, init, lifeline = fds
    if not _is_child(init, process):  # it is gone, and perhaps somebody else has init's number
        close_all(fds)
        raise ClientError(f"{guest} is gone")
    return Machine(process, init, lifeline, addresses, None if cpus is None else frozenset(cpus))


def _is_child(init: int, process: int) -> bool:
    """`init` is a pidfd of a child of `process`."""
    try:
        status = Path(f"/proc/{linux.pid_of(init)}/status").read_text(errors="replace")
    except OSError:
        return False
    return f"\nPPid:\t{linux.pid_of(process)}\n" in status


# --- standing for the program ----------------------------------------------------------------------------------------


def run_inside(guest: Machine, name: str, argv: list[bytes]) -> int:
    """Run a program in the guest `name`; returns the exit status.

    This process has no standard streams of its own after that, and should exit. It must not have a running event loop.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if not argv[0]:
        return _cannot_execute(name, argv, errno.ENOENT, guest)
    terminal, signals = Terminal.controlling(), supervisor.Arrivals()
    for number in {*FORWARDED, signal.SIGCONT} - inherited.ignored:
        signal.signal(number, supervisor.nothing)
    for number in {signal.SIGTTOU, *(FORWARDED & inherited.ignored)}:
        signal.signal(number, signal.SIG_IGN)
    relay = None
    try:
        if guest.confined and (replaced := terminals()):
            relay = Relay(replaced, terminal)
        sock = supervisor.fork(guest, name, argv, relay)
    except OSError as error:  # a limit on processes, on terminals
        return _cannot_execute(name, argv, error.errno or errno.EAGAIN, guest)
    with sock:
        guest.let_go()
        front, heard = None, supervisor.hear(sock)
        if heard is not None and heard[0] == Message.BORN:
            front, heard = _Front(sock, terminal, signals, heard[1], relay), supervisor.hear(sock)
        match heard:
            case Message.RUNNING, _ if front is not None:
                kept = signals.fds.union({terminal.fd} if terminal is not None else (), relay.fds if relay is not None else ())
                inherited.let_go({sock.fileno(), *kept})
                return front.run()
            case Message.NO_PROGRAM, code:
                if front is not None:
                    front.end()
                return _cannot_execute(name, argv, code, guest)
            case Message.NO_ENTRY, code:
                raise ClientError(f"{name} cannot be entered: {os.strerror(code)}")
            case None if front is not None:
                return front.killed()
        raise ClientError(f"{name}: {os.fsdecode(argv[0])}: the process that started it was killed")


def _cannot_execute(name: str, argv: list[bytes], code: int, guest: Machine) -> int:
    why = ""
    if code == errno.EACCES and guest.confined:
        why = f" ({name} is confined, and is nobody outside: it can run what everybody may read, of the system and of this lab)"
    print(f"{name}: {os.fsdecode(argv[0])}: {os.strerror(code)}{why}", file=sys.stderr)
    return 127 if code == errno.ENOENT else 126


class _Front:
    """This process, in its caller's job, for the program in process group `program`.

    That is lent the caller's terminal, or with a `relay` has one of its own.
    """

    def __init__(
        self,
        sock: socket.socket,
        terminal: Terminal | None,
        signals: supervisor.Arrivals,
        program: int,
        relay: Relay | None = None,
    ) -> None:
        self._sock, self._signals, self._program, self._relay = sock, signals, program, relay
        self._terminal = terminal if relay is None else relay
        self._interactive = terminal is not None and terminal.is_both(0, 1)
        self._lend()
        supervisor.say(sock, Message.GO)

    def run(self) -> int:
        """Stand for the program until it has ended; returns the exit status."""
        while True:
            for fd in self._wait():
                if fd == self._signals.fd:
                    self._pass_on(self._signals.read())
                elif (heard := supervisor.hear(self._sock)) is None:
                    return self.killed()
                elif heard[0] == Message.STOPPED:
                    self._stopped(heard[1])
                else:
                    return self._ended(*heard)

    def _wait(self) -> list[int]:
        """Wait for signals and for the supervisor; returns the descriptors at which there are any."""
        fds = {self._sock.fileno(), self._signals.fd}
        if self._relay is not None:
            return self._relay.poll(fds)
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll()]

    def _lend(self) -> None:
        if self._interactive and self._terminal is not None and self._terminal.is_ours():
            self._give(self._terminal)

    def _give(self, terminal: Terminal) -> None:
        terminal.lend(self._program)
        if self._relay is not None:
            supervisor.say(self._sock, Message.LEND)

    def _tell(self, number: int) -> None:
        supervisor.say(self._sock, Message.SIGNAL, number)

    def _pass_on(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCONT:
                self._lend()
            if number == signal.SIGWINCH and self._relay is not None:
                self._relay.resize()
            else:
                self._tell(number)

    def _stopped(self, number: int) -> None:
        """The program has stopped: let it have the terminal if that is what it wants and we can give; else stop with it.

        It may have it by now: a shell gave us the terminal, and we lent it, as the program, just before, asked for it.
        """
        if number in AT_TERMINAL and self._terminal is not None and self._terminal.is_ours(borrower=self._program):
            self._give(self._terminal)
            self._tell(signal.SIGCONT)
            return
        arrived = self._signals.read()
        if signal.SIGCONT in arrived:  # it goes on already
            self._pass_on(arrived)
            return
        self._pass_on(arrived)
        had_terminal = self.end()
        arrived = self._stop(number, everybody=number in AT_TERMINAL or (number == signal.SIGTSTP and had_terminal))
        if signal.SIGCONT not in arrived:  # the kernel stops nobody whom no shell could continue
            if number in AT_TERMINAL:
                self._tell(signal.SIGHUP)  # as it does with groups that become so
            self._pass_on(bytes([signal.SIGCONT]))
        self._pass_on(arrived)

    def _stop(self, number: int, *, everybody: bool) -> bytes:
        """Stop by signal `number`, with `everybody` in our group if the terminal would have; returns the signals that arrived."""
        handler = signal.signal(number, signal.SIG_DFL) if number != signal.SIGSTOP else None
        os.kill(0 if everybody else os.getpid(), number)
        if handler is not None:
            signal.signal(number, handler)
        return self._signals.read()

    def _ended(self, message: Message, status: int) -> int:
        code = os.waitstatus_to_exitcode(status)
        had_terminal = self.end(restore=code < 0)
        if had_terminal and -code in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(-code, signal.SIG_IGN)
            os.kill(0, -code)  # whoever else is in our group, a script's shell say, would have got it with the program
        if message == Message.GUEST_GONE:
            return FAILED
        return 128 - code if code < 0 else code

    def killed(self) -> int:
        """The exit status when the supervisor was killed, and the program with it."""
        self.end(restore=True)
        return 128 + signal.SIGKILL

    def end(self, *, restore: bool = False) -> bool:
        """Have the terminal again; returns whether the program had it."""
        if self._relay is not None:
            self._relay.drain()
            supervisor.say(self._sock, Message.TAKE)
        return self._terminal is not None and self._terminal.take_back(restore=restore)
