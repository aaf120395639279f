"""The price model: who pays, how often, and that nobody does by default."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyp.abi.platform import EVENT_PRICE, PLATFORM_BYTES
from hyp.atomics import clock_ns
from hyp.control import Refused
from hyp.kernels import entry, i64
from hyp.model.price import MAX_PRICE_NS, PRICES, pay, spin_ns
from lab.command.tables import notes, rates
from lab.ledger import Snapshot, difference, total
from lab.owner import Lab
from lab.topology import TopologyError, load
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.labs import run, topology_file, workload

pytestmark = pytest.mark.usefixtures("warm")
PRICE_NS = 200_000  # so dear that the operations are most of what a thread does
LAB = "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\n'
    for name, path in (("anna", "split"), ("bert", "split"), ("carl", "bypass"), ("dora", "bypass"), ("emil", "trapped"))
)


@entry(i64(i64, i64))
def _spun(nanoseconds: int, times: int) -> int:
    start = clock_ns()
    for _ in range(times):
        spin_ns(nanoseconds)
    return clock_ns() - start


@entry(i64(i64, i64, i64))
def _paid(platform: int, price: int, times: int) -> int:
    start = clock_ns()
    for _ in range(times):
        pay(platform, price)
    return clock_ns() - start


def test_to_spin_takes_its_time() -> None:
    assert _spun(50_000, 20) >= 20 * 50_000
    assert _spun(0, 3) >= 0


def test_each_operation_has_its_own_price() -> None:
    page = np.zeros(PLATFORM_BYTES // 8, np.int64)
    address = int(page.ctypes.data)
    page[EVENT_PRICE // 8] = 100_000
    assert _paid(address, EVENT_PRICE, 10) >= 1_000_000
    free = min(_paid(address, offset, 100) for offset in PRICES.values() if offset != EVENT_PRICE)
    assert free < 100 * 100_000  # not even one of a hundred


# --- the topology file -----------------------------------------------------------------------------------------------


def test_prices_in_the_topology(tmp_path: Path) -> None:
    text = "[model]\nprice = { hypercall_ns = 500, trap_ns = 1_000_000 }\n" + LAB
    plain = load(topology_file(tmp_path, "price", text)).plain()
    assert plain["model"] == {"price": {"hypercall_ns": 500, "trap_ns": 1_000_000, "grant_map_ns": 0, "event_ns": 0}}
    assert set(plain["model"]["price"]) == set(PRICES)
    assert set(load(topology_file(tmp_path, "free", LAB)).plain()["model"]["price"].values()) == {0}


@pytest.mark.parametrize(("model", "key", "reason"), [
    ("price = { trap_ns = -1 }", "model.price.trap_ns", "greater than or equal to 0"),
    ("price = { event_ns = 1_000_001 }", "model.price.event_ns", "less than or equal to 1000000"),
    ("price = { hypercall_ns = 1.5 }", "model.price.hypercall_ns", "integer"),
    ("price = { hypercal_ns = 1 }", "model.price.hypercal_ns", "did you mean 'hypercall_ns'"),
    ("price = 3", "model.price", "must be a table"),
    ("prise = 3", "model.prise", "did you mean 'price'"),
])  # fmt: skip
def test_prices_that_cannot_be(tmp_path: Path, model: str, key: str, reason: str) -> None:
    with pytest.raises(TopologyError) as refused:
        load(topology_file(tmp_path, "price", f"[model]\n{model}\n" + LAB))
    assert [(where, reason in why) for where, why in refused.value.problems] == [(key, True)], refused.value


# --- a live lab ------------------------------------------------------------------------------------------------------


class Meter:
    """CPU time and involuntary context switches of one thread: each time it loses its CPU, one price may go unpaid in CPU time.

    `tid` is its number in the topology's own PID namespace, if that has one.
    """

    def __init__(self, pid: int, tid: int) -> None:
        threads = Path(f"/proc/{pid}/task").iterdir()
        (self._folder,) = (folder for folder in threads if self._inner(folder / "status") == tid)

    @staticmethod
    def _inner(status: Path) -> int:
        return next(int(line.split()[-1]) for line in status.read_text().splitlines() if line.startswith("NSpid:"))

    def read(self) -> tuple[int, int]:
        cpu_ns = int((self._folder / "schedstat").read_text().split()[0])
        lines = (self._folder / "status").read_text().splitlines()
        return cpu_ns, next(int(line.split()[1]) for line in lines if line.startswith("nonvoluntary"))


async def paid(runner: Runner, process: str, load: dict[str, Any], price: str) -> tuple[dict[str, Any], Snapshot, int]:
    """Run a workload at a price: its record, what was counted, and how many times the thread of `process` can have paid."""
    lab = runner.lab
    await lab.call("hyp", "price", **{name: PRICE_NS if name == price else 0 for name in PRICES})
    await runner.prepare(load)
    await runner._settled()
    (tid,) = (await lab.call(process, "threads")).values()
    meter = Meter(runner.pids[process], tid)
    reader = await lab.counters()
    before, (cpu, switches) = reader.read(), meter.read()
    record = await runner.measure(load)
    counted, (cpu_after, switches_after) = difference(reader.read(), before), meter.read()
    await lab.call("hyp", "price", **dict.fromkeys(PRICES, 0))
    check(record)
    assert record["modelled"] == {name: PRICE_NS if name == price else 0 for name in PRICES}
    return record, counted, (cpu_after - cpu) // PRICE_NS + (switches_after - switches)


def test_every_operation_is_paid_for_by_the_thread_that_makes_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "paid", LAB) as runner:
            stream, asks = workload("stream", "anna", "wire", frames=5000), workload("rr", "anna", "bert", frames=100)
            _, counted, times = await paid(runner, "dom0", stream, "hypercall_ns")
            assert times >= total(counted, "hypercalls") >= 5000 / 128
            for process, rows in (("dom0", "dom0/vif"), ("anna", "anna/device")):
                _, counted, times = await paid(runner, process, asks, "event_ns")
                assert times >= total(counted, "notifications", rows) >= 10
            _, counted, times = await paid(runner, "hyp", workload("stream", "emil", "wire", frames=10_000), "trap_ns")
            assert times >= total(counted, "traps", "hyp/vmm") >= 10_000 / 64
            record, counted, _ = await paid(runner, "hyp", workload("rr", "emil", "wire", frames=100), "trap_ns")
            assert counted["emil/device"]["trap_ns"] >= counted["emil/device"]["traps"] * PRICE_NS
            assert record["trap_ns"] >= PRICE_NS

    run(main())


def test_bypass_pays_for_interrupts_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "bypasspaid", LAB) as runner:
            asks = workload("rr", "carl", "dora", frames=200)
            _, counted, times = await paid(runner, "carl", asks, "event_ns")
            # some wake-ups are the control plane's, which are no events of the NIC's
            assert times >= counted["carl/device"]["wakeups"] * 0.9 >= 100
            for price in ("hypercall_ns", "trap_ns", "grant_map_ns"):
                record, _, _ = await paid(runner, "carl", asks, price)
                assert record["rtt_us"]["p50"] * 1000 < PRICE_NS * 100

    run(main())


def test_prices_of_a_live_lab_are_checked_and_told(tmp_path: Path) -> None:
    async def main() -> None:
        text = f"[model]\nprice = {{ event_ns = 700 }}\n{LAB}"
        async with running(tmp_path, "live", text) as runner:
            lab: Lab = runner.lab
            assert await lab.call("hyp", "price") == {"hypercall_ns": 0, "trap_ns": 0, "grant_map_ns": 0, "event_ns": 700}
            for wrong in ({"trap_ns": -1}, {"trap_ns": MAX_PRICE_NS + 1}, {"trap": 1}, {"event_ns": "1"}, {"event_ns": True}):
                with pytest.raises(Refused, match="price"):
                    await lab.call("hyp", "price", **{"hypercall_ns": 3, **wrong})
            assert (await lab.call("hyp", "price"))["hypercall_ns"] == 0
            record = await runner.run(workload("stream", "carl", "dora", frames=1000))
            check(record)
            assert record["modelled"]["event_ns"] == 700
            assert "bypass modelled" in list(rates([record]).columns[0].cells)
            assert notes([record]) == ["modelled: each operation costs in addition event_ns 700"]
            assert (await lab.call("hyp", "price", event_ns=0))["event_ns"] == 0
            assert "modelled" not in await runner.run(workload("stream", "carl", "dora", frames=1000))

    run(main())
