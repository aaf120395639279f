"""Whatever a guest's programs send arrives as it was sent, on each path."""

import sys
from pathlib import Path
from typing import Final

import pytest

from lab import Lab
from tests.support import varied_frames
from tests.support.labs import left_behind
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

SEED, FRAMES = 20_261_126, 800
PATHS: Final = ("native", "bypass", "cdna", "split", "trapped")
GUESTS: Final = [(path, number) for path in PATHS for number in range(2)]
MACS: Final = {f"{path}{number}": f"02:00:00:00:01:{k + 1:02x}" for k, (path, number) in enumerate(GUESTS)}
PAIRS: Final = [*((f"{path}0", f"{path}1") for path in PATHS), ("split0", "bypass0"), ("bypass1", "split1"), ("trapped0", "split0")]


@pytest.fixture(scope="module")
def every_path() -> object:
    guests = [
        {"name": f"{path}{number}", "path": path, "program": "tap", "mac": MACS[f"{path}{number}"], "address": f"10.9.0.{k + 1}/24"}
        for k, (path, number) in enumerate(GUESTS)
    ]
    with Lab({"name": "varied", "guest": guests}) as lab:
        yield lab
    assert left_behind("varied") == []


@pytest.mark.parametrize("pair", tiered(PAIRS, PAIRS[-2:]), ids="-".join)
def test_800_frames_of_every_kind_arrive_as_they_were_sent(every_path: Lab, pair: tuple[str, str]) -> None:
    sender, receiver = pair
    print(f"seed {SEED}")
    program = [sys.executable, str(Path(varied_frames.__file__))]
    rest = [str(SEED), str(FRAMES)]
    receiving = every_path.start(receiver, [*program, "receive", MACS[receiver], MACS[sender], *rest])
    sent = every_path.run(sender, [*program, "send", MACS[sender], MACS[receiver], *rest], timeout=patient(90))
    received = receiving.wait()
    assert (sent["status"], sent["output"]) == (0, f"sent {FRAMES}\n"), received["output"]
    assert (received["status"], received["output"]) == (0, f"received {FRAMES}\n")
