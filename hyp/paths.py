"""The I/O models: one row each. Whoever must know what a path is (plan, schema, toolstack, ledger, bench, plots) reads it here.

A model is a front end in the guest and a back end that serves it. There are no defaults: a row says everything about its model, so
that none is measured with another's spinning, placement or memory because a place did not know it. docs/adding.md adds one.

Read by processes that must not import numpy: plain Python only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hyp.abi.sizes import (
    DOM0_BUFFERS,
    DOM0_SCRATCH,
    FRAME_BUFFER,
    LARGEST_FRAME_BUFFER,
    PAGE,
    QUEUE_ENTRY,
    SPLIT_RINGS,
    SPLIT_SLOTS,
)

EMULATION_PAGES: Final = 16  # of a trapped guest's device model, beside what it has per descriptor of a queue:
EMULATION_SLOT: Final = 4 * QUEUE_ENTRY + LARGEST_FRAME_BUFFER + FRAME_BUFFER  # four queue entries, a send and a receive buffer
EMULATION_SLOTS: Final = 256  # of its own queues at most, however many the guest's have
PIN_LOGS: Final = 17 * PAGE  # before the counts of cdna's pin table: hyp/monitor/cdna.py


CUT_OFF: Final = "cut off"
APART: Final = "cut off from the wire and from guests on other paths"


class Attachment(StrEnum):
    """What Dom0's toolstack gives a guest of the path."""

    CONTEXT = "a NIC context, each address through the IOMMU table"
    PASSTHROUGH = "a NIC context that the IOMMU lets through"
    EMULATION = "an emulated NIC"
    VIF = "a port of Dom0's bridge"


@dataclass(frozen=True, slots=True)
class Takes:
    """What each guest of a path takes: descriptors, those of mappings included, in each process, and threads of its own."""

    hyp: int
    nic: int
    dom0: int
    guest: int
    """In the guest's process, all of them."""
    threads: int


@dataclass(frozen=True, slots=True)
class PathSpec:
    """One I/O model. `queue` in the functions: descriptors, as `[nic] queue` of the topology file says."""

    name: str
    about: str
    """One line for people."""
    front_end: str
    """Module with ``async def connect(guest) -> Device``."""
    back_end: str
    """Module of what serves it, imported by every topology's fork server."""
    attachment: Attachment
    shared_loop: str | None
    """The process with a loop between guest and NIC that all guests share; None: there is none."""
    cut_off_by: Mapping[str, str]
    """Roles whose death ends the guests' traffic, and what the guests are then: CUT_OFF or APART."""
    ring: Callable[[int], int]
    """Slots of its send ring."""
    ram: Callable[[int], int]
    """Bytes of guest RAM that the front end uses for one queue, page 0 included."""
    beside_ram: Callable[[int, int], int]
    """(queue, bytes of RAM) → bytes of shared memory that a guest needs beside its RAM and what every domain has."""
    takes: Takes
    """Held to what /proc says by tests/lab/test_demand.py."""
    further: Takes | None
    """What each queue of a guest takes beyond its first, of the same; None: a guest has one."""
    port: str
    """Rows of the back end that balance a guest's `device` rows begin with this, and end with ``:<guest>``."""
    on_thread: str | None
    """Row of the guest's own counters in which the hypervisor's code, run on the guest's thread, counts the frames it handled."""
    placed_like: str
    """The path whose placement of loops suits this one."""
    colour: str
    """In plots; of Okabe and Ito's, or as far from them as they are from each other."""
    colour_dark: str
    """The same on a dark page."""
    marker: str


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def queues_need(queue: int) -> int:
    """Page 0, which nobody uses, and the four queues of a context (hyp/ram.py)."""
    return PAGE + 4 * _whole_pages(queue * QUEUE_ENTRY)


def guest_needs(path: PathSpec, queue: int, queues: int) -> int:
    """Bytes of RAM of a guest with so many queues: page 0, which nobody uses, and what each of them has."""
    return PAGE + queues * (path.ram(queue) - PAGE)


def dom0_needs(queue: int) -> int:
    """Bytes of RAM of Dom0: its context, a page per receive slot, and the buffers of its engine."""
    return queues_need(queue) + (queue + DOM0_BUFFERS + DOM0_SCRATCH) * PAGE


def _context_ram(queue: int) -> int:
    return queues_need(queue) + 2 * _whole_pages(queue * FRAME_BUFFER)


def _split_ram(_: int) -> int:
    return PAGE + (SPLIT_RINGS + 2 * SPLIT_SLOTS) * PAGE


def _as_said(queue: int) -> int:
    return queue


def _xens(_: int) -> int:
    return SPLIT_SLOTS


def _nothing(queue: int, memory: int) -> int:
    return 0


def _device_model(queue: int, memory: int) -> int:
    return EMULATION_PAGES * PAGE + min(queue, EMULATION_SLOTS) * EMULATION_SLOT


def _pin_table(queue: int, memory: int) -> int:
    return PIN_LOGS + _whole_pages(memory // PAGE * 2)


_ROWS = (
    PathSpec(
        name="native",
        about="no virtualization: the bound",
        front_end="domu.frontends.native",
        back_end="nic.device",
        attachment=Attachment.PASSTHROUGH,
        shared_loop=None,
        cut_off_by={"nic": CUT_OFF},
        ring=_as_said,
        ram=_context_ram,
        beside_ram=_nothing,
        takes=Takes(hyp=9, nic=4, dom0=0, guest=27, threads=2),
        further=None,
        port="nic/ctx",
        on_thread=None,
        placed_like="bypass",
        colour="#009e73",
        colour_dark="#3ccf9f",
        marker="D",
    ),
    PathSpec(
        name="bypass",
        about="the guest drives a NIC context of its own; the IOMMU checks each address",
        front_end="domu.frontends.bypass",
        back_end="nic.device",
        attachment=Attachment.CONTEXT,
        shared_loop=None,
        cut_off_by={"nic": CUT_OFF},
        ring=_as_said,
        ram=_context_ram,
        beside_ram=_nothing,
        takes=Takes(hyp=9, nic=4, dom0=0, guest=27, threads=2),
        further=Takes(hyp=4, nic=3, dom0=0, guest=6, threads=1),
        port="nic/ctx",
        on_thread=None,
        placed_like="bypass",
        colour="#0072b2",
        colour_dark="#56b4e9",
        marker="o",
    ),
    PathSpec(
        name="cdna",
        about="a NIC context of the guest's own, but the hypervisor checks and writes its descriptors",
        front_end="domu.frontends.cdna",
        back_end="hyp.monitor.cdna",
        attachment=Attachment.PASSTHROUGH,
        shared_loop=None,
        cut_off_by={"nic": CUT_OFF},
        ring=_as_said,
        ram=_context_ram,
        beside_ram=_pin_table,
        takes=Takes(hyp=10, nic=4, dom0=0, guest=28, threads=2),
        further=None,
        port="nic/ctx",
        on_thread="enqueue",
        placed_like="bypass",
        colour="#56b4e9",
        colour_dark="#c2e4ff",
        marker="P",
    ),
    PathSpec(
        name="split",
        about="Xen's split drivers: netfront, netback and a bridge in Dom0",
        front_end="domu.frontends.split",
        back_end="dom0.vifs",
        attachment=Attachment.VIF,
        shared_loop="dom0",
        # Dom0's bridge goes on without the NIC; a back end that cannot watch its front end's state any more closes (dom0/vifs.py)
        cut_off_by={"dom0": CUT_OFF, "nic": APART},
        ring=_xens,
        ram=_split_ram,
        beside_ram=_nothing,
        takes=Takes(hyp=10, nic=0, dom0=5, guest=29, threads=2),
        further=Takes(hyp=5, nic=0, dom0=2, guest=6, threads=1),
        port="dom0/vif",
        on_thread=None,
        placed_like="split",
        colour="#d55e00",
        colour_dark="#ff8a4c",
        marker="s",
    ),
    PathSpec(
        name="trapped",
        about="the hypervisor emulates a NIC: every register write traps",
        front_end="domu.frontends.trapped",
        back_end="hyp.monitor.emulation",
        attachment=Attachment.EMULATION,
        shared_loop="hyp",
        cut_off_by={"hyp": CUT_OFF, "nic": CUT_OFF},
        ring=_as_said,
        ram=_context_ram,
        beside_ram=_device_model,
        takes=Takes(hyp=23, nic=4, dom0=0, guest=29, threads=3),
        further=None,
        port="hyp/vmm",
        on_thread=None,
        placed_like="trapped",
        colour="#b8558f",
        colour_dark="#e59cc6",
        marker="^",
    ),
)

IOMMU_FRONT_ENDS: Final = {
    "persistent": "domu.frontends.bypass",
    "strict": "domu.frontends.mapped",
    "deferred": "domu.frontends.mapped",
    "copy": "domu.frontends.shadow",
}
"""Of guests whose addresses go through the IOMMU table: how their buffers get into it, and the front end that does that."""

GRANT_MODES: Final = ("copy", "map", "persistent")
"""Of split guests: how netback gets at their pages. docs/netif.md (Grants)."""

PATHS: Final = {spec.name: spec for spec in _ROWS}
"""By name, in the order of tables and plots."""
