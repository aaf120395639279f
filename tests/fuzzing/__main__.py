"""``python -m tests.fuzzing``: see the package."""

import importlib
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from hyp.paths import PATHS
from tests.fuzzing import NAMES, cases, flood

RUNS, DESCRIPTORS = 100_000, 10_000_000
MEMORY_MB = 2048


def guided(name: str, runs: int) -> None:
    """Let atheris try a target so often, from the cases that are kept on. It ends the process; what fails is written to a file."""
    import atheris

    with atheris.instrument_imports(include=["lab", "hyp", "dom0", "tests"]):
        target = importlib.import_module("tests.fuzzing.targets").TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, case in enumerate(cases(name)):
            Path(corpus, str(number)).write_bytes(case)
        # What it goes by is the largest size that this process has had, of which exec(2) leaves that of the process that it was
        most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + MEMORY_MB
        options = [
            f"-runs={runs}",
            "-seed=1",
            "-max_len=400",
            "-timeout=60",
            f"-artifact_prefix={name}-",
            f"-rss_limit_mb={most_mb}",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], target)
        atheris.Fuzz()


def everything(runs: int, descriptors: int) -> int:
    """All targets and all floods, each in a process of its own. Status 1 if one of them found something."""
    jobs = [["guided", name, str(runs)] for name in NAMES] + [["flood", path, str(descriptors)] for path in PATHS]
    failed = []
    for job in jobs:
        print(*job, flush=True)
        if subprocess.run([sys.executable, "-m", "tests.fuzzing", *job]).returncode:
            failed.append(" ".join(job))
    print(f"found something: {', '.join(failed)}" if failed else f"all {len(jobs)} done, nothing found")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """The command line."""
    match arguments:
        case ["guided", name, *more] if name in NAMES:
            guided(name, int(more[0]) if more else RUNS)
        case ["flood", path, *more] if path in PATHS:
            flood.main(path, int(more[0]) if more else DESCRIPTORS)
        case []:
            return everything(RUNS, DESCRIPTORS)
        case _:
            print(f"guided {'|'.join(NAMES)} [RUNS], flood {'|'.join(PATHS)} [NUMBER], or nothing", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
