"""Profiles: those that come with the lab say where each figure is from; others are refused with the key that is wrong."""

from pathlib import Path

import pytest

from hyp.abi.sizes import MAX_PRICE
from hyp.model.operations import OPERATIONS
from hyp.model.profile import ProfileError, names, profile
from lab.topology import TopologyError, load
from tests.support.labs import topology_file

SOUND = 'title = "of a test"\n' + "".join(
    f'[free.{name}]\nrange = [1, 10]\nwhy = "nobody has measured it"\n' for name in OPERATIONS if name != "hypercall_ns"
)
COST = """[cost.hypercall_ns]
value = 655
basis = "text"
how = "as printed"
machine = "one"
source = "a paper"
table = "Table 1"
year = "2003"
quote = "655 ns"
"""
GUEST = '[[guest]]\nname = "anna"\npath = "split"\n'


def test_there_are_the_two_that_documents_name() -> None:
    assert names() == ["xen-3.0-2006", "xen-4.x"]


@pytest.mark.parametrize("name", names())
def test_a_profile_of_ours_covers_every_operation_once(name: str) -> None:
    found = profile(name)
    tables = [found.costs, found.free, found.absent]
    assert sorted(key for table in tables for key in table) == sorted(OPERATIONS)
    assert found.prices.keys() == OPERATIONS.keys()
    assert {key for key, price in found.prices.items() if price} == set(found.costs)
    for key, free in found.free.items():
        assert free.high <= MAX_PRICE, key
        assert free.high / free.low <= 100, f"{key}: a range of two orders of magnitude says nothing"


@pytest.mark.parametrize(("text", "reason"), [
    (SOUND, "hypercall_ns has to be in one of cost, free and absent, and is in none"),
    (SOUND + COST + '[absent.hypercall_ns]\nwhy = "x"\n', "is in cost and absent"),
    (SOUND + COST.replace("655\n", "-1\n"), "cost.hypercall_ns.value must be an integer from 0"),
    (SOUND + COST.replace("655\n", "6.5\n"), "cost.hypercall_ns.value must be an integer"),
    (SOUND + COST.replace('"text"', '"memory"'), "cost.hypercall_ns.basis must be one of text, figure, derived"),
    (SOUND + COST.replace('source = "a paper"\n', ""), "cost.hypercall_ns.source must say something"),
    (SOUND + COST.replace('"655 ns"', '" "'), "cost.hypercall_ns.quote must say something"),
    (SOUND + COST + 'clock = "3"\n', "cost.hypercall_ns.clock is not a key"),
    (SOUND + COST.replace("hypercall_ns", "hyperkall_ns"), "hyperkall_ns is no operation"),
    (SOUND.replace("[1, 10]", "[10, 10]", 1) + COST, "0 < least < most"),
    (SOUND.replace("[1, 10]", "[0, 10]", 1) + COST, "0 < least < most"),
    (SOUND.replace("[1, 10]", "[1]", 1) + COST, "range must be [least, most]"),
    (SOUND.replace('title = "of a test"\n', "") + COST, "title must say something"),
    (SOUND + COST + "[costs]\n", "costs is not a key"),
    (SOUND + COST + "[", "model.toml: "),
])  # fmt: skip
def test_a_profile_that_cannot_be_used(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(ProfileError) as refused:
        profile("model.toml", tmp_path)
    assert reason in str(refused.value)
    assert "model.toml" in str(refused.value)


def test_a_topology_takes_a_profile_and_prices_on_top_of_it(tmp_path: Path) -> None:
    text = '[model]\nprofile = "xen-4.x"\nprice = { event_send_ns = 700, vm_exit_ns = 1 }\n' + GUEST
    plain = load(topology_file(tmp_path, "profiled", text)).plain()["model"]
    assert plain == {"profile": "xen-4.x", "price": {**profile("xen-4.x").prices, "event_send_ns": 700, "vm_exit_ns": 1}}
    (tmp_path / "mine.toml").write_text(SOUND + COST)
    plain = load(topology_file(tmp_path, "own", '[model]\nprofile = "mine.toml"\n' + GUEST)).plain()["model"]
    assert plain["price"] == {**dict.fromkeys(OPERATIONS, 0), "hypercall_ns": 655}


@pytest.mark.parametrize(("value", "reason"), [
    ('"xen-5.x"', "neither a profile (xen-3.0-2006, xen-4.x) nor a file"), ('"gone.toml"', "gone.toml: "), ("7", "valid string"),
])  # fmt: skip
def test_a_topology_whose_profile_cannot_be_used(tmp_path: Path, value: str, reason: str) -> None:
    with pytest.raises(TopologyError) as refused:
        load(topology_file(tmp_path, "wrong", f"[model]\nprofile = {value}\n" + GUEST))
    assert [(where, reason in why) for where, why in refused.value.problems] == [("model.profile", True)], refused.value
