"""The picture of a topology: every path has its way, the ways are made of rows and code that there are."""

import ast
from itertools import pairwise
from typing import Any

import pytest

from hyp.abi.counters import Count
from hyp.paths import GRANT_MODES, IOMMU_FRONT_ENDS, PATHS
from lab.api.tables import topology_of
from lab.ledger import Snapshot
from lab.view.picture import Picture, picture, rows_of
from lab.view.ways import ABOUT, DOM0, HYP, MODES, WAYS, Mark
from tests.support.labs import ROOT

COLUMNS = {count.name.lower() for count in Count}
EVERY_PATH = {f"g-{path}": path for path in PATHS}


def picture_of(guests: Any, **tables: Any) -> Picture:
    topology = topology_of(None, "drawn", guests, tables).plain()
    return picture(topology["name"], topology["guest"], topology["nic"])


def hops_of(shown: Picture, guest: str, way: str) -> list[dict[str, Any]]:
    by_id = {hop["id"]: hop for hop in shown["hops"]}
    path = next(path for path in shown["paths"] if path["guest"] == guest)
    return [by_id[hop] for hop in path[way]]


def test_every_path_and_mode_has_its_way() -> None:
    assert WAYS.keys() == PATHS.keys()
    usual = {"iommu": "persistent", "grants": "copy"}
    modes = {("bypass", "iommu", mode) for mode in IOMMU_FRONT_ENDS} | {("split", "grants", mode) for mode in GRANT_MODES}
    assert MODES.keys() == {mode for mode in modes if usual[mode[1]] != mode[2]}
    assert ABOUT.keys() == set(Mark)


def test_frames_go_from_hop_to_hop_without_a_gap() -> None:
    shown = picture_of(EVERY_PATH)
    for guest in EVERY_PATH:
        for way, first, last in (("tx", guest, "wire"), ("rx", "wire", guest)):
            hops = [hop for hop in hops_of(shown, guest, way) if hop["carries"] == "frames"]
            assert [hops[0]["source"], hops[-1]["target"]] == [first, last]
            assert all(one["target"] == next_one["source"] for one, next_one in pairwise(hops))


def test_the_detour_and_the_bypass() -> None:
    shown = picture_of(EVERY_PATH)
    through = {guest: {hop["target"] for hop in hops_of(shown, guest, "tx")} for guest in EVERY_PATH}
    assert {guest for guest, nodes in through.items() if DOM0 in nodes} == {"g-split"}
    assert {guest for guest, nodes in through.items() if HYP in nodes} == {"g-trapped", "g-cdna"}
    copies = {path["path"]: path["copies"] for path in shown["paths"]}
    assert copies == {
        path: {"tx": n, "rx": n} for path, n in {"native": 1, "bypass": 1, "cdna": 1, "split": 2, "trapped": 2}.items()
    }


@pytest.mark.parametrize(("path", "key", "mode"), MODES)
def test_a_mode_changes_what_happens(path: str, key: str, mode: str) -> None:
    usual, other = picture_of({"g": path}), picture_of({"g": {"path": path, key: mode}})
    assert [hop["id"] for hop in usual["hops"]] == [hop["id"] for hop in other["hops"]]
    assert hops_of(usual, "g", "tx")[0]["what"] != hops_of(other, "g", "tx")[0]["what"]


def test_what_guests_share_is_there_once() -> None:
    shown = picture_of({"anna": "split", "bert": "split", "emil": "trapped", "fred": "trapped"})
    ids = [hop["id"] for hop in shown["hops"]]
    assert len(ids) == len(set(ids))
    assert {hop["id"] for hop in shown["hops"] if hop["guest"] is None} == {"dom0>nic", "nic>dom0", "nic>wire", "wire>nic"}
    nodes = [node["id"] for node in shown["nodes"]]
    assert len(nodes) == len(set(nodes)) == 9
    assert all({hop["source"], hop["target"]} <= set(nodes) for hop in shown["hops"])


def every_hop() -> list[dict[str, Any]]:
    modes = {f"g-{index}": {"path": path, key: mode} for index, (path, key, mode) in enumerate(MODES)}
    return list(picture_of(EVERY_PATH | modes)["hops"])


@pytest.mark.parametrize("hop", every_hop(), ids=lambda hop: hop["id"])
def test_a_hop_is_done_by_code_that_there_is(hop: dict[str, Any]) -> None:
    tree = ast.parse((ROOT / hop["file"]).read_text())
    assert hop["code"] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert hop["what"]
    assert all(set(feed["columns"]) <= COLUMNS for feed in hop["feeds"].values())
    assert {"frames", "bytes"} <= hop["feeds"].keys()


def test_rows_of_several_queues_are_one_feed_and_others_are_none() -> None:
    rows = ["anna/device", "anna/device.1", "anna/devices", "anna-2/device", "nic/ctx3:anna", "nic/ctx12:anna", "nic/ctx1:anna.vmm"]
    snapshot: Snapshot = {row: {} for row in rows}

    def found(*patterns: str) -> list[str]:
        return rows_of({"rows": list(patterns), "columns": [], "claimed": False}, snapshot)

    assert found("anna/device*") == ["anna/device", "anna/device.1"]
    assert found("nic/ctx*:anna") == ["nic/ctx3:anna", "nic/ctx12:anna"]
    assert found("nic/ctx*:anna.vmm") == ["nic/ctx1:anna.vmm"]
