"""Numbers in documents and comments are the code's: constants, offsets, tables. (What they name: test_document_names.py.)"""

import math
import re
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from bench.benchmarks import scale
from bench.method import options, probe, slices, study, verdicts
from bench.peers import testpmd
from bench.questions import ask, settings
from dom0 import engine as dom0_engine
from dom0 import state as dom0_state
from dom0 import uplink
from dom0.xenbus_states import BACK_STATES, Action, judge, steps
from domu import device
from domu.frontends import split
from domu.programs import traffic_loop
from hyp import control, engine, events, grants
from hyp.abi import counters, fragment, frame, grant, netif, nic, platform, ring, sizes, trap
from hyp.abi.domids import DOMID_NIC
from hyp.control import channel, outbox, words
from hyp.load import histogram
from hyp.model.operations import OPERATIONS
from hyp.model.price import PRICES
from hyp.monitor import daemons, domain, emulation, event_channels, hypercalls, machine
from hyp.paths import PATHS, dom0_needs
from hyp.xenstore.xenbus import XenbusState
from lab.keeper import child, keeper, output
from lab.schema import guest, tables, values
from nic import crossing, publish
from nic import device as nic_device
from nic import state as nic_state
from nic.wire import link
from tests.support.documents import ROOT, read, sources

MIB = 1 << 20


def number(text: str) -> float:
    """A number as documents write it: ``81 920``, ``1_000``, ``0x7FF1``, ``5.1``."""
    plain = text.replace(" ", "").replace("_", "").replace(",", "")
    return int(plain, 16) if plain.startswith("0x") else float(plain)


# --- numbers ---------------------------------------------------------------------------------------------------------


class Fact(NamedTuple):
    """`pattern` stands in the document at least once, and its groups are `values` wherever it does."""

    document: str
    pattern: str
    values: tuple[float, ...]


def fact(document: str, pattern: str, *values: float) -> Fact:
    return Fact(document, pattern, values)


def limits(table: type[values.Table], key: str) -> tuple[float, ...]:
    """The least and the most that the schema takes for a key."""
    least = [meta.ge for meta in table.model_fields[key].metadata if hasattr(meta, "ge")]
    most = [meta.le for meta in table.model_fields[key].metadata if hasattr(meta, "le")]
    return *least, *most


def mib(size: int) -> float:
    """Bytes in MiB as documents round them: up, to a tenth, so that so much is enough."""
    return math.ceil(10 * size / MIB) / 10


N = r"([\d_.]+(?: \d{3})*)"
HYPERCALLS, SHARED, PACKET, ADDING = "docs/hypercalls.md", "docs/shared-fields.md", "docs/packet.md", "docs/adding.md"
TOPOLOGY, BENCH, MODEL, NETIF = "docs/topology.md", "docs/bench.md", "docs/model.md", "docs/netif.md"

FACTS = [
    fact(HYPERCALLS, rf"bytes of a packet \| {N} \({N} KiB\)", control.MAX_MESSAGE, control.MAX_MESSAGE / 1024),
    fact(HYPERCALLS, rf"descriptors with a packet \| {N};", control.MAX_FDS),
    fact(HYPERCALLS, rf"the socket's buffer, and {N} beyond it", control.MAX_UNSENT),
    fact(HYPERCALLS, rf"those in the socket, and {N} beyond it", control.MAX_UNSENT_FDS),
    fact(TOPOLOGY, rf"is allowed {N} more for each guest", sizes.GUEST_EVENTS + control.MAX_UNSENT_FDS),
    fact(HYPERCALLS, rf"one request, or {N} ms", channel.TURN_S * 1000),
    fact(HYPERCALLS, rf"for {N} s this user had more of them under way", outbox.REFS_S),
    fact(HYPERCALLS, rf"at most, and with ports {N} of a guest", sizes.GUEST_EVENTS),
    fact(HYPERCALLS, rf"a guest {N} upcalls and ports together", sizes.GUEST_EVENTS),
    fact(HYPERCALLS, rf"names the cause, cut to {N} characters", words.MAX_WORDS),
    fact(HYPERCALLS, rf"cut likewise, and {N} of them at most", keeper.MAX_NOTICES),
    fact(HYPERCALLS, rf"keeps the last {N} MiB at least", output.KEPT_BYTES / (1 << 20)),
    fact(HYPERCALLS, rf"What comes faster than {N} MiB/s", output.RATE / (1 << 20)),
    fact(HYPERCALLS, rf"requests under way in one direction \| {N} \|", control.MAX_PENDING),
    fact(HYPERCALLS, rf"counters page \({N} B, read-write\), platform page \({N} B",
         counters.COUNTERS_BYTES, platform.PLATFORM_BYTES),
    fact(HYPERCALLS, rf"`upcall_create` \|[^\n]*?`ENOSPC`: {N} at most", domain.MAX_UPCALLS),
    fact(HYPERCALLS, rf"`mr_register` \|.*?`ENOSPC`: {N} at most", domain.MAX_REGISTRATIONS),
    fact(HYPERCALLS, rf"`ENOSPC`: {N} ports at most", event_channels.MAX_EVENT_PORTS - 1),
    fact(HYPERCALLS, rf"`frames`, 1 to {N} \|", hypercalls.MAX_GRANT_FRAMES),
    fact(HYPERCALLS, rf"`limit_us`, 0 to {N} \|", hypercalls.MAX_SPIN_US),
    fact(HYPERCALLS, rf"`\{{refs\}}`: {N} for each frame \| grant table \(`refs` × {N} B",
         grants.REFS_PER_FRAME, grant.ENTRY_BYTES),
    fact(HYPERCALLS, rf"doorbell page \({N} B, read-write\)", nic.PAGE),
    fact(HYPERCALLS, rf"trap page \({N} B, read-write\)", trap.TRAP_BYTES),
    fact(HYPERCALLS, rf"`ETIMEDOUT` \| {N} s without an answer", daemons.SETUP_TIMEOUT_S),
    fact(HYPERCALLS, rf"waits, up to {N} s, until the NIC and Dom0's toolstack are there", daemons.SETUP_TIMEOUT_S),
    fact(HYPERCALLS, rf"each queue has {N} bytes an entry", sizes.QUEUE_ENTRY),
    fact(HYPERCALLS, rf"powers of two from {N} to {N}\.", nic.MIN_QUEUE, nic.MAX_QUEUE),
    fact(HYPERCALLS, rf"A frame is {N} to {N} bytes of Ethernet", nic.MIN_FRAME, nic.MAX_LONE_FRAME),
    fact(NETIF, rf"a frame has {N} bytes at least, and at most the NIC's `mtu` \+ {N}", nic.MIN_FRAME, nic.LINK_HEADER),
    fact(NETIF, rf"a chain of up to {N} in a row", netif.NR_SLOTS_MIN),
    fact(HYPERCALLS, r"pseudo-domain \((0x\w+), Xen's DOMID_IO\)", DOMID_NIC),
    fact(HYPERCALLS, rf"Our front end waits {N} s for each state", split.HANDSHAKE_TIMEOUT_S),
    fact(NETIF, rf"Our own front end waits {N} s for each answer", split.HANDSHAKE_TIMEOUT_S),
    fact(NETIF, rf"`multi-queue-max-queues` {N},", sizes.MAX_QUEUES),
    fact(NETIF, rf"of {N} to {N} bytes; beyond the Ethernet header", frame.MIN_TEST_FRAME, nic.MAX_MTU + values.HEADER),
    fact(NETIF, rf"Bit 14: only the first {N} bytes", frame.COVERED),
    fact(HYPERCALLS, rf"references below {N} are reserved", split.FIRST_REF),
    fact(HYPERCALLS, rf"references below {N} are reserved", grant.NR_RESERVED_ENTRIES),
    fact(HYPERCALLS, rf"SIGKILL follows after {N} s", child.STOP_TIMEOUT_S),
    fact(HYPERCALLS, rf"does not wait for it longer than {N} s", keeper.OWNER_TIMEOUT_S),
    fact(SHARED, rf"RAM of a device model \| hypervisor \| {N} MiB with queues of {N}", mib(emulation._memory(256)), 256),
    fact(SHARED, rf"with `sg`, and {N} bytes or more, the frame goes on in the next buffer", nic.MIN_BUFFER),
    fact(SHARED, rf"IOMMU table \| hypervisor \| {N} B a page", 8),
    fact(SHARED, rf"active table \| hypervisor \| {N} B a reference", grants.ACTIVE_BYTES_PER_REF),
    fact(SHARED, rf"engine page \| hypervisor \| {N}, one per NIC engine", platform.ENGINE_BYTES),
    fact(SHARED, rf"\({N} \+ {N} × {N} B used\)", platform.CHECKPOINTS, platform.CHECKPOINT_BYTES, nic.CONTEXTS),
    fact(SHARED, rf"counters page \| hypervisor \| {N};", counters.COUNTERS_BYTES),
    fact(SHARED, rf"\| {N} n \| name of row n, {N} B", counters.ROW_BYTES, counters.NAME_BYTES),
    fact(SHARED, rf"\| {N} n \+ {N} \| {N} columns", counters.ROW_BYTES, counters.NAME_BYTES, counters.COLUMNS),
    fact(SHARED, rf"Send: {N} to {N}, and the frame {N} bytes", 1, nic.MAX_FRAME, nic.MIN_FRAME),
    fact(SHARED, rf"`mtu` \+ {N} unless", nic.LINK_HEADER),
    fact(SHARED, rf"More than {N} fragments", nic.MAX_FRAGMENTS),
    fact(SHARED, rf"After {N} tries an unstable entry", grants.MARK_TRIES),
    fact(SHARED, rf"waited for at most {N} looks", grants.LOCK_SPINS),
    fact(SHARED, rf"\| {N} \+ {N} n \| message: opcode and up to {N} words",
         engine.MESSAGES, engine.MESSAGE_BYTES, engine.MESSAGE_BYTES / 8 - 1),
    fact(SHARED, rf"\| {N}… \| {N} slots: context", crossing.FIRST_SLOT, crossing.CROSSING_SLOTS),
    fact(PACKET, rf"at most {N} frames taken in by Dom0 at a time, at most {N} copies in a hypercall",
         dom0_state.STAGE, dom0_state.FLUSH),
    fact(PACKET, rf"{N} frames \({N} KiB\) of one context in the NIC's turn",
         nic_state.BUDGET_FRAMES, nic_state.BUDGET_BYTES / 1024),
    fact(PACKET, rf"for {N} of its rounds at most \(`PATIENCE`", publish.PATIENCE),
    fact(PACKET, rf"for {N} of its rounds at most \(`PATIENCE`", dom0_engine.PATIENCE),
    fact(PACKET, rf"Dom0's loop takes up to {N} requests", dom0_state.STAGE),
    fact(PACKET, rf"Dom0 stages up to {N} completions", dom0_state.STAGE),
    fact(PACKET, rf"the port has taken in \(at most {N} frames\)", dom0_state.STAGE),
    fact(PACKET, rf"up to {N} frames that a vif had taken in", dom0_state.STAGE),
    fact(PACKET, rf"takes up to {N} descriptors", machine.BUDGET),
    fact(PACKET, rf"every {N}nd asks for a completion", uplink.SIGNAL_EVERY),
    fact(PACKET, rf"a ring of {N} MiB", link.LINE_BYTES / MIB),
    fact(PACKET, rf"A line holds {N} MiB", link.LINE_BYTES / MIB),
    fact(PACKET, rf"\(length \+ {N}\) × 8 ÷ rate", link.OVERHEAD),
    fact(PACKET, rf"its FIFO: {N} KiB", link.FIFO_BYTES / 1024),
    fact(PACKET, rf"oversleeps half a FIFO \({N} µs at 10 Gbit/s\)", round(link.FIFO_BYTES * 8 / 10e3 / 2)),
    fact(PACKET, rf"{N} buckets for each power of two, so that a value is at most 1/{N} too high", histogram.SUB, histogram.SUB),
    fact(PACKET, r"\(up to 2\^(\d+) of them\)", traffic_loop.MAX_ROUND_TRIPS.bit_length() - 1),
    fact(PACKET, rf"up to {N} that are due go in one burst", device.BURST),
    fact(PACKET, rf"shorter than {N} bytes, or an unknown flag", nic.MIN_FRAME),
    fact(PACKET, rf"one to {N} \*fragments\*", nic.MAX_FRAGMENTS),
    fact(PACKET, rf"segments of {N} bytes at least", fragment.MIN_SEGMENT),
    fact(ADDING, rf"\({N} columns at most\)", counters.COLUMNS),
    fact(ADDING, rf"at most {N} in a process; a name has {N} bytes at most", counters.ROWS, counters.NAME_BYTES),
    fact(ADDING, rf"opcode {N} is stop", engine.STOP),
    fact(ADDING, rf"{N} frames under way at most", options.RING if hasattr(options, "RING") else 256),
    fact(TOPOLOGY, rf"{N} to {N}, which is 14 more", values.MIN_WORKLOAD_FRAME, values.MAX_WORKLOAD_FRAME),
    fact(TOPOLOGY, rf"a thread of its own\. {N} to {N} \|", 1, nic.MAX_ENGINES),
    fact(TOPOLOGY, rf"before the frame is dropped, in microseconds\. {N} to {N} \|", *limits(tables.Nic, "pause_us")),
    fact(TOPOLOGY, rf"each receive queue\. A power of two, {N} to {N} \|", *limits(tables.Nic, "queue")),
    fact(TOPOLOGY, rf"each receive queue\. A power of two, {N} to {N} \|", nic.MIN_QUEUE, nic.MAX_QUEUE),
    fact(TOPOLOGY, rf"{N} to {N}, and no longer than", values.MIN_WORKLOAD_FRAME, values.MAX_WORKLOAD_FRAME),
    fact(TOPOLOGY, rf"as fast as they are accepted\. Up to {N} \|", limits(tables.Wire, "pps")[1]),
    fact(TOPOLOGY, rf"0 is no limit\. {N} to {N}\.", sizes.MIN_GBPS, sizes.MAX_GBPS),
    fact(TOPOLOGY, rf"after its last bit was sent, in microseconds\. {N} to {N} \|", *limits(tables.Wire, "delay_us")),
    fact(TOPOLOGY, rf"after its last bit was sent, in microseconds\. 0 to {N} \|", nic_device.MAX_DELAY_US),
    fact(TOPOLOGY, rf"its length and {N} bytes \(preamble 8", link.OVERHEAD),
    fact(TOPOLOGY, rf"\({N} bytes\), {N} MiB to {N} GiB", sizes.PAGE, values.MIN_RAM / MIB, values.MAX_RAM / (1 << 30)),
    fact(TOPOLOGY, rf"{N} MiB with queues of 256, {N} MiB with 4096", mib(dom0_needs(256)), mib(dom0_needs(4096))),
    fact(TOPOLOGY, rf'with 4096 descriptors `"{N} KiB"`', PATHS["bypass"].ram(4096) / 1024),
    fact(TOPOLOGY, rf"{N} MiB of buffers for each trapped guest's device model", mib(emulation._memory(256))),
    fact(TOPOLOGY, rf"was seen, in seconds\. {N} to {N} \|", *limits(tables.Dom0, "ageing_s")),
    fact(TOPOLOGY, rf"before it sleeps, in microseconds\. 0 to {N};", hypercalls.MAX_SPIN_US),
    fact(TOPOLOGY, rf"the like, each 0 to {N}\.", sizes.MAX_PRICE),
    fact(MODEL, rf"each is 0 to {N}\.", sizes.MAX_PRICE),
    fact(MODEL, rf"grant copies: up to {N} frames from a guest, {N} to guests", dom0_state.STAGE, dom0_state.FLUSH),
    fact(TOPOLOGY, rf"One for each guest, {N} to {N} of them", 1, sizes.MAX_GUESTS),
    fact(TOPOLOGY, rf"Largest IP packet, in bytes\. {N} to {N}:", *limits(guest.Guest, "mtu")),
    fact(BENCH, rf"rounds = S ÷ slice \({N} s\), made even; {N} s unless told otherwise, `--quick` {N} s",
         options.SLICE_S, options.SECONDS, options.QUICK_SECONDS),
    fact(BENCH, rf"\*\*Slices\*\* of at most {N} s", slices.LONGEST_SLICE_S),
    fact(BENCH, rf"for S more seconds at most; {N} unless told otherwise", options.BUDGET_S),
    fact(BENCH, rf"took more than {N} % of the CPUs' time", 100 * probe.STOLEN),
    fact(BENCH, rf"`starved` \(more than {N} %\)", 100 * probe.STARVED),
    fact(BENCH, rf"until all are decided \(by a {N} %", 100 * study.CERTAIN),
    fact(BENCH, rf"the ends of its interval are within {N} % of it", 100 * ask.PRECISION),
    fact(BENCH, r'"near" is at least ([\d.]+), "several times" at least ([\d.]+)',
         verdicts.WORDS["near"], verdicts.WORDS["several times"]),
    fact(BENCH, rf"\| `guests` \| {N} to {N},", 1, settings.MAX_GUESTS),
    fact(BENCH, rf"{N} to {N} guests, all rings of", min(scale.GUESTS), max(scale.GUESTS)),
    fact(BENCH, rf"Rings have {N} entries everywhere \(split: Xen's ring, {N}\)",
         tables.Nic.model_fields["queue"].default, split.TX_SLOTS),
    fact(BENCH, rf"\({N} B each; testpmd's least pool is {N} buffers of {N} B\)",
         sizes.FRAME_BUFFER, testpmd.MBUFS, testpmd.MBUF_BYTES),
]  # fmt: skip


@pytest.mark.parametrize("said", FACTS, ids=lambda said: f"{said.document}: {said.pattern}")
def test_a_number_is_the_constant(said: Fact) -> None:
    found = re.findall(said.pattern, read(said.document))
    assert found, "the document does not say this any more: take the row away, or mend the pattern"
    for groups in found:
        assert tuple(map(number, (groups,) if isinstance(groups, str) else groups)) == said.values


# --- offsets ---------------------------------------------------------------------------------------------------------


def constants(module: ModuleType, *names: str) -> dict[str, int]:
    """Constants by the name that documents give the field at that offset."""
    return {name.lower(): getattr(module, name) for name in names}


def fields(dtype: "np.dtype[Any]") -> dict[str, int]:
    """Offsets in a layout."""
    assert dtype.fields is not None
    return {name: int(where[1]) for name, where in dtype.fields.items()}


DOORBELL = fields(nic.DOORBELL)
TRAP = constants(trap, "REGISTER", "VALUE", "SEQUENCE", "ANSWERED", "TRAP_EVENT", "ANSWER_EVENT")
REGISTERS = {name: getattr(nic, name) for name in ("SQ_PROD", "RQ_PROD", "SCQ_EVENT", "RCQ_EVENT")}
PLATFORM = constants(platform, "GENERATION", "SHOOTDOWN_REQUEST") | {
    "spin_limit_ns": platform.SPIN_LIMIT_NS,
    "fair_notify_ns": platform.FAIR_NOTIFY_NS,
}
HINTS = PRICES | constants(platform, "KEEP_ARMED", "COPY_LIMIT", "BOUNCE")
SRING = constants(ring, "REQ_PROD", "REQ_EVENT", "RSP_PROD", "RSP_EVENT")
MAILBOX = constants(engine, "POSTED", "TAKEN", "REPLY_FD")
CROSSING = constants(crossing, "PROD", "CONS", "PROD_EVENT", "WANTED")

TABLES = {
    "Doorbell page": DOORBELL, "Trap page": TRAP, "sring pages, in the guest's RAM, granted to Dom0": SRING,
    "Platform page": PLATFORM, "Within one process": MAILBOX | CROSSING,
    "Send and receive queues, in the domain's RAM": fields(nic.DESC), "Completion queues, in the domain's RAM": fields(nic.CQE),
}  # fmt: skip


@pytest.mark.parametrize("heading", TABLES)
def test_a_table_of_fields_has_the_offsets_of_the_code(heading: str) -> None:
    section = (ROOT / SHARED).read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", section, re.MULTILINE)
    assert len(rows) >= 2
    assert {name: int(offset) for offset, name in rows}.items() <= TABLES[heading].items()


OF_NIC, OF_DESCRIPTOR, OF_COMPLETION = re.split(r"^(?=Descriptor|Completion)", nic.__doc__ or "", flags=re.MULTILINE)


@pytest.mark.parametrize(("text", "pattern", "offsets"), [
    (OF_NIC, r"^ +(\d+)  (\w+)  +(?:driver|NIC) ", DOORBELL),
    (OF_DESCRIPTOR, r"^ +(\d+) u\d\d (\w+)  ", fields(nic.DESC)),
    (OF_COMPLETION, r"^ +(\d+) u\d\d (\w+)  ", fields(nic.CQE)),
    (trap.__doc__, r"^ +(\d+)  u32 (\w+)  ", TRAP),
    (trap.__doc__, r"^    ([A-Z_]+) +(\d+)  ", REGISTERS),
    (platform.__doc__, r"^ +(\d+) u64 (\w+)", PLATFORM | HINTS | {"epoch": platform.EPOCH}),
    (crossing.__doc__, r"(\d+) (prod|cons|prod_event|wanted)\b", CROSSING),
    (crossing.__doc__, r"(\d+) (context|generation|length|head0|head1)\b", {
        "context": crossing.SLOT_CONTEXT, "generation": crossing.SLOT_GENERATION, "length": crossing.SLOT_LENGTH,
        "head0": crossing.SLOT_HEAD0, "head1": crossing.SLOT_HEAD1,
    }),
    (link.__doc__, r"(\d+) (arrival|length|kind)\b", {
        "arrival": link.ENTRY_ARRIVAL, "length": link.ENTRY_LENGTH, "kind": link.ENTRY_KIND,
    }),
])  # fmt: skip
def test_a_docstring_has_the_offsets_of_the_code(text: str, pattern: str, offsets: dict[str, int]) -> None:
    rows = [sorted(groups, key=str.isdigit, reverse=True) for groups in re.findall(pattern, text, re.MULTILINE)]
    assert len(rows) >= 2
    wrong = {name: int(offset) for offset, name in rows if offsets[name] != int(offset)}
    assert wrong == {}


def test_the_document_of_the_model_has_every_operation() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`", (ROOT / MODEL).read_text(), re.MULTILINE)
    assert rows == [(name, operation.column) for name, operation in OPERATIONS.items()]


def test_the_decorators_of_compiled_code_are_those_documented() -> None:
    from hyp import kernels

    table = (ROOT / ADDING).read_text().split("## A kernel\n", 1)[1]
    listed = set(re.findall(r"^\| `@(\w+)", table, re.MULTILINE))
    assert listed == {"compiled", "outlined", "entry", "operation"}
    assert all(callable(getattr(kernels, name)) for name in listed)
    words = {3: "three", 4: "four", 5: "five"}
    assert f"one of {words[len(listed)]} decorators" in read(ADDING)


def test_fractions_in_words_are_those_of_the_code() -> None:
    assert "woken when three quarters of what is pending is done" in (device.__doc__ or "")
    assert events.most_of.py_func(400) == 300
    assert "Dom0 tells the NIC after half a queue" in read(PACKET)
    assert "2 * sends_untold(q) >= q.sq_size" in (ROOT / "hyp/verbs.py").read_text()


def test_console_operations_are_documented() -> None:
    """What processes offer to whoever has their console, wherever it is declared: by name, or in a list of methods."""
    offered = set()
    for path in sources():
        if path.relative_to(ROOT).parts[0] in ("hyp", "nic", "dom0", "domu"):
            text = path.read_text()
            offered |= set(re.findall(r'process\.serve\("(\w+)"', text))
            for methods in re.findall(r"for handler in \(([^)]*)\):\n +\S*process\.serve", text):
                offered |= set(re.findall(r"self\.(\w+)", methods))
    assert len(offered) > 15
    section = read(HYPERCALLS).split("Operations that processes offer on their consoles", 1)[1].split("The keeper itself", 1)[0]
    assert offered - set(re.findall(r"`(\w+)", section)) == set()


def way_of(front: XenbusState, back: XenbusState) -> str:
    """A cell of the table of states."""
    words = {Action.CONNECT: "**connect** ", Action.DISCONNECT: "**disconnect** ", None: ""}
    return " ".join(f"{words[action]}{int(after)}" for action, after in steps(back, judge(front).goal)) or "–"


def test_the_table_of_states_is_the_codes() -> None:
    table = (ROOT / NETIF).read_text().split("| `F/state` ↓", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    fronts = [XenbusState(int(number)) for head, *_ in rows for number in re.findall(r"\d", head)]
    assert fronts == [0, 1, 2, 7, 8, 3, 4, 5, 6]
    for head, *cells in rows:
        for number in re.findall(r"\d", head):
            assert cells == [way_of(XenbusState(int(number)), back) for back in BACK_STATES], head


def test_the_documents_test_frame_is_the_one_that_is_sent() -> None:
    from tests.support.drivers import compose

    text = next(
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / NETIF).read_text(), re.DOTALL) if "def test_frame" in block
    )
    scope: dict[str, Any] = {}
    exec(text, scope)
    to, own = "02:00:00:00:00:01", "02:00:00:00:00:02"
    for length, stream, sequence in [(48, 1, 0), (49, 7, 3), (64, 0x3FFF, 2**40), (1514, 12, 99), (1511, 1, 1)]:
        found = scope["test_frame"](
            bytes.fromhex(to.replace(":", "")), bytes.fromhex(own.replace(":", "")), length, stream, sequence
        )
        assert found == compose(to, own, length, stream, sequence)


@pytest.mark.parametrize(("text", "value"), [("81 920", 81920), ("1_000", 1000), ("0x7FF1", 0x7FF1), ("5.1", 5.1)])
def test_numbers_are_read_as_they_are_written(text: str, value: float) -> None:
    assert number(text) == value
