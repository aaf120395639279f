"""netback's state table: Linux's transitions, and every sequence of six states of a front end."""

from itertools import pairwise, product

import pytest

from dom0.xenbus_states import BACK_STATES, Action, judge, steps
from hyp.xenstore.xenbus import XenbusState as S

FRONT_STATES = list(S)
NEIGHBOURS = {
    (S.INITIALISING, S.INIT_WAIT), (S.INITIALISING, S.CLOSED), (S.INIT_WAIT, S.CONNECTED), (S.INIT_WAIT, S.CLOSING),
    (S.CONNECTED, S.CLOSING), (S.CLOSING, S.CLOSED), (S.CLOSED, S.INIT_WAIT), (S.CLOSED, S.CLOSING),
}  # fmt: skip
"""The transitions in the comment above Linux's set_backend_state."""


def follow(back: S, front: S, **toolstack: bool) -> list[S]:
    """The states that the back end tells, the one that it is in first."""
    verdict = judge(front, **toolstack)
    return [back, *(after for _, after in steps(back, verdict.goal))]


@pytest.mark.parametrize("toolstack", [{}, {"online": False}, {"withdrawn": True}, {"online": False, "withdrawn": True}])
def test_every_way_goes_over_linuxs_transitions_and_connects_and_disconnects_where_it_must(toolstack: dict[str, bool]) -> None:
    for front, back in product(FRONT_STATES, BACK_STATES):
        told = follow(back, front, **toolstack)
        assert set(pairwise(told)) <= NEIGHBOURS
        assert told[-1] is judge(front, **toolstack).goal
        actions = [action for action, _ in steps(back, told[-1])]
        wanted = []
        for before, after in pairwise(told):
            wanted.append(Action.CONNECT if after is S.CONNECTED else Action.DISCONNECT if before is S.CONNECTED else None)
        assert actions == wanted


@pytest.mark.parametrize(
    ("back", "front", "told"),
    [
        (S.INITIALISING, S.INITIALISING, [S.INIT_WAIT]),
        (S.INIT_WAIT, S.CONNECTED, [S.CONNECTED]),  # Linux, FreeBSD, Windows, Mirage
        (S.CONNECTED, S.CLOSING, [S.CLOSING]),
        (S.CLOSING, S.CLOSED, [S.CLOSED]),
        (S.CLOSED, S.INITIALISING, [S.INIT_WAIT]),  # kexec, firmware → system, a module loaded again
        (S.CONNECTED, S.INITIALISING, [S.CLOSING, S.CLOSED, S.INIT_WAIT]),  # a crash kernel, which did not close
        (S.INIT_WAIT, S.CLOSING, [S.CLOSING]),  # Windows, before it connects for the first time
        (S.CONNECTED, S.CLOSED, [S.CLOSING, S.CLOSED]),
        (S.CONNECTED, S.UNKNOWN, [S.CLOSING, S.CLOSED]),  # the state's node was removed
        (S.CONNECTED, S.INITIALISED, []),
        (S.CLOSING, S.CONNECTED, [S.CLOSED, S.INIT_WAIT, S.CONNECTED]),  # after a failure, with better keys
    ],
)
def test_what_front_ends_do(back: S, front: S, told: list[S]) -> None:
    assert follow(back, front)[1:] == told


@pytest.mark.parametrize("front", [S.INIT_WAIT, S.RECONFIGURING, S.RECONFIGURED])
def test_a_state_that_no_front_end_has_is_an_error(front: S) -> None:
    verdict = judge(front)
    assert (verdict.goal, verdict.error) == (S.CLOSING, f"saw state {int(front)} at frontend")


def test_a_device_that_the_toolstack_takes_back_never_connects_and_ends_when_it_is_offline() -> None:
    for front, back, online in product(FRONT_STATES, BACK_STATES, (False, True)):
        told = follow(back, front, online=online, withdrawn=True)
        assert not {S.CONNECTED, S.INIT_WAIT} & set(told[2:])
        assert told[-1] in (S.CLOSING, S.CLOSED)
        assert judge(front, online=online, withdrawn=True).ends == (not online and told[-1] is S.CLOSED)
    assert judge(S.CLOSED).ends is False
    assert judge(S.CLOSED, online=False).ends is True


def test_after_every_sequence_of_six_states_a_front_end_connects() -> None:
    """All 9⁶, whether a connection can be made or not (then the back end is in Closing); and what is taken is given back."""

    def run(back: S, connected: bool, front: S, works: bool) -> tuple[S, bool]:
        for action, after in steps(back, judge(front).goal):
            if action is Action.CONNECT:
                assert not connected
                if not works:
                    return S.CLOSING, False
                connected = True
            elif action is Action.DISCONNECT:
                assert connected
                connected = False
            back = after
        return back, connected

    now = {(S.INIT_WAIT, False): 1}
    for _ in range(6):  # sequences with the same outcome go on alike
        after: dict[tuple[S, bool], int] = {}
        for ((back, connected), count), front, works in product(now.items(), FRONT_STATES, (False, True)):
            state = run(back, connected, front, works)
            after[state] = after.get(state, 0) + count
        now = after
    assert sum(now.values()) == (9 * 2) ** 6
    for back, connected in now:
        assert connected == (back is S.CONNECTED)
        waiting = run(back, connected, S.INITIALISING, works=True)
        assert waiting == (S.INIT_WAIT, False)
        assert run(*waiting, S.CONNECTED, works=True) == (S.CONNECTED, True)
