"""A guest that is any program: started from the topology file with its hypercall and xenstore sockets as descriptors 3 and 4."""

import asyncio
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import owner
from lab.errors import LabError
from lab.owner import Lab
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.topology import TopologyError, load
from tests.support.labs import ROOT, left_behind, run, topology_file, until

DOCUMENT = ROOT / "docs" / "hypercalls.md"
LATE = "tests.support.late_guest"


def own(name: str, *argv: str, path: str = "bypass") -> str:
    """A guest whose program is `argv`."""
    words = ", ".join(f"'{word}'" for word in argv)
    return f'[[guest]]\nname = "{name}"\npath = "{path}"\nprogram = {{ argv = [{words}] }}\n'


BYSTANDER = '[[guest]]\nname = "bert"\npath = "bypass"\n'


def log_of(lab: Lab) -> str:
    """What the guest has printed."""
    return lab._rundir.guest_log("mine").read_text(errors="replace")


@pytest.mark.usefixtures("warm")
def test_the_documents_guest_works_word_for_word(tmp_path: Path) -> None:
    programs = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL) if "fileno=3" in block]
    assert len(programs) == 1
    (tmp_path / "guest.py").write_text(programs[0])
    file = topology_file(tmp_path, "own", own("mine", sys.executable, "guest.py") + BYSTANDER)

    async def look() -> None:
        async with Lab(load(file).plain()) as lab:
            counters = await lab.counters()

            async def sent() -> bool:
                return "sent; status 0" in log_of(lab)

            await until(sent, "the program to have sent its frame")

            async def counted() -> bool:
                rows = counters.read().items()
                return [n["tx_frames"] for row, n in rows if row.startswith("nic/ctx") and row.endswith(":mine")] == [1]

            await until(counted, "the NIC to have counted it")
            assert "mine" not in lab.deaths, "a program that ends with status 0 has done its work"

    run(look())


SHOWS = """
import os, socket, stat, sys
kinds = {}
for fd in (3, 4):
    kinds[fd] = socket.socket(fileno=os.dup(fd)).type
assert kinds == {3: socket.SOCK_SEQPACKET, 4: socket.SOCK_STREAM}, kinds
extra = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 4]
open_ones = []
for fd in extra:
    try:
        os.fstat(fd)
        open_ones.append(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        pass
assert not open_ones, open_ones
print("cwd", os.getcwd(), "argv", sys.argv[1:], flush=True)
import signal
signal.pause()
"""


@pytest.mark.usefixtures("warm")
def test_it_has_its_sockets_the_files_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text(SHOWS)
    file = topology_file(tmp_path, "shows", own("mine", sys.executable, "shows.py", "a b", "[c]"))

    async def look() -> str:
        async with Lab(load(file).plain()) as lab:

            async def said() -> bool:
                return "'[c]']" in log_of(lab) or bool(lab.deaths)

            await until(said, "the program to say what it has")
            assert lab.deaths == {}, log_of(lab)
            return log_of(lab)

    assert f"cwd {tmp_path.resolve()} argv ['a b', '[c]']" in run(look())
    assert left_behind(file.stem) == []


def boot_of(tmp_path: Path, *argv: str) -> None:
    async def boot() -> None:
        async with Lab(load(topology_file(tmp_path, "bad", own("mine", *argv))).plain()):
            pass

    run(boot())


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("program", "cause"), [("./missing", "No such file"), ("./plain.txt", "Permission denied")])
def test_a_program_that_cannot_be_started_fails_the_start_by_name(tmp_path: Path, program: str, cause: str) -> None:
    (tmp_path / "plain.txt").write_text("no program\n")
    with pytest.raises(LabError, match=rf"mine could not start: {re.escape(program)}: {cause}"):
        boot_of(tmp_path, program)


@pytest.mark.usefixtures("warm")
def test_a_program_that_fails_is_a_death_with_its_status(tmp_path: Path) -> None:
    gate = tmp_path / "gate"  # not before all are ready: that would be a start that failed
    os.mkfifo(gate)
    file = topology_file(
        tmp_path, "dies", own("mine", sys.executable, "-c", f'open("{gate}").read(); raise SystemExit(7)') + BYSTANDER
    )

    async def look() -> dict[str, str]:
        async with Lab(load(file).plain()) as lab:
            await asyncio.to_thread(gate.write_text, "go")
            return dict(await lab.any_death(30.0))

    assert "ended with status 7" in run(look())["mine"]


def test_a_program_that_is_done_before_the_others_are_ready_is_no_failure(tmp_path: Path) -> None:
    """Nor a death, then or later: the topology is up, and whole."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    text = own("early", "true") + own("late", sys.executable, "-c", f'open("{gate}").read()') + BYSTANDER
    file = topology_file(tmp_path, "done", text)

    async def look() -> None:
        async with Lab(load(file).plain()) as lab:
            await asyncio.to_thread(gate.write_text, "go")

            async def both_are_done() -> bool:
                status = (await lab.keeper("status")).value
                states = {process["name"]: process["state"] for process in status["processes"]}
                assert (status["state"], status["dead"]) == ("up", [])
                return states["early"] == states["late"] == "ended"

            await until(both_are_done, "both programs to be done")
            assert lab.deaths == {}

    run(look())


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FIFO: bert does not boot before somebody writes to it."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        late = {"module": LATE, "config": {"gate": str(gate)}}
        processes = honest_plan(topology)
        return [one | late | {"config": one["config"] | late["config"]} if one["name"] == "bert" else one for one in processes]

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, LATE])
    return gate


async def up_after_death(lab: Lab, gate: Path) -> None:
    """Start a topology of which "mine" ends before it lets bert boot."""
    starting = asyncio.ensure_future(lab.start())

    async def has_ended() -> bool:
        if starting.done():
            await starting
        status = (await lab.keeper("status")).value if hasattr(lab, "channel") else {"processes": []}
        return any(one["name"] == "mine" and one["state"].startswith("died (") for one in status["processes"])

    try:
        await until(has_ended, "the program's end")
        assert not starting.done()
        await asyncio.to_thread(gate.write_text, "go")
        await starting
    except BaseException:
        starting.cancel()
        await asyncio.wait([starting])
        raise


@pytest.mark.usefixtures("warm")
def test_a_program_that_fails_before_the_others_are_ready_is_a_death_like_others(tmp_path: Path, gate: Path) -> None:
    file = topology_file(tmp_path, "early", own("mine", sys.executable, "-c", "raise SystemExit(7)") + BYSTANDER)

    async def look() -> None:
        lab = Lab(load(file).plain())
        await up_after_death(lab, gate)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(lab.stop)
            assert "ended with status 7" in (await lab.any_death(30.0))["mine"]
            status = (await lab.keeper("status")).value
            assert status["state"] == "degraded"
            assert [process["state"] for process in status["processes"] if process["name"] == "bert"] == ["ready"]

    run(look())


@pytest.mark.usefixtures("warm")
def test_a_program_that_fails_before_the_others_are_ready_is_started_again_once_they_are(tmp_path: Path, gate: Path) -> None:
    once = f"{tmp_path}/once"
    text = own("mine", "sh", "-c", f"test -e {once} && exec sleep 1000; touch {once}; exit 7") + "restart = true\n" + BYSTANDER
    file = topology_file(tmp_path, "again", text)

    async def look() -> None:
        lab = Lab(load(file).plain())
        await up_after_death(lab, gate)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(lab.stop)
            await lab.restarted("mine")
            assert lab.deaths == {}
            assert (await lab.keeper("status")).value["state"] == "up"

    run(look())


@pytest.mark.parametrize(("program", "key"), [
    ("{ argv = [] }", "guest[0].program"), ("{ argv = [''] }", "guest[0].program"), ("{ argv = ['x', 1] }", "guest[0].program"),
    ("{}", "guest[0].program"), ("{ argv = ['x'], more = 1 }", "guest[0].program"), ("7", "guest[0].program"),
    ("'own'", "guest[0].program"),
])  # fmt: skip
def test_a_program_that_is_none_is_refused_under_its_key(tmp_path: Path, program: str, key: str) -> None:
    text = f"[[guest]]\nname = 'mine'\npath = 'bypass'\nprogram = {program}\n"
    with pytest.raises(TopologyError) as caught:
        load(topology_file(tmp_path, "refused", text))
    assert all(found.startswith(key) for found, _ in caught.value.problems), caught.value.problems


def test_a_workload_needs_a_program_that_can_be_an_end_of_it(tmp_path: Path) -> None:
    load_: Any = '[[workload]]\nkind = "stream"\nfrom = "mine"\nto = "bert"\nseconds = 1\n'
    with pytest.raises(TopologyError, match=r"guest 'mine' has program = \{ argv"):
        load(topology_file(tmp_path, "load", own("mine", "true") + BYSTANDER + load_))
