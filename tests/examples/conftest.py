"""The example that all tests here are about, built once."""

from pathlib import Path

import pytest

from bench.peers.c_netfront import build
from tests.support.patience import patient


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/c_netfront's."""
    return build(tmp_path_factory.mktemp("c_netfront"), patient(60))
