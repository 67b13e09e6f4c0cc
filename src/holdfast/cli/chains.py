"""The chains the command line knows: from the name in a store's identity to a ``Chain``, and how each shows its bytes.

Invariants:
    * A hash is printed as people know it on its chain (bitcoin reversed, evm with ``0x``) and read back in that form.
    * An existing store gets the chain that its identity names; names that nobody here knows are custom chains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..contracts import ContractRegistry
    from ..store.chain import Chain, ChainSpec

__all__ = [
    "CHAIN_NAMES",
    "ChainOptions",
    "chain_of",
    "display_hash",
    "display_producer",
    "new_chain",
    "parse_hash",
    "parse_producer",
]

CHAIN_NAMES = ("pow", "bitcoin", "evm", "contracts", "custom")
_HASH = re.compile(r"(0x)?[0-9a-fA-F]{64}")
_ADDRESS = re.compile(r"(0x)?([0-9a-fA-F]{2})*")
_CHAIN_ID_DIGITS_MAX = 20
_NAMED_PRODUCERS = ("pow", "xai")
"""Chains whose producers are text."""


@dataclass(frozen=True, slots=True)
class ChainOptions:
    """What a new chain may be told; ``None`` is the chain's own default."""

    network: str | None = None
    difficulty: int | None = None
    block_seconds: int | None = None
    from_base: bool = False


def new_chain(name: str, options: ChainOptions) -> Chain:
    """A chain for a new store. Raises ``InvalidInputError`` for an unknown name or an option it does not have."""
    if name == "xai":
        raise InvalidInputError(
            "an xai chain begins with the genesis block of a file",
            remedy="make the store with 'holdfast import xai FILE --data-dir DIR'",
        )
    if name not in CHAIN_NAMES:
        raise InvalidInputError("unknown chain", found=name, expected=", ".join(CHAIN_NAMES))
    if name != "pow" and (options.difficulty is not None or options.block_seconds is not None):
        raise InvalidInputError("only a pow chain has a difficulty and a block time", found=name)
    if name == "pow":
        from ..chains.pow import PowChain, PowParameters

        given = {
            "network": options.network,
            "initial_difficulty": options.difficulty,
            "target_block_seconds": options.block_seconds,
        }
        return PowChain(PowParameters(**{key: value for key, value in given.items() if value is not None}))  # type: ignore[arg-type]
    if name == "bitcoin":
        from ..chains.bitcoin import BitcoinChain

        return BitcoinChain(options.network or "main", from_base=options.from_base)
    if name == "evm":
        from ..chains.evm import EvmChain

        return EvmChain(0 if options.network is None else _chain_id(options.network))
    if name == "contracts":
        from ..contracts import ContractChain, ContractRules
        from .contracts import load_registry

        rules = ContractRules() if options.network is None else ContractRules(network=options.network)
        return ContractChain(load_registry(None), rules)
    from ..store.chain import CustomChain

    if options.network is not None:
        raise InvalidInputError("a custom chain has no networks", found=options.network)
    return CustomChain()


def chain_of(spec: ChainSpec, *, from_base: bool = True, registry: ContractRegistry | None = None) -> Chain:
    """The chain of an existing store. ``from_base`` false lets an empty bitcoin store begin with its genesis block.

    ``registry`` is the code of a contract chain; without it the examples.
    """
    if spec.name == "pow":
        from ..chains.pow import PowChain

        return PowChain.from_spec(spec)
    if spec.name == "bitcoin":
        from ..chains.bitcoin import BitcoinChain

        return BitcoinChain(spec.id, from_base=from_base)
    if spec.name == "evm":
        from ..chains.evm import EvmChain

        return EvmChain(_chain_id(spec.id or "0"))
    if spec.name == "contracts":
        from ..contracts import ContractChain
        from .contracts import load_registry

        return ContractChain.from_spec(spec, load_registry(None) if registry is None else registry)
    if spec.name == "xai":
        from ..chains.xai import XaiChain

        return XaiChain.from_spec(spec)
    from ..store.chain import CustomChain

    return CustomChain(spec)


def _chain_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _CHAIN_ID_DIGITS_MAX):
        raise InvalidInputError("the network of an evm chain is its chain id, a decimal number", found=text[:80])
    return int(text)


def display_hash(chain_name: str, block_hash: bytes) -> str:
    """The hash as people know it on this chain."""
    if chain_name == "bitcoin":
        return block_hash[::-1].hex()
    return f"0x{block_hash.hex()}" if chain_name == "evm" else block_hash.hex()


def parse_hash(chain_name: str, text: str) -> bytes:
    """The hash that ``display_hash`` prints as ``text``. Raises ``InvalidInputError``."""
    if _HASH.fullmatch(text) is None:
        raise InvalidInputError("a block hash has 64 hex digits", found=text[:80])
    raw = bytes.fromhex(text[-64:])
    return raw[::-1] if chain_name == "bitcoin" else raw


def display_producer(chain_name: str, producer: bytes) -> str | None:
    """The block's producer as people know it, ``None`` if the chain names none."""
    if not producer:
        return None
    if chain_name in _NAMED_PRODUCERS:
        return producer.decode("utf-8", "backslashreplace")
    return f"0x{producer.hex()}" if chain_name == "evm" else producer.hex()


def parse_producer(chain_name: str, text: str) -> bytes:
    """The producer that ``display_producer`` prints as ``text``. Raises ``InvalidInputError``."""
    if chain_name in _NAMED_PRODUCERS:
        return text.encode("utf-8", "surrogateescape")
    if _ADDRESS.fullmatch(text) is None:
        raise InvalidInputError("a producer is given in hex digits", found=text[:80])
    return bytes.fromhex(text.removeprefix("0x"))
