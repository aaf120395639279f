"""Long frames on the split path, end to end: every byte verified, every hop balanced, whatever each end has accepted."""

from pathlib import Path
from typing import Any, Final

import pytest

from hyp.paths import GRANT_MODES
from tests.lab.test_paths import running
from tests.support.labs import run, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

ALL, LESS, NO = '["sg", "csum", "tso"]', '["sg", "csum"]', "[]"
GUESTS: Final = {
    "whole": ("split", ALL), "fill": ("split", '["sg"]'), "cut": ("split", LESS), "lone": ("split", '["csum"]'),
    "plain": ("split", NO),
    "carl": ("bypass", ALL), "dora": ("bypass", NO),
}  # fmt: skip
"""Name, path, offloads."""
FRAMES: Final = 150


def lab(grants: str, mtu: int = 1500) -> str:
    """The topology: each of GUESTS."""
    text = f"[nic]\nmtu = {mtu}\npause_us = 1_000_000\n"  # however long a receiver waits for its turn, nothing is dropped
    for name, (path, offloads) in GUESTS.items():
        text += f'[[guest]]\nname = "{name}"\npath = "{path}"\noffloads = {offloads}\n'
        text += f'grants = "{grants}"\n' if path == "split" else ""
    return text


def check(record: dict[str, Any]) -> None:
    assert record["errors"] == []
    assert record["drops"] == {}
    assert record["sent"] == record["frames"] == FRAMES
    assert record["corrupt"] == record["duplicated"] == record["lost"] == 0
    assert record["checksummed"] == 1.0


PAIRS: Final = [
    (one, other)
    for one in GUESTS
    for other in (*GUESTS, "wire")
    if one != other and "split" in (GUESTS[one][0], GUESTS.get(other, ("",))[0])
]
FEW: Final = [
    ("whole", "cut"), ("whole", "plain"), ("whole", "fill"), ("whole", "carl"), ("whole", "dora"), ("whole", "wire"),
    ("carl", "whole"), ("carl", "cut"), ("carl", "plain"), ("cut", "whole"), ("plain", "whole"), ("plain", "wire"),
]  # fmt: skip


@pytest.mark.parametrize("pairs", [pytest.param(FEW, id="few"), pytest.param(PAIRS, id="all", marks=pytest.mark.long)])
@pytest.mark.parametrize("grants", tiered(GRANT_MODES, ["map"]))
def test_frames_of_64_kib_between_all_kinds_of_ends(tmp_path: Path, grants: str, pairs: list[tuple[str, str]]) -> None:
    async def main() -> None:
        async with running(tmp_path, "gso", lab(grants)) as runner:
            for one, other in pairs:
                print(one, other)
                check(await runner.run(workload("stream", one, other, 65535, frames=FRAMES)))

    run(main())


JUMBO: Final = [("whole", "cut"), ("cut", "fill"), ("whole", "carl"), ("carl", "fill"), ("cut", "wire"), ("carl", "whole")]


@pytest.mark.parametrize("grants", tiered(GRANT_MODES, ["copy"]))
def test_jumbo_frames_are_chains(tmp_path: Path, grants: str) -> None:
    async def main() -> None:
        async with running(tmp_path, "jumbo", lab(grants, mtu=9000)) as runner:
            for one, other in JUMBO:
                for frame in (9014, 65535):
                    print(one, other, frame)
                    check(await runner.run(workload("stream", one, other, frame, frames=FRAMES)))

    run(main())
