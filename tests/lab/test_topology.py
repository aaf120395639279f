"""Topology files: what is read from them, and files that cannot be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyp.model.operations import OPERATIONS
from lab.schema import guest, tables
from lab.topology import PATHS, TopologyError, load
from tests.support.patience import patient
from tests.support.topologies import ANNA, MIB, read, write

ROOT = Path(__file__).resolve().parent.parent.parent

# --- what is read ----------------------------------------------------------------------------------------------------


REPLAY = {"file": None, "speed": "recorded", "times": 1, "snapped": "pad"}


def test_defaults(tmp_path: Path) -> None:
    lab = read(tmp_path, ANNA)
    assert lab.file == str(tmp_path / "lab.toml")
    assert lab.plain() == {
        "name": "lab",
        "memory": {"backing": "posix"},
        "nic": {
            "engines": 1,
            "mtu": 1500,
            "pause_us": 20_000,
            "storm_pps": 0,
            "queue": 256,
            "wire": {
                "mode": "sink",
                "mac": "02:00:00:00:ff:01",
                "to": None,
                "frame": 64,
                "pps": 0,
                "gbps": 0.0,
                "delay_us": 0,
                **REPLAY,
                "rewrite": {},
                "interface": "xbl0",
                "address": None,
                "address6": None,
            },
        },
        "dom0": {"memory": 32 * MIB, "ageing_s": 300, "max_queues": 8},
        "supervisor": {"restart": True, "restarts": 5, "within_s": 10.0},
        "confined": False,
        "spin": {"limit_us": "auto"},
        "cpu": {"hyp": None, "dom0": None, "nic": None, "guests": {}, "programs": None, "spin": None},
        "model": {"profile": None, "price": dict.fromkeys(OPERATIONS, 0)},
        "guest": [
            {
                "name": "anna",
                "path": "split",
                "mac": "02:00:00:00:00:01",
                "memory": 16 * MIB,
                "program": "traffic",
                "address": None,
                "mtu": 1500,
                "address6": None,
                "link_local": False,
                "gateway": None,
                "gateway6": None,
                "batches": True,
                "grants": "copy",
                "rate": None,
                "offloads": ["sg", "csum", "tso"],
                "iommu": "persistent",
                "queues": 1,
                "trunk": False,
                "restart": False,
                "confined": False,
            }
        ],
        "workload": [],
    }


def test_everything_given(tmp_path: Path) -> None:
    text = """
        name = "full-1"
        memory.backing = "sealed"
        spin.limit_us = 0
        [nic]
        engines = 8
        mtu = 4000
        pause_us = 0
        queue = 512
        [nic.wire]
        mode = "generate"
        mac = "0A:00:00:00:00:01"
        to = "tess"
        frame = 1514
        pps = 1000
        gbps = 10
        delay_us = 50
        [dom0]
        memory = "1 GiB"
        ageing_s = 5
        [[guest]]
        name = "0"
        path = "bypass"
        mac = "02:00:00:00:AB:cd"
        memory = 4194304
        mtu = 576
        [[guest]]
        name = "tess"
        path = "split"
        memory = "8192KiB"
        program = "tap"
        address = "10.0.0.255/8"
        [[workload]]
        kind = "rr"
        from = "0"
        to = "wire"
        frame = 590
        frames = 10
        [[workload]]
        kind = "stream"
        from = "wire"
        to = "0"
        seconds = 2
    """
    plain = read(tmp_path, text).plain()
    assert (plain["name"], plain["memory"]["backing"], plain["spin"]["limit_us"]) == ("full-1", "sealed", 0)
    wire = {"mode": "generate", "mac": "0a:00:00:00:00:01", "to": "tess", "frame": 1514, "pps": 1000, "gbps": 10.0, "delay_us": 50}
    host: dict[str, Any] = {"interface": "xbl0", "address": None, "address6": None, **REPLAY, "rewrite": {}}
    assert plain["nic"] == {"engines": 8, "mtu": 4000, "pause_us": 0, "queue": 512, "storm_pps": 0, "wire": wire | host}
    assert plain["dom0"] == {"memory": 1024 * MIB, "ageing_s": 5, "max_queues": 8}
    assert [(g["mac"], g["memory"], g["mtu"], g["address"]) for g in plain["guest"]] == [
        ("02:00:00:00:ab:cd", 4 * MIB, 576, None),
        ("02:00:00:00:00:02", 8 * MIB, 1500, "10.0.0.255/8"),
    ]
    assert plain["workload"] == [
        {"kind": "rr", "from": "0", "to": "wire", "frame": 590, "payload": "full", "seconds": None, "frames": 10, **REPLAY},
        {"kind": "stream", "from": "wire", "to": "0", "frame": 64, "payload": "full", "seconds": 2.0, "frames": None, **REPLAY},
    ]


def test_plain_is_made_of_plain_types(tmp_path: Path) -> None:
    def check(value: Any) -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        for item in value.values() if type(value) is dict else value if type(value) is list else ():
            check(item)

    check(load(ROOT / "topologies/demo.toml").plain())


def test_64_guests_have_64_macs(tmp_path: Path) -> None:
    lab = read(tmp_path, "".join(f'[[guest]]\nname = "g{i}"\npath = "bypass"\n' for i in range(64)))
    assert len({guest.mac for guest in lab.guests}) == 64
    assert lab.guests[63].mac == "02:00:00:00:00:40"


def test_an_unknown_path_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    path = write(tmp_path, ANNA.replace("split", "fifth"))
    with pytest.raises(TopologyError, match=rf"guest\[0\]\.path: 'fifth' is not a path; there are {', '.join(PATHS)}"):
        load(path)


@pytest.mark.parametrize("path", sorted((ROOT / "topologies").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_topologies_are_sound(path: Path) -> None:
    lab = load(path)
    assert lab.name == path.stem


def test_demo_gives_both_paths_the_same_traffic() -> None:
    demo = load(ROOT / "topologies/demo.toml")
    path = {guest.name: guest.path for guest in demo.guests}
    assert path == {"anna": "split", "bert": "split", "carl": "bypass", "dora": "bypass"}
    split, bypass = (
        [(w.kind, w.frame, w.seconds, w.to == "wire") for w in demo.workloads if path[w.from_] == which]
        for which in ("split", "bypass")
    )
    assert split == bypass
    assert {(kind, frame) for kind, frame, _, _ in split} == {("stream", 64), ("stream", 1500), ("rr", 64)}
    assert len(split) == 6


def test_manual_has_every_key() -> None:
    manual = (ROOT / "docs/topology.md").read_text()
    models = (tables.Memory, tables.Nic, tables.Wire, tables.Dom0, tables.Spin, tables.Model)  # prices are in docs/model.md
    for model in (*models, guest.Guest, tables.Workload):
        for name, field in model.model_fields.items():
            key = field.alias or name
            assert f"`{key}`" in manual or f"[nic.{key}]" in manual, f"{model.__name__}.{key}"


def test_import_starts_no_thread() -> None:
    """Not even numpy's: the process that reads a topology forks the others."""
    code = "import lab.topology, os, sys; print(len(os.listdir('/proc/self/task')), 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=patient(60))
    assert run.stdout.split() == ["1", "False"]


def test_the_keeper_has_no_compiled_code() -> None:
    """Nor the compiler: the fork server loads both meanwhile, and the keeper's parent and its init are small."""
    code = "import lab.keeper.__main__, sys; print('numba' in sys.modules, 'hyp.kernels' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=patient(60))
    assert run.stdout.split() == ["False", "False"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"none\.toml: 1 problem\n  cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[nic\n", "line 1"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"name = '\xff'\n", "utf-8"),
        (b"a = " + b"9" * 5000, "4300"),
        (b"a = " + b"[" * 50_000, "recursion"),
    ],
    ids=["syntax", "twice", "encoding", "endless number", "endless nesting"],
)
def test_file_that_is_not_toml(tmp_path: Path, text: bytes, reason: str) -> None:
    path = tmp_path / "lab.toml"
    path.write_bytes(text)
    with pytest.raises(TopologyError) as caught:
        load(path)
    assert f"{path}: 1 problem\n  is not a TOML file: " in str(caught.value)
    assert reason in str(caught.value)


def test_file_name_that_cannot_be_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, ANNA, "My Lab.toml")
    with pytest.raises(TopologyError, match="name: is required, since the file's own name cannot stand in for it"):
        load(path)
    assert load(write(tmp_path, 'name = "mine"\n' + ANNA, "My Lab.toml")).name == "mine"


def test_error_is_serialisable_as_problems(tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as caught:
        read(tmp_path, "nic = 1\n" + ANNA)
    assert json.loads(json.dumps(caught.value.problems)) == [["nic", "must be a table ([nic]), not 1"]]
