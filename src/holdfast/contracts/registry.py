"""The contracts that this node has code for, by name and version, and the record of a deployed one.

A deployment does not put code on the chain: it writes which code, by name and version, works at an address. Every node
of a chain must therefore have the same classes; the hash of the ABI in the record finds a node that has others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ..errors import ConflictError, CorruptionError, InvalidInputError
from ..limits import HASH_BYTES
from ..state.api import ReadableState
from .codec import Address
from .contract import Code, Contract, code_of
from .limits import ADDRESS_BYTES, NAME_BYTES_MAX, VERSION_MAX
from .lint import check_deterministic
from .storage import SYSTEM
from .wire import Reader

__all__ = [
    "ContractRegistry",
    "Deployment",
    "contract_address",
    "decode_deployment",
    "deployment_key",
    "deployments",
    "encode_deployment",
    "nonce_key",
]

_TAG: Final = b"holdfast/contracts/address/1"
_RECORD_VERSION: Final = 1
_NONCES: Final = SYSTEM + b"\x01"
_DEPLOYMENTS: Final = SYSTEM + b"\x02"


class ContractRegistry:
    """Code by (name, version). What is registered stays."""

    def __init__(self, contracts: Iterable[type[Contract]] = ()) -> None:
        self._codes: dict[tuple[str, int], Code] = {}
        for contract in contracts:
            self.register(contract)

    def register(self, contract: type[Contract]) -> Code:
        """The class can be deployed and called. Registering it again changes nothing.

        Raises:
            InvalidInputError: it is no contract, or it can give different results on different nodes.
            ConflictError: another class has this name and version.
        """
        code = code_of(contract)
        check_deterministic(contract, Contract)
        known = self._codes.setdefault((code.name, code.version), code)
        if known.contract is not contract:
            raise ConflictError(
                "another contract has this name and version",
                remedy="give changed code a new version: contracts that are deployed keep the old one",
                found=f"{code.name} {code.version}",
            )
        return known

    def get(self, name: str, version: int) -> Code | None:
        """The code, or ``None``."""
        return self._codes.get((name, version))

    def __iter__(self) -> Iterator[Code]:
        """Every code, by name and version."""
        return iter([self._codes[key] for key in sorted(self._codes)])

    def __len__(self) -> int:
        return len(self._codes)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which code works at an address, and who put it there. ``abi_hash`` is 32 bytes."""

    address: Address
    name: str
    version: int
    abi_hash: bytes
    deployer: Address


def contract_address(deployer: Address, nonce: int) -> Address:
    """The address of the deployer's ``nonce``-th deployment, from 0: the first 20 bytes of a SHA-256.

    The hash covers a tag, the deployer and the number (u64), each behind its u32 length.
    """
    fields = (_TAG, bytes(deployer), struct.pack(">Q", nonce))
    return Address(sha256(b"".join(struct.pack(">I", len(field)) + field for field in fields)).digest()[:ADDRESS_BYTES])


def nonce_key(deployer: Address) -> bytes:
    """The key of the state that counts the deployer's deployments (u64)."""
    return _NONCES + bytes(deployer)


def deployment_key(address: Address) -> bytes:
    """The key of the state that holds the record of a deployed contract."""
    return _DEPLOYMENTS + bytes(address)


def encode_deployment(deployment: Deployment) -> bytes:
    """| u8 version, 1 | u8 length | name | u32 version of the code | abi hash 32 | deployer 20 |"""
    name = deployment.name.encode("ascii")
    return (
        struct.pack(">BB", _RECORD_VERSION, len(name))
        + name
        + struct.pack(">I", deployment.version)
        + deployment.abi_hash
        + bytes(deployment.deployer)
    )


def decode_deployment(address: Address, raw: bytes) -> Deployment:
    """The record of these stored bytes. Raises ``CorruptionError``."""
    reader = Reader(raw, "bytes of a deployment")
    try:
        if reader.number(1) != _RECORD_VERSION:
            raise InvalidInputError("the record has an unknown version")
        name = reader.ascii(reader.number(1, most=NAME_BYTES_MAX))
        version = reader.number(4, most=VERSION_MAX)
        record = Deployment(address, name, version, reader.take(HASH_BYTES), Address(reader.take(ADDRESS_BYTES)))
        reader.end()
    except InvalidInputError as error:
        raise CorruptionError(
            f"the record of a contract cannot be read: {error.message}", address=bytes(address), found=raw
        ) from error
    return record


def deployments(state: ReadableState) -> Iterator[Deployment]:
    """Every deployed contract, by address. Reads page by page. Raises ``CorruptionError``."""
    for key, raw in state.scan(_DEPLOYMENTS):
        yield decode_deployment(Address(key[len(_DEPLOYMENTS) :]), raw)
