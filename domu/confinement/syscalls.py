"""The system calls that a confined guest may make: an allow-list, enforced by seccomp, by way of libseccomp.

Any other is ENOSYS, which libraries know how to do without. What isn't on the list, and why: what reaches into other processes
(ptrace, process_vm_readv, pidfd_getfd, kcmp), makes namespaces and mounts, has kernel surface that no guest needs (bpf,
perf_event_open, userfaultfd, keyctl, modules), interrupts other CPUs (membarrier), makes memory that no limit counts (memfd_create,
SysV shared memory), wakes any number of waiters in an interrupt, on the time of whoever is interrupted (timerfd, signalfd), uses up
what the kernel counts against whoever runs the topology (inotify), or passes this list by (io_uring).

Of some it depends on an argument: no clone(2) into new namespaces, nor for its parent, who may be outside; no hole in memory that
others have mapped; of ioctl(2) and fcntl(2) what requests.py has; no setpriority(2) of all that its user runs, who may be other
guests'; of prctl(2) and arch_prctl(2) what programs say of themselves, not who may share a core with them, what makes a core slower
for the next one, what takes memory, or what filters system calls: such filters are compiled, into memory that is the whole
machine's. No locks of files (ENOLCK): they are memory that no limit counts, and to read a file of the host's is enough to lock it.
Of sockets' options those that options.py has. None of it chooses its CPUs: each move there stops who runs on the one that is left,
and they may be somebody's (EPERM). No mapping of huge pages, of which the whole machine has so many, nor one that grows, which the
limit on memory does not count (ENOMEM).

Sockets are of the families that the guest needs (of AF_UNIX pairs only, of kinds that are connected to each other for good: a
socket in the file system is its host's; of AF_NETLINK those by which interfaces, addresses and routes are looked at; none of
AF_PACKET: those are walked for packets of the whole machine, and their lists of addresses have no end). Families, protocols,
bridges, VLANs and line disciplines that the kernel does not know it looks for among its modules, and runs modprobe(8) as root for
it: none but what is usual is asked for.

Some do nothing, and say that they have: a program that means well goes on. They write back what is everybody's (sync, syncfs,
sync_file_range), throw it out of the page cache (an advice of fadvise64), or change the limit on core files, by which there are
none (confine.py).

Source of the rest: the system calls that moby's default profile allows unprivileged containers.
"""

import importlib
from types import ModuleType
from typing import Any

from domu.confinement import options, requests
from hyp.linux import NAMESPACES

_PLAIN = """
accept accept4 access alarm bind brk capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep close close_range
connect copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fchdir fchmod fchmodat fchown
fchownat fdatasync fgetxattr flistxattr flock fork fsync ftruncate futex futex_waitv futimesat get_mempolicy get_robust_list
getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
ioprio_get kill lchown lgetxattr link linkat listen listxattr
llistxattr lseek lstat mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mremap msync munlock
munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer
setpgid setregid setresgid setresuid setreuid setrlimit setsid setuid shutdown sigaltstack splice stat statfs statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev fstat fstatfs"""
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_TYPE, _STREAM, _DGRAM, _RAW, _SEQPACKET = 0xF, 1, 2, 3, 5
_PAIRED = (_STREAM, _SEQPACKET)  # of socketpair(2); of one of SOCK_DGRAM datagrams go anywhere
_STREAMS, _DATAGRAMS = (0, 6), {_AF_INET: (0, 17, 1), _AF_INET6: (0, 17, 58)}  # TCP; UDP, and ICMP for ping
_RAW_PROTOCOLS = 0xFFFF_FFFF_FFFF_FF00  # bits that none has
_NETLINK = 0  # NETLINK_ROUTE
_ADVICE = (*range(5), 8, 10, 11, *range(13, 20), 22, 23)
"""Of madvise(2): all but MADV_REMOVE, MADV_HWPOISON, what only root has, MADV_MERGEABLE, which has a thread of the kernel's
compare, and what takes pages away from others who map them, be it for a while: MADV_COLD, MADV_PAGEOUT, and MADV_COLLAPSE, during
which who touches one waits, for seconds."""
_NO_HOLE = (0, 1)  # of fallocate(2): FALLOC_FL_KEEP_SIZE at most
_PERSONALITY = (0, 0xFFFF_FFFF)
_CLONE_PARENT = 0x8000
_PRIORITIES = (0, 1)  # of setpriority(2): PRIO_PROCESS, PRIO_PGRP
_PROCESS = (*range(1, 5), 7, 8, 15, 16, 21, 23, 24, 27, 29, 30, *range(36, 43), 47, 52, 0x5356_4D41)
"""Of prctl(2). Not: PR_SET_SECCOMP, PR_SET_SPECULATION_CTRL, PR_SCHED_CORE; PR_FUTEX_HASH, which takes memory; PR_MCE_KILL, …"""
_ARCHITECTURE = (*range(0x1001, 0x1005), 0x1011, 0x1021, 0x1022)
"""Of arch_prctl(2): FS and GS, and what there is. Not what makes a switch of contexts dearer."""
_DONTNEED = 4  # of fadvise64(2)
_RLIMIT_CORE = 4
_HUGE_PAGES, _GROWS = 0x4_0000, 0x100  # flags of mmap(2): MAP_HUGETLB, MAP_GROWSDOWN
_EPERM, _ENOMEM, _ENOLCK, _ENOSYS, _ENOPROTOOPT, _EPROTONOSUPPORT = 1, 12, 37, 38, 92, 93


def library() -> ModuleType:
    """The binding of libseccomp. RuntimeError, saying what is missing."""
    try:
        return importlib.import_module("pyseccomp")
    except ImportError:
        raise RuntimeError("the Python package pyseccomp is not installed: pip install 'xen-bypass-lab[confined]'") from None
    except RuntimeError:
        raise RuntimeError("libseccomp is not installed (Debian, Ubuntu: libseccomp2)") from None


def restrict(*, network: bool) -> None:
    """From now on this process, which has one thread, and its descendants make these calls only.

    `network`: sockets among them.
    """
    seccomp = library()
    _refuse(seccomp)  # of two filters the stricter one holds
    _allow(seccomp, network=network)


def _filter(seccomp: ModuleType, otherwise: int) -> Any:
    """An empty filter. Who calls as on another architecture is told so: libseccomp would have him killed, which the kernel logs."""
    made = seccomp.SyscallFilter(defaction=otherwise)
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(_ENOSYS))
    return made


def _refuse(seccomp: ModuleType) -> None:
    """Load the filter of calls that are allowed but for some arguments."""
    refused = _filter(seccomp, seccomp.ALLOW)

    def is_int(argument: int, value: int) -> Any:
        """The kernel reads 32 bits of it."""
        return seccomp.Arg(argument, seccomp.MASKED_EQ, 0xFFFF_FFFF, value)

    def refuse(name: str, *conditions: Any, error: int = _EPERM) -> None:
        refused.add_rule(seccomp.ERRNO(error), name, *conditions)

    for lock in requests.LOCKS:
        refuse("fcntl", is_int(1, lock), error=_ENOLCK)
    refuse("flock", error=_ENOLCK)
    for level, missed in options.DONE_WITHOUT.items():
        for option in missed:
            refuse("setsockopt", is_int(1, level), is_int(2, option), error=_ENOPROTOOPT)
    level, option = options.PEER_PIDFD
    refuse("getsockopt", is_int(1, level), is_int(2, option), error=_ENOPROTOOPT)
    for family in _DATAGRAMS:  # what the kernel says, too, after it has looked for a module
        what = (seccomp.Arg(0, seccomp.EQ, family), seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE, _RAW))
        refuse("socket", *what, seccomp.Arg(2, seccomp.EQ, 0), error=_EPROTONOSUPPORT)
    refuse("sched_setaffinity")
    refuse("mmap", seccomp.Arg(3, seccomp.MASKED_EQ, _HUGE_PAGES, _HUGE_PAGES), error=_ENOMEM)
    refuse("mmap", seccomp.Arg(3, seccomp.MASKED_EQ, _GROWS, _GROWS), error=_ENOMEM)
    for name in ("sync", "syncfs", "sync_file_range"):
        refuse(name, error=0)
    refuse("fadvise64", is_int(3, _DONTNEED), error=0)
    refuse("setrlimit", is_int(0, _RLIMIT_CORE), error=0)
    refuse("prlimit64", is_int(1, _RLIMIT_CORE), seccomp.Arg(2, seccomp.NE, 0), error=0)  # to ask for it is allowed
    refused.load()


def _allow(seccomp: ModuleType, *, network: bool) -> None:
    """Load the filter of all calls that are allowed."""
    allowed = _filter(seccomp, seccomp.ERRNO(_ENOSYS))

    def allow(name: str, *conditions: Any) -> None:
        try:
            allowed.add_rule(seccomp.ALLOW, name, *conditions)
        except (OSError, ValueError, RuntimeError):  # this architecture, or libseccomp, has none such
            if conditions:
                raise

    def allow_each(name: str, argument: int, values: tuple[int, ...], *conditions: Any) -> None:
        for value in values:
            allow(name, *conditions, seccomp.Arg(argument, seccomp.EQ, value))

    def family(number: int) -> Any:
        return seccomp.Arg(0, seccomp.EQ, number)

    def kind(number: int) -> Any:
        return seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE, number)

    for name in _PLAIN.split():
        allow(name)
    for number in _PAIRED:
        allow("socketpair", family(_AF_UNIX), kind(number))
    allow("clone", seccomp.Arg(0, seccomp.MASKED_EQ, sum(NAMESPACES.values()) | _CLONE_PARENT, 0))
    allow_each("madvise", 2, _ADVICE)
    allow_each("fallocate", 1, _NO_HOLE)
    allow_each("personality", 0, _PERSONALITY)
    allow_each("setpriority", 0, _PRIORITIES)
    for name, argument, values in (
        ("prctl", 0, _PROCESS),
        ("arch_prctl", 0, _ARCHITECTURE),
        ("ioctl", 1, requests.IOCTLS),
        ("fcntl", 1, requests.FCNTLS),
    ):
        for value in values:
            allow(name, seccomp.Arg(argument, seccomp.MASKED_EQ, 0xFFFF_FFFF, value))  # the kernel reads 32 bits
    for table in (options.ALLOWED, options.DONE_WITHOUT):  # `_refuse` has an answer to the latter
        for level, named in table.items():
            allow_each("setsockopt", 2, named, seccomp.Arg(1, seccomp.EQ, level))
    if network:
        for internet, datagrams in _DATAGRAMS.items():
            allow_each("socket", 2, _STREAMS, family(internet), kind(_STREAM))
            allow_each("socket", 2, datagrams, family(internet), kind(_DGRAM))
            allow("socket", family(internet), kind(_RAW), seccomp.Arg(2, seccomp.MASKED_EQ, _RAW_PROTOCOLS, 0))
        allow("socket", family(_AF_NETLINK), seccomp.Arg(2, seccomp.EQ, _NETLINK))
    allowed.load()
