"""Tables of the documents that are made from the code. ``python -m tests.meta.tables --write`` makes them anew."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from holdfast.config import RESERVED_ENVIRONMENT, describe_settings
from holdfast.errors import HoldfastError, all_errors
from holdfast.events import EVENTS
from tests.crash.matrix import LATER, ROWS
from tests.meta.source import ROOT

OPERATIONS = ROOT / "docs" / "OPERATIONS.md"
TESTING = ROOT / "docs" / "TESTING.md"


def errors() -> list[type[HoldfastError]]:
    """Every error class, by exit code and then in the order of the tree."""
    return sorted(all_errors(), key=lambda kind: kind.exit_code)


def meaning(kind: type[HoldfastError]) -> str:
    """First paragraph of the docstring on one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def error_table() -> str:
    rows = (
        [f"`{kind.code}`", str(kind.exit_code), kind.recovery.value, meaning(kind), kind.default_remedy]
        for kind in errors()
    )
    return _table(["code", "exit", "recovery", "meaning", "what to do"], rows)


def _as_written(default: str | float) -> str:
    """The default as a file or a variable spells it."""
    return str(default).lower() if isinstance(default, bool) else str(default)


def setting_table() -> str:
    rows = (
        [f"`{info.key}`", f"`{_as_written(info.default)}`", info.allowed, f"`{info.variable}`", info.description]
        for info in describe_settings()
    )
    return _table(["setting", "default", "allowed", "variable", "meaning"], rows)


def environment_table() -> str:
    return _table(["variable", "meaning"], ([f"`{name}`", text] for name, text in sorted(RESERVED_ENVIRONMENT.items())))


def event_table() -> str:
    rows = (
        [
            f"`{name}`",
            logging.getLevelName(info.level).lower(),
            info.meaning,
            ", ".join(f"`{field}`" if " " not in field else field for field in info.fields),
        ]
        for name, info in EVENTS.items()
    )
    return _table(["event", "level", "meaning", "fields"], rows)


def fault_table() -> str:
    rows = {
        number: [row.fault, row.holds, ", ".join(f"`{name}`" for name in dict.fromkeys(map(_file, row.tests)))]
        for number, row in ROWS.items()
    } | {number: [why, "", ""] for number, why in LATER.items()}
    return _table(["", "fault", "what must hold", "tests"], ([str(number), *rows[number]] for number in sorted(rows)))


def _file(test: str) -> str:
    return test.partition("::")[0]


TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    OPERATIONS: {
        "errors": error_table,
        "settings": setting_table,
        "environment": environment_table,
        "events": event_table,
    },
    TESTING: {"faults": fault_table},
}


def renewed(text: str, path: Path = OPERATIONS) -> str:
    """``text``, which stands at ``path``, with every generated table as the code has it now."""
    for name, make in TABLES[path].items():
        places = list(re.finditer(rf"(<!-- begin {name}[^>]*-->\n).*?(<!-- end {name} -->)", text, re.DOTALL))
        if len(places) != 1:
            raise SystemExit(f"docs/{path.name} must have one place for the table {name!r}, it has {len(places)}")
        (place,) = places
        text = f"{text[: place.start()]}{place[1]}\n{make()}\n\n{place[2]}{text[place.end() :]}"
    return text


def main(arguments: list[str]) -> int:
    """0 if every document equals the code, or was made so with ``--write``."""
    differs = False
    for path in TABLES:
        old = path.read_text(encoding="utf-8")
        new = renewed(old, path)
        if new != old and "--write" in arguments:
            path.write_text(new, encoding="utf-8")
        else:
            differs |= new != old
    return int(differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
