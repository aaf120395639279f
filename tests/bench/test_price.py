"""The price model: who pays, how often, and that nobody does by default."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyp.abi import platform
from hyp.abi.counters import COLUMNS, Count
from hyp.abi.platform import PLATFORM_BYTES
from hyp.abi.sizes import MAX_PRICE
from hyp.atomics import clock_ns
from hyp.control import Refused
from hyp.kernels import entry, i64
from hyp.model.operations import OPERATIONS
from hyp.model.price import PRICES, charge, charge_bytes, spin_ns
from lab.command.tables import notes, rates
from lab.ledger import Snapshot, difference, operations
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


@entry(i64(i64, i64, i64, i64, i64, i64))
def _charged(platform: int, price: int, counts: int, column: int, n: int, times: int) -> int:
    start = clock_ns()
    for _ in range(times):
        charge(platform, price, counts, column, n)
    return clock_ns() - start


@entry(i64(i64, i64, i64, i64, i64))
def _charged_bytes(platform: int, price: int, counts: int, column: int, octets: int) -> int:
    start = clock_ns()
    charge_bytes(platform, price, counts, column, octets)
    return clock_ns() - start


def test_to_spin_takes_its_time() -> None:
    assert _spun(50_000, 20) >= 20 * 50_000
    assert _spun(0, 3) >= 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_has_its_own_price_and_its_own_column(name: str) -> None:
    page, row = np.zeros(PLATFORM_BYTES // 8, np.int64), np.zeros(COLUMNS, np.int64)
    address, counts = int(page.ctypes.data), int(row.ctypes.data)
    column = int(Count[OPERATIONS[name].column.upper()])
    page[PRICES[name] // 8] = 100_000
    if OPERATIONS[name].per_byte:
        assert _charged_bytes(address, PRICES[name], counts, column, 5000) >= 500_000
        assert row[column] == row.sum() == 5000
    else:
        assert _charged(address, PRICES[name], counts, column, 3, 10) >= 3_000_000
        assert row[column] == row.sum() == 30
    free = min(_charged(address, offset, counts, column, 1, 100) for other, offset in PRICES.items() if other != name)
    assert free < 100 * 100_000  # not even one of a hundred


def test_a_price_that_is_not_sane_is_held_to_the_most() -> None:
    page, row = np.zeros(PLATFORM_BYTES // 8, np.int64), np.zeros(COLUMNS, np.int64)
    page[PRICES["dma_ps_per_byte"] // 8] = 1 << 62
    spun = _charged_bytes(int(page.ctypes.data), PRICES["dma_ps_per_byte"], int(row.ctypes.data), 0, 1)
    assert spun >= MAX_PRICE // 1000


def test_the_platform_page_has_a_place_for_each_price() -> None:
    places = {name: offset for name, offset in vars(platform).items() if name.endswith("_PRICE")}
    assert sorted(places.values()) == list(PRICES.values())
    for name, offset in places.items():
        words = name.removesuffix("_PRICE").lower()
        called = next(price for price, at in PRICES.items() if at == offset)
        assert called.startswith(words.removesuffix("_byte")), (name, called)
        assert ("_byte" in called) == words.endswith("_byte")


def test_operations_are_told_by_process() -> None:
    row = {count.name.lower(): 0 for count in Count}
    snapshot = {
        "dom0/bridge": {**row, "hypercalls": 4, "grant_copies": 200},
        "dom0/vif1:anna": {**row, "events": 10},
        "anna/device": {**row, "traps": 7, "domain_switches": 3},
        "hyp/vmm1:anna": {**row, "traps": 8},
    }
    assert operations(snapshot, 100) == {
        "dom0": {"hypercall_ns": 0.04, "grant_copy_ns": 2.0, "event_send_ns": 0.1},
        "anna": {"domain_switch_ns": 0.03},  # its traps are counted where they are paid
        "hyp": {"vm_exit_ns": 0.08},
    }
    assert operations(snapshot, 0) == {}


# --- the topology file -----------------------------------------------------------------------------------------------


def test_prices_in_the_topology(tmp_path: Path) -> None:
    text = "[model]\nprice = { hypercall_ns = 500, vm_exit_ns = 1_000_000 }\n" + LAB
    plain = load(topology_file(tmp_path, "price", text)).plain()
    assert plain["model"] == {
        "profile": None,
        "price": {**dict.fromkeys(OPERATIONS, 0), "hypercall_ns": 500, "vm_exit_ns": 1_000_000},
    }
    assert set(load(topology_file(tmp_path, "free", LAB)).plain()["model"]["price"].values()) == {0}


@pytest.mark.parametrize(("model", "key", "reason"), [
    ("price = { vm_exit_ns = -1 }", "model.price.vm_exit_ns", "greater than or equal to 0"),
    ("price = { dma_ps_per_byte = 1_000_001 }", "model.price.dma_ps_per_byte", "less than or equal to 1000000"),
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


async def paid(
    runner: Runner, process: str, load: dict[str, Any], price: str, value: int = PRICE_NS
) -> tuple[dict[str, Any], Snapshot, int, int]:
    """Run a workload at a price: its record, what was counted, CPU ns of the thread of `process`, and how often it lost its CPU."""
    lab = runner.lab
    prices = {name: value if name == price else 0 for name in OPERATIONS}
    await lab.call("hyp", "price", **prices)
    await runner.prepare(load)
    await runner._settled()
    (tid,) = (await lab.call(process, "threads")).values()
    meter = Meter(runner.pids[process], tid)
    reader = await lab.counters()
    before, (cpu, switches) = reader.read(), meter.read()
    record = await runner.measure(load)
    counted, (cpu_after, switches_after) = difference(reader.read(), before), meter.read()
    await lab.call("hyp", "price", **dict.fromkeys(OPERATIONS, 0))
    check(record)
    assert record["modelled"] == prices
    return record, counted, cpu_after - cpu, switches_after - switches


async def is_paid(runner: Runner, process: str, load: dict[str, Any], price: str, least: float, value: int = PRICE_NS) -> None:
    """The thread of `process` used the CPU for what the ledger says that it did, at least `least` times."""
    operation = OPERATIONS[price]
    record, counted, cpu_ns, switches = await paid(runner, process, load, price, value)
    made = sum(
        counts[operation.column] for row, counts in counted.items() if row.startswith((f"{process}/", operation.rows or "/"))
    )
    assert made >= least, (process, price)
    assert record["operations"][process][price] == pytest.approx(made / moved(record))
    at_once = operation.cost_ns(value, 128 * (64 if operation.per_byte else 1))  # the most that one spin takes, and may lose
    assert cpu_ns + switches * at_once >= operation.cost_ns(value, made), (process, price)


def moved(record: dict[str, Any]) -> int:
    """Frames of a record."""
    return int(record["frames"] * (2 if record["workload"] == "rr" else 1))


def test_every_operation_is_paid_for_by_the_thread_that_makes_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "paid", LAB) as runner:
            stream, asks = workload("stream", "anna", "wire", frames=5000), workload("rr", "anna", "bert", frames=100)
            await is_paid(runner, "dom0", stream, "hypercall_ns", 5000 / 128)
            await is_paid(runner, "dom0", stream, "grant_copy_ns", 5000, value=20_000)
            await is_paid(runner, "dom0", stream, "grant_copy_ps_per_byte", 5000 * 64, value=500_000)
            await is_paid(runner, "nic", stream, "dma_ps_per_byte", 5000 * 64, value=500_000)
            await is_paid(runner, "hyp", workload("stream", "emil", "wire", frames=10_000), "vm_exit_ns", 10_000 / 64)
            await is_paid(runner, "hyp", workload("rr", "emil", "wire", frames=100), "interrupt_ns", 50)
            for process in ("dom0", "anna"):
                await is_paid(runner, process, asks, "event_send_ns", 10)
                await is_paid(runner, process, asks, "domain_switch_ns", 10)
            record, counted, _, _ = await paid(runner, "hyp", workload("rr", "emil", "wire", frames=100), "vm_exit_ns")
            assert counted["emil/device"]["trap_ns"] >= counted["emil/device"]["traps"] * PRICE_NS
            assert record["trap_ns"] >= PRICE_NS

    run(main())


def test_bypass_pays_for_interrupts_and_being_woken_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "bypasspaid", LAB) as runner:
            asks = workload("rr", "carl", "dora", frames=200)
            await is_paid(runner, "carl", asks, "interrupt_ns", 100)
            await is_paid(runner, "carl", asks, "domain_switch_ns", 100)
            record, _, _, _ = await paid(runner, "carl", asks, "hypercall_ns")
            for process in ("carl", "dora"):
                assert set(record["operations"][process]) == {"interrupt_ns", "domain_switch_ns"}
            assert set(record["operations"]) == {"carl", "dora", "nic"}

    run(main())


def test_nobody_schedules_a_native_program(tmp_path: Path) -> None:
    text = "".join(f'[[guest]]\nname = "{name}"\npath = "native"\n' for name in ("anna", "bert"))

    async def main() -> None:
        async with running(tmp_path, "nativefree", text) as runner:
            record = await runner.run(workload("rr", "anna", "bert", frames=100))
            check(record)
            assert set(record["operations"]) == {"nic"}

    run(main())


def test_prices_of_a_live_lab_are_checked_and_told(tmp_path: Path) -> None:
    async def main() -> None:
        text = f"[model]\nprice = {{ event_send_ns = 700 }}\n{LAB}"
        async with running(tmp_path, "live", text) as runner:
            lab: Lab = runner.lab
            assert await lab.call("hyp", "price") == {**dict.fromkeys(OPERATIONS, 0), "event_send_ns": 700}
            for wrong in (
                {"vm_exit_ns": -1}, {"vm_exit_ns": MAX_PRICE + 1}, {"trap": 1}, {"event_send_ns": "1"}, {"event_send_ns": True},
            ):  # fmt: skip
                with pytest.raises(Refused, match="price"):
                    await lab.call("hyp", "price", **{"hypercall_ns": 3, **wrong})
            assert (await lab.call("hyp", "price"))["hypercall_ns"] == 0
            record = await runner.run(workload("stream", "carl", "dora", frames=1000))
            check(record)
            assert record["modelled"]["event_send_ns"] == 700
            assert "bypass modelled" in list(rates([record]).columns[0].cells)
            assert "modelled: each operation costs in addition event_send_ns 700" in notes([record])
            assert (await lab.call("hyp", "price", event_send_ns=0))["event_send_ns"] == 0
            assert "modelled" not in await runner.run(workload("stream", "carl", "dora", frames=1000))

    run(main())
