"""A chain of contracts on a store: a token, an escrow that holds it, a deal, and a second node that follows.

    python examples/contract_shop.py [DIRECTORY]

Without a directory everything stays in memory. Run it twice on the same directory: the second run adds another deal.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import holdfast
from holdfast.contracts import (
    Address,
    ContractChain,
    ContractExecutor,
    ContractRegistry,
    ContractRules,
    Transaction,
    build_block,
    contract_address,
)
from holdfast.contracts.examples import EXAMPLES
from holdfast.contracts.tools import call_from_json, deploy_from_json, receipt_to_json, view_json
from holdfast.store.store import Store

ANNA, BORIS, COURT = (Address(bytes([number]) * 20) for number in (1, 2, 3))
TOKEN, ESCROW = contract_address(ANNA, 0), contract_address(ANNA, 1)
GAS = 200_000


def text(address: Address) -> str:
    return "0x" + address.hex()


class Node:
    """A store of the contract chain, and the transactions that it was given."""

    def __init__(self, url: str) -> None:
        self.registry = ContractRegistry(EXAMPLES)
        self.store: Store = holdfast.open(url, chain=ContractChain(self.registry, ContractRules(network="shop")))

    def mine(self, *transactions: Transaction) -> None:
        tip = self.store.tip
        assert tip is not None
        built = build_block(self.store, transactions, time=tip.time + 10)
        for receipt in built.receipts:
            shown = receipt_to_json(receipt)
            print(
                f"  block {built.info.height}: {shown['status']}, gas {shown['gas_used']}, {shown['error'] or 'fine'}"
            )

    def call(self, who: Address, where: Address, method: str, *arguments: object) -> Transaction:
        tip = self.store.tip
        assert tip is not None
        return call_from_json(
            self.registry, self.store.state, where, method, arguments, caller=who, gas_limit=GAS, nonce=tip.height
        )

    def balance(self, who: Address) -> object:
        tip = self.store.tip
        assert tip is not None
        executor = ContractExecutor(self.registry)
        asked = view_json(
            executor, self.store.state, TOKEN, "balance_of", [text(who)], height=tip.height, timestamp=tip.time
        )
        return asked["result"]


def main(arguments: list[str]) -> int:
    node = Node(arguments[0] if arguments else "memory:")
    with node.store:
        if node.store.tip is not None and node.store.tip.height == 0:
            print("a token and an escrow are deployed")
            token = {"symbol": "SHOP", "decimals": "2"}
            node.mine(
                deploy_from_json(node.registry, "token", 1, token, caller=ANNA, gas_limit=GAS),
                deploy_from_json(node.registry, "escrow", 1, caller=ANNA, gas_limit=GAS),
            )
            node.mine(node.call(ANNA, TOKEN, "mint", text(ANNA), "1000000"))
        assert node.store.tip is not None
        deadline = str(node.store.tip.height + 100)
        print("Anna pays into the escrow; Boris cannot take it himself; the court releases it")
        node.mine(node.call(ANNA, TOKEN, "approve", text(ESCROW), "2500"))
        node.mine(node.call(ANNA, ESCROW, "deposit", text(TOKEN), text(BORIS), text(COURT), "2500", deadline))
        deal = str((node.store.tip.height - 4) // 4)
        node.mine(node.call(BORIS, ESCROW, "release", deal))
        node.mine(node.call(COURT, ESCROW, "release", deal))
        print(f"Anna has {node.balance(ANNA)}, Boris {node.balance(BORIS)}")

        follower = Node("memory:")
        with follower.store:
            for info in node.store.blocks.canonical():
                if info.height:  # it executes each block itself: the receipts are not sent
                    follower.store.add(replace(node.store.blocks.block(info), extra=None))
            tip = follower.store.tip
            assert tip is not None
            assert tip.state_root is not None
            assert tip.state_root == node.store.tip.state_root
            print(f"a second node has the same root: {tip.state_root.hex()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
