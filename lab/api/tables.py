"""What a lab is made of: a topology from a file, from tables as a file has them, or from keywords."""

import copy
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lab.schema.values import NAME, NAME_RULE
from lab.topology import Topology, TopologyError, load, parse

Source = str | os.PathLike[str] | Mapping[str, Any] | Topology
Table = Mapping[str, Any]
Guests = Mapping[str, str | Table] | Sequence[Table]
"""``{name: path}``, ``{name: {"path": …, "memory": …}}``, or tables that have their names."""

_numbers = itertools.count(1)


def new_name() -> str:
    """A topology name that no other lab of this process, or of another process that lives, has."""
    return f"lab-{os.getpid()}-{next(_numbers)}"


def topology_of(source: Source | None, name: str | None, guests: Guests | None, tables: Mapping[str, Any]) -> Topology:
    """The topology that `source` is, or that guests and tables make. TopologyError lists every problem.

    TypeError if it is described twice, or not at all.
    """
    given = [key for key, value in {"guests": guests, **tables}.items() if value is not None]
    if source is not None and given:
        raise TypeError(f"a lab is a topology, or is made of {', '.join(given)}: not both")
    if isinstance(source, Topology):
        return _renamed(source, name)
    if isinstance(source, str | os.PathLike):
        return _renamed(load(os.fspath(source)), name)
    if source is None:
        if guests is None:
            raise TypeError('a lab needs a topology: Lab("my.toml"), or Lab(guests={"anna": "split", "bert": "split"})')
        source = {"guest": _guest_tables(guests), **{key: value for key, value in tables.items() if value is not None}}
    data = _plain(source)
    if name is not None or "name" not in data:
        data["name"] = new_name() if name is None else name
    return parse(data)


def _plain(value: Any) -> Any:
    """A copy, in the types that TOML has: tables are dicts, arrays are lists."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return copy.copy(value)


def _guest_tables(guests: Guests) -> list[Any]:
    if not isinstance(guests, Mapping):
        return list(guests)
    tables = {name: {"path": table} if isinstance(table, str) else table for name, table in guests.items()}
    return [{"name": name, **table} if isinstance(table, Mapping) else table for name, table in tables.items()]


def _renamed(topology: Topology, name: str | None) -> Topology:
    if name is None:
        return topology
    if not NAME.fullmatch(name):
        raise TopologyError(topology.file, [("name", f"{name!r} is not a name: {NAME_RULE}")])
    return topology.model_copy(update={"name": name})
