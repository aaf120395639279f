"""What Dom0 says of a turn that it timed: how much work that was, and whether anything plain is to be learnt from it."""

from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from dom0 import engine
from dom0.engine import BYTES_A_NS, COPY_NS, REQUEST_NS
from dom0.netback_tx import WHOLE_TURN
from hyp.fairness.cutting import PART_NS


def said_of_turn(
    *, copies: int, octets: int, sent: int, dropped: int = 0, flooded: int = 0, parts: int = 0, wary: int = 0
) -> tuple[int, int]:
    """(work, 1 if it is plain) of a turn in which so much was copied, sent by the uplink, dropped and flooded."""
    said: list[tuple[int, int]] = []

    def end_timing(t: Any, x: Any, began: int, work: int, whole: int, is_all: int) -> None:
        assert (t, x, began, whole) == ("the loop's", "its guest's", 5, WHOLE_TURN)
        said.append((work, is_all))

    space = {**vars(engine), "timing_at": lambda t: t, "standing_of": lambda p: p.standing, "end_timing": end_timing}
    e = SimpleNamespace(timing="the loop's", dropped=dropped, flooded=flooded, parts=parts)
    p = SimpleNamespace(standing="its guest's", wary=wary)
    FunctionType(engine._end_timing.py_func.__code__, space)(e, p, 5, copies, octets, sent)
    (only,) = said
    return only


@pytest.mark.parametrize("turn", [{"dropped": 1}, {"wary": 1}, {"dropped": 64}, {"dropped": 3, "wary": 1}])
def test_a_turn_in_which_anything_was_refused_or_dropped_says_nothing_of_what_is_plain(turn: dict[str, int]) -> None:
    assert said_of_turn(copies=64, octets=4096, sent=0, **turn)[1] == 0
    assert said_of_turn(copies=64, octets=4096, sent=0)[1] == 1


def test_who_has_requests_refused_gets_no_time_for_them() -> None:
    """A refused request is not copied: only what is counts as work."""
    work, _ = said_of_turn(copies=8, octets=512, sent=8, wary=1)
    assert work == 8 * REQUEST_NS + 512 // BYTES_A_NS


def test_a_copy_to_a_guest_is_work_and_so_is_each_flooded_one_but_not_what_dropped_nor_left_by_the_uplink() -> None:
    plain = 64 * REQUEST_NS + 4096 // BYTES_A_NS
    assert said_of_turn(copies=64, octets=4096, sent=64) == (plain, 1)
    assert said_of_turn(copies=64, octets=4096, sent=0) == (plain + 64 * COPY_NS, 1)
    assert said_of_turn(copies=64, octets=4096, sent=24) == (plain + 40 * COPY_NS, 1)
    assert said_of_turn(copies=64, octets=4096, sent=0, dropped=60) == (plain + 4 * COPY_NS, 0)
    assert said_of_turn(copies=1, octets=64, sent=1, flooded=20)[0] == REQUEST_NS + 1 + 20 * COPY_NS
    assert said_of_turn(copies=2, octets=4096, sent=2, parts=9)[0] == 2 * REQUEST_NS + 64 + 9 * PART_NS
    assert said_of_turn(copies=4, octets=256, sent=2, dropped=4)[0] >= 0, "what was left of a turn before may drop in this one"
