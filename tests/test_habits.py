"""What a test must not do, read off the sources: wait for a number of seconds, or see for itself whether the machine has a tool."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.labs import ROOT

TESTS = ROOT / "tests"
OWN = {TESTS / "support" / name for name in ("needs.py", "patience.py", "tools.py", "fuzz.py")} | {TESTS / "test_needs.py"}
LIMITED = {"wait", "join", "communicate", "result", "settimeout", "alarm"}
"""Methods that take a limit as their argument."""
SEEN_ELSEWHERE = {"shutil.which", "pytest.mark.skipif", "pytest.importorskip", "pytest.mark.timeout"}


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def offences(source: str) -> Iterator[str]:
    """Lines that break a rule, each with what is wrong."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in SEEN_ELSEWHERE:
            yield f"{node.lineno}: {ast.unparse(node)}: needs(...) and patience.py do that"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        seconds = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
        if called.rpartition(".")[2] in LIMITED and node.args and "." in called:
            seconds.append(node.args[0])
        if any(is_number(one) and ast.literal_eval(one) > 1 for one in seconds):
            yield f"{node.lineno}: {called}: a limit is patient(seconds)"
        if called == "time.sleep" or (
            called == "asyncio.sleep" and not (is_number(node.args[0]) and ast.literal_eval(node.args[0]) == 0)
        ):
            yield f"{node.lineno}: {called}: wait for a condition"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("process.wait(30)", True), ("process.wait(patient(30))", False), ("subprocess.run([], timeout=60)", True),
        ("time.sleep(0.1)", True), ("asyncio.sleep(0)", False), ("asyncio.sleep(1)", True), ("shutil.which('ping')", True),
        ("', '.join(names)", False), ("pending.result(0.3)", False), ("thread.join(10)", True),
    ],
)  # fmt: skip
def test_the_rules_see_what_they_are_about(line: str, wrong: bool) -> None:
    assert bool(list(offences(line))) == wrong


SLEEPS = {"labs.py", "guests.py", "test_isolation.py", "test_paths.py", "test_peers.py"}
"""Where a condition is polled for, once for all tests; and where a time passes in which nothing is to happen."""


def test_no_test_breaks_them() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{offence}"
        for path in sorted(Path(TESTS).rglob("*.py"))
        if path not in OWN
        for offence in offences(path.read_text())
        if not (path.name in SLEEPS and "wait for a condition" in offence)
    }
    assert found == set()
