"""What a contract may not contain, as far as its byte code shows: a guard against mistakes, not against malice.

Refused in the class itself and in the functions that stand in it: floats and complex numbers, true division, sets
(their order differs from run to run), changeable class attributes, coroutines, and names that read the clock, chance,
the machine or memory addresses. What a contract's helpers outside the class do is not looked at.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Final

from ..errors import InvalidInputError
from .fields import Event, Map, Value

__all__ = ["check_deterministic"]

_MODULES: Final = frozenset(
    (
        *("asyncio", "builtins", "ctypes", "datetime", "decimal", "gc", "importlib", "inspect", "io", "locale", "math"),
        *("multiprocessing", "os", "pathlib", "platform", "random", "secrets", "socket", "statistics", "subprocess"),
        *("sys", "tempfile", "threading", "time", "uuid", "weakref"),
    )
)
_BUILTINS: Final = frozenset(
    (
        *("breakpoint", "compile", "complex", "delattr", "dir", "eval", "exec", "float", "frozenset", "globals"),
        *("hash", "help", "id", "input", "locals", "open", "print", "set", "setattr", "vars", "__import__"),
    )
)
_PLAIN: Final = (int, str, bytes, bool, type(None))
_CODE_FLAGS: Final = 0x80 | 0x200
"""Coroutines and asynchronous generators."""


def check_deterministic(contract: type, base: type) -> None:
    """Nothing happens if nothing suspicious is found in ``contract`` or its bases below ``base``.

    Raises ``InvalidInputError`` naming the place and what to use instead.
    """
    for owner in contract.__mro__:
        if owner is base or not issubclass(owner, base):
            continue
        for name, found in vars(owner).items():
            if name.startswith("__") or name in ("contract_name", "contract_version"):
                continue
            problem = _attribute_problem(found)
            if problem is not None:
                raise InvalidInputError(
                    f"a contract must give the same result on every node: {problem}",
                    found=f"{owner.__name__}.{name}",
                )


def _attribute_problem(found: object) -> str | None:
    if isinstance(found, property):
        functions = [accessor for accessor in (found.fget, found.fset, found.fdel) if accessor is not None]
    elif isinstance(found, staticmethod | classmethod):
        functions = [found.__func__]
    elif isinstance(found, FunctionType):
        functions = [found]
    else:
        fine = isinstance(found, Value | Map | Event) or _constant(found)
        return None if fine else "a class attribute is a field, an event, or a constant that never changes"
    return next((problem for function in functions for problem in _function_problems(function)), None)


def _constant(found: object) -> bool:
    if isinstance(found, tuple):
        return all(_constant(item) for item in found)
    return isinstance(found, _PLAIN)


def _function_problems(function: Callable[..., object]) -> Iterator[str]:
    inner = getattr(function, "__wrapped__", function)
    if not isinstance(inner, FunctionType):
        return
    for default in (*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()):
        if not _constant(default):
            yield "a default value can be changed"
    yield from _code_problems(inner.__code__, inner.__globals__)


def _code_problems(code: CodeType, names: dict[str, object]) -> Iterator[str]:
    if code.co_flags & _CODE_FLAGS:
        yield "it is asynchronous"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_problems(constant, names)
        elif isinstance(constant, float | complex):
            yield "it has a number with a fraction; use whole numbers of the smallest unit"
        elif isinstance(constant, frozenset):
            yield "it has a set, whose order differs from run to run; use a tuple"
    for step in dis.get_instructions(code):
        if step.opname in ("BUILD_SET", "SET_ADD", "SET_UPDATE"):
            yield "it makes a set, whose order differs from run to run; use a list or a dict"
        elif step.opname == "BINARY_OP" and step.argrepr in ("/", "/="):
            yield "it divides with '/', which gives fractions; use '//'"
        elif step.opname == "IMPORT_NAME":
            yield f"it imports {step.argval!r} while it runs; import at the head of the module"
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield from _global_problems(str(step.argval), names)


def _global_problems(name: str, names: dict[str, object]) -> Iterator[str]:
    if name not in names:
        if name in _BUILTINS:
            yield f"it uses {name!r}"
        return
    found = names[name]
    home = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
    if isinstance(home, str) and home.split(".")[0].lstrip("_") in _MODULES and not isinstance(found, _PLAIN):
        yield f"it uses {name!r} of the module {home!r}"
    elif isinstance(found, list | dict | set | bytearray | float):
        yield f"it uses the global {name!r}, a {type(found).__name__}, which can change or differ"
