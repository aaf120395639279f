"""The names of POSIX shared-memory objects in /dev/shm: which are a topology's, and taking away those that a dead one has left.

Plain Python only: read by processes that must not import numpy.
"""

import contextlib
import os
from pathlib import Path

import posix_ipc

from hyp.ownfiles import private_file

SHM = Path("/dev/shm")


def shm_prefix(topology: str) -> str:
    """What the names of a topology's POSIX objects begin with, without the leading slash."""
    return f"xbl.{os.getuid()}.{topology}."


def objects(topology: str | None = None) -> list[str]:
    """Names of this user's POSIX objects of the lab, or of one topology: regular files, open to nobody else, and no links."""
    prefix = f"xbl.{os.getuid()}." if topology is None else shm_prefix(topology)
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(SHM) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                    if private_file(entry.stat(follow_symlinks=False), entry.path) is None:
                        found.append(entry.name)
    return sorted(found)


def sweep(topology: str) -> list[str]:
    """Unlink every region's POSIX object of a topology that no longer lives; returns their names.

    The caller holds the topology's lock (lab/rundir.py), which is no region. In a folder where everybody writes nobody but the
    owner can put something else under the name of a file, so what was looked at is what is unlinked.
    """
    swept = []
    for name in objects(topology):
        if name != f"{shm_prefix(topology)}lock":
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(f"/{name}")
                swept.append(name)
    return swept
