"""The picture of a topology, as data: who is there, and by which hops each guest's frames go. Every viewer draws from it.

    {"name": …,
     "nodes": [{"id", "kind", "process", …}],                    hypervisor, xenstored, Dom0, guests, NIC, wire
     "hops":  [{"id", "source", "target", "way", …}],            each once, whoever uses it
     "paths": [{"guest", "path", "tx": [hop ids], "rx": [hop ids], "copies": {"tx": n, "rx": n}, "ring": slots}]}

Nodes. `id`: "hyp", "xenstored", "dom0", "nic", "wire", or a guest's name; `kind`: the same, or "guest". `process`: whose CPU
time it is, None of the wire. A guest has `path`, `program`, `mac`, `addresses`; the NIC has `contexts`, each with an `owner` (a
node) and the counter row; Dom0 has `ports`.

Hops. `way` "tx" is from guest to wire. `marks`: what happens there (`lab.view.ways.Mark`). `what`: the same in words, with
`file` and `code`, the function that does it. `guest`: whose alone it is, None if guests share it, and then its counts are of all
of them. `room`: how many frames can be under way at most: slots of its rings. `carries`: "frames", or "descriptors" for a detour
that bytes do not make (cdna's hypercall). `feeds`: figure → ``{"rows", "columns", "claimed"}``: the sum of these columns in all
rows that match; `claimed`: of pages that the guest writes itself, so that they are whatever it says. Figures: frames, bytes,
handed, taken (their difference is what is under way), notifications, suppressed, wakeups, calls, drops, faults.

Pure: no process, no file is looked at.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from domu.programs.table import program_of
from hyp.paths import PATHS, Attachment
from lab.ledger import DROP_NAMES, FAULT_NAMES, Snapshot
from lab.view.ways import DOM0, GUEST, HYP, NIC, WIRE, Mark, Step, copies, way_of

Picture = dict[str, Any]
Hop = dict[str, Any]
Feed = dict[str, Any]

_OUTSIDE = "nic/wire"
"""Rows that see the machine from outside: their rx is on the way out."""
PORTS = tuple(f"{port}*:{{guest}}" for port in dict.fromkeys(spec.port for spec in PATHS.values()))
"""Rows at which frames of a guest arrive that may have moved: of any path."""


def picture(name: str, guests: Iterable[Mapping[str, Any]], nic: Mapping[str, Any]) -> Picture:
    """Of a topology's plain tables: ``topology["guest"]`` and ``topology["nic"]``, or what the keeper's status has of them."""
    guests = list(guests)
    hops: dict[str, Hop] = {}
    paths = []
    for guest in guests:
        way, ids = way_of(guest), {}
        ring = PATHS[guest["path"]].ring(nic["queue"]) * guest.get("queues", 1)
        for direction, steps in (("tx", way.tx), ("rx", way.rx)):
            made = [
                _hop(step, direction, guest["name"], ring if GUEST in (step.source, step.target) else nic["queue"])
                for step in steps
            ]
            hops |= {hop["id"]: hop for hop in made if hop["id"] not in hops}
            ids[direction] = [hop["id"] for hop in made]
        copied = {d: sum(copies(step.marks) for step in steps) for d, steps in (("tx", way.tx), ("rx", way.rx))}
        paths.append({"guest": guest["name"], "path": guest["path"], **ids, "copies": copied, "ring": ring})
    return {"name": name, "nodes": _nodes(guests, nic), "hops": list(hops.values()), "paths": paths}


# --- nodes -----------------------------------------------------------------------------------------------------------


def _nodes(guests: list[Mapping[str, Any]], nic: Mapping[str, Any]) -> list[dict[str, Any]]:
    vifs = [guest["name"] for guest in guests if PATHS[guest["path"]].attachment is Attachment.VIF]
    wire = nic["wire"]
    return [
        {"id": HYP, "kind": HYP, "label": "hypervisor", "process": HYP},
        {"id": "xenstored", "kind": "xenstored", "label": "xenstored", "process": "xenstored"},
        {"id": DOM0, "kind": DOM0, "label": "Dom0", "process": DOM0, "ports": ["uplink", *vifs]},
        *map(_guest_node, guests),
        {"id": NIC, "kind": NIC, "label": "NIC", "process": NIC, "engines": nic["engines"], "contexts": _contexts(guests)},
        {"id": WIRE, "kind": WIRE, "label": "wire", "process": None, "mode": wire["mode"], "mac": wire["mac"]},
    ]


def _guest_node(guest: Mapping[str, Any]) -> dict[str, Any]:
    addresses = [guest[key] for key in ("address", "address6") if guest.get(key)]
    node = {"id": guest["name"], "kind": GUEST, "label": guest["name"], "process": guest["name"], "path": guest["path"]}
    return {**node, "program": program_of(guest["program"]).name, "mac": guest["mac"], "addresses": addresses}


def _contexts(guests: list[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Who has a context of the NIC, and which row counts it. Dom0's is always there."""
    found = [{"owner": DOM0, "row": "nic/ctx*:dom0"}]
    for guest in guests:
        match PATHS[guest["path"]].attachment:
            case Attachment.EMULATION:
                found.append({"owner": HYP, "row": f"nic/ctx*:{guest['name']}.vmm"})
            case Attachment.CONTEXT | Attachment.PASSTHROUGH:
                found.append({"owner": guest["name"], "row": f"nic/ctx*:{guest['name']}"})
    return found


# --- hops ------------------------------------------------------------------------------------------------------------


def _hop(step: Step, way: str, guest: str, room: int) -> Hop:
    own = None if step.shared else guest
    ends = {end: guest if name == GUEST else name for end, name in (("source", step.source), ("target", step.target))}
    name = f"{ends['source']}>{ends['target']}"
    beside = f":{guest}" if own and GUEST not in (step.source, step.target) else ""
    kept = {"marks": [mark.value for mark in step.marks], "what": step.what, "file": step.file, "code": step.code}
    feeds = {figure: feed for figure, feed in _feeds(step, way, guest).items() if feed["rows"]}
    own_keys = {"id": name + beside, **ends, "way": way, "guest": own, "carries": step.carries, "room": room}
    return {**own_keys, **kept, "feeds": feeds}


def _feeds(step: Step, way: str, guest: str) -> dict[str, Feed]:
    def feed(columns: Iterable[str], *patterns: str | None) -> Feed:
        rows = [pattern.format(guest=guest) for pattern in patterns if pattern]
        return {"rows": rows, "columns": list(columns), "claimed": any(row.startswith(f"{guest}/") for row in rows)}

    def moved(what: str, *patterns: str | None) -> Feed:
        outside = any(pattern and pattern.startswith(_OUTSIDE) for pattern in patterns)
        side = {"tx": "rx", "rx": "tx"}[way] if outside else way
        return feed([f"{side}_{what}"], *patterns)

    ends = [end for end in (step.near, step.far) if end]
    believed = next((end for end in ends if not end.startswith("{guest}/")), ends[0])
    feeds = {"frames": moved("frames", believed), "bytes": moved("bytes", believed)}
    if step.near and step.far:
        feeds |= {"handed": moved("frames", *_any_path(step.near)), "taken": moved("frames", *_any_path(step.far))}
    return feeds | {
        "notifications": feed(["notifications"], step.notifies),
        "suppressed": feed(["suppressed"], step.notifies),
        "wakeups": feed(["wakeups"], *step.wakes),
        "calls": feed(["traps" if Mark.TRAP in step.marks else "hypercalls"], step.calls),
        "drops": feed(DROP_NAMES, *step.judges),
        "faults": feed(FAULT_NAMES, *step.judges),
    }


def _any_path(row: str) -> tuple[str, ...]:
    """`row`, or if it is a guest's port, its ports on all paths: what a guest has moved since its start it has moved by either."""
    return PORTS if row in PORTS else (row,)


# --- reading ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> "re.Pattern[str]":
    return re.compile(re.escape(pattern).replace(r"\*", "[0-9.]*"))


def rows_of(feed: Feed, snapshot: Snapshot) -> list[str]:
    """The rows of a snapshot that a feed is about."""
    return [row for row in snapshot if any(_compiled(pattern).fullmatch(row) for pattern in feed["rows"])]
