"""The ways of a frame: for each path (`hyp.paths.PATHS`) the steps from guest to wire and back, and which counters see them.

A table and nothing else. Whoever draws or measures a path reads it here, by way of `lab.view.picture`. A *step* leads from one
party to the next. DMA belongs to the step between the NIC and whose memory it is: what crosses a bus there.

Row patterns are of "process/row" (`CounterReader.read`); `*` stands for digits and dots, `{guest}` for the guest's name. The
columns follow from the way: tx_… on the way out, rx_… on the way in, but that the wire sees the machine from outside
(lab/ledger.py). Notifications are told on the step that they announce frames on, of the row of who notifies; drops and faults
once, on the way out of whose row they are in (docs/packet.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from hyp.paths import PATHS

GUEST, DOM0, HYP, NIC, WIRE = "guest", "dom0", "hyp", "nic", "wire"


class Mark(StrEnum):
    """What can happen on a step, in the order in which it is told."""

    TRAP = "trap"
    HYPERCALL = "hypercall"
    COPY = "copy"
    DMA = "DMA"
    WAKEUP = "wake-up"


def copies(marks: Iterable[Mark]) -> int:
    """How often the payload is copied, by whomever."""
    return sum(mark in (Mark.COPY, Mark.DMA) for mark in marks)


ABOUT: Final[Mapping[Mark, str]] = {
    Mark.TRAP: "a register write at which the guest stands still until the hypervisor has answered",
    Mark.HYPERCALL: "a system call in the place of a hypercall, once a batch",
    Mark.COPY: "the CPU copies the payload",
    Mark.DMA: "the NIC's engine copies the payload, which is a device's DMA",
    Mark.WAKEUP: "an eventfd write, unless the reader is awake anyway; once a batch at most",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a way."""

    source: str
    target: str
    marks: tuple[Mark, ...]
    what: str
    file: str
    """Where it is done, from the repository's root."""
    code: str
    """The function there."""
    near: str | None = None
    """Row of who hands the frames over."""
    far: str | None = None
    """Row of who takes them."""
    notifies: str | None = None
    """Row with the notifications, sent and left out."""
    wakes: tuple[str, ...] = ()
    """Rows with the wake-ups of the loop at the far end: for whatever reason."""
    calls: str | None = None
    """Row with the hypercalls or traps."""
    judges: tuple[str, ...] = ()
    """Rows whose drops and faults are told here."""
    carries: str = "frames"
    """Or "descriptors": a detour that the frame's bytes do not make."""

    @property
    def shared(self) -> bool:
        """It is every guest's that goes this way: no row of it is of a guest."""
        return "{guest}" not in "".join(filter(None, (self.near, self.far)))


@dataclass(frozen=True, slots=True)
class Way:
    """A path's steps, out (guest to wire) and in (wire to guest)."""

    tx: tuple[Step, ...]
    rx: tuple[Step, ...]


_OUT = Step(
    NIC, WIRE, (), "the switch knows nobody here by that address: the frame leaves on the wire",
    "nic/wire/outward.py", "outbound", far="nic/wire*", judges=("nic/engine*",),
)  # fmt: skip
_IN = Step(
    WIRE, NIC, (), "a frame comes from outside; the switch finds the context that it is for",
    "nic/wire/inward.py", "inbound", near="nic/wire*", judges=("nic/wire*",),
)  # fmt: skip
_GUEST_ROWS = ("{guest}/device*", "{guest}/tap")
_LOOP = ("{guest}/device*", "{guest}/tap")


def _to_nic(source: str, near: str, context: str, what: str, judges: tuple[str, ...] = ()) -> Step:
    """Whoever has a context posts on it, and the NIC fetches the frame."""
    return Step(
        source, NIC, (Mark.DMA, Mark.WAKEUP), what, "nic/send.py", "serve_sends",
        near=near, far=context, notifies=near, wakes=("nic/engine*",), judges=(context, *judges),
    )  # fmt: skip


def _from_nic(target: str, far: str, context: str, wakes: tuple[str, ...], what: str, judges: tuple[str, ...] = ()) -> Step:
    """The NIC puts the frame into a buffer that whoever has the context has posted."""
    return Step(
        NIC, target, (Mark.DMA, Mark.WAKEUP), what, "nic/deliver.py", "put",
        near=context, far=far, notifies=context, wakes=wakes, judges=judges,
    )  # fmt: skip


_POST = "the driver writes a descriptor and rings the doorbell; the NIC checks {checks} and fetches the frame"
_DELIVER = "the NIC writes the frame into the guest's next receive buffer and a completion behind it"
_CONTEXT = "nic/ctx*:{guest}"


def _own_context(checks: str) -> Way:
    """The guest drives a context of the NIC itself: native, bypass."""
    return Way(
        tx=(_to_nic(GUEST, "{guest}/device*", _CONTEXT, _POST.format(checks=checks), _GUEST_ROWS), _OUT),
        rx=(_IN, _from_nic(GUEST, "{guest}/device*", _CONTEXT, _LOOP, _DELIVER)),
    )


_BYPASS = _own_context("each address in the IOMMU table and the source address")

_CDNA_POST = Step(
    GUEST, HYP, (Mark.HYPERCALL,),
    "the hypervisor's code, on the guest's thread, checks a batch of descriptors, pins their pages and writes them into the queue",
    "hyp/monitor/cdna.py", "enqueue_sends", near="{guest}/device*", far="{guest}/enqueue", calls="{guest}/enqueue",
    judges=("{guest}/enqueue",), carries="descriptors",
)  # fmt: skip
_CDNA = Way(
    tx=(_CDNA_POST, *_own_context("that each address is the guest's RAM, and the source address").tx),
    rx=(
        *_BYPASS.rx,
        Step(
            HYP, GUEST, (Mark.HYPERCALL,),
            "for every batch of buffers given back: the hypervisor's code unpins what was filled, pins and posts the next",
            "hyp/monitor/cdna.py", "enqueue_receives", near="{guest}/enqueue", far="{guest}/device*", calls="{guest}/enqueue",
            carries="descriptors",
        ),
    ),
)  # fmt: skip

_VIF = "dom0/vif*:{guest}"
_NETBACK_TX = Step(
    GUEST, DOM0, (Mark.HYPERCALL, Mark.COPY, Mark.WAKEUP),
    "netfront grants each page and pushes a request; netback has the frame copied into Dom0's memory, by a grant copy a batch",
    "dom0/netback_tx.py", "take_requests", near="{guest}/device*", far=_VIF, notifies="{guest}/device*", wakes=("dom0/bridge",),
    calls="dom0/bridge", judges=(_VIF, *_GUEST_ROWS),
)  # fmt: skip
_NETBACK_RX = Step(
    DOM0, GUEST, (Mark.HYPERCALL, Mark.COPY, Mark.WAKEUP),
    "the bridge looks the address up; netback has the frame copied into a page that the guest granted, by a grant copy a batch",
    "dom0/netback_rx.py", "flush_copies", near=_VIF, far="{guest}/device*", notifies=_VIF, wakes=_LOOP, calls="dom0/bridge",
)  # fmt: skip
_SPLIT = Way(
    tx=(
        _NETBACK_TX,
        _to_nic(DOM0, "dom0/uplink", "nic/ctx*:dom0", "the bridge passes the frame to its driver's port; the NIC fetches it"),
        _OUT,
    ),
    rx=(
        _IN,
        _from_nic(
            DOM0, "dom0/uplink", "nic/ctx*:dom0", ("dom0/bridge",), "the NIC writes the frame into Dom0's next receive buffer",
            ("dom0/uplink",),
        ),
        _NETBACK_RX,
    ),
)  # fmt: skip

_MODEL, _MODEL_UPLINK = "hyp/vmm*:{guest}", "hyp/uplink*:{guest}"
_TRAPPED = Way(
    tx=(
        Step(
            GUEST, HYP, (Mark.TRAP, Mark.COPY, Mark.WAKEUP),
            "the write to the emulated NIC's register traps; the device model copies the frame into a buffer of its own",
            "hyp/monitor/machine.py", "_serve_sends", near="{guest}/device*", far=_MODEL, notifies="{guest}/device*",
            wakes=("hyp/loop",), calls=_MODEL, judges=(_MODEL, *_GUEST_ROWS),
        ),
        _to_nic(
            HYP, _MODEL_UPLINK, _CONTEXT + ".vmm", "the device model posts the frame on its own context; the NIC fetches it",
            (_MODEL_UPLINK,),
        ),
        _OUT,
    ),
    rx=(
        _IN,
        _from_nic(
            HYP, _MODEL_UPLINK, _CONTEXT + ".vmm", ("hyp/loop",), "the NIC writes the frame into the device model's next buffer",
        ),
        Step(
            HYP, GUEST, (Mark.COPY, Mark.WAKEUP),
            "the device model copies the frame into the guest's next receive buffer, and interrupts it if it has asked to be",
            "hyp/monitor/machine.py", "_serve_receives", near=_MODEL, far="{guest}/device*", notifies=_MODEL, wakes=_LOOP,
        ),
    ),
)  # fmt: skip

WAYS: Final[Mapping[str, Way]] = {
    "native": _own_context("lengths"),
    "bypass": _BYPASS,
    "cdna": _CDNA,
    "split": _SPLIT,
    "trapped": _TRAPPED,
}
"""By path; held to `PATHS` by tests/lab/test_picture.py."""


def _first(way: Way, **changes: Any) -> tuple[Step, ...]:
    return (replace(way.tx[0], **changes), *way.tx[1:])


def _last(way: Way, **changes: Any) -> tuple[Step, ...]:
    return (*way.rx[:-1], replace(way.rx[-1], **changes))


def _mapping() -> Way:
    """A guest that has its pages entered into the IOMMU table by hypercalls on the data path."""
    with_call = {"marks": (Mark.HYPERCALL, Mark.DMA, Mark.WAKEUP), "calls": "{guest}/dma"}
    return Way(
        tx=_first(_BYPASS, what="a hypercall a batch maps the pages in the IOMMU table; " + _BYPASS.tx[0].what, **with_call),
        rx=_last(_BYPASS, what=_BYPASS.rx[-1].what + ", in pages that a hypercall a batch has mapped", **with_call),
    )


_COPY_MARKS = (Mark.COPY, Mark.DMA, Mark.WAKEUP)
_PINNED = (Mark.COPY, Mark.WAKEUP)
MODES: Final[Mapping[tuple[str, str, str], Way]] = {
    ("bypass", "iommu", "strict"): _mapping(),
    ("bypass", "iommu", "deferred"): _mapping(),
    ("bypass", "iommu", "copy"): Way(
        tx=_first(_BYPASS, marks=_COPY_MARKS, what="the guest copies the frame into a registered buffer; " + _BYPASS.tx[0].what),
        rx=_last(_BYPASS, marks=_COPY_MARKS, what=_BYPASS.rx[-1].what + "; the guest copies it to where it is wanted"),
    ),
    ("split", "grants", "map"): Way(
        tx=_first(_SPLIT, what="netback maps the pages of a batch, by a hypercall, and copies the frames into Dom0's memory"),
        rx=_SPLIT.rx,
    ),
    ("split", "grants", "persistent"): Way(
        tx=_first(_SPLIT, marks=_PINNED, calls=None, what="netback copies the frame out of a page that stays mapped into Dom0"),
        rx=_last(_SPLIT, marks=_PINNED, calls=None, what="netback copies the frame into a page that stays mapped into Dom0"),
    ),
}
"""(path, key of the guest's table, its value) → the way that differs from the path's usual one."""


def way_of(guest: Mapping[str, Any]) -> Way:
    """The way of a guest's frames: of its table as a topology has it. KeyError for a path that is none."""
    path = PATHS[guest["path"]].name
    return next((way for (on, key, value), way in MODES.items() if on == path and guest.get(key) == value), WAYS[path])
