"""The fork server tells of whoever it could not bring about, and there is one of it."""

import errno
import os
import signal

import pytest

from lab import forkserver
from tests.domu.test_confinement import in_a_child

ARGS = {"name": "anna", "config": {}}


def test_one_that_is_killed_on_the_way_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def body() -> str:
        try:
            forkserver._fork_twice(ARGS, [])
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "born"

    monkeypatch.setattr(forkserver, "_fork_once_more", killed)
    assert in_a_child(body) == "ECHILD"


@pytest.mark.parametrize(("error", "told"), [(OSError(errno.EMFILE, ""), "EMFILE"), (ValueError("no such thing"), "ECHILD")])
def test_one_that_fails_on_the_way_ends_there(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    """Who goes on is the fork server alone: the other one would serve its socket, too."""

    def fails(config: object) -> None:
        raise error

    def body() -> str:
        came = "born"
        try:
            forkserver._fork_twice(ARGS, [])
        except Exception as raised:
            came = errno.errorcode[getattr(raised, "errno", 0) or errno.EIO]
        return f"{came};"

    monkeypatch.setattr(forkserver, "confinement_of", fails)
    assert in_a_child(body) == f"{told};"
