"""Stores that the tests of the command line share; those that a test changes are copied for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.cli_tools import ANVIL, done


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
