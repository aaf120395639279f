"""Hostile descriptors in great numbers on one path, beside bystanders whose traffic is verified."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bench.isolation.catalogue import ATTACKS
from bench.isolation.trial import Trial, hostile_name

SLICE_S = 0.5
MOST_TOPOLOGIES = 200


async def flood(path: str, descriptors: int, say: Callable[[str], None], seconds: float = SLICE_S) -> dict[str, Any]:
    """Post so many, at least, in as many topologies as that takes; what came of it. AssertionError if the bystanders noticed."""
    attack = ATTACKS["garbage"]
    posted, slices, got, begin = 0, 0, dict[str, int](), time.monotonic()
    for number in range(MOST_TOPOLOGIES):
        async with Trial(path, [attack], f"flood-{path}-{number}") as trial:
            while posted < descriptors:
                found = await trial.slice(attack, seconds, attacked=True)
                assert found.errors == [], (path, posted, found.errors)
                tried = int(found.detail["attempts"])
                posted, slices = posted + tried, slices + 1
                for what, times in found.detail["got"].items():
                    got[what] = got.get(what, 0) + times
                say(f"{path}: {posted} descriptors, {slices} slices, {time.monotonic() - begin:.0f} s: {got}")
                if hostile_name(attack) in trial.lab.deaths or tried < 1000:
                    break  # its device is out of service: the next one
        if posted >= descriptors:
            return {"path": path, "descriptors": posted, "slices": slices, "got": got, "topologies": number + 1}
    raise AssertionError(f"{path}: {posted} of {descriptors} descriptors after {MOST_TOPOLOGIES} topologies")


def main(path: str, descriptors: int) -> None:
    """From the command line."""
    print(asyncio.run(flood(path, descriptors, lambda text: print(text, flush=True))))
