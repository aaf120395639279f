"""A split device that the toolstack makes anew under its running program, in a living Dom0: the program doesn't notice."""

from pathlib import Path
from typing import Any

import pytest

from dom0.libxl import renew_vif
from domu.frontends.split_state import TX_SLOTS
from tests.support.labs import run
from tests.support.streams import Stream, lab_of, macs, store_of

pytestmark = pytest.mark.usefixtures("warm")

LAB = """
[nic]
pause_us = 1_000_000
mtu = 4000
[dom0]
max_queues = 2
[[guest]]
name = "anna"
path = "split"
{more}
[[guest]]
name = "bert"
path = "split"
{more}
[[guest]]
name = "carl"
path = "bypass"
"""


def counts(lab: Any, reader: Any, row: str, column: str) -> int:
    return int(reader.read()[row][column])


@pytest.mark.parametrize(
    ("more", "frame"),
    [
        ('grants = "copy"', 64),
        ('grants = "map"', 1500),
        ('grants = "persistent"', 64),
        ("queues = 2", 64),
        ("", 4000),
        ("", 30_000),
        ('rate = "80Mb/s"', 200),
    ],
)
def test_streams_go_on(tmp_path: Path, more: str, frame: int) -> None:
    """Of either end of a stream, several times: nothing is lost, and no more is there twice than a ring had."""
    times = 4

    async def main() -> None:
        async with lab_of(tmp_path, "anew", LAB.format(more=more)) as lab, store_of(lab) as store:
            mac = macs(lab)
            streams = [
                await Stream(lab, *ends, number).start(frame) for number, ends in enumerate((("anna", "bert"), ("bert", "carl")), 1)
            ]
            for _ in range(times):
                for domid, name in ((1, "anna"), (2, "bert")):
                    await renew_vif(store, domid, 0, mac[name])
                    for stream in streams:
                        await stream.goes_on()
            for stream in streams:
                sent, report = await stream.end()
                assert (report["lost"], report["corrupt"], report["frames"]) == (0, 0, sent), report
                assert report["duplicated"] <= times * TX_SLOTS * max(frame // 1448, 1), report
            found = (await lab.counters()).read()
            print({row: n["resent"] for row, n in found.items() if n["resent"]})

    run(main())
