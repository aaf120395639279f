"""Regions of shared memory: names, sizes, rights, seals, what happens when there is no room, and sweeping up."""

import errno
import gc
import mmap
import os
import resource
import signal
import stat
from collections.abc import Iterator

import numpy as np
import pytest

from hyp.abi.nic import PAGE
from hyp.memory import Mapping, Region, SharedMemoryError, create_region
from hyp.shm import SHM, shm_prefix, sweep

TOPOLOGY = f"t{os.getpid()}-memory"


@pytest.fixture(autouse=True)
def nothing_left(settled: None) -> Iterator[None]:
    """Every test takes its regions away itself; what it leaves is an error (and is swept)."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()  # a mapping that failed keeps a duplicate until its exception is gone
    left = sweep(TOPOLOGY)
    assert left == []
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture(params=["posix", "sealed"])
def region(request: pytest.FixtureRequest) -> Iterator[Region]:
    made = create_region(request.param, TOPOLOGY, "anna", "ram", 3 * PAGE)
    yield made
    made.close()


def names() -> list[str]:
    return sorted(path.name for path in SHM.glob(f"{shm_prefix(TOPOLOGY)}*"))


# --- both backings ---------------------------------------------------------------------------------------------------


def test_a_region_is_zeroed_shared_and_of_whole_pages(region: Region) -> None:
    assert region.size == os.fstat(region.fd).st_size == 3 * PAGE
    one, other = region.map(), Mapping(region.fd, region.size)
    assert not one.array.any()
    assert one.address % PAGE == 0
    one.words("<u8", PAGE, 2)[1] = 0x0102_0304_0506_0708
    assert other.array[PAGE + 8 : PAGE + 16].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("backing", ["posix", "sealed"])
@pytest.mark.parametrize(("asked", "made"), [(1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)])
def test_sizes_are_rounded_up(backing: str, asked: int, made: int) -> None:
    region = create_region(backing, TOPOLOGY, "anna", "odd", asked)
    assert region.size == os.fstat(region.fd).st_size == made
    region.close()


def test_its_memory_is_reserved(region: Region) -> None:
    assert os.fstat(region.fd).st_blocks * 512 >= region.size


def test_the_descriptor_is_not_inherited_by_programs(region: Region) -> None:
    assert not os.get_inheritable(region.fd)
    readonly = region.readonly_fd()
    assert not os.get_inheritable(readonly)
    os.close(readonly)


def test_a_mapping_outlives_the_region(region: Region) -> None:
    mapping = region.map()
    mapping.array[0] = 7
    region.close()
    region.close()  # twice does no harm
    assert mapping.array[0] == 7
    assert names() == []


def test_a_read_only_descriptor_allows_reading_only(region: Region) -> None:
    writer = region.map()
    fd = region.readonly_fd()
    reader = Mapping(fd, region.size, writable=False)
    writer.array[5] = 42
    assert reader.array[5] == 42
    with pytest.raises((ValueError, TypeError)):
        reader.array[5] = 1
    for attempt in (
        lambda: mmap.mmap(fd, region.size, mmap.MAP_SHARED, mmap.PROT_WRITE),
        lambda: mmap.mmap(fd, region.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: Mapping(fd, region.size),
        lambda: os.write(fd, b"x"),
        lambda: os.ftruncate(fd, 0),
    ):
        with pytest.raises(OSError, match=r"denied|Bad file|Invalid") as error:
            attempt()
        assert error.value.errno in (errno.EACCES, errno.EBADF, errno.EINVAL)
    assert writer.array[5] == 42
    os.close(fd)


def test_mapping_more_than_there_is_is_refused(region: Region) -> None:
    with pytest.raises(SharedMemoryError, match="12288 bytes cannot be mapped as 12289"):
        Mapping(region.fd, region.size + 1)
    adopted = os.dup(region.fd)
    with pytest.raises(SharedMemoryError):
        Mapping.adopt(adopted, region.size + PAGE)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(adopted)


def test_an_adopted_descriptor_is_closed_and_its_memory_stays(region: Region) -> None:
    fd = os.dup(region.fd)
    mapping = Mapping.adopt(fd, region.size)
    mapping.array[9] = 9
    assert region.map().array[9] == 9
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_unknown_backing() -> None:
    with pytest.raises(ValueError, match=r"'hugetlb'.*posix, sealed"):
        create_region("hugetlb", TOPOLOGY, "anna", "ram", PAGE)


# --- posix -----------------------------------------------------------------------------------------------------------


def test_posix_objects_are_named_after_topology_owner_and_purpose_and_private() -> None:
    region = create_region("posix", TOPOLOGY, "anna", "ram", PAGE)
    name = f"xbl.{os.getuid()}.{TOPOLOGY}.anna.ram"
    assert names() == [name]
    mode = os.stat(SHM / name)
    assert stat.S_IMODE(mode.st_mode) == 0o600
    assert mode.st_uid == os.getuid()
    region.map().array[:3] = np.frombuffer(b"xyz", np.uint8)
    assert (SHM / name).read_bytes()[:3] == b"xyz", "it is there to be looked at"
    region.close()
    assert names() == []


def test_the_same_name_twice_is_refused_and_the_first_stays() -> None:
    region = create_region("posix", TOPOLOGY, "anna", "ram", PAGE)
    region.map().array[0] = 5
    with pytest.raises(SharedMemoryError, match=rf"anna\.ram of topology {TOPOLOGY} exists already") as error:
        create_region("posix", TOPOLOGY, "anna", "ram", PAGE)
    assert error.value.errno == errno.EEXIST
    assert region.map().array[0] == 5
    region.close()


def test_closing_after_somebody_else_has_swept() -> None:
    region = create_region("posix", TOPOLOGY, "anna", "ram", PAGE)
    assert sweep(TOPOLOGY) == [f"xbl.{os.getuid()}.{TOPOLOGY}.anna.ram"]
    region.close()


def test_sweep_takes_its_own_topology_only() -> None:
    """`a` is not `a-b`, nor `ab`, and patterns are not patterns."""
    others = [f"{TOPOLOGY}-b", f"{TOPOLOGY}b", f"x{TOPOLOGY}", TOPOLOGY[:-1]]
    kept = [create_region("posix", other, "anna", "ram", PAGE) for other in others]
    mine = [create_region("posix", TOPOLOGY, "anna", purpose, PAGE) for purpose in ("ram", "iommu")]
    foreign = SHM / f"xbl.{os.getuid() + 1}.{TOPOLOGY}.anna.ram"
    foreign.write_bytes(b"")
    try:
        assert sorted(sweep(TOPOLOGY)) == sorted(f"{shm_prefix(TOPOLOGY)}anna.{purpose}" for purpose in ("ram", "iommu"))
        assert sweep(TOPOLOGY) == []
        assert sweep(f"{TOPOLOGY[:-1]}?") == sweep(f"{TOPOLOGY}[-b]*") == sweep("") == []
        assert foreign.exists()
        for other in others:
            assert (SHM / f"{shm_prefix(other)}anna.ram").exists()
    finally:
        foreign.unlink()
        for region in (*kept, *mine):
            region.close()


# --- sealed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2 * PAGE, 4 * PAGE, 1 << 30])
def test_sealed_memory_can_neither_shrink_nor_grow(size: int) -> None:
    region = create_region("sealed", TOPOLOGY, "anna", "ram", 3 * PAGE)
    mapping = region.map()
    reopened = os.open(f"/proc/self/fd/{region.fd}", os.O_RDWR)
    for fd in (region.fd, reopened):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        os.posix_fallocate(region.fd, 0, 5 * PAGE)
    mapping.array[3 * PAGE - 1] = 1  # would be SIGBUS
    os.close(reopened)
    region.close()


def test_sealed_memory_has_no_name() -> None:
    region = create_region("sealed", TOPOLOGY, "anna", "ram", PAGE)
    assert names() == []
    again = create_region("sealed", TOPOLOGY, "anna", "ram", PAGE)
    assert region.fd != again.fd
    region.close()
    again.close()


def test_after_sealing_writes_the_owners_mapping_is_the_only_writer() -> None:
    region = create_region("sealed", TOPOLOGY, "hyp", "platform", PAGE, one_writer=True)
    owner = region.map()
    region.seal_writes()
    reopened = os.open(f"/proc/self/fd/{region.fd}", os.O_RDWR)
    for fd in (region.fd, reopened):
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
    reader = Mapping(region.fd, PAGE, writable=False)
    owner.array[0] = 3
    assert reader.array[0] == 3
    os.close(reopened)
    region.close()


def test_sealing_writes_of_a_posix_object_changes_nothing() -> None:
    region = create_region("posix", TOPOLOGY, "hyp", "platform", PAGE)
    region.seal_writes()
    region.map().array[0] = 1
    region.close()


# --- no room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", ["posix", "sealed"])
def test_no_room_is_an_error_at_creation_that_says_what_is_missing(backing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryError) as error:
        create_region(backing, TOPOLOGY, "anna", "ram", 5 * PAGE)
    assert error.value.errno == errno.ENOSPC
    for part in ("anna.ram", TOPOLOGY, str(5 * PAGE), "No space left", "/dev/shm", "free"):
        assert part in str(error.value)
    assert names() == []


@pytest.mark.parametrize("backing", ["posix", "sealed"])
def test_a_limit_of_the_process_is_an_error_too(backing: str) -> None:
    """RLIMIT_FSIZE holds for ftruncate and fallocate alike."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PAGE, resource.RLIM_INFINITY))
            try:
                create_region(backing, TOPOLOGY, "bert", "ram", 8 * PAGE)
            except SharedMemoryError as error:
                status = 0 if error.errno == errno.EFBIG and "bert.ram" in str(error) and names() == [] else 2
            except BaseException as error:
                os.write(2, f"{type(error).__mro__}: {error} {names()}\n".encode())
                status = 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_more_than_the_machine_has_is_refused_at_once() -> None:
    room = os.statvfs(SHM)
    total = room.f_blocks * room.f_frsize
    with pytest.raises(SharedMemoryError, match="cannot be had"):
        create_region("posix", TOPOLOGY, "anna", "ram", total + (1 << 30))
    assert names() == []
