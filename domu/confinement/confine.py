"""Confinement of a guest (``confined = true``): what is taken away, when, and by whom.

The fork server (lab/forkserver.py) does it, in this order, before the first line of the guest's own runs::

    enter       in the process that forks the guest's: a user namespace, whose root is nobody outside but, if the topology is
                root's, a uid of the guest's own, else the topology's user; in it PID, mount, IPC, network and UTS namespaces
    furnish     in the guest's process, PID 1 there: the host's mounts as they are now, read-only, but a /proc, a /dev/shm of its
                own, and nothing in the lab's folders. Landlock, below, knows nothing of modes and times of files
    (prepare    of the guest's program, if it needs more than a guest may have later: a TAP, domu/programs/tap.py)
    seal        limits, capabilities (none; programs in a TAP guest: what a machine's root may do with its files and processes,
                and raw sockets), no_new_privs, Landlock, seccomp

`seal` is inherited: by threads, by a program that the guest starts. A program that `launch.py exec` brings into a TAP guest is
sealed by who brings it (lab/execute/supervisor.py). What the kernel refuses is an error that names it, and the guest does not
start: there is no confinement by half.
"""

import contextlib
import errno
import glob
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from domu.confinement import landlock, syscalls
from domu.confinement.proc import PLAIN, mount_proc
from domu.netns import become_root, user_namespace_remedy
from hyp import linux
from hyp.net.steps import SetupError, step

SHM, SHM_BYTES, SHM_FILES = "/dev/shm", 16 << 20, 1024
ENVIRONMENT = {"TMPDIR": SHM}
"""What programs are told: they have no other place for temporary files."""
DATA_BYTES, SPACE_BYTES = 256 << 20, 4 << 30
"""Of a process, beyond what it is born with: private memory, and all its addresses, as page tables take memory, too."""
PROCESSES, DESCRIPTORS, FILE_BYTES, QUEUE_BYTES, SIGNALS = 128, 1024, 64 << 20, 1 << 16, 128
"""Of the guest, threads counted; of a process; of a file; of message queues; signals that wait."""
FIRST_UID, UIDS = 0x4000_0000, 1 << 29
"""Where uids of guests are: beyond all that distributions give to users and containers."""
_SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/proc", "/sbin", "/usr")
_CPUS = "/sys/devices/system/cpu"
_DESCRIBED = ("/sys/class/net", "/sys/devices/virtual/net", "/sys/devices/system/node", "/sys/kernel/mm")
"""Of /sys: what programs ask for. Much else is read from a device, or counted by all CPUs; of a CPU, by that one."""
_DEVICES = tuple(f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero"))  # no ptmx: they are numbered
_PROGRAMS = (0, 1, 3, 5, 6, 7, 10, 13)
"""In the guest's namespaces: CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE, NET_RAW. Not NET_ADMIN: a
network's administrator has the kernel change its own code, which interrupts all CPUs, load modules, and hold the lock under which
the whole machine changes interfaces. The network is there when a program begins."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """One guest's, as the plan says it."""

    uid: int | None
    """Of its own; None: whose topology it is."""
    hidden: tuple[str, ...]
    """Folders of the lab's that are empty for it."""
    readable: tuple[str, ...]
    """That it may read and execute, besides the system's."""
    network: bool
    """It may open sockets."""


def uid_of(topology: str, domid: int) -> int:
    """The uid that a guest of root's topology has."""
    number = 5381
    for byte in topology.encode():
        number = (number * 33 + byte) % (UIDS >> 7)
    return FIRST_UID + (number << 7) + domid


def lacking() -> str | None:
    """What keeps guests from being confined here; None: nothing. Tries it in a child, and in a child of that, which is PID 1."""

    def give_up() -> None:
        furnish(spec)
        seal(spec)

    def tried() -> str | None:
        enter(spec)
        return linux.asked_of_a_child(give_up)

    spec = Confinement(FIRST_UID if os.geteuid() == 0 else None, (), (), network=False)
    return linux.asked_of_a_child(tried)


def enter(spec: Confinement) -> None:
    """Be the guest's user, and let the next child be PID 1 in namespaces of the guest's own. SetupError names what is refused."""
    try:
        syscalls.library()  # while its file can be read
    except RuntimeError as error:
        raise SetupError("filter system calls (seccomp)", str(error)) from None
    uid, gid, remedy = os.getuid(), os.getgid(), user_namespace_remedy()
    own = (
        linux.CLONE_NEWUSER | linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWNET | linux.CLONE_NEWUTS
    )
    what = "create namespaces of its own (user, PID, mount, IPC, network, UTS)"
    if spec.uid is None:
        with step(what, dict.fromkeys((errno.EPERM, errno.ENOSPC), remedy)):
            linux.unshare(own)
        become_root(uid, gid)
        return
    with step(what, dict.fromkeys((errno.EPERM, errno.ENOSPC), remedy)):  # by root, whom distributions let have more in them
        os.setgroups([])
        with _mapper(spec.uid):
            linux.unshare(own)
    with step("take a uid of the guest's own"):
        linux.be_root()


@contextlib.contextmanager
def _mapper(uid: int) -> Iterator[None]:
    """Inside, this process enters a user namespace; at the end root in it is `uid` outside, and nobody else is anybody. OSError.

    Only a process that has stayed outside may say so.
    """
    me, (reader, writer) = os.readlink("/proc/self"), os.pipe()  # by the number that /proc knows us by
    helper = os.fork()
    if helper == 0:
        try:
            os.close(writer)
            if os.read(reader, 1):
                for kind in ("uid", "gid"):
                    Path(f"/proc/{me}/{kind}_map").write_text(f"0 {uid} 1")
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EPERM)
        finally:
            os._exit(errno.EPERM)
    os.close(reader)
    try:
        yield
        os.write(writer, b"!")
    finally:
        os.close(writer)
        code = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def furnish(spec: Confinement) -> None:
    """Make mounts of the guest's own. SetupError."""
    with step("have mounts of its own"):
        # What the host mounts later would come as it is there, and could be written to. So a file system that the host unmounts
        # stays in use as long as the guest lives, if it was mounted before
        linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
        linux.make_read_only("/")
    with step("have a /proc of its own"):
        mount_proc()
    with step(f"have a {SHM} of its own"):
        linux.mount("tmpfs", SHM, "tmpfs", PLAIN, f"mode=1777,size={SHM_BYTES},nr_inodes={SHM_FILES}")
    for folder in spec.hidden:
        if os.path.isdir(folder):  # as this user sees it
            with step(f"hide {folder}"):
                linux.mount("tmpfs", folder, "tmpfs", PLAIN | linux.MS_RDONLY, "mode=755,size=4k")


def seal(spec: Confinement) -> None:
    """Give up, for good, all that a guest does not need. The process has one thread. SetupError."""
    _seal(spec.readable, (), network=spec.network)


def seal_program(readable: Iterable[str]) -> None:
    """`seal`, of a program in a TAP guest's namespaces, in which this process is; as their root."""
    with step("be the guest's root"):
        with contextlib.suppress(PermissionError):  # who runs the topology is not root, and could give up none outside either
            os.setgroups([])
        linux.be_root()
    _seal(readable, _PROGRAMS, network=True)


def _seal(readable: Iterable[str], capabilities: tuple[int, ...], *, network: bool) -> None:
    with step("set limits"):
        _limit()
    with step("give up capabilities"):
        _keep_capabilities(capabilities)
    with step("gain no new privileges"):
        linux.no_new_privileges()
    missing = "Linux 5.13 or later, with landlock among the kernel's security modules (lsm=), has it"
    with step("give up files (Landlock)", dict.fromkeys((errno.ENOSYS, errno.EOPNOTSUPP), missing)):
        landlock.restrict(
            [
                *((path, landlock.READ) for path in (*_SYSTEM, *_DESCRIBED, *_of_cpus(), *readable, sys.prefix, sys.base_prefix)),
                (_CPUS, landlock.READ_DIR),
                *((path, landlock.READ | landlock.WRITE_FILE | landlock.IOCTL_DEV) for path in _DEVICES),
                ("/proc", landlock.READ),  # not its own oom_score_adj, for one
                (SHM, landlock.ALL),
            ]
        )
    with step("filter system calls (seccomp)"):
        syscalls.restrict(network=network)


def _of_cpus() -> list[str]:
    """What is told of CPUs without asking them: which there are, and how they lie."""
    found = [f"{_CPUS}/{name}" for name in ("kernel_max", "online", "possible", "present")]
    return found + glob.glob(f"{_CPUS}/cpu[0-9]*/topology") + glob.glob(f"{_CPUS}/cpu[0-9]*/cache")


def _limit() -> None:
    """Limits of this process and its descendants; and the first to go when memory runs out."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    data, space = (int(status[name].split()[0]) << 10 for name in ("VmData", "VmSize"))
    for what, most in (
        (resource.RLIMIT_DATA, data + DATA_BYTES),
        (resource.RLIMIT_AS, space + SPACE_BYTES),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_MSGQUEUE, QUEUE_BYTES),
        (resource.RLIMIT_CORE, 1),  # nor to a program (core_pattern), which the kernel starts as root whatever other limit there is
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_SIGPENDING, SIGNALS),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    Path("/proc/self/oom_score_adj").write_text("1000")


def _keep_capabilities(kept: tuple[int, ...]) -> None:
    """Have these capabilities, and never others, whatever is executed."""
    for capability in range(64):
        if capability not in kept and not linux.drop_from_bounding_set(capability):
            break
    linux.set_capabilities(sum(1 << capability for capability in kept))


def confinement_of(config: dict[str, object]) -> Confinement | None:
    """What a guest's configuration says of it."""
    table = config.get("confinement")
    if not isinstance(table, dict):
        return None
    hidden, readable = tuple(table["hidden"]), tuple(table["readable"])
    return Confinement(table["uid"], hidden, readable, network=bool(table["network"]))
