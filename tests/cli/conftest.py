"""Stores that the tests of the command line share; those that a test changes are copied for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.cli_tools import ANVIL, done
from tests.cli.state_store import StateStore, make


@pytest.fixture(scope="session")
def pow_store_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "pow"
    done("init", "--data-dir", directory, "--chain", "pow", "--difficulty", "1", "--json")
    done("mine", "-d", directory, "--blocks", "45", "--peer", "alice", "--number", "7", "--json")
    return directory


@pytest.fixture(scope="session")
def evm_store_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "evm"
    done("import", "evm", ANVIL, "--data-dir", directory, "--json")
    return directory


@pytest.fixture
def pow_store(pow_store_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pow_store_made, tmp_path / "pow"))


@pytest.fixture
def evm_store(evm_store_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evm_store_made, tmp_path / "evm"))


@pytest.fixture(scope="session", params=["sqlite", "rocksdb"])
def state_made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StateStore:
    return make(tmp_path_factory.mktemp("cli") / "state", request.param)


@pytest.fixture
def state_store(state_made: StateStore, tmp_path: Path) -> StateStore:
    return replace(state_made, path=Path(shutil.copytree(state_made.path, tmp_path / "state")))


@pytest.fixture(scope="session")
def one_state_made(tmp_path_factory: pytest.TempPathFactory) -> StateStore:
    """For tests to which the engine is nothing."""
    return make(tmp_path_factory.mktemp("cli") / "state", "sqlite")
