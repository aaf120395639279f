"""What several loops share: hold-off, owner bit, descriptor checks, header words; each against a plain statement of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.abi.nic import (
    CQE,
    CQE_BYTES,
    DESC_SIGNALED,
    MAX_LONE_FRAME,
    MIN_FRAME,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_OK,
    mac_to_int,
)
from hyp.events import most_of, passed, passed64
from hyp.frames import destination_of, head_words, lies_within, owner_bit, send_fault, source_of, takes_frame, write_completion
from hyp.kernels import entry, i64, void

WRAP = 1 << 32
WHOLE_HEADER = 16

PASSED, PASSED64, OWNER_BIT, SEND_FAULT, TAKES_FRAME, MOST_OF, DESTINATION, SOURCE, WITHIN = range(9)


@entry(i64(i64, i64, i64, i64))
def ask(what: int, a: int, b: int, c: int) -> int:
    """One of the predicates, by number."""
    if what == PASSED:
        return 1 if passed(a, b, c) else 0
    if what == PASSED64:
        return 1 if passed64(a, b, c) else 0
    if what == OWNER_BIT:
        return owner_bit(a, b)
    if what == SEND_FAULT:
        return send_fault(a)
    if what == TAKES_FRAME:
        return 1 if takes_frame(a, b) else 0
    if what == MOST_OF:
        return most_of(a)
    if what == WITHIN:
        return 1 if lies_within(a, b, c) else 0
    if what == DESTINATION:
        return destination_of(a)
    return source_of(a, b)


@entry(i64(i64, i64, i64, i64))
def head(which: int, destination: int, source: int, rest: int) -> int:
    """A word of a header."""
    return head_words(destination, source, rest)[which]


@entry(void(i64, i64, i64, i64, i64, i64))
def complete(slot: int, size: int, prod: int, index: int, length: int, status: int) -> None:
    """Write a completion."""
    write_completion(slot, size, prod, index, length, status)


def signed(word: int) -> int:
    """64 bits as compiled code holds them."""
    return word - (1 << 64) if word >> 63 else word


index = st.integers(0, WRAP - 1) | st.sampled_from([0, 1, WRAP - 2, WRAP - 1])


@settings(deadline=None)
@given(old=index, moved=st.integers(0, 5000), ahead=st.integers(-5, 5005))
def test_hold_off_is_due_for_every_index_on_the_way_and_for_no_other(old: int, moved: int, ahead: int) -> None:
    event, new = (old + ahead) % WRAP, (old + moved) % WRAP
    assert ask(PASSED, event, old, new) == (1 if 1 <= ahead <= moved else 0)
    assert ask(PASSED64, old + ahead, old, old + moved) == (1 if 1 <= ahead <= moved else 0)


def test_most_of_what_is_due_is_three_quarters_rounded_up() -> None:
    assert [ask(MOST_OF, due, 0, 0) for due in range(10)] == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7]


@pytest.mark.parametrize("size", [64, 4096])
def test_the_owner_bit_turns_with_each_pass_of_the_ring(size: int) -> None:
    ring = np.zeros(size, CQE)
    for start in (0, WRAP - size):
        for step in (0, 1, size - 1, size, 2 * size - 1, 2 * size, 3 * size):
            prod = (start + step) % WRAP
            expected = 1 - (start + step) // size % 2
            assert ask(OWNER_BIT, prod, size, 0) == expected
            complete(int(ring.ctypes.data) + prod % size * CQE_BYTES, size, prod, prod, 1500, STATUS_BAD_FLAGS)
            assert tuple(ring[prod % size]) == (prod, 1500, STATUS_BAD_FLAGS, 0, expected, 0)


@settings(deadline=None)
@given(
    length=st.sampled_from([0, MIN_FRAME - 1, MIN_FRAME, 64, MAX_LONE_FRAME, MAX_LONE_FRAME + 1, WRAP - 1])
    | st.integers(0, WRAP - 1),
    flags=st.sampled_from([0, DESC_SIGNALED, 2, 3, 1 << 16, 1 << 31]) | st.integers(0, WRAP - 1),
)
def test_a_send_descriptor_is_judged_by_length_then_by_flags(length: int, flags: int) -> None:
    bad = STATUS_OK if flags in (0, DESC_SIGNALED) else STATUS_BAD_FLAGS
    assert ask(SEND_FAULT, signed(length | flags << 32), 0, 0) == (
        bad if MIN_FRAME <= length <= MAX_LONE_FRAME else STATUS_BAD_LENGTH
    )


@settings(deadline=None)
@given(room=index | st.integers(0, 3000), flags=st.integers(0, 3) | st.just(1 << 31), length=st.integers(14, 4032))
def test_a_receive_buffer_takes_what_fits_if_no_flag_is_set(room: int, flags: int, length: int) -> None:
    assert ask(TAKES_FRAME, signed(room | flags << 32), length, 0) == (1 if flags == 0 and length <= room else 0)


@settings(deadline=None)
@given(
    addr=st.integers(0, 5000) | st.integers(0, (1 << 64) - 1), length=st.integers(1, 4032),
    size=st.just(4096) | st.integers(0, 1 << 30),
)  # fmt: skip
def test_a_range_lies_within_a_domains_ram_or_not(addr: int, length: int, size: int) -> None:
    assert ask(WITHIN, signed(addr), length, size) == (1 if addr + length <= size else 0)


def test_the_words_of_a_header() -> None:
    one, other = "02:11:22:33:44:55", "fe:dc:ba:98:76:54"
    frame = bytes.fromhex((one + other).replace(":", "")) + b"\x88\xb5\x34\x12"
    words = [int.from_bytes(frame[at : at + 8], "little", signed=True) for at in (0, 8)]
    assert len(frame) == WHOLE_HEADER
    assert ask(DESTINATION, words[0], 0, 0) == mac_to_int(one)
    assert ask(SOURCE, *words, 0) == mac_to_int(other)
    assert [head(which, mac_to_int(one), mac_to_int(other), words[1]) for which in range(2)] == words
