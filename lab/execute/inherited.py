"""What this process has from its caller and changes for its own ends: kept, so that a program can be given it unchanged.

A program that this process becomes, or starts by fork and exec, inherits of itself what nobody here touches: folder, umask,
limits, niceness, affinity, signal mask, terminal, descriptors. Four things Python or the lab do change:

* standard streams that are closed: a descriptor opened later would become one, and libuv aborts. They are opened on /dev/null;
* ignored signals (nohup, a script's background jobs), which handlers of ours replace;
* the environment: the lab's own Python goes without PYTHONPATH, Python sets ``LC_CTYPE`` where it finds the C locale (PEP 538), and
  libraries are told to start no threads;
* the soft limit on descriptors, which commands raise.

Python ignores SIGPIPE and SIGXFSZ before anybody can look: a program gets them at their default, whatever they were.

Standard library alone: a command calls `note` before it knows whether it has its packages.
"""

import os
import resource
import signal
import sys
from collections.abc import Set
from pathlib import Path

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
ASIDE = b"XBL_CALLERS_"
"""What the names of variables that are laid aside begin with."""

ignored: set[int] = set()
"""The signals that the caller ignores."""
environment: dict[bytes, bytes] = dict(os.environb)
"""The caller's environment."""
_opened: list[int] = []
_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def note() -> None:
    """Remember what the caller gave, and open what is closed of descriptors 0, 1 and 2. The first thing that a command does."""
    ignored.update(n for n in signal.valid_signals() if n not in BY_PYTHON and signal.getsignal(n) == signal.SIG_IGN)
    try:
        given = Path("/proc/self/environ").read_bytes()  # what this process was started with
    except OSError:
        pass
    else:
        environment.clear()
        environment.update((name, value) for name, is_one, value in (item.partition(b"=") for item in given.split(b"\0")) if is_one)
    for variable in [name for name in environment if name.startswith(ASIDE)]:
        environment[variable.removeprefix(ASIDE)] = environment.pop(variable)
        os.environb.pop(variable, None)
    while (fd := os.open(os.devnull, os.O_RDWR)) < len(STREAMS):
        os.set_inheritable(fd, True)
        _opened.append(fd)
    os.close(fd)
    for fd, (name, mode) in enumerate(STREAMS):
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def laid_aside(names: Set[bytes]) -> dict[bytes, bytes]:
    """The environment for another Python that goes on in our place: without `names`, which `note` then finds for the program."""
    return {ASIDE + name if name in names else name: value for name, value in environment.items()}


def give_back() -> None:
    """Undo what was changed, in a process that execs next, with `environment`."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    for fd in _opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def let_go(keep: Set[int]) -> None:
    """Close all descriptors but `keep`; standard streams become /dev/null. For a process that lives on beside the program."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(len(STREAMS)):
        os.dup2(null, fd)
    stay = sorted({*range(len(STREAMS)), *keep})
    for low, high in zip(stay, [*stay[1:], 1 << 20], strict=True):
        os.closerange(low + 1, high)
