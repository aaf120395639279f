"""The compile cache: one file for each kernel and key, in a folder of ours and nowhere else.

A file is only used if it belongs to this user or root, nobody else can write it, and it is whole: its header has its name and a
checksum. Anything else counts as not there, and is replaced by what is compiled instead. Where the folder can't be written, nothing
is lost but time; `trouble` then says why.
"""

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import time
from pathlib import Path

MAGIC = b"xen-bypass-lab compiled code\n"
DAY_S = 86400.0
UNUSED_S = 30 * DAY_S
"""A file that has not been used for so long is removed when another is written."""
MOST = 24
"""Files of one kernel that are kept: those last used."""
_ENTRY = re.compile(r"(?P<kernel>[\w.]+)-[0-9a-f]{32}\.kernel(\.[0-9]+\.tmp)?")


def default_folder() -> Path | None:
    """Where compiled code is kept: ``XBL_CACHE``, or a folder in the user's cache folder; None where the user has none."""
    if os.environ.get("XBL_CACHE"):
        return Path(os.environ["XBL_CACHE"]).absolute() / "kernels"
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(base) / "xen-bypass-lab" / "kernels"


class Store:
    """A folder with compiled kernels."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.trouble = None if folder else "no cache folder: HOME is not set, and this user has no home"
        """Why something could not be written."""

    def _path(self, kernel: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kernel}-{key}.kernel"

    def read(self, kernel: str, key: str) -> bytes | None:
        """What was written for a kernel, or None."""
        if self.folder is None:
            return None
        path = self._path(kernel, key)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if not _is_ours(status):
                    return None
                content = file.read()
            head = _head(path.name)
            data = content[len(head) + 32 :]
            if not content.startswith(head) or hashlib.sha256(data).digest() != content[len(head) : len(head) + 32]:
                return None
            if time.time() - status.st_mtime > DAY_S:  # the time of last use, to a day
                with contextlib.suppress(OSError):
                    os.utime(path)
        except OSError:
            return None
        return data

    def write(self, kernel: str, key: str, data: bytes) -> bool:
        """Keep what was compiled. False, with `trouble`, if it can't be kept."""
        if self.folder is None:
            return False
        path = self._path(kernel, key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(_head(path.name) + hashlib.sha256(data).digest() + data)
            os.replace(temporary, path)
        except OSError as error:
            self._in_trouble(path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()
            return False
        self._prune(kernel)
        return True

    def is_writable(self) -> bool:
        """True if files can be made in the folder; if not, `trouble` says why."""
        if self.folder is None:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            self._in_trouble(self.folder, error)
            return False
        return True

    def _in_trouble(self, path: Path, error: OSError) -> None:
        self.trouble = f"{path}: {error.strerror}"

    def _prune(self, kernel: str) -> None:
        """Remove what nobody has used for long, and all but the last used of `kernel`: only files of this format that are ours."""
        assert self.folder is not None
        files: list[tuple[float, str]] = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                named = _ENTRY.fullmatch(entry.name)
                status = entry.stat(follow_symlinks=False)
                if named is None or not _is_ours(status):
                    continue
                if time.time() - status.st_mtime > UNUSED_S:
                    self._remove(entry.name)
                elif named["kernel"] == kernel and entry.name.endswith(".kernel"):
                    files.append((status.st_mtime, entry.name))
        for _, name in sorted(files)[:-MOST]:
            self._remove(name)

    def _remove(self, name: str) -> None:
        assert self.folder is not None
        with contextlib.suppress(OSError), open(self.folder / name, "rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                (self.folder / name).unlink()


def _head(name: str) -> bytes:
    return MAGIC + name.encode() + b"\n"


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022
