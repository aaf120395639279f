"""The run folder and `clean`: only what the lab made is removed, what lives is known in any environment, looking makes nothing."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyp import ownfiles
from hyp.memory import create_region
from hyp.shm import SHM
from lab import rundir
from lab.rundir import RunDir, TopologyExists
from tests.support.labs import (
    ROOT,
    launch,
    left_behind,
    machine_of_its_own,
    processes,
    staying_up,
    topology_file,
    unique,
    wait_until,
)
from tests.support.patience import patient

TAP = '[[guest]]\nname = "alice"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.1/24"\n'
UNKNOWN_UID = 40_000_000 + os.getpid()
as_root = pytest.mark.needs("root")  # which alone can be another user


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own for run folders; not made yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "xen-bypass-lab"


@pytest.fixture
def name() -> Iterator[str]:
    """A topology's name; nothing of it is in /dev/shm afterwards."""
    name = unique("rundir")
    yield name
    for path in SHM.glob(f"xbl.{os.getuid()}.{name}.*"):
        path.unlink()


def left_by_a_dead_one(name: str) -> RunDir:
    """A run folder and an object whose keeper was killed."""
    run = RunDir(name)
    os.close(run.acquire())
    (run.path / "log").write_text("it died")
    os.close(create_region("posix", name, "anna", "ram", 4096).fd)
    return run


# --- what is removed -------------------------------------------------------------------------------------------------


def test_what_a_dead_topology_left_is_removed_and_told(place: Path, name: str) -> None:
    run = left_by_a_dead_one(name)
    assert rundir.clean(name) == [f"{SHM}/xbl.{os.getuid()}.{name}.anna.ram", str(run.path)]
    assert list(place.iterdir()) == list(SHM.glob(f"*{name}*")) == []
    assert rundir.clean(name) == []


def test_clean_finds_the_folder_under_another_runtime_dir(
    place: Path, name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = left_by_a_dead_one(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("elsewhere")))
    assert str(run.path) in rundir.clean(name)
    assert not run.path.exists()


def test_a_folder_whose_lock_is_gone_is_found_by_its_marker(place: Path, name: str) -> None:
    """As after a restart of the machine, which empties /dev/shm and maybe not /tmp."""
    run = left_by_a_dead_one(name)
    for path in SHM.glob(f"*.{name}.*"):
        path.unlink()
    assert rundir.clean(name) == [str(run.path)]


def test_a_link_in_the_place_of_the_place_is_not_followed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user can lay one in /tmp. It leads to this user's home, or even to another place of the lab."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    run = left_by_a_dead_one(name)
    (SHM / f"xbl.{os.getuid()}.{name}.lock").unlink()
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    link = tmp_path / "link"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(rundir, "short_place", lambda: link)
    for target, folder in ((run.path.parent, run.path), (tmp_path / "home", tmp_path / "home" / "thesis")):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        rundir.clean()
        rundir.clean(folder.name)
        assert folder.exists()
        with pytest.raises(PermissionError, match="is a link, and not followed") as caught:
            RunDir(folder.name).acquire()
        assert caught.value.filename == str(link)
        assert folder.exists()
        assert not RunDir(folder.name).lock_path.exists()


def test_links_below_the_run_folder_are_not_followed(place: Path, name: str, tmp_path: Path) -> None:
    """Neither one inside nor one in the place of the folder itself."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("kept")
    run = left_by_a_dead_one(name)
    (run.path / "deep").mkdir()
    (run.path / "deep" / "link").symlink_to(tmp_path / "home")
    rundir.clean(name)
    assert not run.path.exists()
    run = left_by_a_dead_one(name)
    run.path.rename(tmp_path / "moved")
    run.path.symlink_to(tmp_path / "moved")
    rundir.clean(name)
    assert (tmp_path / "moved" / "log").exists()
    assert (tmp_path / "home" / "thesis").read_text() == "kept"


@pytest.mark.parametrize("spoil", ["no marker", "another's marker", "writable by all"])
def test_a_folder_that_the_lab_has_not_made_stays(place: Path, name: str, spoil: str) -> None:
    run = left_by_a_dead_one(name)
    if spoil == "no marker":
        (run.path / rundir.MARKER).unlink()
    elif spoil == "another's marker":
        (run.path / rundir.MARKER).write_text((run.path / rundir.MARKER).read_text().replace(name, "other"))
    else:
        run.path.chmod(0o777)
    rundir.clean(name)
    assert (run.path / "log").read_text() == "it died"
    with pytest.raises(FileExistsError, match="is no run folder of the lab's"):
        run.acquire()
    assert (run.path / "log").exists()


def test_a_cache_in_the_same_place_stays(tmp_path: Path, name: str, warm: None) -> None:
    """XDG_RUNTIME_DIR = XDG_CACHE_HOME: the compile cache and run folders lie side by side."""
    cache = tmp_path / "xen-bypass-lab" / "0123456789abcdef01234567"
    cache.mkdir(parents=True, mode=0o700)
    (cache / "kernel.nbi").write_text("machine code")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = launch("clean", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert (cache / "kernel.nbi").read_text() == "machine code"


def spoiled(kind: str, path: Path) -> None:
    """Something under the name of one of the lab's files that the lab has not made."""
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir(0o700)
    else:
        path.touch(0o600)
        if kind == "hard link":
            os.link(path, path.with_suffix(".other"))
        elif kind == "open to all":
            path.chmod(0o666)
        else:
            os.chown(path, UNKNOWN_UID, -1)


SPOILS = ["link", "pipe", "folder", "hard link", "open to all", pytest.param("another user's", marks=as_root)]


@pytest.mark.parametrize("kind", SPOILS)
def test_what_only_looks_like_an_object_of_the_lab_stays(place: Path, name: str, kind: str) -> None:
    path = SHM / f"xbl.{os.getuid()}.{name}.anna.ram"
    try:
        spoiled(kind, path)
        assert rundir.clean(name) == []
        assert path.is_symlink() or path.exists()
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
        path.with_suffix(".other").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", SPOILS)
def test_a_lock_that_the_lab_has_not_made_is_nobodys_and_said(place: Path, name: str, kind: str) -> None:
    run = RunDir(name)
    try:
        spoiled(kind, run.lock_path)
        assert not run.is_alive()
        assert name not in [one.name for one in rundir.living()]
        assert rundir.clean(name) == []
        with pytest.raises(OSError, match=name) as caught:
            run.acquire()
        assert caught.value.filename == str(run.lock_path)
        assert not run.path.exists()
    finally:
        run.lock_path.rmdir() if kind == "folder" else run.lock_path.unlink()
        run.lock_path.with_suffix(".other").unlink(missing_ok=True)


# --- what lives ------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_whoever_inherited_it_and_asked_about_without_being_taken(place: Path, name: str) -> None:
    run = RunDir(name)
    lock = run.acquire()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    assert run.is_alive()
    assert [str(one.path) for one in rundir.living() if one.name == name] == [str(run.path)]
    with pytest.raises(TopologyExists, match="is running"):
        RunDir(name).acquire()
    assert rundir.clean(name) == []
    child.communicate(b"\n")
    assert not run.is_alive()
    asking = os.open(run.lock_path, os.O_RDWR)  # nothing that only asks is in the way of whoever takes it
    assert not ownfiles.is_locked(asking)
    taken = run.acquire()
    assert ownfiles.is_locked(asking) or not os.path.samestat(os.fstat(asking), os.fstat(taken))
    run.remove()
    os.close(taken)
    os.close(asking)
    assert not run.lock_path.exists()


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"made_by": "x", "folder": "/"}', '{"made_by": "xen-bypass-lab", "folder": "/tmp"}']
)
def test_a_record_that_says_nothing_of_use(place: Path, name: str, record: str) -> None:
    run = left_by_a_dead_one(name)
    run.lock_path.write_text(record)
    assert RunDir.of(name).path == run.path  # where it would be made here
    rundir.clean(name)
    assert not run.path.exists()


@pytest.mark.needs("taps")
def test_a_living_topology_is_known_under_another_runtime_dir(tmp_path: Path, warm: None) -> None:
    """`clean` takes nothing of it, no second one starts, and status, exec and stop find it."""
    name, elsewhere = unique("env"), tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(elsewhere)}
    file = topology_file(tmp_path, "env", TAP)
    with staying_up(file) as (process, _):
        before = left_behind(name)
        assert len(before) > 10
        assert name not in launch("clean", env=env).stdout
        assert left_behind(name) == before
        again = launch("run", file, env=env)
        assert (again.returncode, again.stdout) == (3, f"a topology named '{name}' is running (launch.py status)\n")
        assert left_behind(name) == before
        shown = next(one for one in json.loads(launch("status", "--json", env=env).stdout) if one["name"] == name)
        assert shown["state"] == "up"
        assert launch("exec", "alice", "--topology", name, "--", "echo", "here", env=env).stdout == "here\n"
        assert launch("stop", name, env=env).stdout == f"{name} has been taken down\n"
        assert process.wait(patient(30)) == 143
    assert left_behind(name) == []
    assert list(elsewhere.iterdir()) == []


@pytest.mark.needs("mounts")
def test_looking_makes_nothing(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    with machine_of_its_own() as within:
        for command in (["status"], ["status", "--json"], ["check", str(ROOT / "topologies" / "demo.toml")], ["exec", "a", "b"],
                        ["stop"], ["stop", "x"], ["clean"]):  # fmt: skip
            done = launch(*command, env=env, within=within)
            assert "Traceback" not in done.stderr
            assert list(runtime.iterdir()) == []
        listed = subprocess.run([*within, "ls", "/dev/shm"], capture_output=True, text=True)
        assert (listed.returncode, listed.stdout) == (0, "")


# --- surroundings ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("taps")
def test_a_path_longer_than_a_socket_address(tmp_path: Path, warm: None) -> None:
    name = unique("long")
    runtime = tmp_path / ("x" * 120)
    runtime.mkdir(mode=0o700)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    with staying_up(topology_file(tmp_path, "long", TAP), env=env) as (process, _):
        assert (runtime / "xen-bypass-lab" / name / "keeper.sock").is_socket()
        assert launch("exec", "alice", "--topology", name, "--", "echo", "here", env=env).stdout == "here\n"
        assert launch("stop", name).returncode == 0
        assert process.wait(patient(30)) == 143
    assert left_behind(name) == []
    assert list((runtime / "xen-bypass-lab").iterdir()) == []


def _missing(runtime: Path) -> None:
    runtime.rmdir()


def _a_file(runtime: Path) -> None:
    runtime.rmdir()
    runtime.touch()


UNUSABLE: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "a file": _a_file,
    "writable by all": lambda runtime: runtime.chmod(0o777),
    "another user's": lambda runtime: os.chown(runtime, UNKNOWN_UID, -1),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=as_root if kind == "another user's" else ()) for kind in UNUSABLE])
def test_a_runtime_dir_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As root meets it with `sudo -E`: what root would make there would lock its owner out."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    UNUSABLE[kind](runtime)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert rundir.place() == Path(f"/tmp/xen-bypass-lab-{os.getuid()}")
    for command in (["status"], ["clean"], ["check", str(ROOT / "topologies" / "demo.toml")]):
        done = launch(*command)
        assert (done.returncode, done.stderr) == (0, "")
    assert not runtime.is_dir() or list(runtime.iterdir()) == []


def test_a_run_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "xen-bypass-lab").write_text("")
    done = launch("run", str(ROOT / "topologies" / "demo.toml"), env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/xen-bypass-lab: {os.strerror(errno.ENOTDIR)}\n")


def test_the_folder_is_for_this_user_alone(place: Path, name: str) -> None:
    mask = os.umask(0)
    try:
        run = RunDir(name)
        lock = run.acquire()
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in (place, run.path, run.lock_path, run.path / rundir.MARKER)
        }
        assert modes == {place.name: 0o700, name: 0o700, run.lock_path.name: 0o600, rundir.MARKER: 0o600}
        run.remove()
        os.close(lock)
    finally:
        os.umask(mask)


@as_root
@pytest.mark.needs("util-linux")
def test_a_user_without_a_name_or_a_home() -> None:
    """May read what root may, since the lab's own files can be where nobody else gets to."""
    within = ["setpriv", f"--reuid={UNKNOWN_UID}", f"--regid={UNKNOWN_UID}", "--clear-groups"]
    within += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (["status"], ["clean"], ["stop"], ["check", str(ROOT / "topologies" / "demo.toml")]):
        done = launch(*command, env=env, within=within)
        assert (done.returncode, done.stderr) == (0, "")
    assert not Path(f"/tmp/xen-bypass-lab-{UNKNOWN_UID}").exists()


@pytest.mark.long
@pytest.mark.needs("taps")
def test_the_keeper_killed_and_another_started_meanwhile(tmp_path: Path, warm: None) -> None:
    """What the owner of a killed keeper cleans up is never what a new topology of the same name has made."""
    name = unique("again")
    with staying_up(topology_file(tmp_path, "again", TAP)) as (process, _):
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(next(pid for pid, line in processes(name).items() if line.split()[2:3] == ["keeper"]), signal.SIGKILL)
        wait_until(lambda: not RunDir(name).is_alive(), "the lock to be free")
        with staying_up(topology_file(tmp_path, "again", TAP)) as (second, _):
            os.kill(process.pid, signal.SIGCONT)
            assert process.wait(patient(30)) == 1
            assert launch("exec", "alice", "--topology", name, "--", "echo", "here").stdout == "here\n"
            second.send_signal(signal.SIGTERM)
            assert second.wait(patient(30)) == 143
    assert left_behind(name) == []
