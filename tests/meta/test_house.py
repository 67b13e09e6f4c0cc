"""The rules of the house that a machine can check. Lengths ratchet: what is over its limit may shrink, never grow."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.source import PACKAGE, ROOT, Module, modules

MODULE_LINES_MAX = 700
FUNCTION_LINES_MAX = 60

LONGER_MODULES: dict[str, int] = {}
"""Modules that are over the limit, with the lines they have now."""
LONGER_FUNCTIONS: dict[str, int] = {}
"""``module:function`` over the limit, with the lines it has now."""

FILE_CALLS = {
    "os": {"fsync", "fdatasync", "rename", "replace", "renames", "unlink", "remove", "truncate", "ftruncate"},
    "fcntl": {"flock", "lockf"},
    "shutil": {"rmtree", "move"},
}
PATH_METHODS = {"unlink", "rename", "rmdir"}
MAY_TOUCH_FILES = ("_fs", "testing")
EXCEPTIONS: set[tuple[str, str]] = set()
"""A staging directory of an engine, left by a crash: derived data that was never part of the store."""


def function_lengths(module: Module) -> Iterator[tuple[str, int]]:
    """Name (``Class.method``) and lines of every function, from its ``def`` to its last line."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield name, (child.end_lineno or child.lineno) - child.lineno + 1
                yield from walk(child, f"{name}.")
            else:
                yield from walk(child, prefix)

    return walk(module.tree, "")


def file_calls(module: Module) -> Iterator[str]:
    """``line: call`` for each use of a call that changes files or makes them durable."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in FILE_CALLS.get(node.value.id, ()):
                yield f"{node.lineno}: {node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in FILE_CALLS:
            for alias in node.names:
                if alias.name in FILE_CALLS[node.module]:
                    yield f"{node.lineno}: from {node.module} import {alias.name}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in PATH_METHODS
            and not (isinstance(node.func.value, ast.Name) and node.func.value.id in FILE_CALLS)
            and not _is_file_system(node.func.value)
        ):
            yield f"{node.lineno}: .{node.func.attr}()"


def _is_file_system(node: ast.expr) -> bool:
    """True for ``fs.unlink(...)`` and ``self._fs.unlink(...)``: a ``FileSystem`` of ``_fs.py`` is what is asked for."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.strip("_") in ("fs", "filesystem", "file_system", "files")


def unsafe_loaders(module: Module) -> Iterator[str]:
    """``line: call`` for each way to run code that stands in data."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ("pickle", "marshal", "shelve", "dill", "cloudpickle"):
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill", "cloudpickle"):
            yield f"{node.lineno}: from {node.module}"
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner, node.attr) in (("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")):
                yield f"{node.lineno}: yaml.{node.attr}"
            elif node.attr == "extractall":
                yield f"{node.lineno}: extractall"
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield f"{node.lineno}: {node.id}"


def over(limit: int, lengths: dict[str, int], known: dict[str, int]) -> list[str]:
    """What breaks the ratchet: new ones over the limit, old ones that grew, and entries no longer needed."""
    found = []
    for name, lines in lengths.items():
        allowed = max(limit, known.get(name, 0))
        if lines > allowed:
            found.append(f"{name}: {lines} lines, at most {allowed}; split it by role")
    for name, lines in known.items():
        if lengths.get(name, 0) < lines:
            found.append(f"{name}: now {lengths.get(name, 0)} lines; lower or remove its entry ({lines})")
    return found


def project_files() -> list[Path]:
    """Every file that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [ROOT / name for name in sorted(listed.stdout.split("\0")) if name and (ROOT / name).is_file()]


TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ".rs", ".sh", ".json", ""}
# Written with character classes, so that these lines do not find themselves.
MACHINE_PATHS = re.compile(r"(?<![\w.{}])/(wor[k]|tm[p]|hom[e]|roo[t]|far[m]|op[t])/[A-Za-z0-9_.]")
UNFINISHED = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X])\b")


def texts() -> Iterator[tuple[str, str]]:
    for path in project_files():
        name = str(path.relative_to(ROOT))
        if path.suffix in TEXT_SUFFIXES and not name.startswith(("src/holdfast/data/", "tests/golden/data/")):
            yield name, path.read_text(encoding="utf-8")


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        if name != "LICENSE"
        for number, line in enumerate(text.split("\n"), 1)
        if pattern.search(line)
    ]


def test_source_is_ascii() -> None:
    assert [name for name, text in texts() if name.endswith((".py", ".toml")) and not text.isascii()] == []


def test_nothing_is_left_unfinished() -> None:
    assert lines_with(UNFINISHED) == []


def test_no_path_of_a_machine_is_named() -> None:
    assert lines_with(MACHINE_PATHS) == []


def test_each_module_opens_with_a_docstring() -> None:
    assert [
        str(module.path) for module in modules() if module.text.strip() and not ast.get_docstring(module.tree)
    ] == []


def test_each_package_has_an_init_file() -> None:
    missing = {module.path.parent for module in modules() if not (module.path.parent / "__init__.py").exists()}
    assert sorted(str(path.relative_to(ROOT)) for path in missing) == []


def test_module_lengths_ratchet() -> None:
    lengths = {module.name or "holdfast": module.text.count("\n") for module in modules()}
    assert over(MODULE_LINES_MAX, lengths, LONGER_MODULES) == []


def test_function_lengths_ratchet() -> None:
    lengths = {f"{module.name}:{name}": lines for module in modules() for name, lines in function_lengths(module)}
    assert over(FUNCTION_LINES_MAX, lengths, LONGER_FUNCTIONS) == []


def test_only_the_file_module_makes_files_durable_or_removes_them() -> None:
    found = [
        f"{module.path.relative_to(PACKAGE)}:{call}"
        for module in modules()
        if module.name.split(".")[0] not in MAY_TOUCH_FILES
        for call in file_calls(module)
        if (module.name, call.split(": ")[1]) not in EXCEPTIONS
    ]
    assert found == []


def test_no_data_is_run_as_code() -> None:
    assert [f"{module.path}:{call}" for module in modules() for call in unsafe_loaders(module)] == []


def parsed(text: str) -> Module:
    return Module(Path("planted.py"), "planted", text, ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.fsync(3)",
        "sync = os.fdatasync",
        "from os import replace",
        "os.rename(a, b)",
        "fcntl.flock(f, 2)",
        "path.unlink()",
        "(a / b).rename(c)",
        "shutil.rmtree(d)",
    ],
)
def test_a_planted_file_call_is_found(text: str) -> None:
    assert len(list(file_calls(parsed(text)))) == 1


@pytest.mark.parametrize("text", ["fs.unlink(p)", "self._fs.rename(a, b)", "text.replace('a', 'b')", "os.path.join(a)"])
def test_a_harmless_call_is_left_alone(text: str) -> None:
    assert list(file_calls(parsed(text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "yaml.load(x)",
        "archive.extractall(p)",
        "eval(x)",
        "import shelve as s",
    ],
)
def test_a_planted_unsafe_loader_is_found(text: str) -> None:
    assert len(list(unsafe_loaders(parsed(text)))) == 1


def test_the_ratchet_turns_one_way() -> None:
    assert over(10, {"a": 10}, {}) == []
    assert over(10, {"a": 11}, {}) == ["a: 11 lines, at most 10; split it by role"]
    assert over(10, {"a": 15}, {"a": 15}) == []
    assert over(10, {"a": 16}, {"a": 15}) == ["a: 16 lines, at most 15; split it by role"]
    assert over(10, {"a": 14}, {"a": 15}) == ["a: now 14 lines; lower or remove its entry (15)"]
    assert over(10, {}, {"gone": 15}) == ["gone: now 0 lines; lower or remove its entry (15)"]


def test_functions_are_measured_with_their_nested_ones() -> None:
    text = "class A:\n    def f(self):\n        def g():\n            pass\n        return g\n"
    assert dict(function_lengths(parsed(text))) == {"A.f": 4, "A.f.g": 2}


@pytest.mark.parametrize("text", ["/{}/main", "'/{}/x'", "=/{}/u", " /{}/.c"])
@pytest.mark.parametrize("top", ["work", "tmp", "home", "root", "opt"])
def test_a_planted_machine_path_is_found(text: str, top: str) -> None:
    assert MACHINE_PATHS.search(text.format(top))


@pytest.mark.parametrize("text", ["tests/{}/x", "{{root}}/{}/x", "a/{}/b", "./{}/b", "/var/{}"])
def test_another_path_is_left_alone(text: str) -> None:
    assert not MACHINE_PATHS.search(text.format("tmp"))
