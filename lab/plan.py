"""The plan: which processes a topology has, in the order in which the keeper forks them, and what each is told."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domu.confinement.confine import uid_of
from domu.programs.table import PROGRAMS, program_of
from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.abi.features import NONE, wanted
from hyp.fairness.waking import fair_notification_ns
from hyp.net.interface import link_local, octets_of
from hyp.paths import IOMMU_FRONT_ENDS, PATHS
from lab.cpus import busy, seats
from lab.rundir import place, short_place

ROLES = {
    "hyp": "hyp.monitor.hypervisor",
    "xenstored": "dom0.xenstore.process",
    "nic": "nic.device",
    "dom0": "dom0.domain",
}
"""The modules of all roles but the guests', which are those of their programs."""
RESTARTED = {"nic", "dom0", "xenstored"}
"""Roles that are started again when they die. Not the hypervisor: nobody else knows what its domains have."""
MODULES = list(
    dict.fromkeys(
        [
            *ROLES.values(),
            *(program.module for program in PROGRAMS.values()),
            *(module for path in PATHS.values() for module in (path.back_end, path.front_end)),
            *IOMMU_FRONT_ENDS.values(),
        ]
    )
)
"""What the fork server loads before it forks: every role, program, front and back end."""


def spin_limit_us(setting: int | str, loops: int, cpus: int | None = None) -> int:
    """How long loops may spin when `loops` of them are busy: never, by itself, if there are more than cores."""
    if setting != "auto":
        return int(setting)
    return 50 if loops <= (cpus or len(os.sched_getaffinity(0))) else 0


def _addresses(table: dict[str, Any]) -> list[str]:
    """Those that a guest, or the wire, has."""
    return [table[key] for key in ("address", "address6") if table[key]]


def _neighbours(tables: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Address → MAC address, of guests and of the wire: where not everybody is trusted, who has which address is not asked."""
    found = dict[str, str]()
    for table in tables:
        own = [str(link_local(octets_of(table["mac"])))] if table.get("link_local") else []
        found |= {address.partition("/")[0]: str(table["mac"]) for address in (*_addresses(table), *own)}
    return found


def _confinement(topology: str, guest: dict[str, Any]) -> dict[str, Any]:
    """What the process of a confined guest is told (domu/confinement/confine.py)."""
    own = guest["program"]
    hidden = sorted({str(place()), str(short_place())})
    readable = [str(Path(__file__).parent.parent), *([own["cwd"]] if isinstance(own, dict) and own["cwd"] else [])]
    uid = uid_of(topology, guest["domid"]) if os.getuid() == 0 else None
    return {"uid": uid, "hidden": hidden, "readable": readable, "network": program_of(own).addressed}


def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
    """The processes of a topology (as `Topology.plain()` gives it), in the order in which the keeper forks them."""
    name, backing = topology["name"], topology["memory"]["backing"]
    placed = seats(topology, allowed := sorted(os.sched_getaffinity(0)))
    to_host = topology["nic"]["wire"]["mode"] == "tap"
    guests = [{**guest, "domid": domid} for domid, guest in enumerate(topology["guest"], 1)]

    def process(
        name: str,
        role: str,
        module: str,
        config: dict[str, Any],
        domain: dict[str, int] | None,
        xenstore: int | None,
        *,
        restart: bool,
        machine: bool = False,
    ) -> dict[str, Any]:
        cpus, may = placed.processes.get(name), placed.spinning is None or name in placed.spinning
        found = {"name": name, "role": role, "module": module, "config": config, "domain": domain, "xenstore": xenstore}
        found |= {"machine": machine}
        limit = [topology["supervisor"][key] for key in ("restarts", "within_s")] if restart else None
        return {**found, "cpus": cpus, "spins": may, "restart": limit}

    def own(role: str, config: dict[str, Any], domain: dict[str, int] | None, xenstore: int | None) -> dict[str, Any]:
        restart = role in RESTARTED and topology["supervisor"]["restart"]
        return process(role, role, ROLES[role], config, domain, xenstore, restart=restart)

    named = [*guests, {**topology["nic"]["wire"], "name": "wire"}]
    hosts = {address.partition("/")[0]: table["name"] for table in named for address in _addresses(table)}
    neighbours = _neighbours(named) if any(guest["confined"] for guest in guests) else {}
    shared = {
        "name": name,
        "memory": {"backing": backing},
        "spin_limit_us": spin_limit_us(topology["spin"]["limit_us"], 0 if placed.spinning else busy(topology), len(allowed)),
        "fair_notify_ns": fair_notification_ns(),
        "price": topology["model"]["price"],
        "to_host": to_host,
    }
    dom0 = {
        **topology["dom0"],
        "guests": guests,
        "wire": topology["nic"]["wire"]["mac"],
        "queue": topology["nic"]["queue"],
        "mtu": topology["nic"]["mtu"],
        "pause_us": topology["nic"]["pause_us"],
        "storm_pps": topology["nic"]["storm_pps"],
        "to_host": to_host,
    }
    processes = [
        own("hyp", shared, None, None),
        own("xenstored", {}, None, None),
        own(
            "nic",
            {**topology["nic"], "engine_cpus": placed.engines, "neighbours": neighbours},
            {"domid": DOMID_NIC, "memory": 0},
            None,
        ),
        own("dom0", dom0, {"domid": DOM0, "memory": topology["dom0"]["memory"]}, DOM0),
    ]
    for guest in guests:
        program, domid = program_of(guest["program"]), guest["domid"]
        features = wanted(guest["offloads"]) if program.offloads else NONE
        confinement = _confinement(name, guest) if guest["confined"] else None
        config = {**guest, "confinement": confinement, "queue": topology["nic"]["queue"], "features": int(features)}
        config |= {"hosts": hosts, "neighbours": neighbours}
        domain = {"domid": domid, "memory": guest["memory"]}
        more = {"restart": guest["restart"], "machine": program.addressed}
        processes.append(process(guest["name"], "domu", program.module, config, domain, domid, **more))
    return processes
