"""What every test shares: Hypothesis profiles, the real-chain recordings, the real node, and 'a skip is a failure'.

Profiles: ``fast`` (default; the same examples in each run) and ``nightly`` (many, random; chosen with
``--hypothesis-profile=nightly``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path, PosixPath

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["holdfast.testing.plugin", "tests.crash.matrix"]
"""The first by name, as an installed package has it: also where the installation is older than the entry point."""

ROOT = Path(__file__).resolve().parent.parent
CRASH_ROUNDS_DEFAULT = 50

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "fast", max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=_QUIET
)
settings.register_profile("nightly", max_examples=2000, deadline=None, suppress_health_check=_QUIET)
settings.load_profile("fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test is a failed one (the live tier)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--fail-on-skip"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: this tier may not skip: {reason}"
    return report


class Recordings(PosixPath):
    """A path below which every name exists: the test that asks for an absent one is skipped, by its name."""

    def __truediv__(self, key: str | os.PathLike[str]) -> Recordings:
        path = super().__truediv__(key)
        if not path.exists():
            pytest.skip(f"the recording {path.name} is absent (HOLDFAST_SHARED_DATA names the directory)")
        return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the real-chain recordings: ``HOLDFAST_SHARED_DATA``, else ``shared/data`` beside the checkout.

    ``shared_data / "evm/anvil.jsonl.zst"`` is that file, or the test is skipped.
    """
    named = os.environ.get("HOLDFAST_SHARED_DATA")
    return Recordings(named) if named else Recordings(ROOT.parent, "shared", "data")


@pytest.fixture(scope="session")
def anvil_path() -> Path:
    """The real node: ``.tools/`` as 'make test-live' fills it, else the search path."""
    local = ROOT / ".tools" / "anvil" / "node_modules" / ".bin" / "anvil"
    if local.exists():
        return local
    found = shutil.which("anvil")
    if found is None:
        pytest.skip("the node 'anvil' is absent; 'make test-live' fetches it")
    return Path(found)


@pytest.fixture(scope="session")
def moto_path() -> Path:
    """The S3 server of the live tier, as 'make test-live' installs it."""
    path = ROOT / ".tools" / "moto" / "bin" / "moto_server"
    if not path.exists():
        pytest.skip("the server 'moto' is absent; 'make test-live' installs it")
    return path


@pytest.fixture(scope="session")
def azurite_path() -> Path:
    """The Azure server of the live tier, as 'make test-live' installs it."""
    path = ROOT / ".tools" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if not path.exists():
        pytest.skip("the server 'azurite' is absent; 'make test-live' installs it")
    return path


@pytest.fixture(scope="session")
def crash_rounds() -> int:
    """How often a random crash test repeats: ``HOLDFAST_CRASH_ROUNDS``, else 50."""
    return int(os.environ.get("HOLDFAST_CRASH_ROUNDS", CRASH_ROUNDS_DEFAULT))
