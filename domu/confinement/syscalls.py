"""The system calls that a confined guest may make: an allow-list, enforced by seccomp, by way of libseccomp.

Any other is ENOSYS, which libraries know how to do without. What isn't on the list, and why: what reaches into other processes
(ptrace, process_vm_readv, pidfd_getfd, kcmp), makes namespaces and mounts, has kernel surface that no guest needs (bpf,
perf_event_open, userfaultfd, keyctl, modules), makes memory that no limit counts (memfd_create, SysV shared memory; rings of packet
sockets, by setsockopt(2)), uses up what the kernel counts against whoever runs the topology (inotify), or passes this list by
(io_uring). Of some it depends on an argument: no clone(2) into new namespaces, no socket but of the families that the guest
needs (of AF_UNIX pairs only, of kinds that are connected to each other for good: a socket in the file system is its host's), no
hole in memory that others have mapped, no ioctl(2) that types on a terminal for who sits at it: a program's may be its caller's.
Where a topology's `[cpu]` says on which CPUs the guest runs it does not choose others: they are somebody's, too.

Source of the rest: the system calls that moby's default profile allows unprivileged containers.
"""

import importlib
from types import ModuleType
from typing import Any

from hyp.linux import NAMESPACES

_PLAIN = """
accept accept4 access alarm bind brk capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep close close_range
connect copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fchdir fchmod fchmodat fchown
fchownat fcntl fdatasync fgetxattr flistxattr flock fork fsync ftruncate futex futex_waitv futimesat get_mempolicy get_robust_list
getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
ioctl ioprio_get kill lchown lgetxattr link linkat listen listxattr
llistxattr lseek lstat membarrier mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mremap msync munlock
munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll prctl arch_prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer
setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid shutdown sigaltstack signalfd
signalfd4 splice stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate
umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev fstat fstatfs
"""
_AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 2, 10, 16, 17
_PAIRED, _SOCK_TYPE = (1, 5), 0xF  # of socketpair(2): SOCK_STREAM, SOCK_SEQPACKET; of one of SOCK_DGRAM datagrams go anywhere
_ADVICE = (*range(5), 8, *range(10, 20), 22, 23)
"""Of madvise(2): all but MADV_REMOVE, MADV_HWPOISON, what only root has, and what takes pages away from others who map them, be it
for a while: MADV_COLD, MADV_PAGEOUT, and MADV_COLLAPSE, during which who touches one waits, for seconds."""
_NO_HOLE = (0, 1)  # of fallocate(2): FALLOC_FL_KEEP_SIZE at most
_PERSONALITY = (0, 0xFFFF_FFFF)
_TYPING = (0x5412, 0x541C)  # of ioctl(2), of which the kernel reads 32 bits: TIOCSTI, and TIOCLINUX, which pastes
_SOL_PACKET, _PACKET_RINGS = 263, (5, 13)  # of setsockopt(2): PACKET_RX_RING, PACKET_TX_RING
_EPERM, _ENOSYS = 1, 38


def library() -> ModuleType:
    """The binding of libseccomp. RuntimeError, saying what is missing."""
    try:
        return importlib.import_module("pyseccomp")
    except ImportError:
        raise RuntimeError("the Python package pyseccomp is not installed: pip install 'xen-bypass-lab[confined]'") from None
    except RuntimeError:
        raise RuntimeError("libseccomp is not installed (Debian, Ubuntu: libseccomp2)") from None


def restrict(*, network: bool, placed: bool) -> None:
    """From now on this process, which has one thread, and its descendants make these calls only.

    `network`: sockets among them. `placed`: they stay on the CPUs on which this process may run.
    """
    seccomp = library()
    refused = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    for request in _TYPING:
        refused.add_rule(seccomp.ERRNO(_EPERM), "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFF_FFFF, request))
    for ring in _PACKET_RINGS:
        what = (seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFF_FFFF, _SOL_PACKET), seccomp.Arg(2, seccomp.MASKED_EQ, 0xFFFF_FFFF, ring))
        refused.add_rule(seccomp.ERRNO(_EPERM), "setsockopt", *what)
    if placed:
        refused.add_rule(seccomp.ERRNO(_EPERM), "sched_setaffinity")
    refused.load()  # of two filters the stricter one holds
    allowed = seccomp.SyscallFilter(defaction=seccomp.ERRNO(_ENOSYS))

    def allow(name: str, *conditions: Any) -> None:
        try:
            allowed.add_rule(seccomp.ALLOW, name, *conditions)
        except (OSError, ValueError, RuntimeError):  # this architecture, or libseccomp, has none such
            if conditions:
                raise

    def allow_each(name: str, argument: int, values: tuple[int, ...]) -> None:
        for value in values:
            allow(name, seccomp.Arg(argument, seccomp.EQ, value))

    for name in _PLAIN.split():
        allow(name)
    for kind in _PAIRED:
        allow("socketpair", seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE, kind))
    allow("clone", seccomp.Arg(0, seccomp.MASKED_EQ, sum(NAMESPACES.values()), 0))
    allow_each("madvise", 2, _ADVICE)
    allow_each("fallocate", 1, _NO_HOLE)
    allow_each("personality", 0, _PERSONALITY)
    if network:
        allow_each("socket", 0, (_AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET))
    allowed.load()
