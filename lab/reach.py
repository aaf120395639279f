"""Whom a death cuts off: what each path needs, of the processes that all guests share, while data flows."""

from collections.abc import Iterable, Sequence
from typing import Any

from hyp.paths import PATHS


def lost(path: str, role: str) -> str | None:
    """What guests on `path` are once the process with `role` is dead ("cut off"); None if their data goes on."""
    return PATHS[path].cut_off_by.get(role)


def consequences(guests: Iterable[dict[str, Any]], processes: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each dead process that guests share: which of the living guests are cut off, and what goes on.

    `guests` with "name" and "path", `processes` with "name", "role" and "state", as the keeper's status has them.
    """
    living = {process["name"] for process in processes if process["state"] in ("ready", "starting")}
    by_path: dict[str, list[str]] = {}
    for guest in guests:
        if guest["name"] in living:
            by_path.setdefault(guest["path"], []).append(guest["name"])
    dead = [process for process in processes if process["name"] not in living and process["role"] != "domu"]
    return [_sentence(process["name"], process["role"], by_path) for process in dead if by_path]


def _sentence(name: str, role: str, by_path: dict[str, list[str]]) -> str:
    parts = []
    for path, names in by_path.items():
        if (what := lost(path, role)) is not None:
            guests, verb = ("guest", "is") if len(names) == 1 else ("guests", "are")
            parts.append(f"{path} {guests} {', '.join(names)} {verb} {what}")
    going_on = [path for path in by_path if lost(path, role) is None]
    if going_on:
        parts.append(f"{', '.join(going_on)} guests go on")
    return f"{name} died: {'; '.join(parts)}"
