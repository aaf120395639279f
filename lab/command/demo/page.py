"""The page that the demo leaves: one file that needs nothing but itself. What was shown, in a picture, three sentences, tables."""

import shlex
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hyp.paths import PATHS
from lab.command.demo.hops import FRAME
from lab.command.screen import Screen
from lab.command.tables import BETTER, WORSE, compared, not_compared, with_spread
from lab.figures import number, short
from lab.page.drawing import LETTERS, NARROW, WIDE, still
from lab.page.html import Element, document, el, page, section, table
from lab.view.ways import ABOUT

TITLE = "Past Dom0, or through it"
NAMES = {"dom0": "Dom0", "hyp": "hypervisor", "nic": "NIC"}
WAYS = {"tx": "to the wire", "rx": "from the wire"}
CLASSES = {BETTER: "met", WORSE: "missed"}
COSTS = (("copies", "copies"), ("calls", "hypercalls, traps"), ("notifications", "notifications"), ("wakeups", "wake-ups"))


def write_page(file: Path, record: dict[str, Any], out: Screen) -> int:
    """Write it, and say where it is, or why it could not be written; returns the exit status."""
    try:
        file.write_text(page(demo_page(record)))
    except OSError as error:
        out.print(f"\nThere is no page: {file}: {error.strerror} (--page says where else)")
        return 1
    out.print(f"\nThe same as a page: {shlex.quote(str(file))}")
    return 0


def demo_page(record: dict[str, Any]) -> Element:
    """The page as a tree; `record` as lab/command/demo/run.py makes it."""
    machine = record["machine"]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record["time"]))
    words = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; {when}, by "
    return document(
        TITLE,
        el("header", el("h1", TITLE), el("p", words, el("code", "make demo"), class_="soft")),
        *_alarm(record),
        el("ul", *(el("li", sentence) for sentence in sentences(record)), class_="lead"),
        _drawing(record["hops"]),
        section("hops", "What a frame costs at each hop", *_hops(record["hops"])),
        section("paths", "Both paths, side by side", *_comparison(record["workloads"])),
        section("proof", "Without Dom0 and without the hypervisor", *_proof(record)),
        section("programs", "Real programs", *_programs(record["programs"])),
        section("not", "Where bypass is not better here", *_not_better(record["not_better"])),
        el("footer", "The demo has three runs of each: enough to see, not to cite. ", el("code", "python -m bench"),
           " measures until it knows, and says what it does not know."),
    )  # fmt: skip


def _alarm(record: dict[str, Any]) -> list[Element]:
    lines = [error for one in [*record["workloads"], *record["hops"]["records"]] for error in one["errors"]]
    if record["noise"] is not None:
        lines.append(f"This machine was noisy: {record['noise']} Read the ratios as orders of magnitude.")
    if record["failed"]:
        lines.insert(0, "Something failed.")
    return [el("div", el("ul", *(el("li", line) for line in lines)), class_="alarm", role="alert")] if lines else []


def sentences(record: dict[str, Any]) -> list[str]:
    """What was shown, in three sentences."""
    ways = {(way["path"], way["way"]): way for way in record["hops"]["ways"]}
    copies = {path: sum(hop["copies"] for hop in ways[path, "tx"]["hops"]) for path in ("split", "bypass")}
    found = [
        f"A frame that a split guest sends to the wire goes through Dom0 and is copied {_times(copies['split'])}; one of a bypass "
        f"guest goes straight to the NIC and is copied {_times(copies['bypass'])}, by the NIC, as hardware's DMA does.",
    ]
    for row in compared(record["workloads"]):
        if (row["workload"], row["frame"], row["what"]) == ("stream to wire", 64, "Mframes/s"):
            verdict = "" if row["verdict"] == BETTER else f" ({row['verdict']})"
            found.append(
                f"Of 64 B frames split carried {row['split']} million a second to the wire here, bypass {row['bypass']}: "
                f"{row['ratio']} times as many{verdict}."
            )
    ratios = [b / a for a, b in zip(record["stopped"]["rates"]["undisturbed"], record["stopped"]["rates"]["stopped"], strict=True)]
    found.append(
        f"With Dom0 and the hypervisor stopped, the bypass stream ran at {with_spread(ratios)} of its rate: they have set it up, "
        "and it needs neither."
    )
    return found


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _drawing(hops: dict[str, Any]) -> Element:
    words: dict[str, str] = {}
    flows: dict[str, float] = {}
    most = max([way["mpps"] for way in hops["ways"]] + [1e-9])
    for way in hops["ways"]:
        for hop in way["hops"]:
            if "wire" not in hop["id"]:
                words[hop["id"]] = f"{short(way['mpps'])} M/s"
            flows[hop["id"]] = max(way["mpps"] / most, flows.get(hop["id"], 0.0))
    both = [still(hops["picture"], size, words, flows) for size in (WIDE, NARROW)]
    caption = f"{FRAME} B frames to the wire and from it, each stream by itself; M/s: million frames a second."
    marks = [part for mark, about in ABOUT.items() for part in (el("dt", mark.value, " ", el("b", LETTERS[mark])), el("dd", about))]
    key = el("details", el("summary", "What the marks mean"), el("dl", *marks, class_="marks"))
    return el("figure", el("div", *both, class_="still"), el("figcaption", caption), key)


def _hops(hops: dict[str, Any]) -> list[Element]:
    what = {hop["id"]: hop for hop in hops["picture"]["hops"]}
    found = [
        el(
            "p",
            f"Per frame of {FRAME} B. Of a wake-up, a call or a notification a batch has one: the busier, the fewer.",
            class_="soft",
        )
    ]
    for way in ("tx", "rx"):
        found.append(el("h3", f"A frame {WAYS[way]}"))
        rows = []
        for path in (one for one in hops["ways"] if one["way"] == way):
            for hop in path["hops"]:
                ends = " → ".join(NAMES.get(what[hop["id"]][end], what[hop["id"]][end]) for end in ("source", "target"))
                costs = [el("td", _count(hop[name]), class_="number") for name, _ in COSTS]
                rows.append(
                    [_who(path["path"]), el("td", ends, class_="word"), *costs, el("td", what[hop["id"]]["what"], class_="soft")]
                )
            totals = [el("td", el("b", _count(sum(hop[name] for hop in path["hops"]))), class_="number") for name, _ in COSTS]
            cpu = "; ".join(f"{NAMES.get(name, name)} {ns:,.0f}" for name, ns in path["cpu_ns"].items() if ns >= 0.5)
            rows.append(
                [_who(path["path"]), el("td", el("b", "all of the way")), *totals, el("td", f"CPU ns, spinning too: {cpu}")]
            )
        found.append(
            table(["Path", "Hop", *(label for _, label in COSTS), "What happens there"], rows, numbers=range(2, 2 + len(COSTS)))
        )
    return found


def _count(value: float) -> str:
    return str(value) if isinstance(value, int) else number(value, 3)


def _comparison(records: Iterable[dict[str, Any]]) -> list[Element]:
    records = list(records)
    rows = [
        [
            el("td", row["workload"], class_="word"),
            el("td", str(row["frame"]), class_="number"),
            el("td", row["what"], class_="word"),
            *(el("td", row[name], class_="number") for name in ("split", "bypass", "ratio")),
            el("td", row["verdict"], class_=f"verdict {CLASSES.get(row['verdict'], 'undecided')}"),
        ]
        for row in compared(records)
    ]
    head: list[str | tuple[str, str]] = ["Workload", ("Frame", "B"), "What", "Split", "Bypass", "Bypass ÷ split", "For bypass"]
    notes = [el("p", line, class_="soft") for line in not_compared(records)]
    return [
        el("p", "Medians (least–most) of runs that took turns.", class_="soft"),
        table(head, rows, numbers=(1, 3, 4, 5)),
        *notes,
    ]


def _proof(record: dict[str, Any]) -> list[Element]:
    rates = record["stopped"]["rates"]
    free, held = (short(statistics.median(rates[kind])) for kind in ("undisturbed", "stopped"))
    rows = [
        [
            _who(use["path"]),
            el("td", NAMES[use["process"]], class_="word"),
            el("td", number(use["cpu_ms"]), class_="number"),
            el("td", f"{use['switches']:,}", class_="number"),
        ]
        for use in record["kernel"]
    ]
    return [
        el("p", f"The bypass stream of 64 B frames from carl to dora: {free} million a second undisturbed, {held} while both "
           f"processes were stopped by SIGSTOP; medians of {len(rates['stopped'])}, in turns."),
        el("p", "What the kernel says that the two did during a stream of each path, in all runs together:"),
        table(["Path", "Process", ("CPU", "ms"), "Context switches"], rows, numbers=(2, 3)),
        el("p", "Hypercalls run on their caller's thread: what they cost split is in its guests' and Dom0's time.", class_="soft"),
    ]  # fmt: skip


def _programs(programs: dict[str, Any]) -> list[Element]:
    if "left_out" in programs:
        return [el("p", f"Left out: {programs['left_out']}.")]
    rows = [
        [_who(path), el("td", programs[path]["ping"]["text"]), el("td", programs[path]["download"]["text"])]
        for path in ("split", "bypass")
    ]
    words = "Unmodified programs in guests' network namespaces: a round trip, and a download by HTTP, one run each."
    return [el("p", words, class_="soft"), table(["Path", "Round trip", "HTTP"], rows)]


def _not_better(lines: list[str]) -> list[Element]:
    if not lines:
        return [el("p", "Nowhere among the figures above.")]
    why = (
        "Between guests either path has one process in between, Dom0 or the NIC, and programs are bound by wake-ups and TAPs. "
        "The bench has the same programs beyond the wire: "
    )
    return [el("ul", *(el("li", line) for line in lines)), el("p", why, el("code", "python -m bench programs"), ".", class_="soft")]


def _who(path: str) -> Element:
    assert path in PATHS
    return el("td", el("span", path), class_="who", style=f"color: var(--{path})")
