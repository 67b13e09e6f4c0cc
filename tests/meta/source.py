"""The source tree as syntax trees, for the rules of the house."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "holdfast"


@dataclass(frozen=True)
class Module:
    """One source file: its path, its dotted name below ``holdfast`` (empty for the package itself), text and tree."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@cache
def modules(package: Path = PACKAGE) -> tuple[Module, ...]:
    """Every module below ``package``, in the order of their paths."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found.append(Module(path, name, text, ast.parse(text, str(path))))
    return tuple(found)


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name (below ``holdfast``) of everything of the package that ``module`` imports.

    ``from .store import Store`` gives ``store.Store``: the longest name that may be a module. Imports inside functions
    and under ``TYPE_CHECKING`` count too.
    """
    package = module.name.split(".") if module.name else []
    if not module.is_package:
        package = package[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == "holdfast":
                    yield node.lineno, rest
        elif isinstance(node, ast.ImportFrom):
            origin = (node.module or "").split(".") if node.module else []
            if node.level:
                base = package[: len(package) - (node.level - 1)] + origin
            elif origin[0] == "holdfast":
                base = origin[1:]
            else:
                continue
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
