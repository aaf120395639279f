"""Programs in TAP guests outlive Dom0: a download over several of its deaths, compared by SHA-256."""

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest

from lab.owner import Lab
from tests.support.labs import LAUNCH, ROOT, run, until
from tests.support.patience import patient
from tests.support.streams import kill, lab_of
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps"), pytest.mark.needs("curl")]

ADDRESS = {"alice": "10.0.0.1", "bob": "10.0.0.2", "carol": "10.0.0.3"}
LAB = "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\nprogram = "tap"\naddress = "{ADDRESS[name]}/24"\n'
    for name, path in (("alice", "split"), ("bob", "split"), ("carol", "bypass"))
)
MIB, KILLS = 256, 4


async def inside(lab: Lab, guest: str, *argv: str) -> asyncio.subprocess.Process:
    """Start a program in a guest."""
    command = [*LAUNCH, "exec", "--topology", lab.name, guest, "--", *argv]
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


ENDS = [("bob", "alice"), ("carol", "alice"), ("alice", "carol")]
"""Server and client."""


@pytest.mark.long
@pytest.mark.parametrize("between", tiered(ENDS, [ENDS[0]]), ids="-".join)
def test_a_download_over_deaths_of_dom0(tmp_path: Path, between: tuple[str, str]) -> None:
    server, client = between
    data, copy = tmp_path / "data", tmp_path / "copy"
    data.write_bytes(os.urandom(1 << 20) * MIB)

    async def main() -> None:
        async with lab_of(tmp_path, "tap-dom0", LAB) as lab:
            serving = await inside(lab, server, sys.executable, "-u", "-m", "http.server", "-d", str(tmp_path), "8000")
            assert serving.stdout is not None
            assert b"Serving" in await serving.stdout.readline()
            url = f"http://{ADDRESS[server]}:8000/data"
            download = await inside(lab, client, "curl", "-sS", "--fail", "--limit-rate", "60M", "-o", str(copy), url)
            killed = 0
            while killed < KILLS and download.returncode is None:
                size, more = (copy.stat().st_size if copy.exists() else 0), MIB // (KILLS + 1) << 20

                async def more_is_there(size: int = size, more: int = more) -> bool:
                    return download.returncode is not None or (copy.exists() and copy.stat().st_size >= size + more)

                await until(more_is_there, "more of the file")
                await kill(lab, "dom0")
                killed += 1
            said, _ = await asyncio.wait_for(download.communicate(), patient(60))
            serving.terminate()
            await serving.communicate()
            assert download.returncode == 0, said.decode()
            assert killed == KILLS

    run(main())
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(data.read_bytes()).digest()
