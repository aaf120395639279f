"""A confined guest's process among others, and what programs in it have of who starts them."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.rundir import place
from tests.support.labs import LAUNCH, launch, staying_up, topology_file, unique
from tests.support.patience import patient

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("confinement", "taps")]

NAME = "confprog"
TEXT = 'memory.backing = "sealed"\n' + "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\n{more}'
    for name, path, more in (
        ("anna", "bypass", ""),
        ("mallory", "split", "confined = true\n"),
        ("tess", "bypass", 'confined = true\nprogram = "tap"\naddress = "10.0.0.1/24"\n'),
    )
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with staying_up(topology_file(tmp_path_factory.mktemp(NAME), NAME, TEXT)):
        yield unique(NAME)


def inside(lab: str, *program: str, **options: Any) -> str:
    """What a program in tess prints."""
    command = [*LAUNCH, "exec", "--topology", lab, "tess", "--", *program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_each_guest_has_a_process_group_of_its_own(lab: str) -> None:
    """Signals and priorities of a group reach all that are in it, in whatever namespaces they are."""
    status = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)
    pids = {one["name"]: one["pid"] for one in status["processes"]}
    groups = {name: os.getpgid(pid) for name, pid in pids.items()}
    guests = {"anna", "mallory", "tess"}
    assert {name: groups[name] for name in guests} == {name: pids[name] for name in guests}
    assert not {groups[name] for name in groups.keys() - guests} & {groups[name] for name in guests}


@pytest.mark.needs("root")
def test_a_program_has_no_groups_of_its_callers(lab: str) -> None:
    assert inside(lab, "grep", "^Groups:", "/proc/self/status", extra_groups=[4, 24]) == "Groups:"


def test_a_folder_that_is_not_there_is_not_the_programs_either(lab: str, tmp_path: Path) -> None:
    """By one of the host's, as it is mounted there, it could change what is the host's."""
    where = ("readlink", "/proc/self/cwd")
    assert inside(lab, *where, cwd=place()) == "/"
    assert inside(lab, *where, cwd="/usr/lib") == "/usr/lib"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert inside(lab, *where, cwd=folder) == "/"


def test_a_program_cannot_have_cores(lab: str) -> None:
    assert inside(lab, "bash", "-c", "ulimit -c 0; ulimit -Sc unlimited; grep core /proc/self/limits").split()[-3:] == [
        "1",
        "1",
        "bytes",
    ]


def test_a_program_is_no_administrator_of_its_network(lab: str) -> None:
    """Who is has the kernel interrupt all CPUs, load modules, and hold the lock of the whole machine's interfaces."""
    status = dict(line.split(":\t") for line in inside(lab, "cat", "/proc/self/status").splitlines())
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert [number for number in range(64) if int(status[name], 16) >> number & 1] == [0, 1, 3, 5, 6, 7, 10, 13]


def test_a_programs_proc_is_a_confined_ones(lab: str) -> None:
    assert inside(lab, "sh", "-c", "cat /proc/locks /proc/consoles; ls /proc/bus; wc -c </proc/locks") == "0"
    assert inside(lab, "sh", "-c", "ls -d /proc/[0-9]* | wc -l") != "0"
    assert inside(lab, "sh", "-c", "ls /sys/class/net").split() == ["eth0", "lo"]
