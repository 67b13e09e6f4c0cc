"""Imports point down only: the floors of docs/ARCHITECTURE.md, checked in the syntax tree of every module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.meta.source import PACKAGE, imported, modules

FLOORS = {
    # ground: values, errors, files
    "errors": 0,
    "limits": 0,
    "types": 1,
    "_failpoints": 1,
    "_json": 1,
    "_kernel": 1,
    "_threads": 1,
    "_zstd": 1,
    "_fs": 2,
    "_keys": 3,
    "_seal": 4,
    "events": 2,
    "notify": 3,
    "config": 3,
    # the truth, and the map under the views
    "journal": 10,
    "engine": 10,
    "merkle": 10,
    "views": 20,
    "blocks": 30,
    "consensus": 30,
    "spaces": 30,
    "state": 25,
    "store": 40,
    "recovery": 50,
    "backup": 55,
    "doctor": 56,
    "aio": 57,
    "documents": 57,
    "contracts": 58,
    "chains": 60,
    "server": 80,
    "cli": 80,
}
"""Rooms by floor. A module may import its own room and every room on a lower floor, never a neighbour or above."""

ANYWHERE = {"", "testing", "__main__"}
"""May import anything, and be imported by nobody but themselves: the package's front door and the shipped tests."""


def violations(package: Path) -> list[str]:
    """One line for every module without a floor and every import that does not point down."""
    found = []
    for module in modules(package):
        room = module.name.split(".")[0]
        if room in ANYWHERE:
            continue
        place = f"{module.path.relative_to(package.parent)}"
        if room not in FLOORS:
            found.append(f"{place}: the room {room!r} has no floor; add it to FLOORS in tests/meta/test_layers.py")
            continue
        for line, name in imported(module):
            target = name.split(".")[0]
            if target == room or FLOORS.get(target, 1_000) < FLOORS[room]:
                continue
            if target not in FLOORS and target not in ANYWHERE and not _is_module(package, target):
                target = ""  # a name of the package itself: ``from holdfast import Store``
            found.append(
                f"{place}:{line}: {room!r} (floor {FLOORS[room]}) may not import {target or 'holdfast'!r} "
                f"(floor {FLOORS.get(target, 'top')}); imports point down only"
            )
    return found


def _is_module(package: Path, name: str) -> bool:
    return (package / name).is_dir() or (package / f"{name}.py").exists()


def test_imports_point_down_only() -> None:
    assert violations(PACKAGE) == []


def test_there_is_something_to_check() -> None:
    assert {"errors", "journal", "engine"} <= {module.name.split(".")[0] for module in modules()}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("journal/a.py", "from ..store import Store", "'journal' (floor 10) may not import 'store' (floor 40)"),
        ("journal/a.py", "from ..engine.api import Engine", "'journal' (floor 10) may not import 'engine' (floor 10)"),
        ("journal/a.py", "import holdfast.views.table", "'journal' (floor 10) may not import 'views' (floor 20)"),
        ("journal/a.py", "from holdfast import store", "'journal' (floor 10) may not import 'store' (floor 40)"),
        ("journal/a.py", "from .. import store", "'journal' (floor 10) may not import 'store' (floor 40)"),
        ("journal/a.py", "from .. import Store", "'journal' (floor 10) may not import 'holdfast' (floor top)"),
        ("journal/a.py", "def f():\n    from ..cli import main", ":2: 'journal' (floor 10) may not import 'cli'"),
        ("journal/a.py", "if TYPE_CHECKING:\n    from ..blocks import x", "may not import 'blocks'"),
        ("journal/a.py", "from ..testing import x", "may not import 'testing'"),
        ("journal/deep/a.py", "from ...store.api import x", "may not import 'store'"),
        ("journal/__init__.py", "from ..store import x", "may not import 'store'"),
        ("errors.py", "from .types import Block", "'errors' (floor 0) may not import 'types' (floor 1)"),
        ("attic/a.py", "", "the room 'attic' has no floor"),
    ],
)
def test_a_planted_upward_import_is_found(file: str, text: str, message: str, tmp_path: Path) -> None:
    plant(tmp_path, file, text)
    (found,) = violations(tmp_path / "holdfast")
    assert message in found
    assert file in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("store/a.py", "from ..journal import Journal\nfrom ..errors import HoldfastError\nfrom . import b"),
        ("store/__init__.py", "from .a import Store\nimport os\nfrom struct import pack"),
        ("cli/a.py", "import holdfast.chains\nfrom holdfast.store import Store"),
        ("__init__.py", "from .store import Store"),
        ("testing/a.py", "from ..cli import main"),
    ],
)
def test_a_downward_import_is_accepted(file: str, text: str, tmp_path: Path) -> None:
    plant(tmp_path, file, text)
    assert violations(tmp_path / "holdfast") == []


def plant(directory: Path, file: str, text: str) -> None:
    path = directory / "holdfast" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
