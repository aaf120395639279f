"""A region that its owner cuts short: who maps it reads zeros, is told, and goes on; what is not guarded is a fault as ever."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hyp import lost_memory
from tests.support.patience import patient

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import asyncio, ctypes, faulthandler, mmap, os, sys, threading
import numpy as np
from hyp import lost_memory
from hyp.memory import Mapping, create_region

faulthandler.enable()
told = []

async def main():
    lost_memory.guard(told.append)
    mine, others = (create_region("posix", f"lost{os.getpid()}", owner, "ram", 8 * 4096) for owner in ("anna", "bert"))
    try:
        a, b = Mapping(mine.fd, mine.size), Mapping(others.fd, others.size)
        gone = Mapping(mine.fd, mine.size)
        del gone  # its place in the table can be had again
        a.array[:], b.array[:] = 7, 9
        os.ftruncate(mine.fd, 4096)
        readers = [threading.Thread(target=lambda: sums.append(int(a.array.sum()))) for _ in range(4)]
        sums = []
        for reader in readers: reader.start()
        for reader in readers: reader.join()
        while not told: await asyncio.sleep(0)
        assert set(sums) <= {0, 7 * 4096}, sums  # who had read the first page already
        assert int(a.array.sum()) == 0  # all of it is gone, not what was cut off alone
        a.array[5 * 4096] = 1  # and can be written
        assert int(b.array.sum()) == 9 * b.size
        assert told == [f"xbl.{os.getuid()}.lost{os.getpid()}.anna.ram"], told
        if sys.argv[1] == "unguarded":
            from hyp import memory
            memory.told_of_mappings.clear()
            c = Mapping(others.fd, others.size)
            os.ftruncate(others.fd, 0)
            print("last words", flush=True)
            c.array[0]
    finally:
        mine.close(); others.close()

asyncio.run(main())
print("alive")
"""


def run(what: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, what], cwd=ROOT, capture_output=True, text=True, timeout=patient(60)
    )  # fmt: skip


def test_what_is_cut_off_is_zeros_to_others() -> None:
    done = run("guarded")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    assert "was cut off by its owner" in done.stderr


@pytest.mark.usefixtures("warm")
def test_a_fault_of_our_own_is_told_as_ever() -> None:
    done = run("unguarded")
    assert done.returncode == -signal.SIGBUS
    assert done.stdout == "last words\n"
    assert "Fatal Python error: Bus error" in done.stderr
    for name in Path("/dev/shm").glob("xbl.*.lost*.*.ram"):  # it could not put them away
        name.unlink()


HOLES = """
import asyncio, ctypes, mmap, os, threading
from hyp import lost_memory
from hyp.memory import Mapping, create_region

libc = ctypes.CDLL(None, use_errno=True)
PAGES, told, over = 64, [], threading.Event()

def punch(fd):
    while not over.is_set():
        assert libc.fallocate(fd, 3, ctypes.c_long(4096), ctypes.c_long(PAGES // 2 * 4096)) == 0

def use(memory):
    while not over.is_set():
        memory.array[::4096] = 1

async def main():
    lost_memory.guard(told.append)
    whole = {backing: create_region(backing, f"holes{os.getpid()}", "anna", "ram", PAGES * 4096) for backing in ("posix", "sealed")}
    hidden = create_region("posix", f"holes{os.getpid()}", "carl", "ram", PAGES * 4096)
    early = create_region("posix", f"holes{os.getpid()}", "dora", "ram", PAGES * 4096)
    sparse = create_region("sealed", "holes", "bert", "ram", PAGES * 4096)
    os.ftruncate(memory := os.memfd_create("sparse"), 1 << 24)
    try:
        mapped = {backing: Mapping(region.fd, region.size) for backing, region in whole.items()}
        hides = Mapping(hidden.fd, hidden.size)
        os.ftruncate(early.fd, 2 * PAGES * 4096)  # so that it seems to be no whole file, and may have more
        comes_early = Mapping(early.fd, early.size)
        os.posix_fallocate(early.fd, PAGES * 4096, PAGES * 4096)
        honest, grows = Mapping(sparse.fd, sparse.size), Mapping(memory, 1 << 24, populate=False)
        threads = [threading.Thread(target=use, args=(one,)) for one in (*mapped.values(), hides, comes_early, honest)]
        # beyond its end, as many pages as it has holes then: the sum is as it was
        assert libc.fallocate(hidden.fd, 1, ctypes.c_long(PAGES * 4096), ctypes.c_long(PAGES // 2 * 4096)) == 0
        threads += [threading.Thread(target=punch, args=(region.fd,)) for region in (hidden, early)]
        threads += [threading.Thread(target=punch, args=(region.fd,)) for region in whole.values()]
        for thread in threads: thread.start()
        first = 0
        while len(told) < 4:
            grows.array[first % (1 << 24)] = 1  # pages that it never had make faults, too
            first += 4096
            await asyncio.sleep(0)
        over.set()
        for thread in threads: thread.join()
        assert sorted(name.split(".")[-2] for name in told) == ["anna", "anna", "carl", "dora"], told
        for one in (*mapped.values(), hides, comes_early):  # nobody sees any more what is written there
            one.array[:] = 3
        assert set(os.pread(whole["sealed"].fd, 4096, 0)) <= {0, 1}
        assert set(os.pread(whole["posix"].fd, 4096, 0)) <= {0, 1}
        honest.array[:] = 5
        assert set(os.pread(sparse.fd, 1 << 24, 0)) == {5}
    finally:
        over.set()
        for region in (*whole.values(), hidden, early, sparse): region.close()

asyncio.run(main())
print("alive")
"""


def test_who_punches_holes_loses_the_region_and_nobody_else() -> None:
    """On both backings, while it is used; one that is whole, and one that had no pages to begin with, are left alone."""
    done = subprocess.run([sys.executable, "-c", HOLES], cwd=ROOT, capture_output=True, text=True, timeout=patient(60))
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    assert done.stderr.count("has had holes punched into it, memory added, or its pages made anew, by its owner") == 4
    assert "bert" not in done.stderr
    assert "sparse" not in done.stderr


def smaps_of(*mappings: tuple[int, int, int, int]) -> list[str]:
    """Lines of smaps for mappings of (start, size, rss, swap) bytes."""
    lines = []
    for start, size, rss, swap in mappings:
        lines += [f"{start:x}-{start + size:x} rw-s 00000000 00:01 7    /memfd:x:y (deleted)", f"Size: {size >> 10} kB"]
        lines += [f"Rss:    {rss >> 10} kB", "Pss: 0 kB", f"Swap:   {swap >> 10} kB", "VmFlags: rd wr sh"]
    return lines


def test_a_region_that_is_not_mapped_any_more_again_and_again_is_lost() -> None:
    """But one that was swapped out is not, nor one of which less than a huge page is missing, nor one that was it now and then."""
    now, mapped = [0.0], list[int]()
    unmapped = lost_memory.Unmapped(lambda start, size: mapped.append(start), lambda: now[0])
    size, file = 4 * lost_memory.HUGE, (1, 7)
    whole, some = (0x10000, size, size, 0), (0x10000, size, size - 4096, 0)
    missing, swapped = (0x10000, size, size - lost_memory.HUGE, 0), (0x10000, size, size - lost_memory.HUGE, lost_memory.HUGE)
    other = (0x9000000, size, 0, 0)

    def look(one: tuple[int, int, int, int], swapped_out: int = 5) -> set[tuple[int, int]]:
        now[0] += lost_memory.LOOK_S
        return unmapped.look({0x10000: file}, smaps_of(one, other), ["nr_free_pages 9\n", f"pswpout {swapped_out}\n"])

    for one in (whole, some, swapped):
        assert [look(one) for _ in range(20)] == [set()] * 20
    assert mapped == []
    assert [look(missing, swapped_out=k) for k in range(20)] == [set()] * 20, "the machine swaps"
    now[0] += 100
    for _ in range(10):
        assert look(missing) == set()
        now[0] += lost_memory.STRIKES_S / 2
    now[0] += 100
    assert [look(missing) for _ in range(lost_memory.STRIKES)] == [set()] * (lost_memory.STRIKES - 1) + [{file}]
    assert set(mapped) == {0x10000}


ANEW = """
import asyncio, ctypes, mmap, os, threading
from hyp import lost_memory
from hyp.memory import Mapping, create_region

libc = ctypes.CDLL(None, use_errno=True)
HUGE, SIZE, told, over = 2 << 20, 8 << 20, [], threading.Event()

def make_anew(fd, at):  # the owner
    while not over.is_set():
        libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(HUGE), 25)
        libc.fallocate(fd, 3, ctypes.c_long(HUGE - 1), ctypes.c_long(1))

def use(memory):
    while not over.is_set():
        memory.array[::4096] = 1

async def main():
    lost_memory.guard(told.append)
    one, other = (create_region("sealed", f"anew{os.getpid()}", name, "ram", SIZE) for name in ("anna", "bert"))
    room = mmap.mmap(-1, SIZE + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    at = -(-ctypes.addressof(ctypes.c_char.from_buffer(room)) // HUGE) * HUGE
    libc.mmap.restype = ctypes.c_void_p
    fixed = libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(SIZE), 3, mmap.MAP_SHARED | 0x10, one.fd, ctypes.c_long(0))
    assert fixed == at
    if libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(HUGE), 25):
        print("cannot", os.strerror(ctypes.get_errno()))
        return
    mapped = [Mapping(region.fd, SIZE) for region in (one, other)]
    threads = [threading.Thread(target=use, args=(memory,)) for memory in mapped]
    threads.append(threading.Thread(target=make_anew, args=(one.fd, at)))
    for thread in threads: thread.start()
    while not told: await asyncio.sleep(0.01)
    over.set()
    for thread in threads: thread.join()
    assert [name.split(".")[-2] for name in told] == ["anna"], told
    one.close()
    other.close()

asyncio.run(main())
print("alive")
"""


def test_who_has_its_pages_made_anew_again_and_again_loses_the_region_and_nobody_else() -> None:
    """On a kernel that makes huge pages when it is asked to (Linux 6.1); where it doesn't nobody can do that."""
    done = subprocess.run([sys.executable, "-c", ANEW], cwd=ROOT, capture_output=True, text=True, timeout=patient(60))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n" or "cannot" in done.stdout
