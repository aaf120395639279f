"""What a topology takes of descriptors, processes and threads: as the model says, told before the start, named when met."""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from domu.netns import tried
from hyp import limits
from hyp.abi.sizes import GUEST_EVENTS
from hyp.control import MAX_UNSENT_FDS
from hyp.uring.ring import why_plain
from lab import demand
from lab.keeper import TITLE
from lab.owner import Lab
from lab.topology import TopologyError, check_machine, parse
from tests.support.labs import ROOT, launch, left_behind, processes, run, staying_up, topology_file, unique, until, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

OTHER_UID = 54321
MADE_OPEN = GUEST_EVENTS + MAX_UNSENT_FDS
"""What a guest may make the hypervisor open."""
MIXES: dict[str, dict[str, Any]] = {
    "one split": {"split": 1},
    "sealed": {"split": 3, "backing": "sealed"},
    "no split": {"bypass": 2, "native": 1},
    "trapped": {"trapped": 3},
    "engines": {"bypass": 2, "engines": 3},
    "cdna": {"cdna": 2},
    "queues": {"split": 2, "bypass": 2, "queues": 3, "engines": 2},
    "all": {"trapped": 2, "split": 3, "bypass": 2, "native": 1, "cdna": 2, "engines": 2, "tap": True},
}


def mixed(name: str, engines: int = 1, backing: str = "posix", tap: bool = False, queues: int = 1, **paths: int) -> dict[str, Any]:
    """A topology with so many guests of each path, of so many queues; with `tap`, the last of each has a TAP."""
    guests: list[dict[str, Any]] = []
    for path, count in paths.items():
        guests += [{"name": f"{path}{index}", "path": path, "memory": "8 MiB", "queues": queues} for index in range(count)]
        if tap:
            guests[-1] |= {"program": "tap", "address": f"10.0.0.{len(guests)}/24"}
    return parse({"name": unique(name), "guest": guests, "nic": {"engines": engines}, "memory": {"backing": backing}}).plain()


def counted(topology: dict[str, Any], kind: str) -> dict[str, int]:
    """What /proc says that each process has of "fd" or "task", by name."""
    pids = {line.split()[2]: pid for pid, line in processes(topology["name"]).items() if line.split()[0] == TITLE}
    return {name.removeprefix("domu:"): len(os.listdir(f"/proc/{pid}/{kind}")) for name, pid in pids.items()}


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", tiered(MIXES, ["one split", "queues", "all"], all=pytest.mark.needs("taps")))
def test_the_model_is_what_proc_says(mix: str) -> None:
    topology = mixed("model", **MIXES[mix])
    model = demand.descriptors(topology)
    of_launch = model.pop("launch.py")
    if tried(lambda tap: why_plain(tap.fd)) is not None:  # no io_uring here
        model |= {guest["name"]: model[guest["name"]] - 1 for guest in topology["guest"] if guest["program"] == "tap"}

    async def body() -> tuple[dict[str, int], dict[str, int], int, int]:
        before = len(os.listdir("/proc/self/fd"))

        descriptors, threads = (
            dict[str, int](),
            dict[str, int](),
        )  # as of the last look

        async def as_modelled() -> bool:
            descriptors.update(counted(topology, "fd"))
            threads.update(counted(topology, "task"))
            steady = threads == {name: n for name, n in demand.threads(topology).items() if name in threads}
            return steady and descriptors | {"keeper-stub": 0} == model | {"keeper-stub": 0}

        async with Lab(topology):
            with contextlib.suppress(AssertionError):  # which would not say what differs
                await until(as_modelled, "what was needed to start to be closed, and ended")
            return descriptors, threads, before, len(os.listdir("/proc/self/fd"))

    descriptors, threads, before, after = run(body())
    assert after - before <= of_launch
    assert descriptors.pop("keeper-stub", 0) <= 4
    assert descriptors == model
    assert threads == {name: n for name, n in demand.threads(topology).items() if name in threads}
    assert demand.threads(topology).keys() - threads.keys() <= {"keeper-stub"}  # none where there is no PID namespace


def test_most_descriptors_are_those_of_the_process_that_has_the_most() -> None:
    assert demand.most_descriptors(mixed("m", split=1)) == ("hyp", 30 + 4 + 10 + MADE_OPEN + demand.SPARE)
    assert demand.most_descriptors(mixed("m", bypass=1, native=1)) == ("hyp", 30 + 4 + (9 + MADE_OPEN) * 2 + demand.SPARE)
    assert demand.most_descriptors(mixed("m", trapped=64))[0] == "hyp"
    many = mixed("m", split=64)
    assert demand.most_descriptors(many) == ("hyp", 30 + 4 + (10 + MADE_OPEN) * 64 + demand.SPARE)


# --- descriptors -----------------------------------------------------------------------------------------------------


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


MANY = "".join(f'[[guest]]\nname = "g{index}"\npath = "trapped"\nmemory = "4 MiB"\n' for index in range(8))
MANY += '[[workload]]\nkind = "stream"\nfrom = "g0"\nto = "g7"\nframes = 1000\n'


def needed(file: Path) -> tuple[str, int]:
    from lab.topology import load

    return demand.most_descriptors(load(file).plain())


def test_just_enough_descriptors_and_one_too_few(tmp_path: Path) -> None:
    file, out = topology_file(tmp_path, "fds", MANY), tmp_path / "out.json"
    name, least = needed(file)
    for command in ("check", "run"):
        done = launch(command, file, preexec_fn=limited(64, least - 1))
        told = f"{name} needs {least}, and the hard limit of one process (ulimit -Hn) is {least - 1}"
        assert (done.returncode, done.stdout) == (2, "")
        assert f"  descriptors: {told}; raise it" in done.stderr
    assert f"{least} descriptors in one\n" in launch("check", file, preexec_fn=limited(64, least)).stdout
    done = launch("run", file, "--json", out, preexec_fn=limited(64, least))  # the soft limit is raised
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["workloads"][0]["frames"] == 1000
    assert left_behind(unique("fds")) == []


def test_clients_too_raise_their_soft_limit(tmp_path: Path) -> None:
    """All that talk to a topology: some send descriptors, too, which the same limit bounds."""
    file = topology_file(tmp_path, "client", MANY.partition("[[workload]]")[0])
    with staying_up(file) as (process, _):
        for command in (["trace", "--seconds", "0.1"], ["capture", "--seconds", "0.1", "--out", str(tmp_path / "out.pcapng")]):
            done = launch(*command, "--topology", unique("client"), preexec_fn=limited(16, 4096))
            assert (done.returncode, "limit" in done.stdout + done.stderr) == (0, False), done.stdout + done.stderr
        shown = launch("status", "--json", preexec_fn=limited(16, 4096))
        assert shown.returncode == 0, shown.stderr
        found = next(status for status in json.loads(shown.stdout) if status["name"] == unique("client"))
        assert found["state"] == "up"
        assert all(one["pid"] for one in found["processes"])
        process.terminate()
        process.wait(patient(30))


@pytest.mark.parametrize("most", tiered([40, 48, 60, 90, 110], [48, 90]))
def test_a_process_that_runs_out_of_descriptors_is_named_with_the_limit(most: int) -> None:
    """As it would be if the model were wrong: nobody checks, and the topology does not start."""
    topology = mixed("out", trapped=8)
    script = (
        "import asyncio, json, sys, uvloop\nfrom lab.owner import Lab, LabError\n"
        "async def main():\n"
        "    try:\n"
        "        async with Lab(json.loads(sys.argv[1])): print('up')\n"
        "    except LabError as error: print('LabError', error)\n"
        "asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(topology)], preexec_fn=limited(most, most), capture_output=True, text=True,
        timeout=patient(90), cwd=ROOT,
    )  # fmt: skip
    assert f"(ulimit -n) is {most}" in done.stdout, done.stdout + done.stderr
    assert "LabError" in done.stdout
    assert "Errno" not in done.stdout
    assert left_behind(topology["name"]) == []


# --- processes and threads -------------------------------------------------------------------------------------------


def test_too_few_processes_are_told_by_check(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = parse({"name": "few", "guest": [{"name": "one", "path": "trapped"}]})
    need = demand.processes(topology.plain())
    for free, problems in ((need, 0), (need - 1, 1)):
        limit = limits.Limit("this user's limit", 1000, 1000 - free, "raise it (ulimit -u)")
        monkeypatch.setattr(demand, "process_limits", lambda limit=limit: [limit])
        found = demand.shortages(topology.plain())
        assert len(found) == problems
    with pytest.raises(TopologyError) as caught:
        check_machine(topology)
    told = f"{need} processes and threads are needed, and this user's limit is 1000, {1000 - free} are used; raise it (ulimit -u)"
    assert caught.value.problems == [("processes", f"{told}, or have fewer guests")]


def test_the_limits_of_control_groups_and_the_machine(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/user/lab"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/lab\n")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/threads-max").write_text("5000\n")
    (tmp_path / "proc/loadavg").write_text("0.1 0.2 0.3 2/400 999\n")
    for folder, most, used in ((group, "max", 7), (group.parent, "64", 60)):
        (folder / "pids.max").write_text(f"{most}\n")
        (folder / "pids.current").write_text(f"{used}\n")
    found = limits.process_limits(tmp_path)
    assert [(limit.most, limit.used, limit.free) for limit in found if "ulimit" not in limit.name] == [
        (64, 60, 4),
        (5000, 400, 4600),
    ]


@contextmanager
def another_user() -> Iterator[tuple[list[str], dict[str, str]]]:
    """What a command line begins with to be run as a user without privilege who may read the lab, and its environment."""
    if os.getuid() != 0:
        yield [], dict(os.environ)
        return
    from hyp import kernels

    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        assert kernels.store.folder is not None
        shutil.copytree(kernels.store.folder, Path(place) / "cache" / kernels.store.folder.name)
        Path(place, "runtime").mkdir(0o700)
        subprocess.run(["chown", "-R", str(OTHER_UID), f"{place}/cache", f"{place}/runtime"], check=True)
        lines = []
        for path in {Path(sys.base_prefix), ROOT}:
            blocked = next((one for one in reversed(path.parents) if not one.stat().st_mode & 1), None)
            if blocked is not None:
                lines += [f"mkdir {place}/bound", f"mount --bind {path} {place}/bound"]
                lines += [f"mount -t tmpfs -o mode=755 tmpfs {blocked}", f"mkdir -p {path}", f"mount --bind {place}/bound {path}"]
        user = f"setpriv --reuid={OTHER_UID} --regid={OTHER_UID} --clear-groups"
        within = ["unshare", "--mount", "sh", "-c", " && ".join([*lines, f'exec {user} "$@"']), "sh"]
        env = {"XBL_CACHE": f"{place}/cache", "XDG_RUNTIME_DIR": f"{place}/runtime", "PYTHONDONTWRITEBYTECODE": "1"}
        yield within, {"PATH": os.environ["PATH"], **env}


LIMITED = """
import asyncio, json, resource, sys, uvloop
sys.path.insert(0, sys.argv[1])
from hyp import limits
from lab.owner import Lab, LabError
async def main():
    try:
        async with Lab(json.loads(sys.argv[2])): print("up")
    except LabError as error: print("LabError", error)
most = limits._threads_of(__import__("os").getuid()) + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner: runner.run(main())
print("limit", most)
"""


@pytest.mark.needs("util-linux")
@pytest.mark.parametrize("room", tiered([0, 1, 2, 3, 5, 7, 9, 12], [0, 5]))
def test_a_process_or_thread_that_cannot_be_is_named_with_the_limit(room: int) -> None:
    """Each step of the start, from the keeper's process to a guest's thread. Root is exempt from the limit, hence another user."""
    topology = mixed("nproc", trapped=1, split=1)
    with another_user() as (within, env):
        command = [*within, sys.executable, "-c", LIMITED, str(ROOT), json.dumps(topology), str(room)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=patient(120), cwd="/")
    if "limit" not in done.stdout:
        pytest.skip(f"no command can be run as another user here: {done.stderr[-200:]}")
    most = int(done.stdout.split()[-1])
    assert "LabError" in done.stdout
    assert re.search(r"(\S+|the \S+( \S+)?) could not (be )?start", done.stdout), done.stdout
    assert f"(ulimit -u) is {most}, " in done.stdout, done.stdout + done.stderr
    wait_until(lambda: not processes(topology["name"]), "all processes to end")
    assert not list(Path("/dev/shm").glob(f"xbl.*.{topology['name']}.*"))
