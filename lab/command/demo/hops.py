"""What a frame costs at each hop: a guest of each path, by itself, sends to the wire and receives from it."""

import time
from typing import Any

from lab.command.screen import Screen
from lab.view.picture import Picture, picture
from lab.view.samples import Sample, Sampler
from lab.view.ways import copies
from lab.workloads import WIRE, Runner, Workload

FRAME = 1500
GUESTS = ("anna", "carl")
"""One of each path."""


async def each_hop(runner: Runner, seconds: float, out: Screen) -> dict[str, Any]:
    """``{"picture", "records": [the workloads'], "ways": [...]}``.

    A way is ``{"guest", "path", "way", "mpps", "hops": [{"id", "copies", "calls", "notifications", "wakeups"}], "cpu_ns": {process:
    ns}}``, all per frame; of wake-ups they are those of the loop at the hop's end, whatever for.
    """
    topology, reader = runner.lab.topology, await runner.lab.counters()
    shown = picture(topology["name"], [guest for guest in topology["guest"] if guest["name"] in GUESTS], topology["nic"])
    records, ways = [], []
    for path in shown["paths"]:
        for way, (sender, receiver) in (("tx", (path["guest"], WIRE)), ("rx", (WIRE, path["guest"]))):
            load: Workload = {"kind": "stream", "from": sender, "to": receiver, "frame": FRAME, "seconds": seconds, "frames": None}
            await runner.prepare(load)
            sampler = Sampler(shown)
            with out.status(f"what a frame costs from {sender} to {receiver} …"):
                sampler.take(time.monotonic(), time.time(), reader.read(), {})
                record = await runner.measure(load)
                sample = sampler.take(time.monotonic(), time.time(), reader.read(), {})
            records.append(record)
            ways.append({"guest": path["guest"], "path": path["path"], "way": way, **_costs(record, shown, path[way], sample)})
    return {"picture": shown, "records": records, "ways": ways}


def _costs(record: dict[str, Any], shown: Picture, ids: list[str], sample: Sample) -> dict[str, Any]:
    hops = {hop["id"]: hop for hop in shown["hops"]}
    frames = record["frames"]
    found = []
    for name in ids:
        counted = sample["hops"][name]
        cost = {"id": name, "copies": copies(hops[name]["marks"])}
        for what in ("calls", "notifications", "wakeups"):
            cost[what] = (counted[f"{what}_s"] or 0.0) * sample["seconds"] / frames if frames else 0.0
        found.append(cost)
    cpu = {name: use["cpu_ms"] * 1e6 / frames if frames else 0.0 for name, use in record["processes"].items()}
    return {"mpps": record["mpps"], "hops": found, "cpu_ns": cpu}
