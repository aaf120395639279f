"""Limits on descriptors, processes and threads: what there is, what is used, and a sentence when one has been met.

Three limits stop a new process or thread, all with EAGAIN and nothing else: RLIMIT_NPROC (``ulimit -u``; per user, threads count,
root is exempt), pids.max of a control group (containers), kernel.threads-max. RLIMIT_NOFILE (``ulimit -n``) stops a new descriptor,
also one that comes in a message. RLIMIT_NOFILE of the sender also bounds the descriptors that one user has under way in sockets.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyp import linux

RESERVED_DESCRIPTORS = 256


class TooFew(OSError):
    """A process, thread or descriptor could not be had; the message names the limits that there are."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: how many may be, how many there are."""

    name: str
    most: int
    used: int
    remedy: str

    @property
    def free(self) -> int:
        """How many more may be."""
        return max(0, self.most - self.used)

    def __str__(self) -> str:
        return f"{self.name} is {self.most}, {self.used} are used"


# --- descriptors -----------------------------------------------------------------------------------------------------


def raise_descriptor_limit() -> int:
    """Raise the soft limit on this process's descriptors (and its children's) to the hard one; returns that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return descriptor_limit()


def lower_descriptor_limit() -> None:
    """Let this process, a guest, have `RESERVED_DESCRIPTORS` fewer than the others, for good.

    A user's descriptors under way in sockets are counted together, and who may have no more open may send no more: a guest that
    parks as many as it can leaves room for those of daemons and commands, which have raised their limits. Guests themselves send
    none. (Root is exempt from it.)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard < 2 * RESERVED_DESCRIPTORS:
        return
    lower = hard - RESERVED_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, lower), lower))


def descriptor_limit() -> int:
    """How many descriptors a process here may have once it has raised its limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1 << 31) - 1 if hard == resource.RLIM_INFINITY else hard


def descriptor_reason() -> str:
    """What to say where this process has run out of descriptors. Needs none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{linux.own_name()} can have no more descriptors: the limit of one process (ulimit -n) is {soft}"


# --- processes and threads -------------------------------------------------------------------------------------------


def _threads_of(uid: int) -> int:
    """Threads of all processes of a user, as RLIMIT_NPROC counts them."""
    found = 0
    for folder in os.scandir("/proc"):
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = dict(
                    line.split(":", 1)
                    for line in Path(folder.path, "status").read_text(errors="replace").splitlines()
                    if ":" in line
                )
                if int(fields["Uid"].split()[0]) == uid:
                    found += int(fields["Threads"])
    return found


def _control_group(root: Path) -> Iterator[Limit]:
    """pids.max of the groups (v2) that we are in."""
    with contextlib.suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        folder = next((group[3:].strip("/") for group in groups if group.startswith("0::")), "")
        group = root / "sys/fs/cgroup" / folder
        for level in (group, *group.parents):
            with contextlib.suppress(OSError):
                most, used = (level / "pids.max").read_text().strip(), int((level / "pids.current").read_text())
                if most != "max":
                    yield Limit("the control group's limit on processes and threads (pids.max)", int(most), used, "raise it")


def process_limits(root: Path = Path("/")) -> list[Limit]:
    """Every limit on processes and threads that holds for this user here. `root` is where /proc and /sys are found."""
    found = list(_control_group(root))
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.getuid() != 0:
        remedy = "raise it (ulimit -u)" if hard in (soft, resource.RLIM_INFINITY) else f"raise it (ulimit -u, up to {hard})"
        name = "this user's limit on processes and threads (ulimit -u)"
        found.append(Limit(name, soft, _threads_of(os.getuid()), remedy))
    with contextlib.suppress(OSError, ValueError):
        most = int((root / "proc/sys/kernel/threads-max").read_text())
        used = int((root / "proc/loadavg").read_text().split()[3].partition("/")[2])
        found.append(Limit("the machine's limit on threads (kernel.threads-max)", most, used, "raise it (sysctl)"))
    return found


def process_reason() -> str:
    """What to say where the kernel would not make another process or thread: the limit that is closest."""
    limits = process_limits()
    closest = f": {min(limits, key=lambda limit: limit.free)}" if limits else ""
    return f"the kernel makes no more processes or threads{closest}"


@contextlib.contextmanager
def told_of_processes(what: str) -> Iterator[None]:
    """TooFew, naming the limit, if a process cannot be made inside."""
    try:
        yield
    except BlockingIOError as error:  # EAGAIN
        raise TooFew(errno.EAGAIN, f"{what} could not be started: {process_reason()}") from error


@contextlib.contextmanager
def told_of_threads(what: str) -> Iterator[None]:
    """The same for a thread."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        raise TooFew(errno.EAGAIN, f"{what} could not be started: {process_reason()}") from error
