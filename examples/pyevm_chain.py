"""A py-evm chain whose database is a Holdfast store: mine, deploy, call, close, open again, go on.

    python examples/pyevm_chain.py [DIRECTORY]

Without a directory a temporary one is used. Run it twice on the same directory: the second run goes on where the first
ended. Needs ``pip install 'holdfast[pyevm]'``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from eth import constants
from eth.abc import BlockAPI, ComputationAPI
from eth.chains.base import MiningChain
from eth.exceptions import CanonicalHeadNotFound
from eth.vm.forks import ShanghaiVM
from eth_keys import keys
from eth_typing import Address

from holdfast.chains.evm.database import HoldfastDB

KEY = keys.PrivateKey(b"\x01" * 32)
OWNER = Address(KEY.public_key.to_canonical_address())
GENESIS = {
    "coinbase": constants.ZERO_ADDRESS,
    "difficulty": constants.POST_MERGE_DIFFICULTY,
    "extra_data": b"holdfast",
    "gas_limit": 30_000_000,
    "mix_hash": constants.POST_MERGE_MIX_HASH,
    "nonce": constants.POST_MERGE_NONCE,
    "timestamp": 1_700_000_000,
}
ACCOUNTS = {OWNER: {"balance": 10**24, "nonce": 0, "code": b"", "storage": {}}}

# Each call adds 1 to storage slot 0.
RUNTIME = bytes.fromhex("600054 6001 01 600055 00")
DEPLOY = bytes.fromhex("600a 600c 6000 39 600a 6000 f3") + RUNTIME


class Chain(MiningChain):
    """One account may do what it likes; nobody proves work."""

    chain_id = 1337
    vm_configuration = ((0, ShanghaiVM),)


def open_chain(database: HoldfastDB) -> Chain:
    """The chain in ``database``; a new one if nothing is there."""
    try:
        chain = Chain(database)
        chain.get_canonical_head()
    except CanonicalHeadNotFound:
        return Chain.from_genesis(database, GENESIS, ACCOUNTS)
    return chain


def mine(chain: Chain, to: Address, data: bytes = b"") -> tuple[BlockAPI, ComputationAPI]:
    """A block with one transaction of the owner, durable when this returns; and what the transaction did."""
    unsigned = chain.create_unsigned_transaction(
        nonce=chain.get_vm().state.get_nonce(OWNER), gas_price=10**10, gas=200_000, to=to, value=0, data=data
    )
    signed = unsigned.as_signed_transaction(KEY, chain_id=chain.chain_id)
    result, _, (computation,) = chain.mine_all([signed])
    computation.raise_if_error()
    return result.imported_block, computation


def deploy(chain: Chain) -> Address:
    """The address of a new counter."""
    _, computation = mine(chain, constants.CREATE_CONTRACT_ADDRESS, DEPLOY)
    return computation.msg.storage_address


def counter(chain: Chain, contract: Address) -> int:
    """Storage slot 0 of the contract."""
    return chain.get_vm().state.get_storage(contract, 0)


def main() -> None:
    """Two lives of one chain."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "evm"

        with HoldfastDB(directory) as database:
            chain = open_chain(database)
            print(f"opened at block {chain.get_canonical_head().block_number}")
            contract = deploy(chain)
            for _ in range(3):
                block, _ = mine(chain, contract)
            before = (block.number, block.hash.hex(), counter(chain, contract))
            print(f"mined up to block {before[0]} {before[1][:16]}, the counter is {before[2]}")

        with HoldfastDB(directory) as database:
            chain = open_chain(database)
            head = chain.get_canonical_head()
            after = (head.block_number, head.hash.hex(), counter(chain, contract))
            assert after == before
            print(f"opened at block {after[0]} {after[1][:16]}, the counter is {after[2]}")
            for _ in range(2):
                block, _ = mine(chain, contract)
            print(f"mined up to block {block.number}, the counter is {counter(chain, contract)}")


if __name__ == "__main__":
    main()
