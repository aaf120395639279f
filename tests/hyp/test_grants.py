"""Grants: every status, pins and their marks, the allocator of references, batched copy."""

import numpy as np
import pytest

from hyp.abi.grant import (
    ACTIVE_LOCK,
    ACTIVE_READER,
    ACTIVE_WRITER,
    COPY_DEST_GREF,
    COPY_SOURCE_GREF,
    DOMID_SELF,
    GNTST_BAD_COPY_ARG,
    GNTST_BAD_DOMAIN,
    GNTST_BAD_GNTREF,
    GNTST_BAD_HANDLE,
    GNTST_BAD_PAGE,
    GNTST_EAGAIN,
    GNTST_GENERAL_ERROR,
    GNTST_NO_SPACE,
    GNTST_OKAY,
    GNTST_PERMISSION_DENIED,
    GTF_ACCEPT_TRANSFER,
    GTF_INVALID,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_SUB_PAGE,
    GTF_TRANSITIVE,
    GTF_WRITING,
    NR_RESERVED_ENTRIES,
    PAGE_BYTES,
)
from hyp.grants import REFS_PER_FRAME, alloc_gref, free_gref, init_grefs
from hyp.kernels import entry, i64
from tests.support.grant_world import (
    ABSENT,
    BOTH,
    DOM0,
    GRANTED,
    GUEST,
    MAP,
    OTHER,
    OWN,
    PAGES,
    REF,
    UNMAP,
    Side,
    World,
    copy,
    op,
    operate,
)

INIT, ALLOC, FREE = range(3)


@entry(i64(i64[::1], i64, i64))
def references(free, op, ref):  # type: ignore[no-untyped-def]
    """The allocator of references."""
    if op == INIT:
        init_grefs(free)
        return 0
    return alloc_gref(free) if op == ALLOC else free_gref(free, ref)


# --- pins ------------------------------------------------------------------------------------------------------------


def test_marks_follow_the_pins(world: World) -> None:
    world.grant(5)
    steps = [
        (world.map, 0, 5, GTF_READING),
        (world.map, 1, 5, GTF_READING | GTF_WRITING),
        (world.map, 1, 5, GTF_READING | GTF_WRITING),
        (world.unmap, 1, GNTST_OKAY, GTF_READING | GTF_WRITING),
        (world.unmap, 1, GNTST_OKAY, GTF_READING),
    ]
    for operation, write, result, marks in steps:
        assert operation(write=write) == result
        assert world.flags() == GTF_PERMIT_ACCESS | marks
        assert world.revoke() == 0
    assert world.unmap() == GNTST_OKAY
    assert world.at_rest()
    assert world.revoke() == 1
    assert world.flags() == GTF_INVALID


@pytest.mark.parametrize(
    ("flags", "domid", "frame", "write", "status"),
    [
        pytest.param(GTF_INVALID, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="not granted"),
        pytest.param(GTF_ACCEPT_TRANSFER, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="accepts a transfer"),
        pytest.param(GTF_TRANSITIVE, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="transitive"),
        pytest.param(GTF_PERMIT_ACCESS | GTF_SUB_PAGE, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="part of a page"),
        pytest.param(GTF_PERMIT_ACCESS, OTHER, 5, 0, GNTST_GENERAL_ERROR, id="granted to another"),
        pytest.param(GTF_PERMIT_ACCESS, DOMID_SELF, 5, 0, GNTST_GENERAL_ERROR, id="granted to nobody"),
        pytest.param(GTF_PERMIT_ACCESS | GTF_READONLY, DOM0, 5, 1, GNTST_GENERAL_ERROR, id="read-only"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, PAGES[GUEST], 0, GNTST_BAD_PAGE, id="one page beyond RAM"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, 0x8000_0000, 0, GNTST_BAD_PAGE, id="frame with the sign bit"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, 0xFFFF_FFFF, 1, GNTST_BAD_PAGE, id="last frame there can be"),
        pytest.param(GTF_PERMIT_ACCESS | GTF_READONLY, DOM0, 5, 0, 5, id="read-only, for reading"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, PAGES[GUEST] - 1, 1, PAGES[GUEST] - 1, id="last page"),
    ],
)
def test_entry_is_judged(world: World, flags: int, domid: int, frame: int, write: int, status: int) -> None:
    world.write_entry(flags, domid, frame)
    assert world.map(write=write) == status
    if status < 0:
        assert world.flags() == flags
        assert world.at_rest()


@pytest.mark.parametrize("ref", [-1, REFS_PER_FRAME, 0xFFFF_FFFF, 1 << 61])
def test_reference_outside_the_table(world: World, ref: int) -> None:
    assert world.map(ref=ref) == GNTST_BAD_GNTREF
    assert world.unmap(ref=ref) == GNTST_BAD_GNTREF


@pytest.mark.parametrize("domid", [-1, ABSENT, ABSENT + 1, DOMID_SELF])
def test_unknown_domain(world: World, domid: int) -> None:
    assert operate(world.domains, MAP, DOM0, domid, REF, 0, 0) == GNTST_BAD_DOMAIN
    assert operate(world.domains, UNMAP, DOM0, domid, REF, 0, 0) == GNTST_BAD_DOMAIN


@pytest.mark.parametrize(("write", "one"), [(0, ACTIVE_READER), (1, ACTIVE_WRITER)])
def test_more_pins_than_can_be_counted(world: World, write: int, one: int) -> None:
    world.grant(5)
    world.set_active(DOM0 + 1 + 0xFFFF * one)
    assert world.map(write=write) == GNTST_NO_SPACE
    assert world.active() == DOM0 + 1 + 0xFFFF * one
    assert world.map(write=1 - write) == 5


def test_lock_holder_that_lost_its_cpu(world: World) -> None:
    world.grant(5)
    locked = DOM0 + 1 + ACTIVE_READER + ACTIVE_LOCK
    world.set_active(locked)
    assert world.map() == GNTST_EAGAIN
    assert world.map(caller=OTHER) == GNTST_EAGAIN  # the holder may be about to let go of the entry
    assert world.unmap() == GNTST_EAGAIN
    assert world.active() == locked


def test_unpin_what_was_not_pinned(world: World) -> None:
    world.grant(5)
    assert world.unmap() == GNTST_BAD_HANDLE
    world.map(write=0)
    assert world.unmap(write=1) == GNTST_BAD_HANDLE
    assert world.unmap(caller=OTHER) == GNTST_BAD_HANDLE
    assert world.active() == DOM0 + 1 + ACTIVE_READER
    assert world.unmap() == GNTST_OKAY
    assert world.unmap() == GNTST_BAD_HANDLE
    assert world.at_rest()


def test_guest_hands_a_pinned_entry_to_another_domain(world: World) -> None:
    world.grant(5)
    world.map(write=1)
    world.write_entry(GTF_PERMIT_ACCESS, OTHER, 6)
    assert world.map(caller=OTHER) == GNTST_GENERAL_ERROR
    assert world.map() == GNTST_GENERAL_ERROR  # nor does the old one get more
    assert world.unmap(write=1) == GNTST_OKAY
    assert world.map(caller=OTHER) == 6


def test_guest_wipes_the_marks_of_a_pinned_entry(world: World) -> None:
    world.grant(5)
    world.map(write=1)
    world.grant(7)
    assert world.map() == 7  # another page of its own, and the marks are back
    assert world.revoke() == 0
    assert (world.unmap(), world.unmap(write=1)) == (GNTST_OKAY, GNTST_OKAY)
    assert world.at_rest()


def test_references_are_given_out_once() -> None:
    free = np.zeros(64, np.int64)
    references(free, INIT, 0)
    taken = [references(free, ALLOC, 0) for _ in range(64 - NR_RESERVED_ENTRIES)]
    assert sorted(taken) == list(range(NR_RESERVED_ENTRIES, 64))
    assert references(free, ALLOC, 0) == GNTST_NO_SPACE
    assert [references(free, FREE, ref) for ref in (20, 9, 63)] == [1, 1, 1]
    assert references(free, FREE, 9) == 0  # freed twice
    assert [references(free, FREE, ref) for ref in (-1, 0, NR_RESERVED_ENTRIES - 1, 64)] == [0, 0, 0, 0]
    assert {references(free, ALLOC, 0) for _ in range(3)} == {20, 9, 63}
    assert references(free, ALLOC, 0) == GNTST_NO_SPACE


# --- batched copy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, COPY_SOURCE_GREF, COPY_DEST_GREF, BOTH])
@pytest.mark.parametrize(("source_offset", "dest_offset", "length"), [(0, 0, 4096), (7, 4001, 95), (4095, 0, 1), (9, 9, 0)])
def test_copy_moves_these_bytes_and_no_others(world: World, flags: int, source_offset: int, dest_offset: int, length: int) -> None:
    world.grant(5, write=0)
    world.grant(2, domid=OTHER)
    source = (GUEST, REF) if flags & COPY_SOURCE_GREF else (DOMID_SELF, 3)
    dest = (OTHER, REF) if flags & COPY_DEST_GREF else (DOM0, 4)  # DOM0 is the caller: as good as DOMID_SELF
    from_page = world.ram[GUEST][5] if flags & COPY_SOURCE_GREF else world.ram[DOM0][3]
    to_page = world.ram[OTHER][2] if flags & COPY_DEST_GREF else world.ram[DOM0][4]
    from_page[:] = np.random.default_rng(1).integers(0, 256, PAGE_BYTES)
    wanted = world.arena.array.copy()
    at = int(to_page.ctypes.data - world.arena.address) + dest_offset
    wanted[at : at + length] = from_page[source_offset : source_offset + length]
    assert copy(world, op((*source, source_offset), (*dest, dest_offset), length, flags)) == [GNTST_OKAY]
    assert (world.arena.array == wanted).all()
    assert world.at_rest()


@pytest.mark.parametrize(
    ("source", "dest", "length", "flags", "status"),
    [
        pytest.param((*OWN[:2], 4000), OWN, 97, 0, GNTST_BAD_COPY_ARG, id="source over the end of the page"),
        pytest.param(OWN, (*GRANTED[:2], 4095), 2, COPY_DEST_GREF, GNTST_BAD_COPY_ARG, id="dest over the end"),
        pytest.param((*GRANTED[:2], 65535), OWN, 65535, COPY_SOURCE_GREF, GNTST_BAD_COPY_ARG, id="sum over 16 bits"),
        pytest.param((*GRANTED[:2], 65535), OWN, 1, COPY_SOURCE_GREF, GNTST_BAD_COPY_ARG, id="sum is 0 in 16 bits"),
        pytest.param(GRANTED, GRANTED, 8, BOTH, GNTST_BAD_COPY_ARG, id="a reference onto itself"),
        pytest.param((DOM0, REF, 0), (DOMID_SELF, REF, 8), 8, BOTH, GNTST_BAD_COPY_ARG, id="the same under two names"),
        pytest.param((GUEST, 5, 0), OWN, 8, 0, GNTST_PERMISSION_DENIED, id="frame of another domain as source"),
        pytest.param(OWN, (GUEST, 5, 0), 8, 0, GNTST_PERMISSION_DENIED, id="frame of another domain as dest"),
        pytest.param((DOMID_SELF, PAGES[DOM0], 0), OWN, 8, 0, GNTST_BAD_PAGE, id="own frame beyond RAM"),
        pytest.param(OWN, (DOMID_SELF, 1 << 63, 0), 8, 0, GNTST_BAD_PAGE, id="own frame with the sign bit"),
        pytest.param(OWN, (DOMID_SELF, (1 << 52) + 3, 0), 8, 0, GNTST_BAD_PAGE, id="own frame whose address wraps"),
        pytest.param((ABSENT, REF, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_BAD_DOMAIN, id="domain that is not there"),
        pytest.param(OWN, (0xFFFF, REF, 0), 8, COPY_DEST_GREF, GNTST_BAD_DOMAIN, id="domain beyond the table"),
        pytest.param((GUEST, REFS_PER_FRAME, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_BAD_GNTREF, id="reference too large"),
        pytest.param(OWN, (GUEST, 0xFFFF_FFFF, 0), 8, COPY_DEST_GREF, GNTST_BAD_GNTREF, id="largest reference"),
        pytest.param(OWN, (GUEST, REF + 1, 0), 8, COPY_DEST_GREF, GNTST_GENERAL_ERROR, id="read-only as dest"),
        pytest.param((GUEST, REF + 2, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_GENERAL_ERROR, id="not granted"),
        pytest.param((GUEST, REF + 3, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_BAD_PAGE, id="granted frame beyond RAM"),
        pytest.param(GRANTED, (GUEST, REF + 1, 0), 8, BOTH, GNTST_GENERAL_ERROR, id="good source, bad dest"),
    ],
)
def test_copy_is_refused(world: World, source: Side, dest: Side, length: int, flags: int, status: int) -> None:
    world.grant(5)
    world.grant(6, write=0, ref=REF + 1)
    world.grant(PAGES[GUEST], ref=REF + 3)
    world.grant(7, domid=DOM0)
    before = world.arena.array.copy()
    good = op(GRANTED, (DOMID_SELF, 3, 0), 0, COPY_SOURCE_GREF)
    assert copy(world, good, op(source, dest, length, flags), good) == [GNTST_OKAY, status, GNTST_OKAY]
    assert (world.arena.array == before).all()
    assert world.at_rest()


def test_own_frames_are_the_callers_not_dom0s(world: World) -> None:
    assert copy(world, op(OWN, (DOMID_SELF, PAGES[OTHER], 0), 8, 0), caller=OTHER) == [GNTST_BAD_PAGE]
    assert copy(world, op((DOM0, 3, 0), OWN, 8, 0), caller=OTHER) == [GNTST_PERMISSION_DENIED]


def test_copy_leaves_the_marks_of_pins_that_stay(world: World) -> None:
    world.grant(5)
    world.map(write=1)
    assert copy(world, op(GRANTED, OWN, 64, COPY_SOURCE_GREF), op(OWN, GRANTED, 64, COPY_DEST_GREF)) == [0, 0]
    assert world.flags() == GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING
    assert world.active() == DOM0 + 1 + ACTIVE_WRITER
    assert world.revoke() == 0
    world.unmap(write=1)
    assert world.at_rest()


def test_copy_from_an_entry_that_another_mapper_holds(world: World) -> None:
    world.grant(5, to=OTHER)
    world.map(caller=OTHER)
    world.grant(6)
    assert copy(world, op(GRANTED, OWN, 64, COPY_SOURCE_GREF)) == [GNTST_GENERAL_ERROR]
    assert world.active() == OTHER + 1 + ACTIVE_READER
