"""What a command finds around it: an encoding, a width, a path, an editor's mark; and names as long as they may be."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from lab.command import encoding
from lab.command.screen import Screen
from lab.command.tables import PER_FRAME, ledger, rates
from lab.topology import load
from tests.support.labs import ROOT, launch, left_behind, start, staying_up, topology_file, unique
from tests.support.patience import patient
from tests.support.tiers import tiered

PAIR = '[[guest]]\nname = "anna"\npath = "split"\n[[guest]]\nname = "carl"\npath = "bypass"\n'
LOAD = '[[workload]]\nkind = "stream"\nfrom = "carl"\nto = "wire"\nframes = 1000\n'
LATIN = {"PYTHONIOENCODING": "iso-8859-1", "PYTHONUTF8": "0"}
PLAIN_C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LONG = "n" * 31


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", tiered([LATIN, PLAIN_C, {"PYTHONIOENCODING": "ascii"}], [LATIN]))
def test_results_where_standard_output_is_not_utf_8(tmp_path: Path, warm: None, env: dict[str, str]) -> None:
    file, out = topology_file(tmp_path, "latin", PAIR + LOAD), tmp_path / "out.json"
    process = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "run", str(file), "--json", str(out)],
        env={**os.environ, **env}, capture_output=True, timeout=patient(90), cwd=ROOT,
    )  # fmt: skip
    text = process.stdout.decode("iso-8859-1")
    assert (process.returncode, process.stderr) == (0, b""), text
    assert "stream carl > wire, 64 B, 1,000 frames: " in text
    assert "stream carl>wire " in text
    assert json.loads(out.read_text())["workloads"][0]["frames"] == 1000
    assert left_behind(unique("latin")) == []


def test_bench_too_speaks_any_encoding(tmp_path: Path) -> None:
    """What it prints last, and by name: its tables have arrows, dashes and a division sign."""
    script = "from bench.__main__ import main\nfrom lab.command.encoding import speak_any_encoding\n"
    script += "import contextlib\nwith contextlib.suppress(SystemExit): main(['nosuch'])\n"
    script += "from lab.command.screen import Screen\nScreen().print('a → b ÷ c – ≥ \\udcff')\n"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, cwd=ROOT
    )
    assert done.stdout == b"a > b / c - > \xff\n", done.stderr


@pytest.mark.parametrize(("codec", "shown"), [("ascii", b"> - / ? \xfe"), ("iso-8859-1", b"> - \xf7 ? \xfe"), ("utf-8", None)])
def test_what_an_encoding_does_not_have(codec: str, shown: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=codec)
    monkeypatch.setattr(sys, "stdout", stdout)
    encoding.speak_any_encoding()
    print("→ – ÷ ☃ \udcfe", end="", flush=True)
    monkeypatch.undo()
    stdout.seek(0)
    assert stdout.buffer.read() == (shown if shown is not None else "→ – ÷ ☃ ".encode() + b"\xfe")


def test_a_topology_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbf" + PAIR.encode())
    assert [guest.name for guest in load(file).guests] == ["anna", "carl"]
    assert launch("check", file).returncode == 0


# --- words and widths ------------------------------------------------------------------------------------------------


def shown(*objects: object, width: int | None = None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a Screen prints into a pipe."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    screen = Screen()
    if width is not None:
        screen.width = width
    for one in objects:
        screen.print(one)
    monkeypatch.undo()
    return out.getvalue()


def test_what_users_wrote_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "/data/[old]/[bold]a[/]/x:smile:y/[/red] [link=http://x]"
    table = Table("path", box=None)
    table.add_row(words)
    text = shown(words, Text(words), table, monkeypatch=monkeypatch)
    assert text.count(words) == 3
    long = "/" + "/".join(["a folder"] * 60)
    assert shown(long, width=80, monkeypatch=monkeypatch) == f"{long}\n"  # in one line, as whoever copies it needs it


RECORD = {
    "path": "bypass", "workload": "stream", "from": LONG, "to": "m" * 31, "frame": 1514, "frames": 10**12, "rtt_us": None,
    "cpu_us_per_frame": 0.1, "mpps": 123456.78, "gbps": 98765.43, "lost": 10**9,
    "per_frame": dict.fromkeys(PER_FRAME, 12345.678),
}  # fmt: skip


@pytest.mark.parametrize("width", [20, 80, None])
def test_tables_are_never_cut(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(rates([RECORD]), ledger([RECORD]), width=width, monkeypatch=monkeypatch)
    lines = text.splitlines()
    assert len(lines) == 4
    assert "…" not in text
    for line in (lines[1], lines[3]):
        assert f"stream {LONG}→{'m' * 31}" in line
    assert "1,000,000,000,000" in lines[3]
    assert lines[1].endswith("1,000,000,000")


@pytest.mark.needs("taps")
def test_a_command_in_a_folder_with_brackets(tmp_path: Path, warm: None) -> None:
    """The lab itself in such a folder, a topology and results in it, and the hint that can be copied."""
    folder = tmp_path / "a [old] lab"
    folder.mkdir()
    here = folder / "launch.py"
    shutil.copy(ROOT / "launch.py", here)
    for part in ("lab", "hyp", "dom0", "domu", "nic", "bench"):
        (folder / part).symlink_to(ROOT / part)
    file = topology_file(tmp_path, "old", '[[guest]]\nname = "alice"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.1/24"\n')
    within = [sys.executable, str(here), "run", str(file)]
    process = subprocess.Popen(within, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    hint = next(line for line in lines if "try:" in line)
    assert f"'{here}' exec" in hint
    process.terminate()
    assert process.wait(patient(60)) == 143
    process.stdout.close()


# --- the longest names -----------------------------------------------------------------------------------------------

SPOOF = """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for _ in range(50): s.send(bytes.fromhex("ffffffffffff02000000aaaa88b5") + bytes(50))
"""


@pytest.mark.needs("taps")
@pytest.mark.parametrize("path", tiered(["bypass", "trapped", "cdna", "split"], ["split"]))
def test_drops_of_the_guest_with_the_longest_name(tmp_path: Path, warm: None, path: str) -> None:
    """50 frames with somebody else's source address: all of them are told, wherever they are counted."""
    text = f'[[guest]]\nname = "{LONG}"\npath = "{path}"\nprogram = "tap"\naddress = "10.0.0.1/24"\n'
    with staying_up(topology_file(tmp_path, "longest", text)) as (process, _):
        sent = start("exec", LONG, "--topology", unique("longest"), "--", sys.executable, "-c", SPOOF)
        assert sent.communicate(timeout=patient(60))[0] == ""
        found = next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == unique("longest"))
        guest = found["guests"][0]
        assert guest["counters"]["tx_frames"] == 50
        assert guest["counters"]["drops"] == {"spoofed": 50}
        row = next(line for line in launch("status").stdout.splitlines() if line.split()[:2] == [LONG, "50"])
        assert row.endswith("  50 spoofed")
        process.terminate()
        assert process.wait(patient(60)) == 143
    assert left_behind(unique("longest")) == []
