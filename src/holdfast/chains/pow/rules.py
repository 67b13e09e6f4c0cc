"""The constants and parameters of the proof-of-work chain, its epoch rule, and target and work of a difficulty.

Invariants:
    * **One epoch rule**: block ``index`` belongs to epoch ``index // 40``. The genesis block counts: epoch 0 is
      0..39, epoch 1 is 40..79. ``ChainSpec`` holds the same rule as ``epoch_length`` 40 and ``epoch_origin`` 0.
    * Everything here is integer arithmetic; no clock, no float, no I/O.
    * Two chains with equal parameters have the same genesis block and accept the same blocks.

A block is accepted when its hash, read as a big-endian number, is below ``TARGET_MAX // difficulty``. Difficulty 1 is
therefore one hash in about 256. Its *target work* is ``2**256 // (target + 1)``: it depends on the difficulty alone,
so a lucky low hash counts no more than another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import InvalidInputError

__all__ = [
    "DIFFICULTY_MAX",
    "DIFFICULTY_MIN",
    "EPOCH_BLOCKS",
    "MINER_NUMBER_MAX",
    "NONCE_MAX",
    "PEER_ID_BYTES_MAX",
    "TARGET_MAX",
    "TIME_MAX",
    "PowParameters",
    "epoch_bounds",
    "epoch_of",
    "target_of",
    "work_of",
]

TARGET_MAX: Final = 0xFFFF << 232
DIFFICULTY_MIN: Final = 1
DIFFICULTY_MAX: Final = 2**128 - 1
NONCE_MAX: Final = 2**128 - 1
MINER_NUMBER_MAX: Final = 2**64 - 1
TIME_MAX: Final = 2**63 - 1
PEER_ID_BYTES_MAX: Final = 128
EPOCH_BLOCKS: Final = 40
_NETWORK_CHARS_MAX: Final = 64
_TARGET_SECONDS_MAX: Final = 2**31 - 1
_HEADER_FORMAT: Final = "1"


def epoch_of(index: int) -> int:
    """The epoch of block ``index``: ``index // 40``, genesis included."""
    return index // EPOCH_BLOCKS


def epoch_bounds(epoch: int) -> tuple[int, int]:
    """First index of ``epoch`` and first index after it."""
    first = epoch * EPOCH_BLOCKS
    return first, first + EPOCH_BLOCKS


def target_of(difficulty: int) -> int:
    """The number a block hash must be below. ``difficulty`` >= 1."""
    return TARGET_MAX // difficulty


def work_of(difficulty: int) -> int:
    """Target work of one block of this difficulty: the hashes it costs on average."""
    return (1 << 256) // (TARGET_MAX // difficulty + 1)


@dataclass(frozen=True, slots=True)
class PowParameters:
    """What must be the same on every node of a network, for ever. It is stored in the chain's ``ChainSpec``.

    ``initial_difficulty`` holds for the genesis block and all of epoch 0. ``minimum_block_timestamp`` (seconds since
    1970) bounds every block but genesis.
    """

    network: str = "holdfast-pow"
    initial_difficulty: int = 1000
    target_block_seconds: int = 60
    minimum_block_timestamp: int = 0

    def __post_init__(self) -> None:
        name = self.network
        if not 1 <= len(name) <= _NETWORK_CHARS_MAX or not name.isascii() or not name.isprintable():
            raise InvalidInputError("network must be 1 to 64 printable ASCII characters", found=name)
        _check_range("initial_difficulty", self.initial_difficulty, DIFFICULTY_MIN, DIFFICULTY_MAX)
        _check_range("target_block_seconds", self.target_block_seconds, 1, _TARGET_SECONDS_MAX)
        _check_range("minimum_block_timestamp", self.minimum_block_timestamp, 0, TIME_MAX)

    def as_mapping(self) -> dict[str, str]:
        """The parameters as text, for ``ChainSpec.parameters``; ``from_mapping`` gives them back."""
        return {
            "header_format": _HEADER_FORMAT,
            "initial_difficulty": str(self.initial_difficulty),
            "minimum_block_timestamp": str(self.minimum_block_timestamp),
            "network": self.network,
            "target_block_seconds": str(self.target_block_seconds),
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> PowParameters:
        """The parameters that ``as_mapping`` wrote. Raises ``InvalidInputError`` for anything else."""
        found = dict(values)
        if found.pop("header_format", None) != _HEADER_FORMAT:
            raise InvalidInputError("not the parameters of a pow chain of this version", expected=_HEADER_FORMAT)
        network = found.pop("network", None)
        numbers: dict[str, int] = {}
        for name in ("initial_difficulty", "minimum_block_timestamp", "target_block_seconds"):
            text = found.pop(name, "")
            if not (text.isascii() and text.isdecimal() and len(text) <= len(str(DIFFICULTY_MAX))):
                raise InvalidInputError("a pow parameter is missing or not a decimal number", name=name, found=text)
            numbers[name] = int(text)
        if network is None or found:
            raise InvalidInputError("missing or unknown pow parameters", unknown=sorted(found))
        return cls(network=network, **numbers)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{name} is out of range", found=value, expected=f"{low}..{high}")
