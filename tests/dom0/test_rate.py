"""`rate` of a split guest: what it may be, what a window gives, and streams that keep to it and lose nothing."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dom0.credit import BURST, end_credit, set_rate, slots_within_credit
from dom0.rate import UNLIMITED, Rate, configured_rate, node_rate
from dom0.state import ENGINE, PORT, engine_at, port_at
from hyp.abi.counters import COLUMNS, CREDIT_WAITS, TX_BYTES
from hyp.abi.netif import MAX_TX_SIZE, TX_REQUEST, TX_SLOT_BYTES, TXF_EXTRA_INFO, TXF_MORE_DATA
from hyp.abi.ring import FIRST_SLOT, PAGE_BYTES
from hyp.kernels import entry, i64, void
from hyp.ring import RING, ring_size
from hyp.xenstore.client import XenstoreClient
from hyp.xenstore.xenbus import backend_path
from lab.topology import TopologyError
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.driven_labs import CONNECTED, DOMID, INIT_WAIT, driven_lab
from tests.support.labs import run, topology, until, workload

# --- what it may be ---------------------------------------------------------------------------------------------------

CONFIGURED = {
    "10Mb/s": Rate(62_500, 50_000), "10Mb/s@20ms": Rate(25_000, 20_000), "250KB/s@20ms": Rate(5000, 20_000),
    "1GB/s@1s": Rate(10**9, 10**6), "8b/s@1s": Rate(1, 10**6), "20000B/s@100us": Rate(2, 100),
}  # fmt: skip


@pytest.mark.parametrize(("text", "rate"), CONFIGURED.items())
def test_a_rate_is_as_xl_has_it(text: str, rate: Rate) -> None:
    assert configured_rate(text) == rate
    assert node_rate(rate.node()) == rate


@pytest.mark.parametrize("text", ["", "10", "10Mb", "10mb/s", "10Mb/s@", "10Mb/s@20", "-1Mb/s", "1.5Mb/s", "1Tb/s", "10Mb/s @20ms"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate such as"):
        configured_rate(text)


@pytest.mark.parametrize(
    ("text", "why"), [("0Mb/s", "nothing"), ("1b/s@1us", "nothing"), ("1Mb/s@0s", "1 us"), ("1Kb/s@9999s", "1 us")]
)
def test_a_rate_that_would_let_nothing_through(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        configured_rate(text)


@pytest.mark.parametrize(("node", "rate"), {"1,1": Rate(1, 1), "0,50000": UNLIMITED, "5,0": UNLIMITED}.items())
def test_nodes(node: str, rate: Rate) -> None:
    assert node_rate(node) == rate


@pytest.mark.parametrize("node", ["", "5", "5,", ",5", "5,5,5", "a,b", "-1,5", " 5,5", "5,5 ", "٣,٣", "9" * 40 + ",1"])
def test_nodes_that_say_nothing(node: str) -> None:
    with pytest.raises(ValueError, match="traffic is not limited"):
        node_rate(node)


def test_the_key_is_for_split_guests(tmp_path: Path) -> None:
    text = '[[guest]]\nname = "carl"\npath = "{path}"\nrate = {rate}\n'
    assert topology(tmp_path, "rate", text.format(path="split", rate='"10Mb/s"'))["guest"][0]["rate"] == "10Mb/s"
    with pytest.raises(TopologyError, match=r"guest\[0\]\.rate: has a meaning with path = \"split\" only"):
        topology(tmp_path, "rate", text.format(path="bypass", rate='"10Mb/s"'))
    for wrong in ('"fast"', "10", '"0Mb/s"'):
        with pytest.raises(TopologyError, match=r"guest\[0\]\.rate: "):
            topology(tmp_path, "rate", text.format(path="split", rate=wrong))


# --- what a window gives ----------------------------------------------------------------------------------------------


@entry(void(i64, i64, i64))
def do_set_rate(engine: int, credit_bytes: int, window_ns: int) -> None:
    set_rate(engine_at(engine), 0, credit_bytes, window_ns)


@entry(void(i64))
def do_end(engine: int) -> None:
    end_credit(engine_at(engine), 0)


@entry(i64(i64, i64, i64, i64))
def do_look(engine: int, port: int, now: int, most: int) -> int:
    e = engine_at(engine)
    e.now = now
    return slots_within_credit(e, port_at(port), most)


class Port:
    """A vif with a ring for each queue, whose requests are at hand, and a clock."""

    def __init__(self, rate: Rate, queues: int = 1) -> None:
        self.rate, self.now, self.taken = rate, 10**12, 0
        self.pages = np.zeros((queues, PAGE_BYTES), np.uint8)
        self.ring, self.engine, self.record = np.zeros(queues, RING), np.zeros(1, ENGINE), np.zeros(queues, PORT)
        self.counts, self.members = np.zeros(COLUMNS, np.int64), np.arange(queues)
        entries = ring_size(TX_SLOT_BYTES)
        self.requests = self.pages[:, FIRST_SLOT : FIRST_SLOT + entries * TX_SLOT_BYTES].view(TX_REQUEST)
        self.ring["entries"], self.ring["entry_bytes"], self.ring["req_cons"] = entries, TX_SLOT_BYTES, (1 << 32) - 3
        for queue in range(queues):
            self.ring[queue]["sring"] = self.pages[queue].ctypes.data
            self.record[queue]["tx_ring"] = self.ring[queue : queue + 1].ctypes.data
        self.record["number"], self.record["counts"] = self.members, self.counts.ctypes.data
        self.record[0]["queues"], self.record[0]["members"] = queues, self.members.ctypes.data
        self.engine[0]["ports"], self.engine[0]["now"] = self.record.ctypes.data, self.now
        do_set_rate(int(self.engine.ctypes.data), rate.octets, rate.usecs * 1000)

    def look(self, sizes: list[int], chained: bool = False, queue: int = 0) -> int:
        """How many of these frames may go now."""
        for k, size in enumerate(sizes):
            slot = self.requests[queue, (int(self.ring[queue]["req_cons"]) + k) % self.requests.shape[1]]
            slot["size"], slot["flags"] = size, (TXF_MORE_DATA if k % 2 else TXF_EXTRA_INFO) if chained else 0
        port = int(self.record[queue : queue + 1].ctypes.data)
        return do_look(int(self.engine.ctypes.data), port, self.now, len(sizes))

    def take(self, sizes: list[int], queue: int = 0) -> None:
        """They are taken in, and are of these sizes now."""
        self.counts[TX_BYTES] += sum(sizes)
        self.ring[queue]["req_cons"] = (int(self.ring[queue]["req_cons"]) + len(sizes)) % (1 << 32)
        self.taken += sum(sizes)

    @property
    def credit_at(self) -> int:
        return int(self.record[0]["credit_at"])


@pytest.mark.parametrize("seed", range(8))
def test_never_more_than_the_windows_give_and_never_stuck(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    octets, window = chance.choice([1, 700, 6250, 62_500, 10**7]), chance.choice([1, 100, 50_000])
    port = Port(Rate(octets, window))
    start, window_ns, waits = port.now, window * 1000, 0
    longest = chance.choice([64, 1514, MAX_TX_SIZE])
    for _ in range(3000):
        sizes = [chance.randint(14, longest) for _ in range(chance.randint(1, 20))]
        waited = port.credit_at != 0
        n = port.look(sizes)
        assert n >= 0
        port.take(sizes[:n])
        allowed = ((port.now - start) // window_ns + 1) * octets
        assert port.taken <= allowed
        if n == 0:
            waits += not waited
            assert port.now < port.credit_at <= port.now + window_ns
            assert port.look([14]) == 0 or port.now >= port.credit_at  # not before
            port.now = port.credit_at if chance.random() < 0.9 else port.credit_at + chance.randint(0, 3 * window_ns)
        else:
            assert port.credit_at == 0
            port.now += chance.randint(0, window_ns)
    assert port.counts[CREDIT_WAITS] == waits
    assert port.taken > 0 or octets * 3000 < longest


@pytest.mark.parametrize("octets", [100, 6250, 10**6])
def test_the_longest_frame_goes_at_any_rate_and_no_more_than_a_burst_adds_up(octets: int) -> None:
    port, windows = Port(Rate(octets, 50_000)), 0
    while port.look([MAX_TX_SIZE]) == 0:
        port.now = port.credit_at
        windows += 1
        assert windows <= MAX_TX_SIZE // octets + 1
    assert int(port.record[0]["allowance"]) <= max(BURST, 2 * octets)


def test_an_idle_guest_saves_nothing_up() -> None:
    port = Port(Rate(1000, 50_000))
    for _ in range(2):
        port.now += 10**12
        assert port.look([500] * 10) == 2
        port.take([500] * 2)


def test_what_was_more_than_it_said_is_owed() -> None:
    port = Port(Rate(1000, 50_000))
    assert port.look([500, 500]) == 2
    port.take([500, 4000])  # written over meanwhile
    windows = 0
    while port.look([500]) == 0:
        port.now = max(port.credit_at, port.now)
        windows += 1
    assert windows >= 3


@pytest.mark.parametrize("queues", [1, 3])
def test_what_is_owed_stays_so_when_it_connects_again(queues: int) -> None:
    port = Port(Rate(1000, 50_000), queues)
    address = int(port.engine.ctypes.data)
    port.look([500, 500])
    port.take([500, 4000])
    for _ in range(2):  # the second time nothing was sent in between
        do_end(address)
        assert not port.record["credit_bytes"].any()
        do_set_rate(address, 1000, 50_000_000)
    windows = 1  # with which it begins
    while port.look([500]) == 0:
        port.now = max(port.credit_at, port.now)
        windows += 1
    assert windows in (3, 4), "3500 bytes are owed, and each of two connections began with 1000"


def test_who_owes_nothing_begins_with_a_window_and_no_more() -> None:
    port = Port(Rate(1000, 50_000))
    address = int(port.engine.ctypes.data)
    for _ in range(3):
        assert port.look([500] * 4) == 2
        do_end(address)
        do_set_rate(address, 1000, 50_000_000)
    do_set_rate(address, 0, 0)
    do_set_rate(address, 700, 50_000_000)
    assert port.look([350] * 4) == 2


def test_a_frame_of_several_slots_goes_whole_and_by_itself() -> None:
    port = Port(Rate(10_000, 50_000))
    assert port.look([100, 100, 100], chained=True) == 1
    assert port.look([9000, 9000], chained=True) == 1
    port.take([9000])
    assert port.look([9000], chained=True) == 0


def test_all_queues_have_one_credit_and_none_starves() -> None:
    port = Port(Rate(1000, 50_000), queues=3)
    assert [int(queue["credit_bytes"]) for queue in port.record] == [1000] * 3
    for _ in range(100):  # windows, all of which the first queue uses up
        assert port.look([500] * 4) == 2
        port.take([500] * 2)
        assert port.look([500]) == port.look([500], queue=1) == 0
        port.now = port.credit_at
    assert port.look([500] * 4, queue=2) == 2, "its own frames have cost nothing yet"
    port.take([500], queue=2)
    assert port.look([500] * 4, queue=1) == 1
    port.take([500], queue=1)
    assert [port.look([500], queue=queue) for queue in range(3)] == [0, 0, 0]


def test_another_rate_leaves_no_more_than_it_gives() -> None:
    port = Port(Rate(10**6, 50_000))
    address = int(port.engine.ctypes.data)
    do_set_rate(address, 1000, 50_000_000)
    assert port.look([500] * 4) == 2
    port.take([500] * 2)
    assert port.look([500]) == 0
    do_set_rate(address, 10**6, 50_000_000)
    assert port.credit_at == 0
    assert port.look([500]) == 0  # credit comes with the next window


# --- streams ----------------------------------------------------------------------------------------------------------

OCTETS, USECS = 100_000, 20_000
LAB = '[nic]\npause_us = 1_000_000\n[[guest]]\nname = "anna"\npath = "split"\nrate = "40Mb/s@20ms"\n' + "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\n' for name, path in (("bert", "split"), ("carl", "split"), ("dora", "bypass"))
)
BACK = backend_path(0, "vif", 1, 0)
FRAMES, FRAME = 2000, 1514


async def counts(runner: Runner, guest: str = "vif1:anna") -> dict[str, int]:
    found: dict[str, int] = (await runner.lab.counters()).read()[f"dom0/{guest}"]
    return found


async def limited(runner: Runner, to: str, *others: dict[str, Any], octets: int = OCTETS, usecs: int = USECS) -> dict[str, Any]:
    """A stream of anna's, nothing of which is lost, and no more than the rate allows; and others beside it."""
    before, start = await counts(runner), time.monotonic()
    record = await runner.run(workload("stream", "anna", to, FRAME, frames=FRAMES), *others)
    elapsed, after = time.monotonic() - start, await counts(runner)
    check(record)
    assert record["lost"] == 0
    sent = after["tx_bytes"] - before["tx_bytes"]
    assert FRAMES * FRAME <= sent <= octets * (elapsed / (usecs / 1e6) + 3)
    assert after["credit_waits"] > before["credit_waits"]
    return record


@pytest.mark.usefixtures("warm")
def test_a_stream_keeps_to_its_rate_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "rate", LAB) as runner:
            for to in ("wire", "bert", "dora"):
                await limited(runner, to)
            record = await runner.run(workload("stream", "bert", "anna", FRAME, frames=FRAMES))  # what it receives is not limited
            check(record)
            assert "credit_waits" not in record["drops"]
            for guest in ("vif2:bert", "vif3:carl"):
                assert (await counts(runner, guest))["credit_waits"] == 0

    run(main())


@pytest.mark.usefixtures("warm")
def test_bystanders_do_not_wait(tmp_path: Path) -> None:
    """What one waits for credit, another's frames take the time of: they are through while it still waits."""

    async def main() -> None:
        async with running(tmp_path, "ratebeside", LAB) as runner:
            wire = str(runner.lab.topology["nic"]["wire"]["mac"])
            await runner.prepare(workload("stream", "carl", "wire"), workload("stream", "anna", "wire"))
            before, start = await counts(runner), time.monotonic()
            job = runner.lab.call("anna", "send_stream", mac=wire, frame=FRAME, stream=901, frames=20 * FRAMES)
            slow = asyncio.ensure_future(job)
            for _ in range(3):
                fast = await runner.lab.call("carl", "send_stream", mac=wire, frame=FRAME, stream=902, frames=FRAMES)
                assert fast["sent"] == FRAMES
            elapsed, sent = time.monotonic() - start, (await counts(runner))["tx_bytes"] - before["tx_bytes"]
            assert sent <= OCTETS * (elapsed / (USECS / 1e6) + 3)
            assert (await counts(runner, "vif3:carl"))["credit_waits"] == 0
            assert not slow.done() or elapsed > 20 * FRAMES * FRAME / OCTETS * USECS / 1e6 / 2
            await runner.lab.call("anna", "end_job")
            await slow

    run(main())


@pytest.mark.long
@pytest.mark.usefixtures("warm")
def test_the_toolstack_may_change_it_at_any_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "ratechange", LAB) as runner:
            with runner.lab._rundir.socket_address(runner.lab.store_path) as address:
                store = await XenstoreClient.connect(address)
            async with store:
                assert await store.read(f"{BACK}/rate") == "100000,20000"
                await limited(runner, "wire")
                wire = str(runner.lab.topology["nic"]["wire"]["mac"])
                await store.write(f"{BACK}/rate", "1000,50000")  # for the next hours
                job = asyncio.ensure_future(
                    runner.lab.call("anna", "send_stream", mac=wire, frame=FRAME, stream=903, frames=100_000)
                )
                waits = (await counts(runner))["credit_waits"]

                async def waiting() -> bool:
                    return (await counts(runner))["credit_waits"] > waits

                await until(waiting, "the sender to wait")
                await store.write(f"{BACK}/rate", "nonsense")  # told, and without a limit, in the middle of a wait
                assert (await job)["sent"] == 100_000
                log = runner.lab._rundir.log_path.read_text(errors="replace")
                assert "rate: 'nonsense' is not BYTES,USECS: traffic is not limited" in log
                waits = (await counts(runner))["credit_waits"]
                await store.rm(f"{BACK}/rate")
                check(await runner.run(workload("stream", "anna", "wire", FRAME, frames=FRAMES)))
                assert (await counts(runner))["credit_waits"] == waits
                await store.write(f"{BACK}/rate", "50000,10000")

                async def limited_again() -> bool:
                    check(await runner.run(workload("stream", "anna", "wire", FRAME, frames=100)))
                    return (await counts(runner))["credit_waits"] > waits

                await until(limited_again, "the watch to be heeded")
                await limited(runner, "bert", octets=50_000, usecs=10_000)

    run(main())


@pytest.mark.usefixtures("warm")
def test_waiting_for_credit_is_sleeping(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "ratesleep", "[spin]\nlimit_us = 0\n" + LAB) as runner:
            thread = (await runner.lab.call("dom0", "threads"))["dom0"]

            def sleeps() -> int:
                tasks = [path.read_text() for path in Path(f"/proc/{runner.pids['dom0']}/task").glob("*/status")]
                status = next(text for text in tasks if int(text.partition("NSpid:")[2].splitlines()[0].split()[-1]) == thread)
                return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

            await runner.prepare(workload("stream", "anna", "wire"))
            wire = str(runner.lab.topology["nic"]["wire"]["mac"])
            before, start, sent = sleeps(), time.monotonic(), (await counts(runner))["tx_bytes"]
            await runner.lab.call("anna", "send_stream", mac=wire, frame=FRAME, stream=904, frames=FRAMES)
            windows = (time.monotonic() - start) / (USECS / 1e6) + 1
            frames = ((await counts(runner))["tx_bytes"] - sent) / FRAME
            assert sleeps() - before <= 20 * windows + frames

    run(main())


@pytest.mark.usefixtures("warm")
def test_a_rate_outlives_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection begins with a window; what waits goes on as soon as another rate lets it."""

    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "rateagain", 'rate = "8Kb/s@1s"\n') as bert:
            for _ in range(3):
                await bert.told(INIT_WAIT)
                await bert.connect()
                await bert.send(10)  # 1000 bytes
                await bert.state(1)
            await bert.told(INIT_WAIT)
            await bert.dom0.write(f"{bert.back}/rate", "1000,3600000000")
            await bert.ready()
            await bert.state(CONNECTED)
            await bert.told(CONNECTED)
            await bert.call("notifier")
            await bert.send(10)
            waiting = asyncio.ensure_future(bert.send(10))

            async def waits() -> bool:
                return (await counts(bert.runner, f"vif{DOMID}:bert"))["credit_waits"] > 0

            await until(waits, "bert to wait")
            assert not waiting.done()
            await bert.dom0.write(f"{bert.back}/rate", "0,0")
            await waiting
            await bert.exchange()

    run(main())
