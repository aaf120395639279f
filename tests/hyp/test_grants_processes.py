"""Grants between processes: hostile granting domains, revocation, and mappers that die holding pages."""

import mmap
import os
import signal

import numpy as np
import pytest

from hyp.abi.grant import (
    ACTIVE_LOCK,
    ACTIVE_READER,
    ACTIVE_WRITER,
    COPY_DEST_GREF,
    COPY_SOURCE_GREF,
    DOMID_SELF,
    GNTST_BAD_PAGE,
    GNTST_EAGAIN,
    GNTST_GENERAL_ERROR,
    GNTST_OKAY,
    GNTTAB_COPY,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_WRITING,
    PAGE_BYTES,
)
from hyp.grants import COPY_COUNTS
from tests.support.grant_world import (
    DOM0,
    DOM0_BYTE,
    GRANTED,
    GUEST,
    GUEST_BYTE,
    OTHER,
    OWN,
    PAGES,
    REF,
    World,
    copy_batches,
    ended_well,
    grant_and_revoke,
    in_child,
    op,
    rewrite,
)
from tests.support.patience import effort

# --- against a second process ----------------------------------------------------------------------------------------


def test_guest_rewrites_the_entry_while_it_is_copied_from(world: World) -> None:
    """Refused means nothing was copied; done means bytes of the guest's RAM, and of nowhere else."""
    table, stop = world.tables[GUEST].address, int(world.control.ctypes.data)
    rewrite.load()
    frames = PAGES[DOM0]
    ops = np.array([op(GRANTED, (DOMID_SELF, k, 0), 4096, COPY_SOURCE_GREF) for k in range(frames)], GNTTAB_COPY)
    counts = np.zeros(1, COPY_COUNTS)
    seen: set[int] = set()
    guest = in_child(lambda: rewrite(table, REF, 12345, stop))
    outcomes, goes_on = {GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_BAD_PAGE}, effort(0.7)
    try:
        while goes_on(seen >= outcomes):
            world.ram[DOM0][:] = DOM0_BYTE
            copy_batches(world.domains, DOM0, ops.ctypes.data, frames, counts, 0)
            done = ops["status"] == GNTST_OKAY
            seen |= set(ops["status"].tolist())
            assert (world.ram[DOM0][done] == GUEST_BYTE).all()
            assert (world.ram[DOM0][~done] == DOM0_BYTE).all()
    finally:
        world.control[0] = 1
        assert ended_well(guest)
    assert seen == outcomes
    assert world.active() == 0
    assert world.guards_intact()


def test_guest_rewrites_the_entry_while_it_is_copied_to(world: World) -> None:
    """Whatever the entry says, only the guest's own RAM is written; nothing stays pinned."""
    table, stop = world.tables[GUEST].address, int(world.control.ctypes.data)
    rewrite.load()
    ops = np.array([op((DOMID_SELF, k, 0), GRANTED, 4096, COPY_DEST_GREF) for k in range(64)], GNTTAB_COPY)
    counts = np.zeros(1, COPY_COUNTS)
    guest = in_child(lambda: rewrite(table, REF, 54321, stop))
    goes_on = effort(0.7)
    try:
        while goes_on(bool(counts[0]["copies"] > 0 and counts[0]["grant_faults"] > 0)):
            copy_batches(world.domains, DOM0, ops.ctypes.data, 64, counts, 0)
    finally:
        world.control[0] = 1
        assert ended_well(guest)
    assert counts[0]["copies"] > 0
    assert counts[0]["grant_faults"] > 0
    assert world.active() == 0
    assert world.guards_intact()
    assert (world.ram[DOM0] == DOM0_BYTE).all()
    assert (world.ram[OTHER] == GUEST_BYTE).all()
    assert (world.ram[GUEST] == DOM0_BYTE).any()


@pytest.mark.parametrize("copiers", [1, 2])
def test_page_is_left_alone_once_its_revocation_succeeded(world: World, copiers: int) -> None:
    """A guest revokes in the middle of copies into its page, by one thread of Dom0 or by two at the same reference."""
    stop = int(world.control.ctypes.data)
    tallies = np.frombuffer(mmap.mmap(-1, PAGE_BYTES), COPY_COUNTS, copiers)
    grant_and_revoke.load()

    def copy_in(number: int) -> None:
        ops = np.array([op((DOMID_SELF, 3, 0), GRANTED, 4096, COPY_DEST_GREF)] * 4, GNTTAB_COPY)
        counts = np.zeros(1, COPY_COUNTS)
        copy_batches(world.domains, DOM0, ops.ctypes.data, len(ops), counts, stop)
        tallies[number] = counts[0]

    children = [in_child(lambda number=number: copy_in(number)) for number in range(copiers)]  # type: ignore[misc]
    tally = np.zeros(2, np.int64)
    page = int(world.ram[GUEST][5].ctypes.data)
    touched = grant_and_revoke(world.tables[GUEST].address, REF, 5, page, stop, tally)
    assert [ended_well(child) for child in children] == [True] * copiers
    print(f"{tally[0]} grants, {tally[1]} waited for; {tallies['copies'].sum()} copies")
    assert touched == 0
    assert tally[1] > 0
    assert tallies["copies"].sum() > 0
    assert world.at_rest()


# --- mappers that die ------------------------------------------------------------------------------------------------


def test_mapper_killed_in_mid_copy(world: World) -> None:
    """SIGKILL while it holds one page and copies into another: both are the guest's again, a third mapper's stays."""
    world.grant(5)
    world.grant(6, ref=REF + 1)
    world.grant(7, to=OTHER, ref=REF + 2)
    assert world.map(caller=OTHER, ref=REF + 2) == 7
    stop = int(world.control.ctypes.data)
    copy_batches.load()

    def mapper() -> None:
        assert world.map(write=1) == 5
        ops = np.array([op(OWN, (GUEST, REF + 1, 0), 4096, COPY_DEST_GREF)] * 1000, GNTTAB_COPY)
        copy_batches(world.domains, DOM0, ops.ctypes.data, len(ops), np.zeros(1, COPY_COUNTS), stop)

    child = in_child(mapper)
    caught = False
    goes_on = effort(0)
    while goes_on(caught):  # stop it until that happens to be in mid-copy
        if world.flags(ref=REF + 1) & GTF_WRITING == 0:
            continue  # it has no core just now, or is between two copies
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        caught = world.flags(ref=REF + 1) & GTF_WRITING != 0
        if not caught:
            os.kill(child, signal.SIGCONT)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert caught
    assert [world.revoke(ref=ref) for ref in (REF, REF + 1, REF + 2)] == [0, 0, 0]
    assert world.release(DOM0) == 2
    assert [world.revoke(ref=ref) for ref in (REF, REF + 1, REF + 2)] == [1, 1, 0]
    assert world.release(DOM0) == 0
    assert world.unmap(caller=OTHER, ref=REF + 2) == GNTST_OKAY
    assert world.at_rest()
    world.grant(8)
    assert world.map() == 8  # by the domain's next incarnation


@pytest.mark.parametrize("pins", [0, ACTIVE_READER, 3 * ACTIVE_WRITER], ids=["unpinned", "reader", "writers"])
@pytest.mark.parametrize("marks", [0, GTF_READING, GTF_READING | GTF_WRITING], ids=["unmarked", "read", "written"])
@pytest.mark.parametrize("lock", [0, ACTIVE_LOCK], ids=["unlocked", "locked"])
def test_mapper_died_at_this_step(world: World, pins: int, marks: int, lock: int) -> None:
    world.write_entry(GTF_PERMIT_ACCESS | marks, DOM0, 5)
    world.set_active(DOM0 + 1 | pins | lock)
    assert world.release(OTHER) == 0
    assert world.active() != 0
    assert world.release(DOM0) == 1
    assert world.at_rest()
    assert world.map(write=1) == 5


def test_dead_mapper_of_an_entry_that_was_granted_anew(world: World) -> None:
    """It died between clearing its marks and unlocking; the guest revoked, and granted the reference to another."""
    world.set_active(DOM0 + 1 | ACTIVE_LOCK)
    world.grant(9, to=OTHER)
    assert world.map(caller=OTHER) == GNTST_EAGAIN
    assert world.release(DOM0) == 1
    assert world.map(caller=OTHER) == 9
