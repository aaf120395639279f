"""The parent of a program in a guest: enters the guest's namespaces, starts the program there, reaps it, and ends it in time.

A process of its own between launch.py and the program, forked by `fork`, because launch.py stops with the program (Ctrl-Z) and a
stopped parent cannot reap: a PID namespace does not end before whoever was put into it from outside has been reaped, so that a
topology could not be taken down. It is in a process group of its own, which no terminal signals, and keeps none of the program's
descriptors. Of a program in a confined guest it leads the session, which has not the caller's terminal (relay.py).

The program is ended (SIGKILL to its process group) when launch.py or the guest's process has ended, and reaped before the guest's
init, which it keeps alive, kills what is left there; should the supervisor itself be
killed, the kernel kills the program.

Messages on the socket to launch.py are `Message`: up, what happens to the program; down, `GO` once its process group may run,
`SIGNAL`, and of a program with a terminal of its own `LEND` and `TAKE`. Nobody waits for room there: who doesn't read loses some.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

from domu.confinement.confine import ENVIRONMENT, seal_program
from hyp import linux
from hyp.net.steps import SetupError
from lab.execute import inherited
from lab.execute.relay import Relay, takes


class Message(IntEnum):
    """What is said, with one number."""

    GO = 1
    SIGNAL = 2  # its number
    BORN = 3  # the program's process, which is its process group: its id
    NO_ENTRY = 4  # the guest's namespaces cannot be entered: errno
    NO_PROGRAM = 5  # the program cannot be executed: errno
    RUNNING = 6  # from now on nobody but the program has the standard streams
    STOPPED = 7  # by which signal
    ENDED = 8  # wait status
    GUEST_GONE = 9  # the guest's process has ended, and the program was killed
    LEND = 10  # the program's group is in the foreground of its own terminal from now on
    TAKE = 11  # or is not


FORMAT = struct.Struct("ii")
GONE_MS = 200
AGAIN_MS = 100


def say(sock: socket.socket, message: Message, number: int = 0) -> None:
    """Send a message; nothing happens if nobody is there."""
    with contextlib.suppress(OSError):
        sock.send(FORMAT.pack(message, number), socket.MSG_DONTWAIT)


def hear(sock: socket.socket) -> tuple[Message, int] | None:
    """Wait for a message; None if the other side has ended."""
    try:
        packet = sock.recv(FORMAT.size)
    except OSError:
        return None
    if not packet:
        return None
    message, number = FORMAT.unpack(packet)
    return Message(message), number


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest as who runs programs in it needs it: pidfds of the guest's process and of its init, and what keeps init alive
    (domu/machine.py); its addresses on the lab's network; the CPUs of programs in it, None: any; if programs in it are confined,
    and have to stay on these CPUs."""

    process: int
    init: int
    lifeline: int
    addresses: tuple[str, ...]
    cpus: frozenset[int] | None = None
    confined: bool = False

    @property
    def fds(self) -> set[int]:
        """All descriptors."""
        return {self.process, self.init, self.lifeline}

    def let_go(self) -> None:
        """Close them."""
        for fd in self.fds:
            os.close(fd)


class Arrivals:
    """Signals that have arrived and have a handler, to be read from a descriptor."""

    def __init__(self) -> None:
        self.fd, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.fds = {self.fd, writer}
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def read(self) -> bytes:
        """Their numbers, a byte each; none if there are none."""
        try:
            return os.read(self.fd, 4096)
        except BlockingIOError:
            return b""


def nothing(number: int, _: object) -> None:
    """The handler of a signal that `Arrivals` is to say."""


def fork(guest: Machine, name: str, argv: list[bytes], relay: Relay | None = None) -> socket.socket:
    """Start the supervisor of a program that is to run in the guest `name`; returns our end of its socket.

    `guest` stays the caller's, and of a `relay` the caller's end. The program gets all that the caller has (inherited.py), with a
    terminal of its own if there is a `relay`, and of the CPUs that the caller may use those that are the guest's, if there are any.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask: set[int] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if os.fork() == 0:
            try:
                ours.close()
                _Supervisor(theirs, guest, name, relay).run(argv, mask)
            finally:
                os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    if relay is not None:
        os.close(relay.end)
    return ours


class _Supervisor:
    def __init__(self, front: socket.socket, guest: Machine, name: str, relay: Relay | None) -> None:
        self._front, self._guest, self._name, self._relay = front, guest, name, relay
        self._front_pid = os.getppid()
        self._program = 0
        self._guest_gone = False
        if guest.confined:
            self._begin_session()
        else:
            os.setpgid(0, 0)
        self._signals = Arrivals()
        signal.signal(signal.SIGCHLD, nothing)  # if it was ignored, the kernel would not keep the program's status
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _begin_session(self) -> None:
        """A session without the caller's terminal, which what the program leaves behind could open."""
        os.setsid()
        if self._relay is not None:
            fcntl.ioctl(self._relay.end, termios.TIOCSCTTY, 0)

    def run(self, argv: list[bytes], mask: set[int]) -> None:
        """Be the supervisor, to the program's end."""
        linux.set_name("supervisor")
        try:
            linux.enter_namespaces(self._guest.init, folder_outside=not self._guest.confined)
        except OSError as error:
            say(self._front, Message.NO_ENTRY, error.errno or 0)
            return
        if self._start(argv, mask):
            terminal = {self._relay.end} if self._relay is not None else set()  # it stays one as long as the program runs
            inherited.let_go({self._front.fileno(), *self._guest.fds, *self._signals.fds, *terminal})
            say(self._front, Message.RUNNING)
            self._watch()

    def _start(self, argv: list[bytes], mask: set[int]) -> bool:
        """Start the program, in a process group of its own; False, after having said so, if that does not succeed."""
        try:
            (may_go, go), (failed, failure) = os.pipe(), os.pipe()
            self._program = os.fork()
        except OSError as error:  # a limit on processes or descriptors
            say(self._front, Message.NO_PROGRAM, error.errno or 0)
            return False
        if self._program == 0:
            os.close(go)
            _become(argv, mask, may_go, failure, self._guest, self._relay)
        os.close(may_go)
        os.close(failure)
        os.setpgid(self._program, self._program)  # by us: launch.py's group has no number where the program is
        say(self._front, Message.BORN, self._program)
        while (heard := hear(self._front)) is not None and heard[0] != Message.GO:
            self._obey(*heard)
        if heard is not None:
            os.write(go, b"!")
        os.close(go)
        code = os.read(failed, 4)
        if code:
            os.waitpid(self._program, 0)
            say(self._front, Message.NO_PROGRAM, int.from_bytes(code, "little"))
        return not code

    def _watch(self) -> None:
        """Serve launch.py and watch the guest until the program has been reaped."""
        poll = select.poll()
        for fd in (self._front.fileno(), self._guest.process, self._signals.fd):
            poll.register(fd, select.POLLIN)
        while not self._reap():
            for fd, _ in poll.poll():
                if fd == self._signals.fd:
                    self._signals.read()
                elif fd == self._guest.process:
                    poll.unregister(fd)
                    self._end_with_guest()
                elif (heard := hear(self._front)) is not None:
                    self._obey(*heard)
                else:
                    poll.unregister(fd)
                    self._kill(signal.SIGKILL)

    def _reap(self) -> bool:
        """Pass on what has happened to the program; True when it has ended."""
        while True:
            pid, status = os.waitpid(self._program, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return False
            if os.WIFSTOPPED(status):
                say(self._front, Message.STOPPED, os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                self._continue_front()  # whoever continued the program
            else:
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not self._guest_gone:
                    self._look_for_guest()
                say(self._front, Message.GUEST_GONE if self._guest_gone else Message.ENDED, status)
                self._let_front_end()
                return True

    def _continue_front(self) -> None:
        """The program's stand-in goes on."""
        if os.getppid() == self._front_pid:
            os.kill(self._front_pid, signal.SIGCONT)

    def _let_front_end(self) -> None:
        """The stand-in has stopped if the program had, or is about to: it is continued until it hangs up."""
        poll = select.poll()
        poll.register(self._front, 0)
        self._continue_front()
        while os.getppid() == self._front_pid and not poll.poll(AGAIN_MS):
            self._continue_front()

    def _look_for_guest(self) -> None:
        """Was it the guest's end that killed the program? A confined one's process has not ended before that has been reaped."""
        poll = select.poll()
        poll.register(self._guest.process, select.POLLIN)
        if self._guest.confined and poll.poll(GONE_MS):
            self._guest_gone = True
            if self._relay is not None:
                self._say_gone(self._relay.end)

    def _say_gone(self, fd: int) -> None:
        if takes(fd, 0):
            with contextlib.suppress(OSError):
                os.write(fd, f"{self._name} is gone\n".encode())

    def _obey(self, message: Message, number: int) -> None:
        """Do what launch.py says."""
        if message == Message.SIGNAL:
            self._kill(number)
        elif self._relay is not None:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(self._relay.end, self._program if message == Message.LEND else os.getpgrp())

    def _kill(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._program, number)

    def _end_with_guest(self) -> None:
        """Kill the program and say why where it would have said it itself, if somebody reads there."""
        self._guest_gone = True
        try:
            stderr = linux.descriptor_of(os.pidfd_open(self._program), 2)
        except OSError:
            stderr = None
        self._kill(signal.SIGKILL)
        if stderr is not None:
            self._say_gone(stderr)


def _become(argv: list[bytes], mask: set[int], may_go: int, failure: int, guest: Machine, relay: Relay | None) -> NoReturn:
    """In the child: become the program when `may_go` says so; its end before that is the supervisor's. `failure` takes an errno."""
    try:
        signal.set_wakeup_fd(-1)
        linux.die_with_parent()
        if os.read(may_go, 1):
            inherited.give_back()
            if relay is not None:
                for fd in relay.replaced:
                    os.dup2(relay.end, fd)
            if guest.cpus is not None and (both := os.sched_getaffinity(0) & guest.cpus):
                os.sched_setaffinity(0, both)
            if guest.confined:
                seal_program([str(Path(__file__).parents[2])])
                inherited.environment.update((os.fsencode(name), os.fsencode(value)) for name, value in ENVIRONMENT.items())
                linux.die_with_parent()  # anew, as somebody else
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execvpe(argv[0], argv, inherited.environment)
    except OSError as error:
        os.write(failure, (error.errno or 0).to_bytes(4, "little"))
    except SetupError as error:
        os.write(2, f"the program cannot be confined: {error}\n".encode())
        os.write(failure, errno.EPERM.to_bytes(4, "little"))
    finally:
        os._exit(127)
