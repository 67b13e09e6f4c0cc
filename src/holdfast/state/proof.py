"""Proofs about the state, with what they prove. Anyone can check them with ``holdfast.verify_proof``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CorruptionError, ProofInvalid, Recovery
from ..merkle.multiproof import verify_many
from ..merkle.verify import verify_proof
from ..types import BlockInfo
from .reader import StateReader
from .rows import preimage_key, state_key

__all__ = ["MultiProof", "Proof", "RowLookup"]


@dataclass(frozen=True, slots=True)
class Proof:
    """``data`` (ICS-23 bytes) proves that ``key`` has ``value``, or none, under ``root``.

    ``block`` is the block whose state it is; ``None`` in an empty store.
    """

    data: bytes
    root: bytes
    key: bytes
    value: bytes | None
    block: BlockInfo | None
    scheme: str

    def verify(self, root: bytes, key: bytes, value: bytes | None) -> None:
        """Nothing happens if this proves the claim under a ``root`` that the caller trusts; else ``ProofInvalid``."""
        verify_proof(self.data, root, key, value, scheme=self.scheme)

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values; bytes in hexadecimal."""
        return {
            "scheme": self.scheme,
            "height": self.block.height if self.block is not None else None,
            "block": self.block.hash.hex() if self.block is not None else None,
            "root": self.root.hex(),
            "key": self.key.hex(),
            "value": self.value.hex() if self.value is not None else None,
            "proof": self.data.hex(),
        }


@dataclass(frozen=True, slots=True)
class MultiProof:
    """``data`` proves all of ``values`` (``None``: absent) under ``root``; docs/FORMAT.md, section 8.3."""

    data: bytes
    root: bytes
    values: Mapping[bytes, bytes | None]
    block: BlockInfo | None
    scheme: str

    def verify(self, root: bytes, values: Mapping[bytes, bytes | None]) -> None:
        """Nothing happens if this proves the claims under a ``root`` that the caller trusts; else ``ProofInvalid``."""
        if set(values) != set(self.values):
            raise ProofInvalid("the proof is about other keys", found=len(self.values), expected=len(values))
        verify_many(self.data, root, values, scheme=self.scheme)


class RowLookup:
    """Keys by their hash and values by their key, from the rows that the tree is over."""

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader

    def key_of(self, key_hash: bytes) -> bytes:
        """The key with this hash. Raises ``CorruptionError`` if its row is missing."""
        key = self._reader.row(preimage_key(key_hash))
        if key is None:
            raise CorruptionError("a key of the tree has no row", key=key_hash, recovery=Recovery.REBUILD)
        return key

    def value_of(self, key: bytes) -> bytes:
        """The value of this key as the tree has it."""
        value = self._reader.row(state_key(key))
        if value is None:
            raise CorruptionError("a key of the tree has no value", key=key, recovery=Recovery.REBUILD)
        return value
