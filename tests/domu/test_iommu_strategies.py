"""How a bypass guest's buffers get into its IOMMU table: what the NIC can reach when, what that costs, and whole streams."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domu.device import FAILED, device_at, new_device, set_word, tx_commit, tx_pending, tx_reserve
from domu.frontends.mapped import MAPPED, OPERATIONS
from hyp.abi.counters import COLUMNS, FAULTS_ADDRESS, FAULTS_PROTOCOL, HYPERCALLS, IOMMU_FLUSHES, IOMMU_MAPS, IOMMU_UNMAPS
from hyp.abi.nic import CQE_BYTES, PAGE, STATUS_OK
from hyp.abi.platform import EPOCH, PLATFORM_BYTES
from hyp.abi.sizes import FRAME_BUFFER
from hyp.control import Refused
from hyp.events import new_wait
from hyp.frames import write_completion
from hyp.iommu import READ, WRITE
from hyp.kernels import entry, i64, void
from hyp.monitor import dma
from hyp.monitor.dma import DEFERRED_PAGES, DMA, REQUEST_BYTES, dma_at, dma_map, dma_unmap, holds_bytes
from hyp.paths import IOMMU_FRONT_ENDS
from hyp.verbs import QP, poll_sends, qp_at
from lab.topology import TopologyError, load
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.labs import run, topology_file, workload

pytestmark = pytest.mark.usefixtures("warm")

RAM = 64 * PAGE
FRAMES = 20_000
MASK64 = (1 << 64) - 1
LAB = "".join(
    f'[[guest]]\nname = "{strategy}{k}"\npath = "bypass"\niommu = "{strategy}"\n' for strategy in IOMMU_FRONT_ENDS for k in (0, 1)
)


@entry(i64(i64, i64, i64, i64))
def _map(call: int, requests: int, n: int, rights: int) -> int:
    return dma_map(dma_at(call), requests, n, rights)


@entry(i64(i64, i64, i64))
def _unmap(call: int, requests: int, n: int) -> int:
    return dma_unmap(dma_at(call), requests, n)


class Caller:
    """A guest's table and holds, and the hypervisor's record of it; the engine is what `epoch` says."""

    def __init__(self, flush_at: int = 1) -> None:
        self.table = np.zeros(RAM // PAGE, np.int64)
        self.holds = np.zeros(holds_bytes(RAM) // 2, np.uint16)
        self.counts, self.platform = np.zeros(COLUMNS, np.int64), np.zeros(PLATFORM_BYTES, np.uint8)
        self.engine, self.call = np.zeros(PAGE // 8, np.int64), np.zeros(1, DMA)
        row = self.call[0]
        for name in ("table", "holds", "engine", "platform", "counts"):
            row[name] = getattr(self, name).ctypes.data
        row["ram_bytes"], row["flush_at"] = RAM, flush_at

    def map(self, requests: list[tuple[int, int]], rights: int = READ) -> int:
        words = self._words(requests)
        return int(_map(self.call.ctypes.data, words.ctypes.data, len(requests), rights))

    def unmap(self, requests: list[tuple[int, int]]) -> int:
        words = self._words(requests)
        return int(_unmap(self.call.ctypes.data, words.ctypes.data, len(requests)))

    @staticmethod
    def _words(requests: list[tuple[int, int]]) -> Any:
        return np.array([(addr & MASK64, length & MASK64) for addr, length in requests], np.uint64).reshape(-1, 2)

    @property
    def reachable(self) -> dict[int, int]:
        """Page → rights, as an engine would find it."""
        return {page: int(word) & 3 for page, word in enumerate(self.table) if word}


def test_a_page_is_reachable_as_long_as_a_buffer_in_it_is_mapped() -> None:
    caller = Caller()
    assert caller.map([(PAGE, 2112), (PAGE + 2112, 2112)]) == 2
    assert caller.reachable == {1: READ, 2: READ}
    assert caller.counts[IOMMU_MAPS] == 2
    assert caller.unmap([(PAGE, 2112)]) == 0
    assert caller.reachable == {1: READ, 2: READ}, "the other buffer lies in both pages"
    assert caller.counts[IOMMU_UNMAPS] == caller.counts[IOMMU_FLUSHES] == 0
    assert caller.unmap([(PAGE + 2112, 2112)]) == 0
    assert caller.reachable == {}
    assert (caller.counts[IOMMU_UNMAPS], caller.counts[IOMMU_FLUSHES], caller.counts[HYPERCALLS]) == (2, 1, 3)


def test_an_entry_is_single_and_has_the_rights_asked_for() -> None:
    caller = Caller()
    caller.map([(5 * PAGE, 100)], WRITE)
    assert int(caller.table[5]) == 5 << 12 | WRITE


@pytest.mark.parametrize("bad", [(RAM, 64), (RAM - 32, 64), (-64, 64), (0, 0), (0, -1), (0, PAGE + 1), (MASK64 - 31, 64)])
def test_what_is_not_in_the_guests_ram_is_not_mapped(bad: tuple[int, int]) -> None:
    caller = Caller()
    assert caller.map([(PAGE, 64), bad, (2 * PAGE, 64)]) == 1, "the first bad request ends the batch"
    assert caller.reachable == {1: READ}
    assert caller.unmap([bad]) == 0
    assert caller.counts[FAULTS_ADDRESS] == 2
    assert caller.reachable == {1: READ}


def test_what_is_not_mapped_cannot_be_unmapped_into_somebody_elses() -> None:
    caller = Caller()
    caller.unmap([(PAGE, 64)] * 3)
    caller.map([(PAGE, 64)])
    assert caller.reachable == {1: READ}, "the count did not go below 0"


def test_strict_flushes_for_each_buffer_that_leaves_a_page() -> None:
    caller = Caller()
    caller.map([(k * PAGE, 64) for k in range(8)])
    caller.unmap([(k * PAGE, 64) for k in range(8)])
    assert (caller.counts[IOMMU_FLUSHES], caller.counts[HYPERCALLS]) == (8, 2)


def test_deferred_flushes_once_for_many() -> None:
    caller = Caller(flush_at=DEFERRED_PAGES)
    for _ in range(DEFERRED_PAGES - 1):
        caller.map([(PAGE, 64)])
        caller.unmap([(PAGE, 64)])
    assert caller.counts[IOMMU_FLUSHES] == 0
    caller.map([(PAGE, 64)])
    caller.unmap([(PAGE, 64)])
    assert caller.counts[IOMMU_FLUSHES] == 1
    assert caller.reachable == {}


@pytest.mark.long
def test_an_engine_that_stays_in_its_batch_is_not_waited_for_for_ever() -> None:
    caller = Caller()
    caller.engine[EPOCH // 8] = 7  # odd, and it does not move
    caller.map([(PAGE, 64)])
    assert caller.unmap([(PAGE, 64)]) == -1
    assert caller.counts[FAULTS_PROTOCOL] == 1
    assert caller.reachable == {}, "taken away all the same"


# --- the front end ----------------------------------------------------------------------------------------------------


@entry(i64(i64))
def _send(device: int) -> Any:
    """Send a frame of 64 bytes."""
    if tx_reserve(device, 1) != 1:
        return FAILED
    set_word(device_at(device).tx, 0, 64)
    return tx_commit(device, 1)


@entry(i64(i64))
def _pending(device: int) -> Any:
    return tx_pending(device)


@entry(void(i64, i64))
def _complete(qp: int, index: int) -> None:
    """Be the NIC, which completes a send; and `arm`, which sees that too late to unmap it."""
    q = qp_at(qp)
    write_completion(q.scq + (index & (q.sq_size - 1)) * CQE_BYTES, q.sq_size, index, index, 0, STATUS_OK)
    poll_sends(q)


def test_a_send_that_is_completed_while_its_driver_arms_is_unmapped_before_its_slot_is_used_again() -> None:
    entries = 8
    caller, ram = Caller(), np.zeros(RAM, np.uint8)
    queues, doorbell, platform = np.zeros((2, PAGE), np.uint8), np.zeros(PAGE, np.uint8), np.zeros(PLATFORM_BYTES, np.uint8)
    requests = np.zeros((2, entries * REQUEST_BYTES), np.uint8)  # the second is nobody's
    pair, front, counts = np.zeros(1, QP), np.zeros(1, MAPPED), np.zeros((2, COLUMNS + 8), np.int64)
    wait = new_wait(-1, int(platform.ctypes.data))
    q, f = pair[0], front[0]
    q["doorbell"], q["doorbell_fd"], q["sq"], q["scq"] = doorbell.ctypes.data, -1, queues[0].ctypes.data, queues[1].ctypes.data
    q["sq_size"], q["counts"] = entries, counts[0].ctypes.data
    f["qp"], f["ram"], f["dma"] = pair.ctypes.data, ram.ctypes.data, caller.call.ctypes.data
    f["requests"], f["tx_pool"] = requests[0].ctypes.data, PAGE
    shared = np.zeros(COLUMNS + 8, np.int64)
    caller.call[0]["counts_shared"] = shared.ctypes.data
    rows = int(counts[0].ctypes.data), int(counts[1].ctypes.data)
    device = new_device(OPERATIONS, int(front.ctypes.data), "", 0, 2048, rows, int(wait.ctypes.data), 0)
    for index in range(3 * entries):
        assert _send(device.address) == 1
        assert caller.reachable.keys() == {1 + index % entries * FRAME_BUFFER // PAGE}, "its own page, and no other one's"
        _complete(int(pair.ctypes.data), index)
    assert _pending(device.address) == 0
    assert caller.reachable == {}
    assert not requests[1].any()


# --- in a topology ----------------------------------------------------------------------------------------------------


def test_streams_arrive_whole_and_cost_what_the_strategy_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "strategies", LAB) as runner:
            for strategy in IOMMU_FRONT_ENDS:
                one, other = f"{strategy}0", f"{strategy}1"
                for ends in ((one, "wire"), ("wire", one), (one, other)):
                    for frame in (64, 1500):
                        record = await runner.run(workload("stream", *ends, frame, frames=FRAMES))
                        check(record)
                        assert record["checksummed"] == 1.0
                        copies = 1 + (strategy == "copy") * (2 if "wire" not in ends else 1)
                        assert record["per_frame"]["copies"] == pytest.approx(copies, abs=0.01)
                        _costs(strategy, [end for end in ends if end != "wire"], record)
                check(await runner.run(workload("rr", one, other, frames=300)))
            await _reachable(runner)

    run(main())


def _costs(strategy: str, guests: list[str], record: dict[str, Any]) -> None:
    for guest in guests:
        made = record["operations"].get(guest, {})
        if strategy in ("persistent", "copy"):
            assert set(made) <= {"domain_switch_ns", "interrupt_ns"}
            continue
        assert made["iommu_map_ns"] == pytest.approx(made["iommu_unmap_ns"], rel=0.05)
        # Buffers are half a page and a little: a frame alone is one or two pages, of which neighbours may hold each already.
        assert 0 < made["iommu_map_ns"] <= 2.0
        assert 0 < made["hypercall_ns"] < 1
        if strategy == "deferred":
            assert made["iommu_flush_ns"] == pytest.approx(made["iommu_unmap_ns"] / DEFERRED_PAGES, rel=0.5)
        else:
            assert 0.4 * made["iommu_unmap_ns"] <= made["iommu_flush_ns"] <= made["iommu_unmap_ns"], "each buffer's unmap flushes"


async def _reachable(runner: Runner) -> None:
    """At rest every receive buffer is mapped, and no send buffer is."""
    counters = (await runner.lab.counters()).read()
    for strategy in ("strict", "deferred"):
        row = counters[f"{strategy}0/dma"]
        waiting = row["iommu_maps"] - row["iommu_unmaps"]
        assert waiting == -(-256 * 2112 // PAGE), f"{strategy}: pages of 256 buffers of 2112 B, and no others"


@pytest.mark.parametrize(("text", "key", "reason"), [
    ('path = "split"\niommu = "strict"\n', "guest[0].iommu", 'has a meaning with path = "bypass" only'),
    ('path = "native"\niommu = "copy"\n', "guest[0].iommu", 'has a meaning with path = "bypass" only'),
    ('path = "bypass"\niommu = "lazy"\n', "guest[0].iommu", "none of persistent, strict, deferred, copy"),
    ('path = "bypass"\niommu = "strict"\n[memory]\nbacking = "sealed"\n', "guest[0].iommu", 'takes memory.backing = "posix"'),
])  # fmt: skip
def test_strategies_that_cannot_be(tmp_path: Path, text: str, key: str, reason: str) -> None:
    with pytest.raises(TopologyError) as refused:
        load(topology_file(tmp_path, "wrong", '[[guest]]\nname = "anna"\n' + text))
    assert [(where, reason in why) for where, why in refused.value.problems] == [(key, True)], refused.value


def test_who_is_let_through_or_sealed_does_not_attach() -> None:
    class Domain:
        who, backing = "domain 3 (anna)", "sealed"

        def __init__(self, passthrough: bool) -> None:
            self.contexts = {1: type("Context", (), {"passthrough": passthrough, "engine": 0})()}

    for domain, reason in ((Domain(True), "lets context 1 through"), (Domain(False), "is sealed")):
        with pytest.raises(Refused, match=reason):
            dma.dma_attach(None, domain, 1)
