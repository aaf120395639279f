"""How much of a core a recording takes while traffic goes on."""

import time

import pytest

from lab.trace.recording import ASIDE, LIVE, LOOK_S, _Pace


class Clock:
    """The monotonic clock, as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize("share", [ASIDE, 0.5, LIVE])
def test_no_more_than_its_share_goes_into_records(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """However many there are: each look takes what fits, the rest waits."""
    clock = Clock(monkeypatch)
    pace, spent = _Pace(share), 0.0
    for _ in range(2000):
        clock.now += LOOK_S
        pace.look()
        while pace.may(1000):
            with pace.spending(1000):
                clock.now += 0.001
                spent += 0.001
    assert spent <= share * (clock.now - 100.0) + LOOK_S
    assert spent >= 0.8 * share * (clock.now - 100.0) / (1 + share) - LOOK_S


def test_what_is_little_is_taken_at_once_and_nothing_without_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace, none = _Pace(ASIDE), _Pace(0.0)
    clock.now += LOOK_S
    pace.look()
    none.look()
    assert pace.may(64)
    assert not none.may(64)
    assert not pace.may(1 << 26)


def test_a_pause_saves_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour without frames does not let a whole core's work come at once."""
    clock = Clock(monkeypatch)
    pace = _Pace(LIVE)
    clock.now += 3600
    pace.look()
    assert not pace.may(int(2 * LOOK_S / 1e-7))
