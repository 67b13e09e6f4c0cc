"""What the store asks of a chain: one small protocol, and the data that names the chain for ever.

A chain is pure: it decodes and judges bytes. It never touches the store's files, the clock or the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..errors import InvalidInputError
from ..types import Block, BlockInfo

__all__ = ["Ancestry", "Chain", "ChainSpec", "CustomChain", "ForkChoiceName"]

ForkChoiceName = Literal["heaviest", "longest", "manual"]


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """The immutable facts of a chain, kept in ``holdfast.toml`` (docs/FORMAT.md, section 3).

    ``epoch_length`` is in blocks, 0 = no epochs; epoch e holds heights ``epoch_origin + e * epoch_length`` up to, not
    including, the next epoch's first. Heights below ``epoch_origin`` belong to no epoch.
    """

    name: str
    id: str = ""
    fork_choice: ForkChoiceName = "heaviest"
    epoch_length: int = 0
    epoch_origin: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)


class Ancestry(Protocol):
    """What a chain may look at while it judges a block: stored blocks, by hash or along a branch."""

    def info(self, block_hash: bytes) -> BlockInfo | None:
        """The stored block, or ``None``."""

    def header(self, block: BlockInfo) -> bytes:
        """Its header bytes."""

    def ancestor(self, block: BlockInfo, height: int) -> BlockInfo | None:
        """The ancestor of ``block`` (or itself) at ``height``; ``None`` below the first stored block."""


class Chain(Protocol):
    """A kind of chain: how its bytes are read and which blocks are valid."""

    spec: ChainSpec

    def genesis(self) -> Block | None:
        """The fixed first block, or ``None`` if the first block added becomes the root."""

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        """The block these bytes are, its hash computed from them. Raises ``InvalidBlock``.

        ``parent`` gives the height where the header does not say it (``parent.height + 1``; 0 without a parent).
        """

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        """Nothing happens if ``block`` is valid on ``parent``; else ``InvalidBlock``. Forks are not its business."""


class CustomChain:
    """A chain whose owner decodes and validates outside the store (``spec.name`` is ``custom``)."""

    def __init__(self, spec: ChainSpec | None = None) -> None:
        self.spec = spec if spec is not None else ChainSpec(name="custom")

    def genesis(self) -> Block | None:
        return None

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        raise InvalidInputError("a custom chain hands decoded blocks to the store; it cannot decode them")

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        """Accept: the owner of a custom chain has judged the block already."""
