"""Running spin on a model: translate, compile, search every state. Each check has a folder of its own, which goes with it."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import patient
from tests.support.tools import TOOLS

HERE = Path(__file__).parent
NEEDS = ("spin", "gcc")
MEMORY_MB = 6000
DEPTH = 1_000_000
LIMIT_S = 300.0

_VIOLATED = re.compile(r"^pan:\d+: (.+?) \(at depth (\d+)\)", re.MULTILINE)


class ModelError(Exception):
    """spin or the compiler refused a model, or the search could not be ended: nothing is known."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found. `violation` is empty if the model holds; else `depth` is the length of the way there."""

    states: int
    depth: int
    seconds: float
    violation: str


def missing() -> list[str]:
    """Tools that are not here."""
    return [name for name in NEEDS if not TOOLS[name].is_there()]


def check(model: str, defines: tuple[str, ...] = (), *, ltl: bool = False, shortest: bool = False) -> Outcome:
    """Search all states of a model with these macros: for assertions and ends, or by its formula. `shortest`: breadth first."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)

        def run(*command: str) -> str:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=patient(LIMIT_S))
            if done.returncode != 0:
                raise ModelError(f"{model}: {' '.join(command)}: {(done.stdout + done.stderr).strip()[-600:]}")
            return done.stdout + done.stderr

        said = run("spin", *(f"-D{name}" for name in defines), "-a", str(HERE / f"{model}.pml"))
        if re.search(r"\berror\b", said, re.IGNORECASE):
            raise ModelError(f"{model}: {said.strip()[:600]}")
        kind = ["-DNOFAIR"] if ltl else ["-DSAFETY", "-DNOCLAIM", *(["-DBFS"] if shortest else [])]
        run("gcc", "-O0" if shortest else "-O1", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", *kind, "-o", "pan", "pan.c")
        return _read(model, run("./pan", f"-m{DEPTH}", *(["-a"] if ltl else [])))


def _read(model: str, report: str) -> Outcome:
    violated = _VIOLATED.search(report)
    if violated is None and ("errors: 0" not in report or "Search not completed" in report or "too small" in report):
        raise ModelError(f"{model}: the search did not end: {report.strip()[-600:]}")
    return Outcome(
        states=int(float(_number(r"([\d.e+]+) states, stored", report))),
        depth=int(violated.group(2) if violated else _number(r"depth reached (\d+)", report)),
        seconds=float(_number(r"elapsed time ([\d.]+)", report)),
        violation=violated.group(1) if violated else "",
    )


def _number(pattern: str, report: str) -> str:
    found = re.search(pattern, report)
    return found.group(1) if found else "0"
