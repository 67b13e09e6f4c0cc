"""A pytest plugin: the fixture ``crash_explorer`` crash-tests code that works with a store.

Invariants:
    * A run that does not ask for the fixture imports this module, and of Holdfast nothing else.

The fixture is ``holdfast.testing.explorer.explore`` with the seed and the count of the command line. It fails the test
at the first image that is wrong, keeps that image below the test's temporary directory, and names the command that
checks it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .explorer import Report
    from .machine import Machine

__all__ = ["crash_explorer"]

_IMAGES = 500


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the fixture."""
    group = parser.getgroup("holdfast", "crash states of a Holdfast store")
    group.addoption(
        "--holdfast-images", type=int, default=None, metavar="N", help="images for each crash_explorer (else 500)"
    )
    group.addoption("--holdfast-seed", type=int, default=0, metavar="N", help="seed of the images (0)")
    group.addoption(
        "--holdfast-image", default=None, metavar="PLACE", help="check this image alone, as a failure names it"
    )


@pytest.fixture
def crash_explorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """``crash_explorer(workload, check, **more)``: the report of ``explore``; the test fails at the first bad image.

    ``images=`` is the count where the command line names none.
    """
    from .explorer import explore, require

    option = request.config.getoption

    def run(
        workload: Callable[..., None], check: Callable[[Machine], int], *, images: int = _IMAGES, **more: object
    ) -> Report:
        count = option("--holdfast-images")
        given: dict[str, object] = {
            "images": images if count is None else count,
            "seed": option("--holdfast-seed"),
            "only": option("--holdfast-image"),
            "save": tmp_path_factory.mktemp("crash"),
            "reproduce": f"pytest '{request.node.nodeid}' --holdfast-seed={{seed}} --holdfast-image={{place}}",
        }
        report = explore(workload, check, **(given | more))  # type: ignore[arg-type]
        print(report)
        return require(report)

    return run
