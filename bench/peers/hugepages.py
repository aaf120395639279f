"""2 MiB huge pages: reserved for a bench, and given back whatever becomes of it.

What was reserved is written down *before* it is reserved, in ``/dev/shm/xbl.<uid>.hugepages``, which is locked as long as the
reservation lasts. A record that nobody locks is a dead bench's, and the next reservation, or `sweep`, gives back what it says.
The whole machine shares one number of pages, so one reservation at a time is allowed, whatever the environment of those who ask;
like the pool, the record does not outlive the machine's start.
"""

import contextlib
import json
import os
from pathlib import Path

from bench.peers.base import PeerError
from hyp.ownfiles import lock_file
from hyp.shm import SHM

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
COMPACT = Path("/proc/sys/vm/compact_memory")
PAGE_BYTES = 2 << 20
GROW_TRIES = 4


class TooFewPages(PeerError):
    """The machine has no more pages to give, for now."""


def total() -> int:
    """Pages in the pool."""
    return int((POOL / "nr_hugepages").read_text())


def free() -> int:
    """Pages that nobody uses or is promised."""
    return int((POOL / "free_hugepages").read_text()) - int((POOL / "resv_hugepages").read_text())


def missing(pages: int) -> str | None:
    """None if `pages` can be had; else what to do."""
    if not POOL.exists():
        return "the kernel has no 2 MiB huge pages"
    if free() >= pages or os.access(POOL / "nr_hugepages", os.W_OK):
        return None
    return f"needs root to reserve {pages} huge pages of 2 MiB, or reserve them: sysctl vm.nr_hugepages={total() - free() + pages}"


def record_path() -> Path:
    """What is reserved, and, by its lock, whether whoever reserved it lives."""
    return SHM / f"xbl.{os.getuid()}.hugepages"


def _restore(fd: int) -> int:
    """Give back what the record of `fd` says, and not what anybody else has changed since; the number of pages."""
    text = os.pread(fd, 4096, 0)
    with contextlib.suppress(ValueError):
        record: dict[str, int] = json.loads(text)
        now = total()
        # between the record and the reservation nothing has been added yet: never below what there was
        target = min(now, max(record["before"], now - record["added"]))
        if target != now:
            (POOL / "nr_hugepages").write_text(str(target))
        return now - target
    return 0  # empty: died before it wrote anything


def _grow(pages: int) -> None:
    """A pool of `pages`, as far as the kernel finds them: it gives up part of the way when memory is fragmented, or at a signal."""
    for _ in range(GROW_TRIES):
        (POOL / "nr_hugepages").write_text(str(pages))
        if total() >= pages:
            return
        with contextlib.suppress(OSError):  # not every kernel can, and the next try says what is missing
            COMPACT.write_text("1")


def reserve(pages: int) -> int:
    """Make sure that `pages` are free; a descriptor, which `give_back` takes. PeerError if they cannot be had."""
    try:
        fd = lock_file(record_path())
    except OSError as error:
        raise PeerError(f"huge pages: {error.filename}: {error.strerror}") from error
    if fd is None:
        raise PeerError("another bench has huge pages reserved; wait for its end")
    try:
        _restore(fd)
        before, added = total(), max(0, pages - free())
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"before": before, "added": added}).encode(), 0)
        if added:
            _grow(before + added)
        if free() < pages:
            raise TooFewPages(f"the kernel found only {free()} of {pages} huge pages of 2 MiB: memory is short or fragmented")
    except BaseException as error:
        give_back(fd)
        if isinstance(error, OSError):
            raise PeerError(f"huge pages: {error.strerror}") from error
        raise
    return fd


def give_back(fd: int) -> int:
    """End a reservation: the pool is as it was, the record is gone; returns the number of pages given back."""
    try:
        return _restore(fd)
    finally:
        record_path().unlink(missing_ok=True)
        os.close(fd)


def sweep() -> list[str]:
    """Give back what a dead bench reserved; a line for what was done. A living bench's are left alone."""
    if not record_path().exists():
        return []
    try:
        fd = lock_file(record_path())
    except PermissionError:  # another user has laid something there
        return []
    pages = give_back(fd) if fd is not None else 0
    return [f"{pages} huge pages of 2 MiB"] if pages else []
