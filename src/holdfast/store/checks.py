"""Limits of what a caller hands to the store, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..config import Settings
from ..errors import InvalidBlock, InvalidInputError, LimitExceeded
from ..limits import (
    BODY_BYTES_MAX,
    EXTRA_BYTES_MAX,
    HASH_BYTES,
    HEADER_BYTES_MAX,
    HEIGHT_MAX,
    PRODUCER_BYTES_MAX,
    WORK_MAX,
)
from ..types import ZERO_HASH, Block
from .chain import Chain, ChainSpec

__all__ = [
    "block_size",
    "check_block",
    "check_blocks",
    "check_chain",
    "check_forced",
    "check_hash",
    "check_height",
    "check_settings",
]

_U64_MAX = 2**64 - 1


def check_hash(name: str, value: bytes) -> bytes:
    """``value`` if it is 32 bytes. Raises ``InvalidInputError``."""
    if type(value) is not bytes or len(value) != HASH_BYTES:
        raise InvalidInputError(f"'{name}' must be {HASH_BYTES} bytes", found=value)
    return value


def check_height(height: int) -> int:
    """``height`` if it is a number that can be asked for. Raises ``InvalidInputError``."""
    if type(height) is not int or height < 0:
        raise InvalidInputError("a height is a whole number that is not negative", found=repr(height))
    return height


def check_blocks(blocks: Sequence[Block]) -> None:
    """Nothing happens if these are blocks; their fields are not looked at. Raises ``InvalidInputError``."""
    if not isinstance(blocks, Sequence):
        raise InvalidInputError("blocks are given in a sequence", found=type(blocks).__name__)
    for block in blocks:
        if not isinstance(block, Block):
            raise InvalidInputError("what is added must be a 'Block'", found=type(block).__name__)


def check_settings(settings: Settings | None) -> Settings:
    """``settings``, or the standard ones. Raises ``InvalidInputError`` if this is something else."""
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise InvalidInputError(
            "settings are a 'Settings' object",
            found=type(settings).__name__,
            remedy="give holdfast.Settings(...), or what holdfast.load_settings returns as 'settings'",
        )
    return settings


def check_chain(chain: Chain | None) -> None:
    """Nothing happens if this is a chain or ``None``. Raises ``InvalidInputError``."""
    if chain is not None and not isinstance(getattr(chain, "spec", None), ChainSpec):
        raise InvalidInputError(
            "a chain is an object with a 'spec'",
            found=type(chain).__name__,
            remedy="give an object of a class of holdfast.chains, or one of your own",
        )


def check_forced(forced: Mapping[int, bytes]) -> dict[int, bytes]:
    """``forced`` if it maps heights to hashes. Raises ``InvalidInputError``."""
    if not isinstance(forced, Mapping):
        raise InvalidInputError("forced blocks are a mapping of heights to hashes", found=type(forced).__name__)
    for height, block_hash in forced.items():
        _check_number("forced height", height, HEIGHT_MAX)
        check_hash(f"forced block {height}", block_hash)
    return dict(forced)


def _check_bytes(name: str, value: object, limit: int) -> None:
    if type(value) is not bytes:
        raise InvalidInputError(f"'{name}' must be bytes", found=type(value).__name__)
    if len(value) > limit:
        raise LimitExceeded(f"'{name}' is too long", found=len(value), limit=limit)


def _check_number(name: str, value: object, limit: int) -> None:
    if type(value) is not int or not 0 <= value <= limit:
        raise InvalidInputError(f"'{name}' must be a whole number from 0 to {limit}", found=value)


def check_block(block: Block) -> None:
    """Nothing happens if every field is within its limits; else ``InvalidInputError`` or ``LimitExceeded``."""
    if not _plain(block):
        _explain(block)
    if block.hash in (ZERO_HASH, block.parent):
        raise InvalidBlock("a block's hash is neither zero nor its parent's", hash=block.hash)


def _plain(block: Block) -> bool:
    """True if nothing is wrong, found out as quickly as possible: every commit passes here."""
    body, extra = block.body, block.extra
    return (
        type(block.hash) is bytes is type(block.parent) is type(block.header) is type(block.producer)
        and len(block.hash) == HASH_BYTES == len(block.parent)
        and type(block.height) is int is type(block.time) is type(block.work)
        and 0 <= block.height <= HEIGHT_MAX
        and 0 <= block.time <= _U64_MAX
        and 0 <= block.work <= WORK_MAX
        and len(block.header) <= HEADER_BYTES_MAX
        and len(block.producer) <= PRODUCER_BYTES_MAX
        and (body is None or (type(body) is bytes and len(body) <= BODY_BYTES_MAX))
        and (extra is None or (type(extra) is bytes and len(extra) <= EXTRA_BYTES_MAX))
    )


def _explain(block: Block) -> None:
    """Raises for the first field that is outside its limits."""
    check_hash("hash", block.hash)
    check_hash("parent", block.parent)
    _check_number("height", block.height, HEIGHT_MAX)
    _check_number("time", block.time, _U64_MAX)
    _check_number("work", block.work, WORK_MAX)
    _check_bytes("header", block.header, HEADER_BYTES_MAX)
    _check_bytes("producer", block.producer, PRODUCER_BYTES_MAX)
    if block.body is not None:
        _check_bytes("body", block.body, BODY_BYTES_MAX)
    if block.extra is not None:
        _check_bytes("extra", block.extra, EXTRA_BYTES_MAX)
    raise AssertionError("the quick check refused what the slow one takes")


def block_size(block: Block) -> int:
    """Bytes that the block roughly takes in a frame."""
    return 512 + len(block.header) + len(block.body or b"") + len(block.extra or b"")
