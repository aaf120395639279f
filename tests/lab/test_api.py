"""The public Python API: the document and the example notebook work as they stand, both ways of use, and nothing is left behind."""

import asyncio
import inspect
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import nbclient
import nbformat
import pytest

from lab import AsyncLab, AsyncProgram, Lab, LabError, TopologyError, WorkloadError, programs
from lab.rundir import TopologyExists
from tests.support.labs import ROOT, left_behind, wait_until
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("warm")

PAIR = {"carl": "bypass", "dora": "bypass"}
DOCUMENT = ROOT / "docs" / "api.md"
NOTEBOOK = ROOT / "examples" / "side_by_side.ipynb"


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(found) > 5
    return found


@pytest.mark.long
@pytest.mark.needs("taps")
def test_the_document_works_word_for_word() -> None:
    scope: dict[str, object] = {}
    for block in blocks():
        exec(compile(block, str(DOCUMENT), "exec"), scope)


def test_the_document_has_every_verb_and_no_other() -> None:
    verbs = {name for name, _ in inspect.getmembers(AsyncLab, inspect.isfunction) if not name.startswith("_")}
    verbs -= {"open", "close", "cont_living"}
    text = DOCUMENT.read_text()
    assert [verb for verb in sorted(verbs) if not re.search(rf"[`.]{verb}\(", text) and f"`{verb}`" not in text] == []
    used = set(re.findall(r"lab\.([a-z_]+)\(", text))
    assert used <= verbs | {"open", "close"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=int(patient(120)), resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "it draws"


def test_the_blocking_verbs_are_the_awaited_ones() -> None:
    for name, verb in inspect.getmembers(AsyncLab, inspect.iscoroutinefunction):
        if name.startswith("_") or name in ("open", "close", "cont_living"):
            continue
        blocking = getattr(Lab, name)
        assert not inspect.iscoroutinefunction(blocking), name
        assert blocking.__doc__ == verb.__doc__, name
        ours, theirs = (list(inspect.signature(one).parameters.values()) for one in (blocking, verb))
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], name


def test_async_with_on_plain_asyncio() -> None:
    async def main() -> str:
        async with Lab(guests=PAIR) as lab:
            record = await lab.stream("carl", "dora", frames=1000)
            assert (record["frames"], record["errors"]) == (1000, [])
            assert (await lab.status())["state"] == "up"
            return lab.name

    assert left_behind(asyncio.run(main())) == []


def test_with_inside_a_running_loop() -> None:
    async def main() -> str:
        with Lab(guests=PAIR) as lab:
            assert lab.stream("carl", "wire", frames=1000)["frames"] == 1000
            return lab.name

    assert left_behind(asyncio.run(main())) == []


def test_an_exception_in_the_block_takes_it_down() -> None:
    names: list[str] = []

    def fails() -> None:
        with Lab(guests=PAIR) as lab:
            names.append(lab.name)
            raise KeyError("of the user's")

    with pytest.raises(KeyError, match="of the user's"):
        fails()
    assert left_behind(names[0]) == []


def test_two_labs_at_a_time_and_one_name_once() -> None:
    with Lab(guests=PAIR) as one, Lab(guests={"carl": "split"}) as other:
        assert one.name != other.name
        assert one.stream("carl", "wire", frames=500)["frames"] == other.stream("carl", "wire", frames=500)["frames"] == 500
        with pytest.raises(TopologyExists, match=one.name):
            Lab(guests=PAIR, name=one.name).open()
        assert one.stream("carl", "wire", frames=500)["frames"] == 500


@pytest.mark.parametrize(("argv", "most", "output"), [
    (["seq", "9999"], 15, "[48873 bytes before this are not kept]\n9997\n9998\n9999\n"),
    (["seq", "3"], 6, "1\n2\n3\n"),
    (["true"], 6, ""),
])  # fmt: skip
def test_of_what_a_program_prints_the_last_is_kept(
    argv: list[str], most: int, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> dict[str, object]:
        process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE)
        return await AsyncProgram("anna", argv, process, b"not read" * 100_000).wait()

    monkeypatch.setattr(programs, "MOST_OUTPUT", most)
    assert asyncio.run(main()) == {"guest": "anna", "argv": argv, "status": 0, "output": output}


def test_a_part_that_is_killed_is_told_and_the_rest_goes_on() -> None:
    with Lab(guests={**PAIR, "anna": "split"}) as lab:
        assert lab.kill("dora") == {"name": "dora", "cause": "died (signal 9)", "restarts": 0}
        with pytest.raises(WorkloadError, match="dora died"):
            lab.stream("carl", "dora", frames=10)
        assert lab.stream("carl", "wire", frames=1000)["frames"] == 1000
        os.kill(lab.pids()["anna"], signal.SIGKILL)
        wait_until(lambda: lab.status()["dead"] and len(lab.status()["dead"]) == 2, "the death to be noticed")
        with pytest.raises(WorkloadError, match="anna died"):
            lab.stream("anna", "wire", frames=10)


@pytest.mark.parametrize(("verb", "error", "text"), [
    (lambda lab: lab.stream("carl", "dorra", frames=1), WorkloadError, "did you mean 'dora'"),
    (lambda lab: lab.stream("carl", "carl", frames=1), WorkloadError, "is the sender itself"),
    (lambda lab: lab.round_trips("carl", "dora", frame=9000, frames=1), WorkloadError, "frame"),
    (lambda lab: lab.stream("carl", "dora", frames=1, seconds=1), WorkloadError, "exactly one of seconds and frames"),
    (lambda lab: lab.round_trips("wire", "dora", frames=1), WorkloadError, "the wire answers round trips"),
    (lambda lab: lab.streams([]), WorkloadError, "there are no pairs"),
    (lambda lab: lab.run("carl", ["true"]), LabError, "programs are run in guests with program"),
    (lambda lab: lab.run("nobody", ["true"]), LabError, "'nobody' is not a guest"),
    (lambda lab: lab.kill("dorra"), LabError, "did you mean 'dora'"),
    (lambda lab: lab.price(hypercal_ns=1), LabError, "did you mean 'hypercall_ns'"),
    (lambda lab: lab.ablate(bonce=1), LabError, "did you mean 'bounce'"),
    (lambda lab: lab.spin(-1), LabError, "not in"),
])  # fmt: skip
def test_what_cannot_be_done_is_an_error_that_names_it(pair_lab: Lab, verb: object, error: type[Exception], text: str) -> None:
    assert callable(verb)
    with pytest.raises(error, match=re.escape(text)):
        verb(pair_lab)
    assert pair_lab.stream("carl", "dora", frames=100)["frames"] == 100, "the lab goes on"


@pytest.fixture(scope="module")
def pair_lab() -> object:
    with Lab(guests=PAIR) as lab:
        yield lab


def test_a_topology_that_is_none_says_everything_before_anything_is_started() -> None:
    with pytest.raises(TopologyError) as caught:
        Lab(guests={"anna": "splitt", "wire": "bypass"}, nic={"queue": 3})
    assert {key for key, _ in caught.value.problems} >= {"guest[0].path", "guest[1].name", "nic.queue"}
    with pytest.raises(TypeError, match="a lab needs a topology"):
        Lab()
    with pytest.raises(TypeError, match="not both"):
        Lab({"guest": []}, guests=PAIR)


def test_a_verb_outside_the_block_says_what_to_do() -> None:
    lab = Lab(guests=PAIR)
    with pytest.raises(LabError, match="is not up: use `with Lab"):
        lab.stream("carl", "dora", frames=1)
    lab.close()


INTERRUPTED = """
import sys
from asyncio.subprocess import PIPE
from lab import Lab
with Lab(guests={"carl": "bypass", "dora": "bypass"}, name=sys.argv[1]) as lab:
    print("up", flush=True)
    lab.stream("carl", "dora", seconds=600)
"""


def test_an_interrupt_takes_it_down() -> None:
    name = f"interrupted-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=patient(30))
    assert process.returncode in (-signal.SIGINT, 1)
    assert "KeyboardInterrupt" in stderr
    assert left_behind(name) == []


INSTALLED = """
import lab, sys
assert not lab.__file__.startswith(sys.argv[1]), lab.__file__
with lab.Lab(guests={"carl": "bypass", "anna": "split"}) as one:
    assert one.stream("carl", "anna", frames=500)["frames"] == 500
print(len(list(lab.shipped().glob("*.toml"))), "topologies")
"""


@pytest.mark.long
def test_it_works_installed_without_the_repository(tmp_path: Path) -> None:
    """A wheel in an environment of its own, beside the packages that are here already."""
    wheels, target = tmp_path / "wheels", tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True, timeout=patient(60))
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(copy)]
    subprocess.run(build, check=True, timeout=patient(120))
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=patient(120))
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED, str(ROOT)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=patient(200)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(list((ROOT / 'topologies').glob('*.toml')))} topologies\n"
