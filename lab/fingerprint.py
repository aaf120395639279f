"""What the figures were measured on, as a dict that goes into every record."""

import gzip
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from domu.netns import tried
from hyp.uring.ring import why_plain
from lab.instructions import why_not

SYS = Path("/sys/devices/system")
HUGE = Path("/sys/kernel/mm/transparent_hugepage")


def fingerprint() -> dict[str, Any]:
    """CPU, cores that we may use, their topology and caches, kernel, versions, load, steal, huge pages, counters, hypervisor.

    What the machine does not tell is None. Reads files of /proc and /sys, and asks for a hardware counter.
    """
    cpus = sorted(os.sched_getaffinity(0))
    flags = _cpuinfo("flags") or _cpuinfo("Features") or ""
    return {
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cores": len(cpus),
        "affinity": cpus,
        "siblings": {str(cpu): _read(SYS / f"cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus},
        "caches": _caches(cpus[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("numpy", "numba", "llvmlite")},
        "load": list(os.getloadavg()),
        "steal_share": _steal_share(),
        "thread_clocks": thread_clocks(platform.release(), _read(Path("/proc/cmdline")) or ""),
        "huge_pages": _huge_pages(),
        "tap_writes": _tap_writes(),
        "hardware_counters": why_not() or "instructions can be counted",
        "virtualised": "hypervisor" in flags.split(),
        "clocksource": _read(SYS / "clocksource/clocksource0/current_clocksource"),
    }


def _tap_writes() -> str:
    """How TAP guests are given several frames at a time."""
    reason = tried(lambda tap: why_plain(tap.fd))
    return f"a call each: {reason}" if reason else "many by one call (io_uring)"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str | None:
    """The first CPU's line of that name."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _caches(cpu: int) -> list[str]:
    """One CPU's caches, such as ``"L1 Data 32K"``; L3 may be shared with machines that we know nothing of."""
    folders = sorted((SYS / f"cpu/cpu{cpu}/cache").glob("index*"))
    found = ([_read(folder / name) for name in ("level", "type", "size")] for folder in folders)
    return [f"L{level} {kind} {size}" for level, kind, size in found if level and kind and size]


def stolen_ticks() -> tuple[int, int]:
    """Of all CPUs' time since boot, in clock ticks: what the host took, and all (/proc/stat; guest time is part of user time)."""
    ticks = [int(word) for word in (_read(Path("/proc/stat")) or "cpu").splitlines()[0].split()[1:9]]
    return (ticks[7] if len(ticks) == 8 else 0), sum(ticks)


def _steal_share() -> float:
    """The fraction of all CPU time since boot that the host took."""
    stolen, total = stolen_ticks()
    return stolen / total if total > 0 else 0.0


def thread_clocks(release: str, command_line: str) -> str:
    """Whether threads' CPU clocks, and so CPU per frame, count the time that the host took: as the kernel was built and started.

    CONFIG_PARAVIRT_TIME_ACCOUNTING subtracts stolen from running time (update_rq_clock_task), unless ``no-steal-acc`` is given.
    """
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{release}")):
        try:
            config = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except OSError:
            continue
        if b"\nCONFIG_PARAVIRT_TIME_ACCOUNTING=y\n" in config and "no-steal-acc" not in command_line.split():
            return "leave stolen time out"
        return "count stolen time"
    return "not known: the kernel does not tell how it was built"


def _huge_pages() -> dict[str, Any]:
    """Whether shared memory can have huge pages: the bracketed choices of the kernel's files, and a sentence."""
    shared = _choice(HUGE / "shmem_enabled")
    found: dict[str, Any] = {
        "transparent": _choice(HUGE / "enabled"),
        "shmem": shared,
        "reserved": int(_read(Path("/proc/sys/vm/nr_hugepages")) or 0),
    }
    none = shared in (None, "never", "deny", "advise")  # advise: the lab does not ask for any
    found["note"] = "shared memory has no huge pages here" if none else f"shared memory can have huge pages ({shared})"
    return found


def _choice(path: Path) -> str | None:
    text = _read(path) or ""
    return text.partition("[")[2].partition("]")[0] or None
