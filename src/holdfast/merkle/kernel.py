"""The tree's contract on the native kernel: a thin coat of Python."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from .._kernel import KernelModule, NativeScheme, NativeTree
from .api import Path, Scheme, Subtree, Tree, Update

__all__ = ["KernelBackend", "KernelTree"]


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
