"""A guest as a small machine: a hostname, processes and mounts of its own, in which `launch.py exec` runs programs (lab/execute).

Besides its network namespace (domu/netns.py), which the guest's process itself is in, a TAP guest has a PID, a mount and a UTS
namespace. The guest's process, which moves frames, is not in these: programs see one another, and *init*, which is PID 1 there, as
a machine's init is, adopts and reaps what programs leave behind, and ends last::

    guest's process ──────── fork ───────── init       holds the namespaces
            │                                 │
            └── holds ───── lifeline ─────────┘ reads: nothing, until nobody holds the other end any more
                                │
               the keeper holds that too, as long as it knows the guest's process to live,
               and supervisors of programs, until they have reaped their program

The lifeline is a pair of sockets that the keeper has made. Init says a byte on it at birth, by whose credentials the keeper knows
it: who starts programs has init and lifeline from the keeper (`machine` there). Guests send no descriptors: what a user has under
way in sockets counts for all who send as that user, and another guest may have parked as many there as a guest may have.

* The guest's process ends, however: supervisors see it, kill their programs and say why; then nobody holds the lifeline, init
  ends, and the kernel kills whoever is left.
* init is killed: the kernel kills all that runs in the guest. A machine without init is none: the guest's process ends, too.
* The keeper is killed: its PID namespace goes, with all in it. Where it has none, the guest's process dies with it, and so on.

Mounts are made in init's namespace only, whose mounts follow the host's, but for a confined guest's, and are not followed by them:
nothing has to be unmounted.

What the kernel does not grant (a container's seccomp filter, limits, a masked /proc) is done without, and said: `Machine.missing`.

Sources: pid_namespaces(7), mount_namespaces(7), user_namespaces(7).
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from domu.confinement.proc import PLAIN, mount_proc
from hyp import linux
from hyp.process import Process

CGROUPS = "/sys/fs/cgroup"
LOCALHOST = (("127.0.0.1", "localhost"), ("::1", "localhost ip6-localhost ip6-loopback"))


class Machine:
    """The guest's process's side: starts init, and ends with it."""

    def __init__(self, name: str, hosts: Mapping[str, str], lifeline: int, inits: int, *, confined: bool = False) -> None:
        """In the network namespace that this process, which has one thread, is in. OSError if there can be no process.

        `hosts`: address → name, of what /etc/hosts is to know. `lifeline`, and `inits`, init's end of it, are this object's.
        `confined`: its /proc has no more than a confined guest's.
        """
        self.lifeline = lifeline
        """Init lives as long as anybody has it."""
        self._said, say = os.pipe()
        title = [*linux.title()[:-1], f"init:{name}"]
        pid, self.init, self.missing = _fork()
        """A pidfd of init; and what is not the guest's own, a sentence each."""
        if pid == 0:
            try:
                mount_own = mount_proc if confined else mount_whole_proc
                _be_init(inits, say, title, name, hosts, None if self.missing else mount_own)
            finally:
                os._exit(1)
        for fd in (inits, say):
            os.close(fd)

    def furnished(self) -> None:
        """Wait until everything is there that can be had."""
        with open(self._said) as pipe:
            self.missing += [line.strip() for line in pipe]

    def serve(self, process: Process) -> None:
        """Once it is furnished say what is missing, and end with init."""
        self.furnished()
        for text in self.missing:
            process.console.tell("notice", text=f"{process.name}: {text}")

        def ended() -> None:
            process.failed("its init, PID 1 of its programs, was killed")
            os._exit(1)

        asyncio.get_running_loop().add_reader(self.init, ended)


def _fork() -> tuple[int, int, list[str]]:
    """Fork init: (pid, pidfd, what is missing), in the child (0, −1, what is missing)."""
    try:
        return *linux.fork_into(linux.CLONE_NEWPID), []
    except OSError as error:
        missing = [_missing("process ids are the host's", error)]
    pid = os.fork()
    return pid, os.pidfd_open(pid) if pid else -1, missing


def _missing(what: str, error: OSError) -> str:
    return f"{what} ({os.strerror(error.errno or 0)})"


def mount_whole_proc() -> None:
    """One of the PID namespace that this process is in."""
    linux.mount("proc", "/proc", "proc", PLAIN)


def _be_init(
    lifeline: int, say: int, title: list[str], name: str, hosts: Mapping[str, str], mount_own: Callable[[], None] | None
) -> NoReturn:
    linux.set_name("init")
    linux.set_title(*title)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # then the kernel reaps
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    keep = sorted({0, 1, 2, lifeline, say})
    for low, high in zip(keep, [*keep[1:], 1 << 20], strict=True):
        os.closerange(low + 1, high)
    os.write(lifeline, b"!")  # before anybody is told that it is furnished
    _furnish(say, name, hosts, mount_own)
    os.close(say)
    os.read(lifeline, 1)
    os._exit(0)


def _try(say: int, otherwise: str, do: Callable[[], None]) -> bool:
    """Do something; where it fails say what is so `otherwise`."""
    try:
        do()
    except OSError as error:
        os.write(say, (_missing(otherwise, error) + "\n").encode())
        return False
    return True


# --- what is in it ---------------------------------------------------------------------------------------------------


def _furnish(say: int, name: str, hosts: Mapping[str, str], mount_own: Callable[[], None] | None) -> None:
    """Hostname and mounts of init's own, as far as they can be had. `mount_own`: mounts a /proc, if process ids are its own."""

    def own_hostname() -> None:
        linux.unshare(linux.CLONE_NEWUTS)
        socket.sethostname(name)

    def own_mounts() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "none", linux.MS_REC | linux.MS_SLAVE)

    _try(say, "hostname is the host's", own_hostname)
    if not _try(say, "mounts, and with them /proc, /sys and /etc/hosts, are the host's", own_mounts):
        return
    _try(say, "/etc/hosts is the host's", lambda: _mount_hosts(hosts))
    _try(say, "/sys is the host's", _mount_sys)
    if mount_own is not None:
        _try(say, "/proc is the host's", mount_own)


def _mount_hosts(hosts: Mapping[str, str]) -> None:
    """A file of the guest's own over /etc/hosts, on a file system that nothing else is on."""
    linux.mount("tmpfs", "/proc", "tmpfs", PLAIN, "mode=755,size=256k")  # any folder will do, for a moment
    try:
        lines = [*LOCALHOST, *hosts.items()]
        Path("/proc/hosts").write_text("".join(f"{address}\t{names}\n" for address, names in lines))
        linux.mount("/proc/hosts", "/etc/hosts", "none", linux.MS_BIND)
    finally:
        linux.unmount("/proc")


def _mount_sys() -> None:
    """A sysfs of the guest's network namespace; control groups stay where they are, since programs look there for their limits."""
    groups = os.open(CGROUPS, os.O_PATH) if os.path.ismount(CGROUPS) else None
    try:
        linux.mount("sysfs", "/sys", "sysfs", PLAIN)
    except PermissionError:  # where the host's is read-only another one may be had that is so, too
        linux.mount("sysfs", "/sys", "sysfs", PLAIN | linux.MS_RDONLY)
    if groups is not None:
        linux.mount(f"/proc/self/fd/{groups}", CGROUPS, "none", linux.MS_BIND | linux.MS_REC)
        os.close(groups)
