"""Frames of many fragments on the paths of which each frame is the hypervisor's business: verified, and every hop balanced."""

from pathlib import Path
from typing import Any, Final

import pytest

from tests.lab.test_paths import running
from tests.support.labs import run, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

FRAMES: Final = 200
SIZES: Final = (64, 1500, 9000, 65536)
PAIRS: Final = [
    ("cdna0", "wire"), ("cdna0", "bypass0"), ("bypass0", "cdna0"), ("cdna0", "cdna1"),
    ("trapped0", "wire"), ("trapped0", "split0"), ("split0", "trapped0"), ("trapped0", "trapped1"), ("cdna0", "trapped0"),
]  # fmt: skip
PATHS: Final = ("cdna", "trapped", "bypass", "split")


def lab(mtu: int, *others: tuple[str, str, str]) -> str:
    """Two guests of each path, which accept all offloads; `others`: name, path, offloads."""
    text = f"[nic]\nmtu = {mtu}\npause_us = 1000000\n"  # who gets no CPU for a while is to cost nobody a frame
    guests = [(f"{path}{number}", path, '["sg", "csum", "tso"]') for path in PATHS for number in range(2)]
    for name, path, offloads in (*guests, *others):
        text += f'[[guest]]\nname = "{name}"\npath = "{path}"\nmtu = {mtu}\noffloads = {offloads}\n'
    return text


def check(record: dict[str, Any]) -> None:
    """All has arrived, and every hop balances."""
    assert record["errors"] == []
    assert record["drops"] == {}
    assert record["sent"] == record["frames"]
    assert record["frames"] >= FRAMES
    assert record["corrupt"] == record["duplicated"] == record["lost"] == 0
    assert record["checksummed"] == 1.0


def test_frames_of_all_sizes(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "long", lab(9000)) as runner:
            for one, other in PAIRS:
                for frame in SIZES:
                    print(one, other, frame)
                    check(await runner.run(workload("stream", one, other, frame, frames=FRAMES)))

    run(main())


@pytest.mark.long
@pytest.mark.parametrize("offloads", tiered(["[]", '["sg"]', '["csum"]', '["sg", "csum"]'], ['["sg"]']))
def test_ends_that_accept_less(tmp_path: Path, offloads: str) -> None:
    async def main() -> None:
        less = (("less0", "cdna", offloads), ("less1", "trapped", offloads))
        async with running(tmp_path, "less", lab(1500, *less)) as runner:
            for one in ("less0", "less1"):
                for other in ("cdna0", "trapped0", "wire"):
                    print(one, other)
                    check(await runner.run(workload("stream", one, other, 65536, frames=FRAMES)))
                    if other != "wire":
                        check(await runner.run(workload("stream", other, one, 65536, frames=FRAMES)))

    run(main())
