"""What the store asks of a chain: one small protocol, and the data that names the chain for ever.

A chain is pure: it decodes and judges bytes. It never touches the store's files, the clock or the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from ..errors import ForeignStore, InvalidInputError
from ..state.api import MutableState
from ..types import Block, BlockInfo

__all__ = [
    "Ancestry",
    "Chain",
    "ChainSpec",
    "CustomChain",
    "ExecutingChain",
    "ForkChoiceName",
    "SchemeName",
    "check_same_chain",
]

ForkChoiceName = Literal["heaviest", "longest", "manual"]
SchemeName = Literal["jmt-sha256", "ics23-smt"]


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """The immutable facts of a chain, kept in ``holdfast.toml`` (docs/FORMAT.md, section 3).

    ``epoch_length`` is in blocks, 0 = no epochs; epoch e holds heights ``epoch_origin + e * epoch_length`` up to, not
    including, the next epoch's first. Heights below ``epoch_origin`` belong to no epoch. ``scheme`` names the rules of
    the tree over the state (docs/FORMAT.md, section 8).
    """

    name: str
    id: str = ""
    fork_choice: ForkChoiceName = "heaviest"
    epoch_length: int = 0
    epoch_origin: int = 0
    scheme: SchemeName = "jmt-sha256"
    parameters: Mapping[str, str] = field(default_factory=dict)


def check_same_chain(found: ChainSpec, wanted: ChainSpec, what: str, path: Path) -> None:
    """Nothing happens if ``what`` at ``path`` belongs to the chain ``wanted``; else ``ForeignStore``.

    The fork choice may differ: it is a setting, too.
    """
    for name in ("name", "id", "epoch_length", "epoch_origin", "scheme"):
        if getattr(found, name) != getattr(wanted, name):
            raise ForeignStore(
                f"the {what} belongs to another chain",
                path=path,
                field=name,
                found=getattr(found, name),
                expected=getattr(wanted, name),
            )
    if dict(found.parameters) != dict(wanted.parameters):
        raise ForeignStore(
            f"the {what} belongs to a chain with other parameters",
            path=path,
            found=str(dict(found.parameters)),
            expected=str(dict(wanted.parameters)),
        )


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


@runtime_checkable
class ExecutingChain(Chain, Protocol):
    """A chain whose blocks change the state: one function for blocks that are built, received and replayed."""

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        """The changes of ``block`` are in ``state``, which was the state of ``parent``; what to store as its ``extra``.

        ``None`` leaves the block's own ``extra``. A function of the bytes of the block and of the state: no clock, no
        chance, nothing of this machine. Raises ``InvalidBlock`` if the block breaks a rule that only its execution
        shows, and whatever the state raises; ``state`` must be thrown away then. The store that calls it may be read
        here, but of blocks that come together the ones before this one may not be in it yet; to change it, close it or
        wait for it raises ``StateError``.
        """

    def state_root(self, block: Block) -> bytes | None:
        """The root (32 bytes) that the block claims for the state after it, or ``None`` if it claims none."""


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
