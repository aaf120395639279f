"""Whether a topology fits the machine: what it needs, what there is, and a refusal that names both."""

import os
from pathlib import Path

import pytest

from lab import topology
from lab.schema.tables import Topology
from lab.topology import TopologyError, check_machine
from tests.support.topologies import ANNA, BERT, MIB, read


def test_estimate_grows_with_all_ram_and_engines(tmp_path: Path) -> None:
    one = read(tmp_path, ANNA).shared_memory_bytes()
    ram = (16 + 32) * MIB
    assert ram < one < ram + 16 * MIB
    assert read(tmp_path, ANNA + BERT).shared_memory_bytes() >= one + 16 * MIB
    assert read(tmp_path, ANNA + 'memory = "1 GiB"\n').shared_memory_bytes() >= one + 1008 * MIB
    assert read(tmp_path, 'dom0.memory = "64 MiB"\n' + ANNA).shared_memory_bytes() >= one + 32 * MIB
    assert read(tmp_path, "nic.engines = 2\n" + ANNA).shared_memory_bytes() > one


def refusal(lab: Topology) -> str:
    with pytest.raises(TopologyError) as caught:
        check_machine(lab)
    return str(caught.value)


def test_too_small_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posix, sealed = read(tmp_path, ANNA), read(tmp_path, 'memory.backing = "sealed"\n' + ANNA)
    needed = posix.shared_memory_bytes()
    room = {"shm": needed, "memory": needed}
    monkeypatch.setattr(topology, "available_shm", lambda: room["shm"])
    monkeypatch.setattr(topology, "available_memory", lambda: room["memory"])
    check_machine(posix)
    check_machine(sealed)

    room["shm"] = needed - 1
    check_machine(sealed)
    text = refusal(posix)
    assert f'{posix.file}: 1 problem\n  memory.backing: "posix" needs ' in text
    assert f"({needed} bytes) and /dev/shm has" in text
    assert f"({needed - 1} bytes) available" in text
    assert "--shm-size=1g" in text

    room.update(shm=needed, memory=5)
    for lab in (posix, sealed):
        assert f"({needed} bytes) and memory has 0 KiB (5 bytes) available" in refusal(lab)


def test_what_is_available_here_is_measured() -> None:
    room = os.statvfs("/dev/shm")
    assert 0 < topology.available_shm() <= room.f_blocks * room.f_frsize
    assert 0 < topology.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def test_control_group_limits_memory(tmp_path: Path) -> None:
    """The nearest limit counts, less what is in use there and cannot be dropped."""
    inner = tmp_path / "sys/fs/cgroup/outer/inner"
    for folder in (inner, tmp_path / "proc/self"):
        folder.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert topology.available_memory(tmp_path) == 8000 << 10
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/other\n0::/outer/inner\n")
    assert topology.available_memory(tmp_path) == 8000 << 10
    for folder, limit in ((inner, "max"), (inner.parent, str(5000 << 10))):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.stat").write_text(f"anon {1000 << 10}\nfile {3000 << 10}\nshmem {500 << 10}\n")
    assert topology.available_memory(tmp_path) == 3500 << 10
