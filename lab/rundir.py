"""The run folder of a topology, and what tells a living one from a dead one: a held flock, never a pid.

    <base>/<name>/lock          flocked by the keeper as long as the topology lives
    <base>/<name>/keeper.sock   where `status`, `exec` and others connect
    <base>/<name>/log           what the processes print

`base` is ``$XDG_RUNTIME_DIR/xen-bypass-lab`` or ``/tmp/xen-bypass-lab-<uid>``, mode 0700.
"""

import errno
import fcntl
import os
import shutil
from pathlib import Path

from hyp.memory import SHM, sweep


class TopologyExists(Exception):
    """A topology of this name lives already."""


def base() -> Path:
    """The folder of all run folders of this user (made if need be). OSError if it cannot be, or somebody else owns it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime) / "xen-bypass-lab" if runtime else Path(f"/tmp/xen-bypass-lab-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to another user", str(path))
    return path


class RunDir:
    """Paths and lock of the topology `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = base() / name
        self.lock_path = self.path / "lock"
        self.socket_path = self.path / "keeper.sock"
        self.log_path = self.path / "log"

    def acquire(self) -> int:
        """Make the folder, take the lock, sweep what a dead topology of this name left; returns the lock's descriptor.

        The descriptor is inherited by the keeper, which holds the lock from then on. `TopologyExists` if it is held.
        """
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise TopologyExists(f"a topology named {self.name!r} is running (launch.py status)") from None
            # The folder may have been removed by its last owner between open and flock.
            if self.lock_path.exists() and os.fstat(lock).st_ino == self.lock_path.stat().st_ino:
                sweep(self.name)
                return lock
            os.close(lock)

    def is_alive(self) -> bool:
        """True while somebody holds the lock."""
        try:
            lock = os.open(self.lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(lock)

    def remove(self) -> None:
        """Take the folder away (the caller holds the lock)."""
        shutil.rmtree(self.path, ignore_errors=True)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the processes printed."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def all_topologies() -> list[RunDir]:
    """Run folders of this user, dead ones too."""
    return [RunDir(path.name) for path in sorted(base().iterdir()) if path.is_dir()]


def clean(only: str | None = None) -> list[str]:
    """Remove what dead topologies (or the one named) left, never anything of a living one; a line for each thing removed."""
    removed = []
    names = {run.name for run in all_topologies()}
    names |= {path.name.split(".")[2] for path in SHM.glob(f"xbl.{os.getuid()}.*")}
    for name in sorted(names if only is None else names & {only}):
        run = RunDir(name)
        try:
            had_folder = run.path.exists()
            left = [path.name for path in SHM.glob(f"xbl.{os.getuid()}.{name}.*")]
            lock = run.acquire()
        except TopologyExists:
            continue
        removed += [f"/dev/shm/{item}" for item in left]
        if had_folder:
            removed.append(str(run.path))
        run.remove()
        os.close(lock)
    return removed
