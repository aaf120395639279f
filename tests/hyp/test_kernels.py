"""Compiled code: cached, never stale, and there whatever has become of the cache."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyp.kernels.reach import HERE
from hyp.kernels.store import MOST, UNUSED_S, Store, default_folder
from tests.support.labs import wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

ROOT = HERE.parent.parent

PROBE = """
from hyp.kernels import compiled, entry, operation, i64
from hyp.probe_helper import helper
from hyp.abi.probe_layout import OFFSET

@entry(i64(i64))
def probe(x):
    return helper(x, 0) * 1000 + helper(x, 1) - helper(x, 1) + OFFSET
"""
OTHER = """
from hyp.kernels import operation, i64
from hyp.probe_helper import helper
from hyp.probe_leaf import LEAF

@operation(i64(i64))
def other(x):
    return helper(x, LEAF)
"""
LEAF = "from hyp.kernels import compiled\n\nLEAF = 0\n"
HELPER = "from hyp.kernels import compiled, outlined\n\n@outlined\ndef helper(x, y):\n    return max(x, y) + 1 + y\n"
RUN = """
import ctypes, json, os, sys
from hyp import kernels
from hyp.kernels import inlining
from hyp.probe import probe
from hyp.probe_other import other

forked, plain = [], os.fork
def fork():
    forked.append(plain())
    return forked[-1]
os.fork = fork
exec(os.environ.get("BEFORE", ""))
missing = [kernel.name for kernel in kernels.missing()]
loaded = {name: compiled for name, _, _, compiled, _ in kernels.load_all(together=True)}
operation = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(other.address)
try:
    os.waitpid(-1, os.WNOHANG)
    left = True
except ChildProcessError:
    left = False
from hyp.probe_helper import helper
print(json.dumps({
    "missing": sorted(missing), "compiled": sorted(name for name, fresh in loaded.items() if fresh), "loaded": sorted(loaded),
    "values": [probe(1), operation(1)], "forked": len(forked), "left": left, "trouble": kernels.store.trouble,
    "helpers": len(helper.overloads), "inlining": inlining.works(),
}))
"""
WAITS = """
caller, read = os.getpid(), os.read
def late(fd, length):
    if length == 2 and os.getpid() == caller:  # a claim: let the helper have them all
        os.waitid(os.P_PID, forked[0], os.WEXITED | os.WNOWAIT)
    return read(fd, length)
os.read = late
"""
DIES = """
caller, save = os.getpid(), kernels._Cache.save_overload
def dies(*args):
    if os.getpid() != caller:
        os.kill(os.getpid(), 9)
    save(*args)
kernels._Cache.save_overload = dies
"""
KILLED = """
caller, read = os.getpid(), os.read
def killed(fd, length):
    if length == 2 and os.getpid() == caller:  # a claim
        os.kill(caller, 9)
    return read(fd, length)
os.read = killed
"""
BOTH = ["hyp.probe.probe", "hyp.probe_other.other"]
RIGHT = [2007, 2]


class Tree:
    """A copy of what hyp/kernels needs, with two kernels, a helper elsewhere, a constant that one of them takes, and a layout."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cache = folder / "tree", folder / "cache"
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("abi", "kernels"):
            shutil.copytree(ROOT / "hyp" / name, self.root / "hyp" / name, ignore=ignore)
        for name in ("__init__.py", "linux.py"):
            shutil.copy(ROOT / "hyp" / name, self.root / "hyp" / name)
        for name, text in {
            "probe": PROBE, "probe_other": OTHER, "probe_leaf": LEAF, "probe_helper": HELPER, "abi/probe_layout": "OFFSET = 7\n"
        }.items():  # fmt: skip
            self.write(f"hyp/{name}.py", text)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    @property
    def files(self) -> list[Path]:
        return sorted((self.cache / "kernels").iterdir())

    def file_of(self, kernel: str) -> Path:
        return next(path for path in self.files if path.name.startswith(f"{kernel}-"))

    def start(self, preexec: Callable[[], None] | None = None, **env: str | None) -> "subprocess.CompletedProcess[str]":
        changed = {"XBL_CACHE": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1", **env}
        whole = {name: value for name, value in {**os.environ, **changed}.items() if value is not None}
        return subprocess.run(
            [sys.executable, "-c", RUN],
            cwd=self.root,
            env=whole,
            capture_output=True,
            text=True,
            timeout=patient(100),
            preexec_fn=preexec,
        )

    def run(self, preexec: Callable[[], None] | None = None, **env: str | None) -> dict[str, Any]:
        result = self.start(preexec, **env)
        assert result.returncode == 0, result.stderr
        return dict(json.loads(result.stdout))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    yield Tree(tmp_path)
    shutil.rmtree(tmp_path)


# --- what is compiled -------------------------------------------------------------------------------------------------


def test_a_warm_run_compiles_nothing_and_an_edit_is_never_served_stale(tree: Tree) -> None:
    first = tree.run()
    assert (first["missing"], first["values"], first["trouble"]) == (BOTH, RIGHT, None)
    warm = tree.run()
    assert (warm["missing"], warm["compiled"], warm["forked"], warm["values"]) == ([], [], 0, RIGHT)
    assert warm["loaded"] == BOTH
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*tree.files, tree.cache / "kernels")), "others may write compiled code"

    tree.write("hyp/probe_helper.py", HELPER.replace("+ 1", "+ 2"))
    edited = tree.run()
    assert (edited["missing"], edited["values"]) == (BOTH, [3007, 3]), "a caller kept the old callee"

    tree.write("hyp/abi/probe_layout.py", "OFFSET = 8\n")
    moved = tree.run()
    assert (moved["missing"], moved["values"]) == (["hyp.probe.probe"], [3008, 3]), "a caller kept the old layout"

    tree.write("hyp/probe_leaf.py", LEAF.replace("0", "5"))
    leaf = tree.run()
    assert (leaf["missing"], leaf["values"]) == (["hyp.probe_other.other"], [3008, 12]), "only who reaches it, and not the old one"

    tree.write("hyp/probe_helper.py", HELPER)
    tree.write("hyp/probe_leaf.py", LEAF)
    tree.write("hyp/abi/probe_layout.py", "OFFSET = 7\n")
    tree.write("hyp/plain.py", "VALUE = 1\n")  # no compiled code: none of the cache's business
    back = tree.run()
    assert (back["missing"], back["values"]) == ([], RIGHT)


@pytest.mark.long
def test_the_settings_of_numba_are_in_the_key(tree: Tree) -> None:
    tree.run()
    assert tree.run(NUMBA_OPT="0")["missing"] == BOTH
    assert tree.run(NUMBA_NUM_THREADS="1")["missing"] == [], "nothing that it compiles depends on that"


@pytest.mark.parametrize("plain", [False, True])
def test_a_helper_is_typed_once_for_all_literals_or_numba_does_it_in_its_own_way(tree: Tree, plain: bool) -> None:
    before = "os.sched_getaffinity = lambda pid: {0}\n" + ("inlining.UNNEEDED = None" if plain else "")
    found = tree.run(BEFORE=before)
    assert found["values"] == RIGHT
    assert found["inlining"] is not plain
    assert found["helpers"] == (2 if plain else 1)


@pytest.mark.needs("two-cpus")
def test_what_a_helper_compiles_is_not_compiled_again_and_it_is_gone_afterwards(tree: Tree) -> None:
    found = tree.run(BEFORE=WAITS)
    assert (found["forked"], found["compiled"], found["left"]) == (1, [], False)
    assert (found["loaded"], found["values"]) == (BOTH, RIGHT)


@pytest.mark.needs("two-cpus")
def test_what_a_dead_helper_had_claimed_is_compiled_by_the_caller(tree: Tree) -> None:
    found = tree.run(BEFORE=DIES)
    assert (found["forked"], found["left"], found["values"]) == (1, False, RIGHT)
    assert tree.run()["missing"] == []


# --- what becomes of the cache ------------------------------------------------------------------------------------------


DAMAGES = ["cut off", "empty", "changed", "another's", "a link", "a folder", "a FIFO"]


@pytest.mark.parametrize("damage", tiered(DAMAGES, ["cut off"]))
def test_a_bad_file_is_compiled_again_and_replaced(tree: Tree, damage: str) -> None:
    tree.run()
    bad = tree.file_of(BOTH[0])
    whole = bad.read_bytes()
    if damage in ("cut off", "empty"):
        os.truncate(bad, len(whole) // 2 if damage == "cut off" else 0)
    elif damage == "changed":
        bad.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "another's":
        bad.write_bytes(tree.file_of(BOTH[1]).read_bytes())
    else:
        bad.unlink()
        if damage == "a link":
            (tree.root / "elsewhere").write_bytes(whole)
            bad.symlink_to(tree.root / "elsewhere")
        elif damage == "a FIFO":
            os.mkfifo(bad)
        else:
            bad.mkdir()
    found = tree.run()
    assert (found["missing"], found["values"]) == ([BOTH[0]], RIGHT)
    if damage == "a folder":
        assert str(bad) in found["trouble"]
    else:
        assert (found["trouble"], tree.run()["missing"]) == (None, [])


def test_what_others_could_have_written_is_not_loaded(tree: Tree) -> None:
    tree.run()
    tree.file_of(BOTH[0]).chmod(0o666)
    assert tree.run()["missing"] == [BOTH[0]]
    assert tree.file_of(BOTH[0]).stat().st_mode & 0o777 == 0o600


def test_without_a_folder_that_can_be_written_it_compiles_each_time_and_nowhere_else(tree: Tree, tmp_path: Path) -> None:
    """Not into numba's own cache either, which does not notice an edit in a helper."""
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "tmp").mkdir()
    surroundings: dict[str, Any] = {
        "XBL_CACHE": str(file / "cache"),
        "HOME": str(file),
        "TMPDIR": str(tmp_path / "tmp"),
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
    }
    for text, values in ((HELPER, RIGHT), (HELPER.replace("+ 1", "+ 2"), [3007, 3])):
        tree.write("hyp/probe_helper.py", text)
        found = tree.run(**surroundings)
        assert (found["missing"], found["values"]) == (BOTH, values)
        assert found["trouble"] == f"{file}/cache/kernels: Not a directory"
    assert not (tmp_path / "numba").exists()
    assert list((tmp_path / "tmp").iterdir()) == [], "the folder by which the compiling processes met is left"
    assert list(tree.root.rglob("__pycache__")) == []


@pytest.mark.needs("two-cpus")
def test_who_is_killed_while_it_compiles_without_a_cache_leaves_no_folder(tree: Tree, tmp_path: Path) -> None:
    file, passing = tmp_path / "file", tmp_path / "tmp"
    file.touch()
    passing.mkdir()
    died = tree.start(BEFORE=KILLED, XBL_CACHE=str(file / "cache"), TMPDIR=str(passing))
    assert died.returncode == -9, died.stderr
    wait_until(lambda: not any(passing.iterdir()), "the folder by which the compiling processes met is removed")


def test_a_full_disk_costs_nothing_but_the_cache(tree: Tree) -> None:
    found = tree.run(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    assert found["values"] == RIGHT
    assert str(tree.cache) in found["trouble"]
    assert "too large" in found["trouble"]
    assert tree.files == []


def test_a_user_without_a_home(tree: Tree) -> None:
    found = tree.run(XBL_CACHE="", XDG_CACHE_HOME=None, HOME="/proc/nowhere")
    assert found["values"] == RIGHT
    assert found["trouble"].startswith("/proc/nowhere")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XBL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_folder() == Path("/c/xen-bypass-lab/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert default_folder() == Path("/h/.cache/xen-bypass-lab/kernels")
    monkeypatch.setenv("XBL_CACHE", "/x [y] z")
    assert default_folder() == Path("/x [y] z/kernels")
    monkeypatch.delenv("XBL_CACHE")
    monkeypatch.setattr(Path, "home", _no_home)
    assert default_folder() is None
    store = Store(None)
    assert (store.read("a", "0" * 32), store.write("a", "0" * 32, b""), store.is_writable()) == (None, False, False)
    assert "HOME" in str(store.trouble)


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_compiling_cannot_be_switched_off(tree: Tree) -> None:
    assert tree.run(NUMBA_DISABLE_JIT="1")["values"] == RIGHT


# --- what is kept ---------------------------------------------------------------------------------------------------------


def test_what_is_unused_for_long_is_removed_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = {f"{number:032x}" for number in range(4)}
    for key in names:
        assert store.write("a.b", key, b"data")
    old = [path for path in tmp_path.iterdir() if not path.name.endswith(f"{3:032x}.kernel")]
    foreign, elsewhere = tmp_path / f"c-{0:032x}.kernel", tmp_path / "elsewhere"
    foreign.write_text("not ours")
    elsewhere.write_bytes(old[0].read_bytes())
    link = tmp_path / f"d-{0:032x}.kernel"
    link.symlink_to(elsewhere)
    (tmp_path / "notes").write_text("the user's")
    for path in (*old, foreign, elsewhere, tmp_path / "notes"):
        os.utime(path, (0, os.stat(path).st_mtime - UNUSED_S - 60))
    assert store.read("a.b", f"{0:032x}") == b"data"  # and so it is in use
    assert store.write("e", "0" * 32, b"new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        f"a.b-{0:032x}.kernel", f"a.b-{3:032x}.kernel", foreign.name, elsewhere.name, link.name, "notes", f"e-{0:032x}.kernel"
    }  # fmt: skip


def test_of_one_kernel_only_so_many_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write("other", "0" * 32, b"kept")
    for number in range(MOST + 5):
        assert store.write("a", f"{number:032x}", b"data")
        os.utime(tmp_path / f"a-{number:032x}.kernel", (0, number - 1000 + os.stat(tmp_path).st_mtime))
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("a-"))
    assert left == [f"a-{number:032x}.kernel" for number in range(5, MOST + 5)]
    assert store.read("other", "0" * 32) == b"kept"
