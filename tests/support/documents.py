"""Our documents and our sources, as texts."""

from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
OURS = ("hyp", "nic", "dom0", "domu", "lab", "bench", "tests")


@lru_cache
def read(document: str) -> str:
    """A document's text, with every run of white space as one space, so that a pattern need not know where lines end."""
    return " ".join((ROOT / document).read_text().split())


def sources() -> list[Path]:
    """All our Python files."""
    return [path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "launch.py"]
