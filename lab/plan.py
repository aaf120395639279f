"""The plan: which processes a topology has, in the order in which the keeper forks them, and what each is told."""

import os
from typing import Any

from hyp.abi.domids import DOM0, DOMID_NIC
from lab.topology_tables import PATHS

ROLES = {
    "hyp": "hyp.monitor.hypervisor",
    "xenstored": "dom0.xenstore.process",
    "nic": "nic.device",
    "dom0": "dom0.domain",
    "domu": "domu.boot",
}
MODULES = [*ROLES.values(), "domu.programs.traffic", "domu.programs.tap", *(f"domu.frontends.{path}" for path in PATHS)]


def spin_limit_us(setting: int | str, loops: int, cpus: int | None = None) -> int:
    """How long loops may spin when `loops` of them are busy: never, by itself, if there are more than cores."""
    if setting != "auto":
        return int(setting)
    return 50 if loops <= (cpus or len(os.sched_getaffinity(0))) else 0


def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
    """The processes of a topology (as `Topology.plain()` gives it), in the order in which the keeper forks them."""
    name, backing = topology["name"], topology["memory"]["backing"]
    guests = [{**guest, "domid": domid} for domid, guest in enumerate(topology["guest"], 1)]
    trapped = any(guest["path"] == "trapped" for guest in guests)
    loops = topology["nic"]["engines"] + 1 + len(guests) + trapped

    def process(
        name: str, role: str, config: dict[str, Any], domain: dict[str, int] | None, xenstore: int | None
    ) -> dict[str, Any]:
        return {
            "name": name,
            "role": role,
            "module": ROLES[role],
            "config": config,
            "domain": domain,
            "xenstore": xenstore,
        }

    shared = {
        "name": name,
        "memory": {"backing": backing},
        "spin_limit_us": spin_limit_us(topology["spin"]["limit_us"], loops),
        "price": topology["model"]["price"],
    }
    dom0 = {
        **topology["dom0"],
        "guests": guests,
        "queue": topology["nic"]["queue"],
        "pause_us": topology["nic"]["pause_us"],
    }
    processes = [
        process("hyp", "hyp", shared, None, None),
        process("xenstored", "xenstored", {}, None, None),
        process("nic", "nic", topology["nic"], {"domid": DOMID_NIC, "memory": 0}, None),
        process("dom0", "dom0", dom0, {"domid": DOM0, "memory": topology["dom0"]["memory"]}, DOM0),
    ]
    for guest in guests:
        config = {**guest, "queue": topology["nic"]["queue"]}
        domid = guest["domid"]
        processes.append(process(guest["name"], "domu", config, {"domid": domid, "memory": guest["memory"]}, domid))
    return processes
