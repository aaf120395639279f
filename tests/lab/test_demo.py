"""The demo, whole and in short: as everybody runs it, and with all guests confined."""

import json
from pathlib import Path

import pytest

from tests.support.labs import launch

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps", "confinement"), pytest.mark.long]


@pytest.mark.parametrize("options", [[], ["--confined"]], ids=["plain", "confined"])
def test_it_shows_what_it_is_to_show(tmp_path: Path, options: list[str]) -> None:
    """Streams on both paths, the proof, round trips and downloads between programs; nothing is lost, all arrives whole."""
    out = tmp_path / "demo.json"
    done = launch("demo", "--seconds", "0.1", "--json", str(out), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert {one["path"] for one in record["workloads"]} >= {"split", "bypass"}
    assert not any(one["errors"] for one in record["workloads"])
    for path in ("split", "bypass"):
        assert record["programs"][path]["ping"]["ok"]
        assert record["programs"][path]["download"]["text"].endswith("SHA-256 equal")
