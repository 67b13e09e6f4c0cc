"""An escrow: tokens wait in the contract until the arbiter or the buyer releases them, or the deadline gives them back.

Invariants:
    * What the contract holds of a token is at least the sum of its open deals in it.
    * A deal is closed once: it is marked before the token is called, so no call back in between finds it open.
    * Deadlines are heights.
"""

from __future__ import annotations

from ..codec import Address
from ..contract import Contract, entry, view
from ..fields import Event, Map, Value

__all__ = ["Escrow"]

_OPEN = "open"
_RELEASED = "released"
_REFUNDED = "refunded"


class Escrow(Contract, name="escrow", version=1):
    """Deals in any token of the chain. The buyer first approves this contract in the token."""

    count = Value(int, default=0)
    buyers = Map(int, Address)
    sellers = Map(int, Address)
    arbiters = Map(int, Address)
    tokens = Map(int, Address)
    amounts = Map(int, int)
    deadlines = Map(int, int)
    states = Map(int, str)

    opened = Event(deal=int, buyer=Address, seller=Address, token=Address, amount=int, deadline=int)
    closed = Event(deal=int, to=Address, state=str)

    @view
    def state_of(self, deal: int) -> str:
        """``open``, ``released`` or ``refunded``."""
        return self.states[deal]

    @view
    def amount_of(self, deal: int) -> int:
        """What the deal is about, in units of its token."""
        return self.amounts[deal]

    @entry
    def deposit(self, token: Address, seller: Address, arbiter: Address, amount: int, deadline: int) -> int:
        """``amount`` of the caller's tokens waits for ``seller``. Returns the number of the deal.

        From the height ``deadline`` on, the caller can have it back.
        """
        self.require(amount > 0, "an amount is at least 1")
        self.require(deadline > self.height, "the deadline is over already")
        deal = self.count
        self.count = deal + 1
        self.buyers[deal] = self.caller
        self.sellers[deal] = seller
        self.arbiters[deal] = arbiter
        self.tokens[deal] = token
        self.amounts[deal] = amount
        self.deadlines[deal] = deadline
        self.states[deal] = _OPEN
        before = self.call(token, "balance_of", self.address, returns=int)
        self.call(token, "transfer_from", self.caller, self.address, amount)
        after = self.call(token, "balance_of", self.address, returns=int)
        self.require(after - before == amount, "the token did not move what was asked for")
        self.opened(deal=deal, buyer=self.caller, seller=seller, token=token, amount=amount, deadline=deadline)
        return deal

    @entry
    def release(self, deal: int) -> None:
        """The seller has the tokens. The buyer or the arbiter may ask for it."""
        self.require(self.caller in (self.buyers[deal], self.arbiters[deal]), "only the buyer or the arbiter releases")
        self._close(deal, self.sellers[deal], _RELEASED)

    @entry
    def refund(self, deal: int) -> None:
        """The buyer has the tokens back. Seller and arbiter may ask for it, from the deadline on the buyer too."""
        late = self.height >= self.deadlines[deal]
        helpers = (self.sellers[deal], self.arbiters[deal])
        self.require(self.caller in helpers or (late and self.caller == self.buyers[deal]), "not yet")
        self._close(deal, self.buyers[deal], _REFUNDED)

    def _close(self, deal: int, to: Address, state: str) -> None:
        self.require(self.states[deal] == _OPEN, "the deal is closed")
        self.states[deal] = state
        self.call(self.tokens[deal], "transfer", to, self.amounts[deal])
        self.closed(deal=deal, to=to, state=state)
