"""What a guest prints: a log of bounded size, also where another one can't be begun."""

import os
import socket
from pathlib import Path

import pytest

from lab.keeper.output import KEPT_BYTES, TURN_BYTES, Output
from tests.support.labs import wait_until


def test_a_log_that_cannot_be_begun_anew_stays_open_and_its_number_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what the guest prints goes to whoever has the number next, and he is closed in the end."""
    output = Output(tmp_path / "guest.log")
    guest, logged = output.hand_over(), os.fstat(output._log)
    try:

        def printed() -> int:
            return (tmp_path / "guest.log").stat().st_size

        while printed() <= KEPT_BYTES - TURN_BYTES:
            before = printed()
            os.write(guest, b"x" * 4096)
            wait_until(lambda: printed() > before, "it to be in the log")  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr(output, "_open", lambda: os.open(tmp_path / "none" / "such", os.O_WRONLY))
            while output._size + 4096 <= KEPT_BYTES:
                size = output._size
                os.write(guest, b"y" * 4096)
                wait_until(lambda: output._size > size, "it to be in the log")  # noqa: B023
            os.write(guest, b"lost" * 1024)
            wait_until(lambda: not (tmp_path / "guest.log").exists(), "the log to be put aside")
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            os.write(guest, b"forged")
            assert os.path.samestat(os.fstat(output._log), logged)
        os.write(guest, b"in the next one")
        wait_until(
            lambda: (tmp_path / "guest.log").exists() and b"in the next one" in (tmp_path / "guest.log").read_bytes(), "a new log"
        )
        for end in ends:
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(100)
        for end in ends:
            end.close()
        assert (tmp_path / "guest.log.1").stat().st_size <= KEPT_BYTES
    finally:
        os.close(guest)
        output.end()
        assert output.has_ended()
