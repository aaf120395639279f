"""The fork server tells of whoever it could not bring about, there is one of it, and who is forked finds nothing of others."""

import errno
import os
import signal
from typing import Any

import msgpack
import pytest

from lab import forkserver
from tests.domu.test_confinement import in_a_child

REQUEST = memoryview(msgpack.packb({"id": 7, "op": "fork", "args": {"name": "anna", "config": {}, "purposes": []}}))


def answer() -> dict[str, Any]:
    reply: dict[str, Any] = msgpack.unpackb(forkserver._answer(REQUEST, []))
    assert reply.pop("id") == 7
    return reply


def test_one_that_is_killed_on_the_way_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(forkserver, "_fork_once_more", killed)
    assert in_a_child(lambda: answer()["error"][0]) == "ECHILD"


@pytest.mark.parametrize(("error", "told"), [(OSError(errno.EMFILE, ""), "EMFILE"), (ValueError("no such thing"), "ECHILD")])
def test_one_that_fails_on_the_way_ends_there(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    """Who goes on is the fork server alone: the other one would serve its socket, too."""

    def fails(config: object) -> None:
        raise error

    monkeypatch.setattr(forkserver, "confinement_of", fails)
    assert in_a_child(lambda: f"{answer()['error'][0]};") == f"{told};"


@pytest.mark.parametrize("call", ["pipe", "fork"])
def test_where_there_is_no_room_for_one_that_is_told(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fails() -> None:
        raise OSError(errno.EAGAIN if call == "fork" else errno.EMFILE, "")

    monkeypatch.setattr(os, call, fails)
    assert answer()["error"][0] == ("EAGAIN" if call == "fork" else "EMFILE")
