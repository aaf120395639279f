"""The pure store in tests: what it refuses, and what its watches are to be told."""

from collections.abc import Callable

import pytest

from dom0.xenstore.store import Store
from dom0.xenstore.tree import StoreError
from hyp.abi.xs_wire import Permission, parse_permission

GUEST, OTHER = 5, 6


def refused(name: str, operation: Callable[..., object], *args: object) -> None:
    with pytest.raises(StoreError) as caught:
        operation(*args)
    assert caught.value.name == name


def attempt(operation: Callable[..., object], *args: object) -> str:
    """The error's name, or nothing."""
    try:
        operation(*args)
    except StoreError as error:
        return error.name
    return ""


def perms(*strings: str) -> list[Permission]:
    return [parse_permission(string) for string in strings]


def fired(store: Store) -> list[tuple[str, str]]:
    """(path, token) of everything watches are to be told."""
    return [(event.path, event.watch.token) for event in store.events(store.tree.changes) if event is not None]
