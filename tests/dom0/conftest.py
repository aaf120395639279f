"""A store with two guests, and the sessions of all who use it."""

import pytest

from dom0.xenstore.store import Session, Store
from tests.support.stores import GUEST, OTHER, fired


@pytest.fixture
def store() -> Store:
    store = Store()
    for domid in (GUEST, OTHER):
        store.introduce(domid)
    assert fired(store) == []
    return store


@pytest.fixture
def dom0(store: Store) -> Session:
    return store.connect(0)


@pytest.fixture
def guest(store: Store) -> Session:
    return store.connect(GUEST)


@pytest.fixture
def other(store: Store) -> Session:
    return store.connect(OTHER)
