"""The ledger: conservation of frames at every hop, and what one frame cost, both read off the counters.

A *snapshot* is ``{"process/row": {column: count}}`` (`CounterReader.read`). Rows, and what they count:

    nic/ctx<n>:<domain>    tx: taken from the send queue, rx: put into the receive queue
    nic/wire<n>            rx: left the machine, tx: came from outside (reflected, generated)
    nic/engine<n>          copies made by flooding, segments, crossings between engines
    dom0/uplink            tx: posted on the NIC, rx: received from it
    dom0/vif<domid>:<name> tx: taken from the guest, rx: copied to the guest
    dom0/bridge            copies made by flooding
    hyp/vmm<domid>:<name>  tx: taken from a trapped guest, rx: copied to it; traps that it made
    hyp/uplink<domid>:<name>  tx: posted on the NIC by its device model, rx: received from it
    <guest>/device         tx: handed to the path, rx: received from it; <guest>/device.<k>: by its queue k, if it has several
    <guest>/tap            tx: read from the TAP, rx: written to it

Rows count the operations that have a price, too, each where it is made: hyp/model/operations.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hyp.abi.counters import DROPS, FAULTS, Count
from hyp.model.operations import OPERATIONS
from hyp.paths import PATHS

Snapshot = dict[str, dict[str, int]]

DROP_NAMES = [count.name.lower() for count in DROPS]
FAULT_NAMES = [count.name.lower() for count in FAULTS]


NOTHING: Mapping[str, int] = {count.name.lower(): 0 for count in Count}


def difference(after: Snapshot, before: Snapshot) -> Snapshot:
    """What was counted in between."""
    return {row: {c: n - before.get(row, {}).get(c, 0) for c, n in counts.items()} for row, counts in after.items()}


def total(snapshot: Snapshot, column: str, prefix: str = "") -> int:
    """Sum of a column over all rows whose name begins with `prefix`."""
    return sum(counts[column] for row, counts in snapshot.items() if row.startswith(prefix))


def drops(snapshot: Snapshot, prefix: str = "") -> dict[str, int]:
    """Frames dropped, by name (without "drop_"); names that never occurred are left out."""
    found = {name.removeprefix("drop_"): total(snapshot, name, prefix) for name in DROP_NAMES}
    return {name: n for name, n in found.items() if n}


def guest_of(row: str) -> str:
    """The guest about which another process counts in this row; "" if it is about none, or the guest's own."""
    return row.partition(":")[2].partition(".")[0]  # a device model's is the guest's name and more


def faults(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """Protocol faults by row, by name; rows without any are left out."""
    found = {row: {name: counts[name] for name in FAULT_NAMES if counts[name]} for row, counts in snapshot.items()}
    return {row: names for row, names in found.items() if names}


@dataclass(frozen=True, slots=True)
class Equation:
    """``in = out`` at one hop, at rest."""

    hop: str
    frames_in: int
    frames_out: int

    def __str__(self) -> str:
        return f"{self.hop}: {self.frames_in} in, {self.frames_out} out or dropped by name"


def equations(snapshot: Snapshot) -> list[Equation]:
    """Every hop's equation for the rows that are there."""
    found = []
    hops = [("NIC", "nic/ctx", "nic/wire"), ("Dom0", "dom0/vif", "dom0/uplink"), ("VMM", "hyp/vmm", "hyp/uplink")]
    for hop, ports, outside in hops:
        prefix = ports.partition("/")[0] + "/"
        # The wire's and the uplink's tx and rx are seen from the machine's outside: what a port sends, they receive.
        near, far = ("tx_frames", "rx_frames") if hop == "NIC" else ("rx_frames", "tx_frames")
        made = total(snapshot, "replicated", prefix) + total(snapshot, "segmented", prefix)
        into = total(snapshot, "tx_frames", ports) + total(snapshot, near, outside) + made
        out = total(snapshot, "rx_frames", ports) + total(snapshot, far, outside) + sum(drops(snapshot, prefix).values())
        found.append(Equation(hop, into, out))
    found += _links(snapshot)
    return found


def _links(snapshot: Snapshot) -> list[Equation]:
    """Between hops: what one side handed over is what the other took. A side is all the rows of one guest's queues."""
    sides = [(["dom0/uplink"], ["nic/ctx0:dom0"])] if {"dom0/uplink", "nic/ctx0:dom0"} <= snapshot.keys() else []
    ports = tuple(spec.port for spec in PATHS.values())
    on_thread = {spec.on_thread for spec in PATHS.values() if spec.on_thread}
    for guest in [row.removesuffix("/device") for row in snapshot if row.endswith("/device")]:
        devices = _queue_rows(snapshot, f"{guest}/device")
        back_end = [row for row in snapshot if row.startswith(ports) and row.endswith(f":{guest}")]
        sides += [
            (devices, rows) for rows in (back_end, [f"{guest}/{row}" for row in on_thread if f"{guest}/{row}" in snapshot]) if rows
        ]
    for row in snapshot:
        kind, _, guest = row.partition(":")
        if kind.startswith("hyp/uplink"):
            sides += [
                ([row], [context]) for context in snapshot if context.startswith("nic/ctx") and context.endswith(f":{guest}.vmm")
            ]
    found = []
    for near, far in sides:
        sent, took = (sum(snapshot[row]["tx_frames"] for row in rows) for rows in (near, far))
        found.append(Equation(f"{near[0]} to {far[0]}", sent, took))
        sent, took = (sum(snapshot[row]["rx_frames"] for row in rows) for rows in (far, near))
        lost = sum(snapshot[row]["lost"] for row in near)  # with a Dom0 that died
        found.append(Equation(f"{far[0]} to {near[0]}", sent, took + lost))
    for row, counts in snapshot.items():
        if row.endswith("/tap"):
            device = snapshot.get(row.removesuffix("tap") + "device", NOTHING)  # a guest's own rows may be anything
            dropped = counts["drop_oversize"] + counts["drop_bad_frame"]
            found.append(Equation(f"{row} to device", counts["tx_frames"], device["tx_frames"] + dropped))
            found.append(Equation(f"device to {row}", device["rx_frames"], counts["rx_frames"] + counts["drop_tap"]))
    return found


def _queue_rows(snapshot: Snapshot, first: str) -> list[str]:
    """The row `first` and those of further queues, which have a number behind it."""
    return [row for row in snapshot if row == first or row.startswith(f"{first}.")]


def unbalanced(snapshot: Snapshot) -> list[Equation]:
    """The equations that do not hold. At rest there is none."""
    return [equation for equation in equations(snapshot) if equation.frames_in != equation.frames_out]


def dom0_frames(snapshot: Snapshot) -> int:
    """Frames that Dom0 handled: taken in from a guest or from the NIC."""
    return total(snapshot, "tx_frames", "dom0/vif") + total(snapshot, "rx_frames", "dom0/uplink")


def vmm_frames(snapshot: Snapshot) -> int:
    """Frames that the hypervisor handled: each device model's, and those whose descriptors it wrote on a guest's thread."""
    on_thread = tuple(f"/{spec.on_thread}" for spec in PATHS.values() if spec.on_thread)
    checked = sum(n["tx_frames"] + n["rx_frames"] for row, n in snapshot.items() if on_thread and row.endswith(on_thread))
    return total(snapshot, "tx_frames", "hyp/vmm") + total(snapshot, "rx_frames", "hyp/uplink") + checked


def trap_ns(snapshot: Snapshot) -> float | None:
    """How long a guest stood still for one trap, on average; None if there was none."""
    traps = sum(counts["traps"] for row, counts in snapshot.items() if row.endswith("/device"))
    return total(snapshot, "trap_ns") / traps if traps else None


def per_frame(snapshot: Snapshot, frames: int) -> dict[str, float]:
    """What one of `frames` frames cost, over all processes."""
    sums = {
        "dom0_frames": dom0_frames(snapshot),
        "vmm_frames": vmm_frames(snapshot),
        "copies": total(snapshot, "copies"),
        "notifications": total(snapshot, "notifications"),
        "hypercalls": total(snapshot, "hypercalls"),
        "traps": total(snapshot, "traps", "hyp/vmm"),
        "wakeups": total(snapshot, "wakeups"),
    }
    return {name: value / frames if frames else 0.0 for name, value in sums.items()}


def operations(snapshot: Snapshot, frames: int) -> dict[str, dict[str, float]]:
    """How many operations that have a price, or bytes, each process made for one of `frames` frames: {process: {price: n}}."""
    found: dict[str, dict[str, float]] = {}
    for row, counts in snapshot.items() if frames else ():
        process = row.partition("/")[0]
        for name, operation in OPERATIONS.items():
            if row.startswith(operation.rows) and counts[operation.column]:
                sums = found.setdefault(process, {})
                sums[name] = sums.get(name, 0.0) + counts[operation.column] / frames
    return found
