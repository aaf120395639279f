"""`launch.py explain-topology`: the drawing, at any width and in any encoding."""

import json
import os
from pathlib import Path

import pytest

from hyp.paths import PATHS
from lab.api.tables import topology_of
from lab.command.explain import LEAST, explained
from lab.view.picture import Picture, picture
from tests.support.labs import ROOT, launch

DEMO = ROOT / "topologies" / "demo.toml"


def drawn(columns: int, *paths: str) -> list[str]:
    topology = topology_of(None, "drawn", {f"g-{path}": path for path in paths or PATHS}, {}).plain()
    shown: Picture = picture("drawn", topology["guest"], topology["nic"])
    return explained(shown, columns)


@pytest.mark.parametrize("columns", [LEAST, 60, 80, 100, 120, 200])
def test_it_fits(columns: int) -> None:
    lines = drawn(columns)
    assert max(map(len, lines)) <= columns + (0 if columns >= 60 else 25)
    assert all(f"g-{path}" in "\n".join(lines) for path in PATHS)


@pytest.mark.parametrize("columns", [60, 100])
def test_the_nic_and_the_wire_stand_in_one_place_in_every_lane(columns: int) -> None:
    lanes = [line for line in drawn(columns) if line.rstrip().endswith("wire") and "guest" in line]
    assert len(lanes) == 2 * len(PATHS)
    assert len({line.index("NIC") for line in lanes}) == len({line.rindex("wire") for line in lanes}) == 1


def test_a_bypass_passes_where_the_detour_stops() -> None:
    bypass, split = (next(line for line in drawn(60, path) if "guest" in line and "▶ wire" in line) for path in ("bypass", "split"))
    at = split.index("Dom0")
    assert bypass[at : at + 4].strip(" ─DW") == ""
    assert "H C W" in split
    assert "1 copy" in "\n".join(drawn(60, "bypass"))
    assert "2 copies" in "\n".join(drawn(60, "split"))


def test_the_command_in_ascii_and_as_json() -> None:
    plain = launch("explain-topology", DEMO, env={**os.environ, "COLUMNS": "60", "PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "guest - H C W ->    Dom0    - D W -> NIC -----------> wire" in plain.stdout
    assert "?" not in plain.stdout
    found = json.loads(launch("explain-topology", DEMO, "--json").stdout)
    assert {path["guest"]: path["copies"]["tx"] for path in found["paths"]} == {"anna": 2, "bert": 2, "carl": 1, "dora": 1}


def test_a_topology_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[[guest]]\nname = "anna"\npath = "spilt"\n')
    done = launch("explain-topology", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'split'?" in done.stderr
