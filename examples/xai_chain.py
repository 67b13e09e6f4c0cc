"""An XAI chain in a directory: mine, pay, back up, and go back to the backup. Run it twice: it goes on where it was.

python examples/xai_chain.py data
"""

from __future__ import annotations

import sys

from holdfast.chains.xai import XAIBlockchain


def main(directory: str) -> None:
    """Three blocks, a payment, and a restore that takes the last block away again."""
    with XAIBlockchain(directory, allocations={"alice": "100"}, difficulty=2) as chain:
        print(f"{len(chain.chain)} blocks, alice has {chain.get_balance('alice')}")
        chain.add_transaction(chain.create_transaction("alice", "bob", "1.5", "0.1"))
        chain.mine_pending_transactions("miner")
        chain.save_blockchain(create_backup=True)
        backup = chain.list_backups()[0]["filename"]
        chain.mine_pending_transactions("miner")
        print(f"{len(chain.chain)} blocks, bob has {chain.get_balance('bob')}, miner {chain.get_balance('miner')}")
        print(chain.restore_from_backup(backup)[1])
        print(f"{len(chain.chain)} blocks, miner has {chain.get_balance('miner')}")
        print(chain.verify_blockchain_integrity()[1])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data")
