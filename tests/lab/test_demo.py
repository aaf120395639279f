"""The demo, whole and in short: as everybody runs it, and with all guests confined."""

import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.labs import ROOT, RUN_S, launch
from tests.support.patience import patient

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps", "confinement"), pytest.mark.long]

NOBODY = 65534


@pytest.mark.parametrize("options", [[], ["--confined"]], ids=["plain", "confined"])
def test_it_shows_what_it_is_to_show(tmp_path: Path, options: list[str]) -> None:
    """Streams on both paths, the proof, round trips and downloads between programs; nothing is lost, all arrives whole."""
    out, page = tmp_path / "demo.json", tmp_path / "demo.html"
    done = launch("demo", "--seconds", "0.1", "--json", out, "--page", page, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert {one["path"] for one in record["workloads"]} >= {"split", "bypass"}
    assert not any(one["errors"] for one in record["workloads"])
    for path in ("split", "bypass"):
        assert record["programs"][path]["ping"]["ok"]
        assert record["programs"][path]["download"]["text"].endswith("SHA-256 equal")
    ways = {(way["path"], way["way"]): [hop["id"] for hop in way["hops"]] for way in record["hops"]["ways"]}
    assert ways == {
        ("split", "tx"): ["anna>dom0", "dom0>nic", "nic>wire"], ("split", "rx"): ["wire>nic", "nic>dom0", "dom0>anna"],
        ("bypass", "tx"): ["carl>nic", "nic>wire"], ("bypass", "rx"): ["wire>nic", "nic>carl"],
    }  # fmt: skip
    text = page.read_text()
    assert "SHA-256 equal" in text
    assert not re.search(r"https?:(?!//www\.w3\.org/)|src=|@import|url\(", text), "it needs nothing but itself"


def test_where_the_page_cannot_be_written_nothing_is_started(tmp_path: Path) -> None:
    done = launch("demo", "--page", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"--page {tmp_path}: Is a directory\n"


def test_confined_guests_need_not_be_able_to_read_the_lab(tmp_path: Path) -> None:
    """Root without its capabilities can't enter a folder of another's that is closed to all others; nor can a confined guest."""
    closed = tmp_path / "home"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", closed], check=True)
    (packages,) = closed.glob("lib/python3*/site-packages")
    (packages / "lab.pth").write_text("\n".join(site.getsitepackages()))
    os.chown(closed, NOBODY, NOBODY)
    closed.chmod(0o700)
    command: list[str | Path] = [
        closed / "bin" / "python",
        ROOT / "launch.py",
        "demo",
        "--confined",
        "--seconds",
        "0.1",
        "--page",
        tmp_path / "demo.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(RUN_S))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SHA-256 equal" in done.stdout
