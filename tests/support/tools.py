"""What the tests need from outside Python: how each tool is seen, and the packages that bring it. ``make tools`` installs them.

A test names what it needs by ``@pytest.mark.needs("ping")``; tests/support/needs.py leaves it out where that is missing. This file
is also a program, for a machine that has Python and nothing else yet: the standard library alone, no import from this repository.

``python3 tests/support/tools.py``: says what it will install, then installs it with the machine's package manager. Exit status 0
once everything is there that the manager has; 1 with the command to run where that takes root, or where there is no such manager.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


def programs(*names: str) -> Callable[[], bool]:
    """All are on the PATH."""
    return lambda: all(shutil.which(name) for name in names)


def header(name: str) -> Callable[[], bool]:
    """A header file is where a C compiler looks by itself."""
    return lambda: any((Path(where) / name).exists() for where in ("/usr/include", "/usr/local/include"))


def driver(name: str) -> Callable[[], bool]:
    """A driver of DPDK's is where a distribution puts them."""
    places = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
    return lambda: any(next(Path(place).glob(f"**/dpdk/pmds-*/librte_{name}.so*"), None) for place in places)


def place(name: str) -> str:
    """Where a program is that is there."""
    found = shutil.which(name)
    assert found is not None, f"{name} is not on the PATH"
    return found


@dataclass(frozen=True)
class Tool:
    """`is_there` looks anew each time. Packages, by manager: none where it has none; dnf takes the path of a file as well."""

    is_there: Callable[[], bool]
    apt: tuple[str, ...]
    dnf: tuple[str, ...]
    pacman: tuple[str, ...]


XENSTORE = (
    "xenstore-chmod",
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
)
TOOLS = {
    "ping": Tool(programs("ping"), ("iputils-ping",), ("iputils",), ("iputils",)),
    "iperf3": Tool(programs("iperf3"), ("iperf3",), ("iperf3",), ("iperf3",)),
    "nginx": Tool(programs("nginx"), ("nginx-light",), ("nginx",), ("nginx",)),
    "wrk": Tool(programs("wrk"), ("wrk",), ("wrk",), ()),
    "redis": Tool(programs("redis-server", "redis-benchmark"), ("redis-server", "redis-tools"), ("redis",), ("redis",)),
    "chromium": Tool(programs("chromium"), ("chromium",), ("chromium",), ("chromium",)),
    "curl": Tool(programs("curl"), ("curl",), ("curl",), ("curl",)),
    "ip": Tool(programs("ip"), ("iproute2",), ("iproute",), ("iproute2",)),
    "util-linux": Tool(
        programs("flock", "mount", "nsenter", "unshare"), ("util-linux", "mount"), ("util-linux",), ("util-linux",)
    ),
    "tshark": Tool(
        programs("tshark", "capinfos", "editcap"), ("tshark", "wireshark-common"), ("wireshark-cli",), ("wireshark-cli",)
    ),
    "bash": Tool(programs("bash"), ("bash",), ("bash",), ("bash",)),
    "dash": Tool(programs("dash"), ("dash",), ("dash",), ("dash",)),
    "zsh": Tool(programs("zsh"), ("zsh",), ("zsh",), ("zsh",)),
    "fish": Tool(programs("fish"), ("fish",), ("fish",), ("fish",)),
    "gcc": Tool(lambda: programs("gcc")() and header("stdio.h")(), ("gcc", "libc6-dev"), ("gcc", "glibc-devel"), ("gcc", "glibc")),
    "spin": Tool(programs("spin"), ("spin",), ("spin",), ()),
    "xen-headers": Tool(header("xen/io/netif.h"), ("libxen-dev",), ("xen-devel",), ()),
    "xenstore": Tool(programs(*XENSTORE), ("xenstore-utils",), ("/usr/bin/xenstore-ls",), ()),
    "memif": Tool(driver("net_memif"), ("librte-net-memif23",), ("dpdk",), ("dpdk",)),
    "ucx": Tool(programs("ucx_perftest"), ("ucx-utils",), ("ucx",), ("openucx",)),
    "dpdk": Tool(programs("dpdk-testpmd"), ("dpdk", "dpdk-dev"), ("/usr/bin/dpdk-testpmd",), ("dpdk",)),
}  # fmt: skip


@dataclass(frozen=True)
class Manager:
    """A package manager: its column in `Tool`, its program, and what follows that to fetch its lists (if at all) and to install."""

    column: str
    program: str
    refresh: tuple[str, ...]
    install: tuple[str, ...]

    def packages(self, tools: Iterable[str]) -> list[str]:
        """What brings these tools, each package once."""
        return list(dict.fromkeys(package for tool in tools for package in getattr(TOOLS[tool], self.column)))

    def commands(self, packages: list[str]) -> list[list[str]]:
        """What root has to run."""
        refresh = [[self.program, *self.refresh]] if self.refresh else []
        return [*refresh, [self.program, *self.install, *packages]]


MANAGERS = (
    Manager("apt", "apt-get", ("update",), ("install", "--yes", "--no-install-recommends")),
    Manager("dnf", "dnf", (), ("install", "--assumeyes", "--setopt=install_weak_deps=False")),
    # a list that is newer than what is installed is a half-done upgrade to pacman: it has to be all of one day
    Manager("pacman", "pacman", (), ("--sync", "--refresh", "--sysupgrade", "--needed", "--noconfirm")),
)


def missing(tools: Iterable[str] = TOOLS) -> list[str]:
    """Those that are not there, in the table's order."""
    wanted = set(tools)
    return [name for name, tool in TOOLS.items() if name in wanted and not tool.is_there()]


def the_manager() -> Manager | None:
    """The first one that this machine has."""
    return next((manager for manager in MANAGERS if shutil.which(manager.program)), None)


def main() -> int:
    """See the module."""
    wanted = missing()
    if not wanted:
        print("All tools that the tests need are there.")
        return 0
    manager = the_manager()
    if manager is None:
        print(f"Missing: {', '.join(wanted)}. None of {', '.join(m.program for m in MANAGERS)} is here to install them with.")
        return 1
    packages = manager.packages(wanted)
    without = [name for name in wanted if not manager.packages([name])]
    print(f"Missing: {', '.join(wanted)}.")
    if without:
        print(f"{manager.program} has no package for {', '.join(without)}: the tests that need them stay left out.")
    if not packages:
        return 0
    commands = manager.commands(packages)
    if os.geteuid() != 0:
        print("Installing takes root. Run as root `make tools`, or:", *(" ".join(command) for command in commands), sep="\n  ")
        return 1
    print(f"Will install: {' '.join(packages)}", flush=True)
    for command in commands:
        status = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}).returncode
        if status:
            print(f"`{' '.join(command)}` ended with status {status}.")
            return 1
    left = [name for name in missing() if name not in without]
    if left:
        print(f"Installed, and still not to be seen: {', '.join(left)}.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
