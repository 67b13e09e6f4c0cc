"""The native kernel behind the tree's contract: loading it, and the thin coat of Python over it.

Invariants:
    * A kernel of another version than ``VERSION`` is never used: its bytes may differ.
    * Nothing here is imported from the kernel before ``load`` is called, and a missing kernel is no error.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, cast

from .api import Backend, Path, Scheme, Subtree, Tree, Update

__all__ = ["MODULE", "THREADS_VARIABLE", "VERSION", "KernelBackend", "KernelModule", "KernelTree", "load"]

MODULE = "holdfast_kernel"
VERSION = "0.1.0"
"""The version of the kernel that this package works with, as in ``kernel/Cargo.toml``."""
THREADS_VARIABLE = "HOLDFAST_KERNEL_THREADS"
"""Environment: threads of a batch. Unset or 0: as many as there are processors, at most 4."""


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

    def encode_rows(self, keys: list[bytes], values: list[bytes | None]) -> list[bytes | None]: ...

    def prefixed(self, prefix: bytes, changes: dict[bytes, bytes | None]) -> dict[bytes, bytes | None]: ...


class KernelTree:
    """One immutable version (see ``api.Tree``)."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeTree) -> None:
        self._native = native

    @property
    def root(self) -> bytes:
        return self._native.root

    @property
    def count(self) -> int:
        return self._native.count

    def update(self, changes: Mapping[bytes, bytes | None]) -> Update:
        native, inserted, removed = self._native.update(_as_dict(changes))
        return Update(KernelTree(native), inserted, removed)

    def update_records(self, records: bytes, removed: bytes) -> Tree:
        return KernelTree(self._native.update_records(records, removed))

    def path(self, key_hash: bytes) -> Path:
        return Path(*self._native.path(key_hash))

    def neighbours(self, key_hash: bytes) -> tuple[bytes | None, bytes | None]:
        return self._native.neighbours(key_hash)

    def records(self, start: bytes, limit: int) -> bytes:
        return self._native.records(start, limit)

    def subtrees(self, leaves_max: int) -> list[Subtree]:
        return [Subtree(*fields) for fields in self._native.subtrees(leaves_max)]

    def size_bytes(self) -> int:
        return self._native.size_bytes()


class KernelBackend:
    """The whole contract in native code (see ``api.Backend``)."""

    name = "kernel"

    def __init__(self, module: KernelModule) -> None:
        self.module = module
        """The kernel itself: what else it offers is not part of the contract."""
        self._schemes: dict[Scheme, NativeScheme] = {}

    def _of(self, scheme: Scheme) -> NativeScheme:
        native = self._schemes.get(scheme)
        if native is None:
            native = self.module.Scheme(scheme.leaf_prefix, scheme.inner_prefix, scheme.null)
            self._schemes[scheme] = native
        return native

    def empty(self, scheme: Scheme) -> Tree:
        return KernelTree(self._of(scheme).empty())

    def build(self, scheme: Scheme, records: Iterable[bytes]) -> Tree:
        return KernelTree(self._of(scheme).build(records))

    def hash_rows(self, scheme: Scheme, rows: Sequence[tuple[bytes, bytes]]) -> bytes:
        return self._of(scheme).hash_rows(rows)

    def node_hash(self, scheme: Scheme, records: bytes, depth: int) -> bytes:
        return self._of(scheme).node_hash(records, depth)

    def encode_changes(self, changes: Mapping[bytes, bytes | None], inserted: Collection[bytes]) -> bytes:
        return self.module.encode_changes(_as_dict(changes), inserted)

    def decode_changes(self, data: bytes) -> tuple[dict[bytes, bytes | None], list[bytes]]:
        return self.module.decode_changes(data)


def _as_dict(changes: Mapping[bytes, bytes | None]) -> dict[bytes, bytes | None]:
    return changes if isinstance(changes, dict) else dict(changes)


def load() -> Backend | None:
    """The backend of the installed kernel; ``None`` if there is none or it is of another version (with a warning).

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
    return KernelBackend(module)


def _warn(what: str) -> None:
    text = f"{what}: the pure Python twin is used (same bytes, slower); install the kernel again: make setup"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _threads(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise ValueError(f"{THREADS_VARIABLE} is a number of threads from 0 (default) to {most}, not {text!r}")
    return int(text)
