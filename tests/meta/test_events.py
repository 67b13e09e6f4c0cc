"""Names of events are a promise: what the source emits stands in the table, and the table in the source."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.events import EVENTS
from tests.meta.source import PACKAGE, Module, modules

LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR"}
ATTRIBUTES = {"error", "place", "code", "remedy", "url", "path"}
MAKERS = {"emit", "make_event"}


def emitted(module: Module) -> Iterator[ast.Call]:
    """Every call that makes an event, by the names that the module imported."""
    known = {
        alias.asname or alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == "events"
        for alias in node.names
        if alias.name in MAKERS
    }
    if module.name == "events":
        known = MAKERS
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = node.func
            if (isinstance(called, ast.Name) and called.id in known) or (
                isinstance(called, ast.Attribute)
                and called.attr in MAKERS
                and isinstance(called.value, ast.Name)
                and called.value.id == "events"
            ):
                yield node


def faults(package: Path) -> tuple[list[str], set[str]]:
    """What does not fit the table, and the names that are emitted."""
    found, used = [], set[str]()
    for module in modules(package):
        for call in emitted(module):
            place = f"{module.name}:{call.lineno}"
            name, level = call.args[0], ast.unparse(call.args[1]).rpartition(".")[2]
            if module.name == "events" and isinstance(name, ast.Name):
                continue  # ``emit`` hands on what it was given
            word = str(name.value) if isinstance(name, ast.Constant) else ast.unparse(name)
            info = EVENTS.get(word)
            if info is None:
                found.append(f"{place}: {word} is no name of EVENTS in holdfast/events.py")
                continue
            used.add(word)
            if level not in LEVELS or getattr(logging, level) != info.level:
                found.append(f"{place}: {word} is not of level {level}")
            fields = {keyword.arg for keyword in call.keywords if keyword.arg is not None} - ATTRIBUTES
            if not fields <= set(info.fields):
                found.append(f"{place}: {word} has no fields {sorted(fields - set(info.fields))}")
    return found, used


def test_what_is_emitted_stands_in_the_table() -> None:
    assert faults(PACKAGE)[0] == []


def test_what_stands_in_the_table_is_emitted() -> None:
    assert set(EVENTS) == faults(PACKAGE)[1]


def test_names_are_words_and_meanings_are_sentences() -> None:
    for name, info in EVENTS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert info.meaning.endswith(".")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("from ..events import emit\nemit('no_such', logging.INFO, 'x')", "no name of EVENTS"),
        ("from ..events import emit\nemit(name, logging.INFO, 'x')", "no name of EVENTS"),
        ("from .. import events\nevents.emit('no_such', logging.INFO, 'x')", "no name of EVENTS"),
        ("from ..events import emit\nemit('saved', logging.INFO, 'x')", "saved is not of level INFO"),
        ("from ..events import emit\nemit('saved', logging.DEBUG, 'x', colour=1)", "has no fields ['colour']"),
        ("from ..events import make_event as m\nm('saved', 10, 'x')", "is not of level 10"),
    ],
)
def test_a_planted_event_is_found(text: str, fault: str, tmp_path: Path) -> None:
    package = tmp_path / "holdfast"
    (package / "store").mkdir(parents=True)
    (package / "store" / "a.py").write_text(text)
    (found,), _ = faults(package)
    assert fault in found


def test_what_is_no_event_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("self.emit('no_such', 1)\nemit('no_such', 2)")
    assert faults(tmp_path) == ([], set())
