"""What a frame costs each guest just now, by the hops that it takes: the ledger of the page. Pure.

Copies, and who handles the frame on its way, are of the path (lab/view/ways.py). Notifications, wake-ups and calls are of the last
sample, per frame of each hop and summed over the way. Where several hops are counted in the same rows (the loops of Dom0, NIC and
hypervisor wake, and call, for all of them), it is what a frame costs there on average, whoever's it is.
"""

from collections.abc import Mapping
from typing import Any

from lab.view.picture import Hop, Picture
from lab.view.samples import Sample
from lab.view.ways import DOM0, HYP

Cost = dict[str, Any]
LABELS: Mapping[str, str] = {DOM0: "Dom0", HYP: "hypervisor"}
FIGURES = ("notifications", "wakeups", "calls")


def costs(picture: Picture, sample: Sample) -> list[Cost]:
    """``{"guest", "path", "way", "copies", "through", "fps", "notifications", "wakeups", "calls"}`` for each guest, each way.

    Figures a frame are None where no frames went. `through`: whom the frame, or its descriptors, pass through.
    """
    hops = {hop["id"]: hop for hop in picture["hops"]}
    shares = {figure: _shares(picture, sample, figure) for figure in FIGURES}
    found = []
    for path in picture["paths"]:
        for way in ("tx", "rx"):
            ids = path[way]
            frames = [hop for hop in ids if hops[hop]["carries"] == "frames"]
            own = frames[0] if way == "tx" else frames[-1]
            passed = {hops[hop][end] for hop in ids for end in ("source", "target")}
            through = [label for node, label in LABELS.items() if node in passed]
            cost = {"guest": path["guest"], "path": path["path"], "way": way, "copies": path["copies"][way], "through": through}
            cost["fps"] = sample["hops"][own]["fps"]
            for figure in FIGURES:
                cost[figure] = _a_frame(shares[figure], ids) if cost["fps"] else None
            found.append(cost)
    return found


def _rows(hop: Hop, figure: str) -> tuple[str, ...]:
    return tuple(hop["feeds"][figure]["rows"]) if figure in hop["feeds"] else ()


def _shares(picture: Picture, sample: Sample, figure: str) -> dict[str, float | None]:
    """Of each hop: how often that happened for one frame of all hops that are counted in the same rows. None: nobody knows."""
    frames: dict[tuple[str, ...], float | None] = {}
    for hop in picture["hops"]:
        rows, fps = _rows(hop, figure), sample["hops"][hop["id"]]["fps"]
        before = frames.get(rows, 0.0)
        frames[rows] = None if fps is None or before is None else before + fps
    found = {}
    for hop in picture["hops"]:
        rows = _rows(hop, figure)
        count, of = sample["hops"][hop["id"]][f"{figure}_s"] if rows else 0.0, frames[rows]
        found[hop["id"]] = None if count is None or of is None else count / of if of > 0 else 0.0
    return found


def _a_frame(shares: Mapping[str, float | None], ids: list[str]) -> float | None:
    """The sum over a way; None if part of it is not known."""
    known = [share for hop in ids if (share := shares[hop]) is not None]
    return sum(known) if len(known) == len(ids) else None
