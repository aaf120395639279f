"""The ledger of the page: what a frame costs on each way, from counters that are made up."""

from typing import Any

import pytest

from hyp.abi.counters import Count
from lab.api.tables import topology_of
from lab.ledger import Snapshot
from lab.view.picture import picture
from lab.view.samples import Sampler
from lab.web.costs import Cost, costs

NOTHING = {count.name.lower(): 0 for count in Count}
ROWS = (
    "anna/device", "bert/device", "carl/device", "dom0/vif1:anna", "dom0/vif2:bert", "dom0/uplink", "dom0/bridge",
    "nic/ctx0:dom0", "nic/ctx1:carl", "nic/wire0", "nic/engine0",
)  # fmt: skip


def costs_of(counted: dict[str, dict[str, int]]) -> dict[tuple[str, str], Cost]:
    """Of a second in which that was counted."""
    plain = topology_of(None, "drawn", {"anna": "split", "bert": "split", "carl": "bypass"}, {}).plain()
    shown = picture(plain["name"], plain["guest"], plain["nic"])
    sampler = Sampler(shown)
    before: Snapshot = {row: dict(NOTHING) for row in ROWS}
    sampler.take(0.0, 0.0, before, {})
    sample = sampler.take(1.0, 1.0, {row: {**NOTHING, **counted.get(row, {})} for row in ROWS}, {})
    return {(cost["guest"], cost["way"]): cost for cost in costs(shown, sample)}


def sent(frames: int, **more: int) -> dict[str, Any]:
    return {"tx_frames": frames, **more}


def test_what_no_frame_went_by_has_no_cost() -> None:
    for cost in costs_of({}).values():
        assert cost["notifications"] is None
        assert cost["copies"] == (1 if cost["path"] == "bypass" else 2)
        assert cost["through"] == ([] if cost["path"] == "bypass" else ["Dom0"])


def test_what_loops_do_for_all_is_shared_by_all() -> None:
    found = costs_of(
        {
            "anna/device": sent(300, notifications=30),
            "dom0/vif1:anna": sent(300),
            "bert/device": sent(100, notifications=100),
            "dom0/vif2:bert": sent(100),
            "dom0/bridge": {"hypercalls": 40},
            "dom0/uplink": sent(400, notifications=40),
            "nic/ctx0:dom0": sent(400),
            "carl/device": sent(400, notifications=200),
            "nic/ctx1:carl": sent(400),
            "nic/engine0": {"wakeups": 80},
            "nic/wire0": {"rx_frames": 800},
        }
    )
    assert found["anna", "tx"]["notifications"] == pytest.approx(30 / 300 + 40 / 400)
    assert found["bert", "tx"]["notifications"] == pytest.approx(1 + 40 / 400)
    assert found["carl", "tx"]["notifications"] == pytest.approx(200 / 400)
    assert found["anna", "tx"]["calls"] == found["bert", "tx"]["calls"] == pytest.approx(40 / 400)
    assert found["carl", "tx"]["calls"] == 0
    assert found["carl", "tx"]["wakeups"] == pytest.approx(80 / 800)  # the NIC's engine has woken for all
    assert found["carl", "rx"]["notifications"] is None


def test_a_guest_that_makes_counts_up_spoils_no_other_s() -> None:
    found = costs_of(
        {
            "anna/device": sent(10, notifications=1 << 62),
            "dom0/vif1:anna": sent(10),
            "carl/device": sent(10, notifications=10),
            "nic/ctx1:carl": sent(10),
        }
    )
    assert found["anna", "tx"]["notifications"] is None
    assert found["carl", "tx"]["notifications"] == 1
