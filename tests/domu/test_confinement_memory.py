"""What a confined guest finds in its own memory, and in its environment: nothing of who started it, nor of other guests."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from tests.domu.test_confinement import interpreter
from tests.lab.test_paths import running
from tests.support.labs import run, until

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("confinement")]

OF_THE_CALLER, OF_ANOTHER, OF_ITSELF = "caller-4711-secret", "another-1147-secret", "itself-7411-secret"
WAITS = "import signal; signal.pause()"
LOOKS = """
import os, re, signal, sys

words = {word[::-1].encode() for word in sys.argv[1:]}  # which this has not in it as it looks for them
found = {word for word in words if any(word in value for value in os.environb.values())}
for line in open("/proc/1/maps") if os.getppid() == 1 else ():
    first, last = (int(part, 16) for part in line.split()[0].split("-"))
    with open("/proc/1/mem", "rb", 0) as memory:
        try:
            memory.seek(first)
            for at in range(first, last, 1 << 24):
                part = memory.read(min((1 << 24) + 64, last - at))
                found |= {word for word in words if word in part}
                memory.seek(at + (1 << 24))
        except (OSError, OverflowError, ValueError):
            continue
print("found", [word[::-1].decode() for word in sorted(found)], flush=True)
signal.pause()
"""


@pytest.mark.parametrize("confined", ["confined = true\n", ""], ids=["confined", "not"])
def test_a_guest_finds_nothing_of_its_caller_nor_of_others(confined: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody is confined a program has its caller's environment, by which it is known here that what looks does find."""
    monkeypatch.setenv("LAB_TEST_TOKEN", OF_THE_CALLER)
    words = [word[::-1] for word in (OF_THE_CALLER, OF_ANOTHER, OF_ITSELF)]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's are not everybody's
        os.chmod(folder, 0o755)
        Path(folder, "looks.py").write_text(LOOKS)
        programs = {
            "vera": [interpreter(), "-c", WAITS, OF_ANOTHER],
            "owen": [interpreter(), "looks.py", *words],
        }
        text = 'memory.backing = "sealed"\n' + "".join(
            f'[[guest]]\nname = "{name}"\npath = "bypass"\n{confined}program = {{ argv = {json.dumps(argv)} }}\n'
            for name, argv in programs.items()
        )

        async def main() -> str:
            async with running(Path(folder), "lookers", text) as runner:
                log = runner.lab._rundir.guest_log("owen")

                async def ended() -> bool:
                    return "found [" in log.read_text(errors="replace")

                await until(ended, "owen to have looked")
                return next(line for line in log.read_text(errors="replace").splitlines() if "found [" in line)

        said = run(main())
    assert OF_ANOTHER[::-1] not in said, said
    assert (OF_THE_CALLER[::-1] in said) == (confined == ""), said
