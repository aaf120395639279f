"""Which topologies live, where their run folders are, and who may remove what.

Two places, for two questions.

*Does it live?* ``/dev/shm/xbl.<uid>.<name>.lock``, beside the shared memory that it guards and as independent of the environment:
a regular file of mode 0600. The topology lives while its lock is held (hyp/ownfiles.py), by the keeper; never a pid. Whoever has
another /dev/shm has other objects, hence other topologies. The file says where the run folder is, so that `status`, `exec`, `stop`
and `clean` find it under any XDG_RUNTIME_DIR.

*What goes with it?* The run folder, mode 0700::

    <place>/<name>/.xen-bypass-lab   the marker: the lab made this folder, for the topology of this name
    <place>/<name>/keeper.sock       where `status`, `exec` and others connect
    <place>/<name>/xenstored.sock    where `store`, Xen's tools and others connect, as Domain 0
    <place>/<name>/log               what the lab's processes print
    <place>/<name>/<guest>.log       what a guest prints (lab/keeper/output.py)

`place` is ``$XDG_RUNTIME_DIR/xen-bypass-lab`` if that variable names a folder that is this user's, else
``/tmp/xen-bypass-lab-<uid>``. It is made by whoever starts a topology and by nobody who looks.

States of a name, and who brings about the next one:

    free      no lock file, or one that nobody holds       `acquire`: launch.py takes the lock, removes what was left, writes
                                                           the record, makes the folder
    starting  held, by launch.py and the keeper that it    the keeper listens; launch.py lets go of its copy
              starts
    living    held, by the keeper alone                    the keeper's end, in order: shared memory, folder, the lock's name
    left      nobody holds it; objects or folder are       `clean`, the next `acquire`, and the owner (lab/owner.py), each with
              there: the keeper was killed                 the lock taken

Whoever removes anything holds the lock of its name. Removed is only what the lab made: objects in /dev/shm by their name, owner
and mode; a folder by its owner, mode and marker, by way of descriptors, no link followed. What fails:

    a name in /dev/shm or /tmp that another user took     an error that names file and owner; nothing is removed
    a `place` that is a link, foreign, open to others     `acquire`: an error that says so; looking and `clean`: not there
    a folder of that name without the marker              `acquire`: an error; `clean`: stays
    a record cut short (died while it was written)        the folder is looked for in `place`, else it stays
    a path longer than a socket's address (107 bytes)     the socket is reached through the folder's descriptor
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from hyp.ownfiles import is_locked, lock_file, open_file, open_folder
from hyp.shm import SHM, objects, sweep
from lab.errors import LabError

MARKER = ".xen-bypass-lab"
_MADE_BY = "xen-bypass-lab"
_LONGEST_RECORD = 16384  # bytes; a path is 4096 at most
_OBJECT = re.compile(rf"xbl\.{os.getuid()}\.([a-z0-9-]+)\.(?:lock|[^.]+\.[^.]+)")


class TopologyExists(LabError):
    """A topology of this name lives already."""


def place() -> Path:
    """Where the run folders are that are made in this environment. Makes nothing."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        with contextlib.suppress(OSError):
            found = os.stat(runtime)
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
                return Path(os.path.realpath(runtime)) / "xen-bypass-lab"
    return short_place()


def short_place() -> Path:
    """The same where nothing else will do: where no environment says, or the path must be short."""
    return Path(f"/tmp/xen-bypass-lab-{os.getuid()}")


class RunDir:
    """Paths and lock of the topology `name`. Looks at nothing until it is told to, and makes nothing but in `acquire`."""

    def __init__(self, name: str, path: Path | None = None) -> None:
        self.name = name
        self.path = path or place() / name
        self.lock_path = SHM / f"xbl.{os.getuid()}.{name}.lock"
        self.socket_path = self.path / "keeper.sock"
        self.store_path = self.path / "xenstored.sock"
        self.log_path = self.path / "log"
        self._run = secrets.token_hex(8)

    @classmethod
    def of(cls, name: str) -> "RunDir":
        """Where the topology `name`, which lives or has lived, says that its folder is."""
        try:
            lock = open_file(SHM / f"xbl.{os.getuid()}.{name}.lock", os.O_RDONLY)
        except OSError:
            return cls(name)
        try:
            return cls(name, _recorded(lock, name))
        finally:
            os.close(lock)

    def guest_log(self, guest: str) -> Path:
        """The last of what a guest printed; what it printed before is beside it, under this name with ".1" behind it."""
        return self.path / f"{guest}.log"

    # -- the lock --

    def _lock(self) -> int:
        lock = lock_file(self.lock_path)
        if lock is None:
            raise TopologyExists(f"a topology named {self.name!r} is running (launch.py status)")
        return lock

    def acquire(self) -> int:
        """Take the lock, remove what a dead topology of this name left, make the folder; returns the lock's descriptor.

        The descriptor is inherited by the keeper, which holds the lock from then on. `TopologyExists` if it is held; OSError if
        the folder cannot be made.
        """
        lock = self._lock()
        try:
            self._remove_leftovers(lock)
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps({"made_by": _MADE_BY, "folder": str(self.path), "run": self._run}).encode(), 0)
            self._make_folder()
        except BaseException:
            self.remove()
            os.close(lock)
            raise
        return lock

    def is_alive(self) -> bool:
        """True while somebody holds the lock."""
        try:
            lock = open_file(self.lock_path, os.O_RDONLY)
        except OSError:  # there is none, or it is not ours
            return False
        try:
            return is_locked(lock)
        finally:
            os.close(lock)

    def is_held_for_us(self) -> bool:
        """True while somebody holds the lock that we have taken, and not one that was taken after it."""
        try:
            lock = open_file(self.lock_path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return is_locked(lock) and json.loads(os.pread(lock, _LONGEST_RECORD, 0)).get("run") == self._run
        except ValueError:  # it is being written anew
            return False
        finally:
            os.close(lock)

    # -- the folder --

    def _make_folder(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.parent.mkdir(mode=0o700)
        parent = open_folder(self.path.parent)
        try:
            try:
                os.mkdir(self.name, 0o700, dir_fd=parent)
            except FileExistsError:  # what was left has been removed: this is something else
                raise FileExistsError(errno.EEXIST, "exists, and is no run folder of the lab's", str(self.path)) from None
            folder = open_folder(self.name, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            marker = open_file(MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=folder)
            os.write(marker, _mark(self.name))
            os.close(marker)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def socket_address(self, path: Path | None = None) -> Iterator[str]:
        """What to bind or connect to for a socket in the folder (the keeper's, or `path`), valid inside.

        However long the path is, and of this very folder.
        """
        folder = open_folder(self.path)
        try:
            yield f"/proc/self/fd/{folder}/{(path or self.socket_path).name}"
        finally:
            os.close(folder)

    def listen(self) -> socket.socket:
        """The keeper's socket, in the folder."""
        return self._listen(self.socket_path, socket.SOCK_SEQPACKET)

    def listen_store(self) -> socket.socket:
        """xenstored's."""
        return self._listen(self.store_path, socket.SOCK_STREAM)

    async def store_socket(self) -> socket.socket:
        """A new connection to xenstored, as Domain 0: for XenstoreClient.lasting. OSError if there is no topology, or no store."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with self.socket_address(self.store_path) as address:
                await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    def _listen(self, path: Path, kind: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        os.fchmod(listener.fileno(), 0o600)  # what the file will have, from its first moment
        with self.socket_address(path) as address:
            listener.bind(address)
        listener.listen(16)
        return listener

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the processes printed."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    # -- the end --

    def remove(self) -> None:
        """Take the folder and the lock's name away (the caller holds the lock)."""
        _remove_folder(self.path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.lock_path)

    def _remove_leftovers(self, lock: int) -> list[str]:
        """With the lock taken: what a dead topology of this name left, here and where its record says; returns the paths."""
        removed = [f"{SHM}/{name}" for name in sweep(self.name)]
        folders = {self.path, _recorded(lock, self.name) or self.path}
        return removed + [str(folder) for folder in sorted(folders) if _remove_folder(folder)]


def _mark(name: str) -> bytes:
    return f"{_MADE_BY}\n{name}\n".encode()


def _recorded(lock: int, name: str) -> Path | None:
    """The folder that a lock file of ours names; None if it does not (yet)."""
    try:
        record = json.loads(os.pread(lock, _LONGEST_RECORD, 0))
        folder = Path(record["folder"]) if record["made_by"] == _MADE_BY else None
    except (ValueError, KeyError, TypeError):
        return None
    return folder if folder is not None and folder.is_absolute() and folder.name == name else None


def _remove_folder(path: Path) -> bool:
    """Remove a run folder with all that is in it; False if there is none, or the lab has not made it."""
    with contextlib.suppress(OSError):
        parent = open_folder(path.parent)
        try:
            folder = open_folder(path.name, dir_fd=parent)
            try:
                if not _is_marked(folder, path.name):
                    os.rmdir(path.name, dir_fd=parent)  # died before it was marked: then it is empty
                    return True
            finally:
                os.close(folder)
            # nobody but this user can put something else under the name: the parent is ours, too. No link in it is followed
            shutil.rmtree(path.name, dir_fd=parent)
            return True
        finally:
            os.close(parent)
    return False


def _is_marked(folder: int, name: str) -> bool:
    try:
        marker = open_file(MARKER, os.O_RDONLY, dir_fd=folder)
    except OSError:
        return False
    try:
        return os.read(marker, 4096) == _mark(name)
    finally:
        os.close(marker)


# --- all of them -----------------------------------------------------------------------------------------------------


def _names_in_shm() -> set[str]:
    return {match[1] for name in objects() if (match := _OBJECT.fullmatch(name))}


def _names_in_place() -> set[str]:
    """Marked folders in `place`: the ones whose lock is gone, as /tmp outlives /dev/shm."""
    found = set()
    with contextlib.suppress(OSError):
        parent = open_folder(place())
        try:
            for name in os.listdir(parent):
                with contextlib.suppress(OSError):
                    folder = open_folder(name, dir_fd=parent)
                    if _is_marked(folder, name):
                        found.add(name)
                    os.close(folder)
        finally:
            os.close(parent)
    return found


def living() -> list[RunDir]:
    """The topologies of this user that live, in whichever environment they were started. Makes nothing."""
    return [run for run in map(RunDir.of, sorted(_names_in_shm())) if run.is_alive()]


def clean(only: str | None = None, prefix: str = "") -> list[str]:
    """Remove what dead topologies (or those named) left, never anything of a living one; a line for each thing removed."""
    removed = []
    for name in sorted(name for name in _names_in_shm() | _names_in_place() if only in (None, name) and name.startswith(prefix)):
        run = RunDir(name)
        had_lock = run.lock_path.exists()
        try:
            lock = run._lock()
        except (TopologyExists, PermissionError):  # it lives, or another user has laid something there
            continue
        try:
            left = run._remove_leftovers(lock)
            run.remove()
            removed += left or [str(run.lock_path)] * had_lock
        finally:
            os.close(lock)
    return removed
