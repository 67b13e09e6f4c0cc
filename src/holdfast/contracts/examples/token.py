"""A token: amounts are whole numbers of the smallest unit, exact, and never created or lost by a transfer.

Invariants:
    * The sum of all balances is ``supply``. No balance and no allowance is negative; one of zero takes no room.
    * Only the minter mints. What would pass the largest number is refused, so nothing wraps around.
"""

from __future__ import annotations

from ..codec import Address
from ..contract import Contract, entry, init, view
from ..fields import Event, Map, Value
from ..limits import INT_MAX

__all__ = ["Token"]

_NOBODY = Address(bytes(20))
_SYMBOL_BYTES_MAX = 16
_DECIMALS_MAX = 36


class Token(Contract, name="token", version=1):
    """A token with one minter, balances and allowances."""

    symbol = Value(str, default="")
    decimals = Value(int, default=0)
    minter = Value(Address, default=_NOBODY)
    supply = Value(int, default=0)
    balances = Map(Address, int)
    allowances = Map(tuple[Address, Address], int)

    transferred = Event(sender=Address, to=Address, amount=int)
    approved = Event(owner=Address, spender=Address, amount=int)

    @init
    def create(self, symbol: str, decimals: int) -> None:
        """The deployer is the minter. ``decimals`` only says where people put the point."""
        self.require(0 < len(symbol.encode("utf-8")) <= _SYMBOL_BYTES_MAX, "a symbol has 1 to 16 bytes")
        self.require(0 <= decimals <= _DECIMALS_MAX, "decimals are 0 to 36")
        self.symbol = symbol
        self.decimals = decimals
        self.minter = self.caller

    # -- reading -------------------------------------------------------------------------------------------------

    @view
    def name_of(self) -> str:
        """The symbol."""
        return self.symbol

    @view
    def decimals_of(self) -> int:
        """Digits behind the point."""
        return self.decimals

    @view
    def total_supply(self) -> int:
        """The sum of all balances."""
        return self.supply

    @view
    def balance_of(self, owner: Address) -> int:
        """What ``owner`` has."""
        return self.balances.get(owner, 0)

    @view
    def allowance(self, owner: Address, spender: Address) -> int:
        """What ``spender`` may still take from ``owner``."""
        return self.allowances.get((owner, spender), 0)

    # -- writing -------------------------------------------------------------------------------------------------

    @entry
    def mint(self, to: Address, amount: int) -> None:
        """``amount`` new units belong to ``to``. Only the minter may."""
        self.require(self.caller == self.minter, "only the minter mints")
        self._check_amount(amount)
        supply = self.supply
        self.require(amount <= INT_MAX - supply, "the supply would be too large")
        self.supply = supply + amount
        self._set_balance(to, self.balances.get(to, 0) + amount)
        self.transferred(sender=_NOBODY, to=to, amount=amount)

    @entry
    def burn(self, amount: int) -> None:
        """``amount`` units of the caller are gone."""
        self._take(self.caller, amount)
        self.supply = self.supply - amount
        self.transferred(sender=self.caller, to=_NOBODY, amount=amount)

    @entry
    def transfer(self, to: Address, amount: int) -> None:
        """``amount`` goes from the caller to ``to``."""
        self._move(self.caller, to, amount)

    @entry
    def approve(self, spender: Address, amount: int) -> None:
        """``spender`` may take ``amount`` from the caller, in place of what it could before."""
        self.require(amount >= 0, "an amount is not negative")
        self._set_allowance(self.caller, spender, amount)
        self.approved(owner=self.caller, spender=spender, amount=amount)

    @entry
    def transfer_from(self, owner: Address, to: Address, amount: int) -> None:
        """``amount`` goes from ``owner`` to ``to``, out of what the caller may take."""
        self._check_amount(amount)
        allowed = self.allowances.get((owner, self.caller), 0)
        self.require(amount <= allowed, "the allowance is too small")
        self._set_allowance(owner, self.caller, allowed - amount)
        self._move(owner, to, amount)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _check_amount(self, amount: int) -> None:
        self.require(amount > 0, "an amount is at least 1")

    def _move(self, sender: Address, to: Address, amount: int) -> None:
        self._take(sender, amount)
        self._set_balance(to, self.balances.get(to, 0) + amount)  # read after the taking: both may be the same
        self.transferred(sender=sender, to=to, amount=amount)

    def _take(self, owner: Address, amount: int) -> None:
        self._check_amount(amount)
        balance = self.balances.get(owner, 0)
        self.require(amount <= balance, "the balance is too small")
        self._set_balance(owner, balance - amount)

    def _set_balance(self, owner: Address, amount: int) -> None:
        if amount:
            self.balances[owner] = amount
        else:
            del self.balances[owner]

    def _set_allowance(self, owner: Address, spender: Address, amount: int) -> None:
        if amount:
            self.allowances[(owner, spender)] = amount
        else:
            del self.allowances[(owner, spender)]
