"""The optional native kernel: found once, never needed.

Invariants:
    * A kernel of another version than ``VERSION`` is never used: its bytes may differ.
    * Nothing is imported before it is asked for, and a missing kernel is no error.
    * Whatever uses it has a twin in Python that gives the same bytes.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, Protocol, cast

__all__ = [
    "MODULE",
    "PURE_VARIABLE",
    "THREADS_VARIABLE",
    "VERSION",
    "KernelModule",
    "NativeMerge",
    "NativeScheme",
    "NativeTree",
    "installed",
    "kernel",
]

MODULE = "holdfast_kernel"
VERSION = "0.4.0"
"""The version of the kernel that this package works with, as in ``kernel/Cargo.toml``."""
THREADS_VARIABLE = "HOLDFAST_KERNEL_THREADS"
"""Environment: threads of a batch. Unset or 0: as many as there are processors, at most 4."""
PURE_VARIABLE = "HOLDFAST_PURE"
"""Environment: ``1`` leaves the native kernel alone."""


class NativeTree(Protocol):
    """A version of the tree, as the kernel gives it."""

    @property
    def root(self) -> bytes: ...

    @property
    def count(self) -> int: ...

    def update(
        self, changes: dict[bytes, bytes | None]
    ) -> tuple[NativeTree, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]: ...

    def update_records(self, records: bytes, removed: bytes) -> NativeTree: ...

    def path(self, key_hash: bytes) -> tuple[tuple[bytes, bytes] | None, list[bytes]]: ...

    def neighbours(self, key_hash: bytes) -> tuple[bytes | None, bytes | None]: ...

    def records(self, start: bytes, limit: int) -> bytes: ...

    def subtrees(self, leaves_max: int) -> list[tuple[bytes, int, int, bytes, list[bytes]]]: ...

    def size_bytes(self) -> int: ...


class NativeScheme(Protocol):
    """The constants of a tree, as the kernel holds them."""

    def empty(self) -> NativeTree: ...

    def build(self, records: Iterable[bytes]) -> NativeTree: ...

    def hash_rows(self, rows: Sequence[tuple[bytes, bytes]]) -> bytes: ...

    def node_hash(self, records: bytes, depth: int) -> bytes: ...


class NativeMerge(Protocol):
    """Rows of many layers in key order; ``views.merge`` says what its methods do."""

    def add(self, rows: dict[bytes, bytes | None], undo: bool) -> int: ...

    def sort(self) -> int: ...

    def unknown(self, rows_max: int) -> list[bytes]: ...

    def known(self, values: list[bytes | None]) -> None: ...

    def undo(self, number: int) -> dict[bytes, bytes | None]: ...

    def batch(self, rows_max: int, bytes_max: int) -> dict[bytes, bytes | None]: ...

    def keys(self) -> list[bytes]: ...


class KernelModule(Protocol):
    """What the module ``holdfast_kernel`` offers."""

    VERSION: str
    BUCKET_MAX: int
    KEY_BYTES_MAX: int
    VALUE_BYTES_MAX: int
    THREADS_MAX: int

    def Scheme(self, leaf_prefix: bytes, inner_prefix: bytes, null: bytes) -> NativeScheme: ...

    def encode_changes(self, changes: dict[bytes, bytes | None], inserted: Collection[bytes]) -> bytes: ...

    def decode_changes(self, data: bytes) -> tuple[dict[bytes, bytes | None], list[bytes]]: ...

    def set_threads(self, threads: int) -> None: ...

    def RowMerge(self) -> NativeMerge: ...

    def decode_rows(self, keys: list[bytes], stored: list[bytes | None]) -> list[bytes | None]: ...

    def undo_parts(self, rows: dict[bytes, bytes | None], part_bytes_max: int) -> list[tuple[int, bytes]]: ...

    def history_rows(
        self,
        undo: dict[bytes, bytes | None],
        prefix: bytes,
        head: bytes,
        height: int,
        into: dict[bytes, bytes | None],
    ) -> None: ...

    def publish_rows(self, nodes: dict[bytes, Any], rows: dict[bytes, bytes | None], version: int) -> int: ...


@cache
def kernel() -> KernelModule | None:
    """The kernel that this process uses; ``None``: the twins. The first call decides."""
    return None if os.environ.get(PURE_VARIABLE, "") not in ("", "0") else installed()


@cache
def installed() -> KernelModule | None:
    """The installed kernel; ``None`` if there is none or it is of another version (with a warning).

    Raises ``ValueError`` if ``HOLDFAST_KERNEL_THREADS`` is not a number of threads.
    """
    try:
        module = cast("KernelModule", importlib.import_module(MODULE))
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            _warn(f"the native kernel cannot be loaded ({error})")
        return None
    found = getattr(module, "VERSION", None)
    if found != VERSION:
        _warn(f"the native kernel is version {found}, not {VERSION}")
        return None
    module.set_threads(_threads(os.environ.get(THREADS_VARIABLE, "0"), module.THREADS_MAX))
    return module


def _warn(what: str) -> None:
    text = f"{what}: the pure Python twin is used (same bytes, slower); install the kernel again: make setup"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _threads(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise ValueError(f"{THREADS_VARIABLE} is a number of threads from 0 (default) to {most}, not {text!r}")
    return int(text)
