"""What a confined guest has of /proc, which is of its own processes, but of the whole machine in what else there is.

To read some of that takes a lock that others wait for: all of the machine's locks of files (/proc/locks), its consoles, memory
zones, the registers of its devices (/proc/bus). So what is not of processes, or asked for by programs, is an empty file, or
folder."""

import os
from typing import Final

from hyp import linux

PLAIN: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
KEPT: Final = frozenset({
    "cmdline", "cpuinfo", "diskstats", "filesystems", "loadavg", "meminfo", "mounts", "net", "self", "stat", "swaps", "sys",
    "thread-self", "uptime", "version", "vmstat",
})  # fmt: skip


def mount_proc() -> None:
    """Mount one of this process's PID namespace over /proc, with no more in it than that. OSError."""
    linux.mount("proc", "/proc", "proc", PLAIN)
    for name in os.listdir("/proc"):
        if name in KEPT or name.isdecimal():
            continue
        path = f"/proc/{name}"
        if os.path.isdir(path):
            linux.mount("tmpfs", path, "tmpfs", PLAIN | linux.MS_RDONLY, "mode=755,size=4k")
        else:
            linux.mount("/dev/null", path, "none", linux.MS_BIND)
