"""How far a context's queues are, found by a new engine from what a dead one left: against a model of what that one had done."""

import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.abi.nic import CQE_BYTES, DESC_BYTES, PAGE, RQ_PROD
from hyp.abi.platform import CHECKPOINT, CHECKPOINT_BYTES, CHECKPOINTS, ENGINE_BYTES, PLATFORM_BYTES
from hyp.frames import owner_bit
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.monitor.event_channels import Upcall
from nic.build import Crossings, EngineState
from nic.kept import Kept, kept_bytes
from nic.resume import resume
from nic.state import context_of, engine_at

NUMBER, RAM = 3, 64 * PAGE
SIZES = st.sampled_from([64, 128])
WORDS = 1 << 32


@entry(void(i64, i64))
def _resume(engine: int, number: int) -> None:
    e = engine_at(engine)
    resume(e, context_of(e, number))


def _memory(size: int) -> Mapping:
    fd = os.memfd_create("resume")
    os.ftruncate(fd, size)
    return Mapping.adopt(fd, size, populate=False)


class Dead:
    """An engine's page, a doorbell page and the RAM of a passed-through context, as a NIC has left them; `resume` finds out."""

    def __init__(self, size: int) -> None:
        self.size, self.ram, self.doorbell = size, _memory(RAM), _memory(PAGE)
        self._page, platform = _memory(ENGINE_BYTES), _memory(PLATFORM_BYTES)
        self._upcall, kept = Upcall(), Kept(_memory(kept_bytes(1)), 1, resumed=True)
        epoll = os.dup(self._upcall.epoll.fileno())
        self.state = EngineState(0, Crossings(1, kept), kept, self._page, platform, -1, epoll)
        record = self.state.clear(NUMBER)
        record["passthrough"], record["ram"], record["ram_pages"] = 1, self.ram.address, RAM // PAGE
        record["doorbell"], record["mine"], record["active"] = self.doorbell.address, 1, 1
        self.places = {"sq": PAGE, "scq": 8 * PAGE, "rq": 16 * PAGE, "rcq": 24 * PAGE}
        for name, place in self.places.items():
            record[name] = place
        record["sq_size"] = record["rq_size"] = size
        assert size * max(DESC_BYTES, CQE_BYTES) <= 8 * PAGE
        self.record = record

    def completion(self, queue: str, prod: int) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
        return self.ram.words("<u8", self.places[queue] + (prod & (self.size - 1)) * CQE_BYTES, 2)

    def complete(self, queue: str, prod: int, index: int) -> None:
        self.completion(queue, prod)[:] = index % WORDS, owner_bit(prod % WORDS, self.size) << 32

    def is_written(self, queue: str, prod: int) -> bool:
        return bool(int(self.completion(queue, prod)[1]) >> 32 & 1 == owner_bit(prod % WORDS, self.size))

    def laps(self, queue: str, prod: int) -> None:
        """All completions before `prod` that still can be seen; those after it are of the lap before."""
        for at in range(prod - self.size, prod):
            self.complete(queue, at, at)

    def resume(self, sq_cons: int, scq_prod: int, rcq_prod: int, posted: int) -> dict[str, int]:
        """By a checkpoint, and the receive buffers posted."""
        checkpoint = np.array([(sq_cons % WORDS, rcq_prod % WORDS, scq_prod % WORDS, rcq_prod % WORDS)], CHECKPOINT)
        at = CHECKPOINTS + NUMBER * CHECKPOINT_BYTES
        self._page.array[at : at + CHECKPOINT_BYTES] = checkpoint.view(np.uint8)
        self.doorbell.words("<u4", RQ_PROD, 1)[0] = posted % WORDS
        return self.resume_again()

    def resume_again(self) -> dict[str, int]:
        """By the checkpoint that is there."""
        _resume(self.state.address, NUMBER)
        return {name: int(self.record[0][name]) for name in ("sq_cons", "scq_prod", "rq_cons", "rcq_prod", "scq_told", "rcq_told")}


INDICES = st.integers(WORDS, WORDS + 300) | st.integers(2 * WORDS - 300, 2 * WORDS + 300)
"""At the start, and about where 32 bits wrap."""


@settings(max_examples=60, deadline=None)
@given(SIZES, INDICES, st.data())
def test_receives_go_on_where_the_dead_engine_stopped(size: int, done: int, data: st.DataObject) -> None:
    dead = Dead(size)
    unseen = data.draw(st.integers(0, size), "completions that the driver has not answered by a buffer")
    late = data.draw(st.integers(0, 5 * size), "completions since the checkpoint")
    posted = done - unseen + size
    dead.laps("rcq", done)
    behind = data.draw(st.sets(st.integers(done + 1, max(posted - 1, done + 1)), max_size=4), "completions behind a gap")
    for prod in behind if posted - done > 1 else ():
        dead.complete("rcq", prod, prod)
    found = dead.resume(0, 0, max(done - late, 0), posted)
    assert found["rcq_prod"] == found["rq_cons"] == found["rcq_told"] == done % WORDS
    assert not any(dead.is_written("rcq", prod) for prod in range(done, done + size))


@settings(max_examples=60, deadline=None)
@given(SIZES, INDICES, st.data())
def test_sends_go_on_after_the_last_completion(size: int, done: int, data: st.DataObject) -> None:
    dead = Dead(size)
    completions = data.draw(INDICES, "completions of all time")
    since = data.draw(st.integers(0, size), "of which since the checkpoint")
    chance = data.draw(st.randoms(use_true_random=True), "of how many descriptors each was")
    steps = [chance.randint(1, 3) for _ in range(since)]
    while sum(steps) > size:
        steps.pop()
    since = len(steps)
    dead.laps("scq", completions - since)
    at, first = done, done
    for k, step in enumerate(steps):
        at += step
        dead.complete("scq", completions - since + k, at - 1)
    found = dead.resume(first, completions - since, 0, size)
    assert found["scq_prod"] == found["scq_told"] == completions % WORDS
    assert found["sq_cons"] == at % WORDS


def test_what_is_found_is_the_checkpoint_for_who_comes_next() -> None:
    """Else a second death finds the completions of two batches since the checkpoint, which may be more than a ring."""
    dead = Dead(64)
    dead.laps("scq", WORDS)
    dead.laps("rcq", WORDS)
    for k in range(40):
        dead.complete("scq", WORDS + k, WORDS + k)
    first = dead.resume(WORDS, WORDS, WORDS, 64)
    assert (first["sq_cons"], first["scq_prod"]) == (40, 40)
    for k in range(40, 80):  # its first batch, which it doesn't live to end
        dead.complete("scq", WORDS + k, WORDS + k)
    second = dead.resume_again()
    assert (second["sq_cons"], second["scq_prod"]) == (80, 80)


def test_a_driver_that_wrote_into_its_own_queues_gets_indices_within_a_ring() -> None:
    rng = np.random.default_rng(20261127)
    for _ in range(300):
        dead = Dead(64)
        dead.ram.array[:] = rng.integers(0, 256, RAM, np.uint8)
        before = [int(rng.integers(0, WORDS)) for _ in range(4)]
        found = dead.resume(*before)
        assert (found["sq_cons"] - before[0]) % WORDS <= 64
        assert (found["scq_prod"] - before[1]) % WORDS <= 64
