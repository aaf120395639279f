"""What somebody at a terminal sees of what takes long, and nobody else."""

import asyncio
import io

import pytest
from rich.console import Console

from lab.command import doing, session
from lab.command.doing import ask
from lab.command.session import Progress
from tests.support.labs import run, until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_start_that_takes_long_has_a_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(session, "PATIENT_S", 0.0)
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=terminal, width=80)

    async def says(what: str) -> bool:
        return what in shown.getvalue()

    async def main() -> None:
        progress = Progress(screen, "demo")  # type: ignore[arg-type]
        with progress.shown():
            if terminal:
                await until(lambda: says("starting demo"), "the line")
            progress.event("progress", {"index": 1, "total": 7, "kernel": "put", "seconds": 0.1})
            if terminal:
                await until(lambda: says("compiling 1 of 7: put"), "what is compiled")
            await asyncio.sleep(0)

    run(main())
    assert terminal or shown.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_who_waits_for_an_answer_is_told(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(doing, "PATIENT_S", 0.0)
    errors = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", errors)

    async def main() -> int:
        for _ in range(100):
            await asyncio.sleep(0)
        return 7

    assert ask(main(), "waiting for demo …") == 7
    assert errors.getvalue() == ("waiting for demo …\n" if terminal else "")
