"""The targets of calibration: published ratios, where they were read, and what in the lab stands for their two sides.

A row that is *fitted* is used to choose what the profile leaves free, and so is never said to be reproduced; the others are held
out. `left_out` names what was published beside and has no counterpart here. No figure is from memory: `source` says what was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.method.contenders import BETWEEN, FROM_WIRE, TO_WIRE
from bench.method.verdicts import WORDS
from bench.questions.measure import PERSISTENT, Variant
from bench.questions.settings import Setting

RATE, COST, TRIP = "rate_mpps", "domains_ns_per_frame", "domains_ns_per_trip"
METRICS: Final = {
    RATE: "frames a second of the busiest domain, if each had a core (1 ÷ its CPU per frame)",
    COST: "CPU per frame of all domains",
    TRIP: "CPU of all domains in a round trip, one at a time: what it takes on one core if the device has none",
}
"""What is held against each other; the device is no domain."""

SPLIT, KEPT = Variant("split", "split"), Variant(PERSISTENT, "split", None, "persistent")
BYPASS, NATIVE, CDNA = (Variant(path, path) for path in ("bypass", "native", "cdna"))
STRICT, DEFERRED, COPY = (Variant(f"bypass, {name}", "bypass", None, name) for name in ("strict", "deferred", "copy"))


@dataclass(frozen=True, slots=True)
class Row:
    """`of` ÷ `to` in `metric`, at `setting`. `label`: in plots; `published`: None if no number was read; `where`: table or words.

    `least`: where a trend was published, not a ratio: it is so much at least.
    """

    label: str
    text: str
    published: float | None
    where: str
    of: Variant
    to: Variant
    metric: str
    setting: Setting
    fitted: bool = False
    least: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A published system. `stands_for`: what of the lab is held against it, and what that leaves out."""

    name: str
    title: str
    source: str
    profile: str
    stands_for: str
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]

    @property
    def kinds(self) -> list[str]:
        """Guests that are not their path's usual ones (bench/questions/measure.py)."""
        return list(dict.fromkeys(side.guests for row in self.rows for side in (row.of, row.to) if side.guests))

    @property
    def paths(self) -> list[str]:
        """Of all sides."""
        return list(dict.fromkeys(side.path for row in self.rows for side in (row.to, row.of)))


def _at(direction: str, frame: int) -> Setting:
    return Setting(frame=frame, direction=direction, cores="1")


_ROWS = (
    Target(
        "staging-grants",
        "Xen's staging grants for network interfaces",
        "docs/misc/netif-staging-grants of the Xen project, revision 4, 2017-09-19 (read): Linux 4.11 guest, "
        "Xeon E5-2630 v4 2.2 GHz, 100 Gbit/s NIC",
        "xen-4.x",
        "split with persistent grants ÷ split: pages mapped once and copied by Dom0 itself, against a grant copy a frame",
        (
            Row(
                "tx 64 B",
                "UDP 64 B, guest transmits, one queue",
                2.49 / 0.684,
                "packet I/O: 0.684 → 2.49 Mpps",
                KEPT,
                SPLIT,
                RATE,
                _at(TO_WIRE, 64),
                fitted=True,
            ),
            Row(
                "rx 64 B",
                "UDP 64 B, guest receives, one queue",
                2.96 / 0.439,
                "packet I/O: 0.439 → 2.96 Mpps",
                KEPT,
                SPLIT,
                RATE,
                _at(FROM_WIRE, 64),
            ),
        ),
        {
            "2 and 4 queues": "Dom0 has one engine here",
            "bulk, 17244 → 38189 and 6000 → 28108 Mbit/s": "segments of up to 64 KiB, which the lab does not have",
        },
    ),
    Target(
        "xenloop",
        "XenLoop: guests of one machine past the driver domain",
        "abstract (HPDC 2008) and the authors' announcement on xen-devel, 2008-02-09 (read): dual core, Xen 3.1, Linux 2.6.18",
        "xen-3.0-2006",
        "bypass between two guests ÷ split: neither has Dom0 in it. XenLoop has no device either, and events between the guests",
        (
            Row(
                "round trip",
                "round trip between guests, through Dom0 ÷ past it",
                5.0,
                "“up to 5X reduction in RTT”",
                SPLIT,
                BYPASS,
                TRIP,
                _at(BETWEEN, 64),
                fitted=True,
            ),
            Row(
                "throughput",
                "throughput between guests, past Dom0 ÷ through it",
                6.0,
                "“up to 6X increase in throughput”",
                BYPASS,
                SPLIT,
                RATE,
                _at(BETWEEN, 1500),
            ),
        ),
        {"tables of the paper": "not to be had"},
    ),
    Target(
        "menon",
        "Optimizing network virtualization in Xen",
        "Menon, Cox, Zwaenepoel, USENIX ATC 2006: its abstract (read)",
        "xen-3.0-2006",
        "split ÷ native, receiving",
        (
            Row(
                "rx ÷ native",
                "guest receives, ÷ native",
                0.39,
                "“still trails the native Linux performance by 61%”",
                SPLIT,
                NATIVE,
                RATE,
                _at(FROM_WIRE, 1500),
            ),
        ),
        {
            "transmit × 4.4": "by segmentation and checksum offload, which the lab does not have",
            "driver domain + 35 %": "its own traffic; no program runs in Dom0 here",
        },
    ),
    Target(
        "santos",
        "Bridging the gap between software and hardware techniques for I/O virtualization",
        "Santos et al., USENIX ATC 2008: its abstract (read)",
        "xen-3.0-2006",
        "split with persistent grants ÷ split, receiving: the reuse of grants alone, of several changes that they made",
        (
            Row(
                "rx cost",
                "cost of receiving, optimized ÷ before",
                0.44,
                "“reduce execution costs … by 56% on the receive path”",
                KEPT,
                SPLIT,
                COST,
                _at(FROM_WIRE, 1500),
            ),
        ),
        {"close to direct I/O with several hardware queues": "no number was read"},
    ),
    Target(
        "iommu",
        "How buffers get into an IOMMU table",
        "vIOMMU (ATC 2011; a lecture note on it, read), Markuze et al. (ASPLOS 2016), rIOMMU (ASPLOS 2015), DAMN (ASPLOS 2018): "
        "their abstracts (read)",
        "xen-4.x",
        "one bypass guest that maps as `iommu` says, against another, and against native, which no IOMMU protects",
        (
            Row(
                "deferred ÷ strict",
                "deferred ÷ strict, sending",
                None,
                "“43 %” and “91 %” of line rate (vIOMMU)",
                DEFERRED,
                STRICT,
                RATE,
                _at(TO_WIRE, 1500),
                least=1.0,
            ),
            Row(
                "copy ÷ strict",
                "copied into a mapped pool ÷ strict, sending",
                None,
                "“up to 5×” (Markuze et al.)",
                COPY,
                STRICT,
                RATE,
                _at(TO_WIRE, 1500),
                least=1.0,
            ),
            Row(
                "copy ÷ native",
                "copied into a mapped pool ÷ unprotected, sending",
                None,
                "“0–25 % below” (Markuze et al.)",
                COPY,
                NATIVE,
                RATE,
                _at(TO_WIRE, 1500),
                least=0.75,
            ),
            Row(
                "persistent ÷ native",
                "mapped for good ÷ unprotected, sending",
                None,
                "“performance comparable” (DAMN)",
                BYPASS,
                NATIVE,
                RATE,
                _at(TO_WIRE, 1500),
                least=WORDS["near"],
            ),
            Row(
                "strict ÷ native",
                "strict ÷ unprotected, sending",
                None,
                "no ratio of CPU was read; “43 %” is of a line rate",
                STRICT,
                NATIVE,
                RATE,
                _at(TO_WIRE, 1500),
            ),
            Row(
                "deferred ÷ strict, rx",
                "deferred ÷ strict, receiving",
                None,
                "as sending",
                DEFERRED,
                STRICT,
                RATE,
                _at(FROM_WIRE, 1500),
                least=1.0,
            ),
            Row(
                "copy ÷ strict, rx",
                "copied out of a mapped pool ÷ strict, receiving",
                None,
                "as sending",
                COPY,
                STRICT,
                RATE,
                _at(FROM_WIRE, 1500),
                least=1.0,
            ),
            Row(
                "persistent ÷ native, rx",
                "mapped for good ÷ unprotected, receiving",
                None,
                "as sending",
                BYPASS,
                NATIVE,
                RATE,
                _at(FROM_WIRE, 1500),
                least=WORDS["near"],
            ),
        ),
        {"rIOMMU, up to 7.56 times the baseline IOMMU": "another table in hardware, which the lab has no counterpart of"},
    ),
    Target(
        "cdna",
        "Concurrent direct network access",
        "Willmann et al., HPCA 2007: its abstract (read), which has no number",
        "xen-3.0-2006",
        "cdna ÷ split, one guest",
        (
            Row("tx", "guest transmits, cdna ÷ split", None, "no number was read", CDNA, SPLIT, RATE, _at(TO_WIRE, 1500)),
            Row("rx", "guest receives, cdna ÷ split", None, "no number was read", CDNA, SPLIT, RATE, _at(FROM_WIRE, 1500)),
        ),
        {"all tables": "the text was not to be had"},
    ),
)

TARGETS: Final = {target.name: target for target in _ROWS}
"""By name."""
