"""What a frame costs each guest just now, by the hops that it takes: the ledger of the page. Pure.

Copies, and who handles the frame on its way, are of the path (lab/view/ways.py). Notifications, wake-ups and calls are of the last
sample, per frame of each hop and summed over the way; where a hop is shared they are what a frame costs there on average.
"""

from collections.abc import Mapping
from typing import Any

from lab.view.picture import Picture
from lab.view.samples import Sample
from lab.view.ways import DOM0, HYP

Cost = dict[str, Any]
LABELS: Mapping[str, str] = {DOM0: "Dom0", HYP: "hypervisor"}


def costs(picture: Picture, sample: Sample) -> list[Cost]:
    """``{"guest", "path", "way", "copies", "through", "fps", "notifications", "wakeups", "calls"}`` for each guest, each way.

    Figures a frame are None where no frames went. `through`: whom the frame, or its descriptors, pass through.
    """
    hops = {hop["id"]: hop for hop in picture["hops"]}
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
            figures = [sample["hops"][hop] for hop in ids]
            for name in ("notifications", "wakeups", "calls"):
                cost[name] = _a_frame([(one[f"{name}_s"], one["fps"]) for one in figures]) if cost["fps"] else None
            found.append(cost)
    return found


def _a_frame(rates: list[tuple[float | None, float | None]]) -> float | None:
    """The sum of each hop's ratio, of those at which frames go; None if one of them makes no sense."""
    if any(count is None or frames is None for count, frames in rates):
        return None
    return sum(count / frames for count, frames in rates if count is not None and frames)
