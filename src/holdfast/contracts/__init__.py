"""Contracts: Python classes whose calls change the state of a chain, the same on every node.

    class Counter(Contract, name="counter", version=1):
        total = Value(int, default=0)

        @entry
        def add(self, amount: int) -> int:
            self.total = self.total + amount
            return self.total

``ContractExecutor`` runs the calls of a block on any ``MutableState``; ``ContractChain`` makes a chain of it for a
store. docs/CONTRACTS.md has the rules that contracts must keep.
"""

from .building import BuiltBlock, audit, build_block, read_receipts, read_transactions
from .chain import ContractChain, ContractRules, Proposal
from .codec import Address, Plain, decode, decode_arguments, encode, encode_arguments
from .context import CallContext
from .contract import Code, Contract, Method, entry, init, view
from .executor import Call, ContractExecutor, Deploy
from .fields import Event, Map, Value
from .gas import DEFAULT_SCHEDULE, GasSchedule
from .receipts import EventRecord, Receipt, decode_receipts, encode_receipts
from .registry import ContractRegistry, Deployment, contract_address, deployments
from .signals import BadValue, CallFailed, ContractRevert, MissingKey, Status, WriteInView
from .transactions import Transaction

__all__ = [
    "DEFAULT_SCHEDULE",
    "Address",
    "BadValue",
    "BuiltBlock",
    "Call",
    "CallContext",
    "CallFailed",
    "Code",
    "Contract",
    "ContractChain",
    "ContractExecutor",
    "ContractRegistry",
    "ContractRevert",
    "ContractRules",
    "Deploy",
    "Deployment",
    "Event",
    "EventRecord",
    "GasSchedule",
    "Map",
    "Method",
    "MissingKey",
    "Plain",
    "Proposal",
    "Receipt",
    "Status",
    "Transaction",
    "Value",
    "WriteInView",
    "audit",
    "build_block",
    "contract_address",
    "decode",
    "decode_arguments",
    "decode_receipts",
    "deployments",
    "encode",
    "encode_arguments",
    "encode_receipts",
    "entry",
    "init",
    "read_receipts",
    "read_transactions",
    "view",
]
