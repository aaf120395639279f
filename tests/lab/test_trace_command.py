"""Traces and captures by the commands: told hop by hop, written, read back, and read by stock tools."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lab.trace.perfetto import read
from tests.support.labs import GUESTS, launch, staying_up, topology_file, unique
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("warm")

NAME: Final = "traced"
LOADS: Final = "".join(
    f'[[workload]]\nkind = "stream"\nfrom = "{one}"\nto = "{to}"\nframe = 100\nframes = 3000\n'
    for one, to in (("anna", "bert"), ("carl", "dora"), ("anna", "wire"), ("carl", "wire"))
)
ROUTES: Final = {"anna → dom0 → bert", "carl → nic → dora", "anna → dom0 → nic → wire", "carl → nic → wire"}


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A topology that stays up; its name."""
    with staying_up(topology_file(tmp_path_factory.mktemp("traced"), NAME, GUESTS)):
        yield unique(NAME)


def test_one_frame_is_told_hop_by_hop(topology: str) -> None:
    """With the file that does it beside each hop."""
    for one, to, by, files in (
        ("anna", "bert", "dom0", ["domu/device.py", "dom0/netback_tx.py", "dom0/forward.py", "domu/device.py"]),
        ("carl", "dora", "nic", ["domu/device.py", "nic/send.py", "domu/device.py"]),
        ("wire", "carl", "nic", ["nic/wire/inward.py", "domu/device.py"]),
    ):
        done = launch("trace", one, to, "--topology", topology)
        assert done.returncode == 0, done.stderr
        first, *hops = done.stdout.splitlines()
        assert first.startswith(f"{one} → {by} → {to}: 64 bytes, ")
        assert [line.rpartition("(")[2].rstrip(")") for line in hops[1::2]] == files
        (way,) = json.loads(launch("trace", one, to, "--json", "--topology", topology).stdout)["ways"]
        assert way["route"] == f"{one} → {by} → {to}"
        assert [step["file"] for step in way["steps"]] == files


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["trace", "anna", "nobody"], 1, "has no guest 'nobody'; there are anna, bert, carl, dora, wire"),
        (["trace", "a", "b", "c"], 1, "a topology's name, or where frames come from"),
        (["trace", "--every", "3"], 2, "--every 3: a power of two"),
        (["trace", "--seconds", "nan"], 2, "--seconds nan"),
        (["trace", "--out", "/proc/version/x"], 1, "/proc/version/x: Not a directory"),
        (["trace", "nosuch"], 1, "no topology named 'nosuch' is running"),
        (["explain", "/dev/null"], 1, "/dev/null is no trace that this lab has written"),
        (["explain", "/nowhere"], 1, "/nowhere: No such file or directory"),
        (["capture", "nobody", "--out", "/dev/null"], 1, "has no guest 'nobody'"),
        (["capture", "--out", "/dev/full", "--seconds", "0.2"], 0, "No space left on device"),
        (["capture", "--out", "/proc/version/x"], 1, "/proc/version/x: Not a directory"),
    ],
)
def test_what_cannot_be_is_refused(topology: str, arguments: list[str], status: int, said: str) -> None:
    where = ["--topology", topology] if arguments[0] != "explain" and arguments[1:2] != ["nosuch"] else []
    done = launch(*arguments, *where)
    assert said in done.stderr + done.stdout
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_a_run_is_traced_and_the_trace_explained(tmp_path: Path) -> None:
    """Arrows go guest → Dom0 → NIC on split, and guest → NIC on bypass; what was written is read back and explained."""
    out = tmp_path / "out.json"
    done = launch("run", topology_file(tmp_path, "run-traced", GUESTS + LOADS), "--trace", out, "--every", "16")
    assert done.returncode == 0, done.stdout + done.stderr
    ways = [way for way in read(out) if way.is_whole]
    assert {way.route for way in ways} >= ROUTES
    events = json.loads(out.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    flows: dict[int, list[str]] = {}
    for event in events:
        if event["ph"] in "stf":
            flows.setdefault(event["id"], []).append(names[event["pid"]])
    arrows = {" → ".join(dict.fromkeys(flow)) for flow in flows.values()}
    assert arrows >= {"anna → dom0 → bert", "carl → nic → dora", "anna → dom0 → nic", "carl → nic"}
    for event in events:  # slices of one track do not lie across each other, or Perfetto would not show them
        assert event["ph"] != "X" or event["dur"] > 0
    explained = launch("explain", out)
    assert explained.returncode == 0
    for route in ROUTES:
        assert f"{route}: " in explained.stdout
    assert "the 99th percentile's" in explained.stdout
    found = json.loads(launch("explain", out, "--json").stdout)["routes"]
    assert {route["route"] for route in found} >= ROUTES
    for route in found:
        assert route["least_ns"] <= route["median"]["total_ns"] <= route["most_ns"]
        for way in filter(None, (route["median"], route["p99"])):
            assert sum(step["asleep_ns"] + step["work_ns"] for step in way["steps"]) == way["total_ns"]


@pytest.mark.needs("tshark")
def test_a_capture_is_read_by_tshark_and_has_each_frame_at_each_hop(tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"
    done = launch("run", topology_file(tmp_path, "run-captured", GUESTS + LOADS.replace("3000", "40")), "--capture", out)
    assert done.returncode == 0, done.stdout + done.stderr
    command = ["tshark", "-r", str(out), "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment"]
    fields = ("eth.src", "eth.dst", "frame.len")
    listed = subprocess.run(
        [*command, *(word for field in fields for word in ("-e", field))], capture_output=True, text=True, timeout=patient(60)
    )
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    seen: dict[tuple[str, str], list[str]] = {}
    for name, _, source, destination, _ in rows:
        seen.setdefault((source, destination), []).append(name)
    mac = {name: f"02:00:00:00:00:0{k}" for k, name in enumerate(("anna", "bert", "carl", "dora"), 1)} | {
        "wire": "02:00:00:00:ff:01"
    }
    for one, to, hops in (
        ("anna", "bert", ["anna", "dom0 vif1:anna", "dom0 vif2:bert", "bert"]),
        ("carl", "dora", ["carl", "nic ctx:dora", "dora"]),
        ("anna", "wire", ["anna", "dom0 vif1:anna", "dom0 uplink", "nic wire"]),
        ("carl", "wire", ["carl", "nic wire"]),
    ):
        found = [re.sub(r"ctx\d+", "ctx", name) for name in seen[mac[one], mac[to]]]  # their numbers are who came first's
        assert {hop: found.count(hop) for hop in hops} == dict.fromkeys(hops, 40), found
