"""A register of names: each belongs to one owner up to a height, points to an address, and is free afterwards.

Invariants:
    * A name has at most one owner at a height. Time is counted in blocks, never by a clock.
    * What is expired counts as free: nobody has to clean up, and ``names_of`` does not show it.
"""

from __future__ import annotations

from ..codec import Address
from ..contract import Contract, entry, init, view
from ..fields import Event, Map, Value

__all__ = ["Names"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"
_NAME_LENGTH_MAX = 32
_ROWS_MAX = 100


class Names(Contract, name="names", version=1):
    """A register whose names are held for ``period`` blocks at a time."""

    period = Value(int, default=0)
    owners = Map(str, Address)
    ends = Map(str, int)
    targets = Map(str, Address)
    held = Map(tuple[Address, str], bool)

    registered = Event(name=str, owner=Address, end=int)
    moved = Event(name=str, sender=Address, to=Address)
    released = Event(name=str, owner=Address)

    @init
    def create(self, period: int) -> None:
        """Names are held for ``period`` blocks (1 to 100 million)."""
        self.require(1 <= period <= 100_000_000, "a period is 1 to 100000000 blocks")
        self.period = period

    # -- reading -------------------------------------------------------------------------------------------------

    @view
    def owner_of(self, name: str) -> list[Address]:
        """The owner alone in a list, or nothing if the name is free."""
        return [self.owners[name]] if self._is_held(name) else []

    @view
    def resolve(self, name: str) -> Address:
        """The address that the name points to. Reverts if there is none."""
        self.require(self._is_held(name), "nobody has this name")
        return self.targets[name]

    @view
    def end_of(self, name: str) -> int:
        """The first height at which the name is free again; 0 if it is free now."""
        return self.ends[name] if self._is_held(name) else 0

    @view
    def names_of(self, owner: Address, after: str) -> list[str]:
        """At most 100 names of ``owner``, in order, behind ``after`` (empty: from the first)."""
        rows = self.held.items(start=(owner, after), limit=_ROWS_MAX + 1)
        return [name for (holder, name), _ in rows if holder == owner and name != after and self._is_held(name)][
            :_ROWS_MAX
        ]

    # -- writing -------------------------------------------------------------------------------------------------

    @entry
    def register(self, name: str) -> int:
        """The caller has ``name`` for a period, pointing to itself. Returns the height at which it ends."""
        self._check_name(name)
        self.require(not self._is_held(name), "somebody has this name")
        former = self.owners.get(name)
        if former is not None:
            del self.held[(former, name)]
        self.owners[name] = self.caller
        self.held[(self.caller, name)] = True
        self.targets[name] = self.caller
        return self._extend(name, self.height)

    @entry
    def renew(self, name: str) -> int:
        """One more period for ``name``. Only its owner may, while it has it."""
        self._check_owner(name)
        return self._extend(name, self.ends[name])

    @entry
    def point(self, name: str, target: Address) -> None:
        """``name`` points to ``target``."""
        self._check_owner(name)
        self.targets[name] = target

    @entry
    def move(self, name: str, to: Address) -> None:
        """``name`` belongs to ``to`` up to the same height, and points to it."""
        self._check_owner(name)
        del self.held[(self.caller, name)]
        self.owners[name] = to
        self.held[(to, name)] = True
        self.targets[name] = to
        self.moved(name=name, sender=self.caller, to=to)

    @entry
    def release(self, name: str) -> None:
        """``name`` is free, and nothing of it is left."""
        self._check_owner(name)
        del self.owners[name]
        del self.ends[name]
        del self.targets[name]
        del self.held[(self.caller, name)]
        self.released(name=name, owner=self.caller)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _is_held(self, name: str) -> bool:
        return self.height < self.ends.get(name, 0)

    def _check_name(self, name: str) -> None:
        self.require(1 <= len(name) <= _NAME_LENGTH_MAX, "a name has 1 to 32 letters")
        self.require(all(letter in _LETTERS for letter in name), "a name has small letters, digits and '-'")

    def _check_owner(self, name: str) -> None:
        self.require(self._is_held(name), "nobody has this name")
        self.require(self.owners[name] == self.caller, "somebody else has this name")

    def _extend(self, name: str, start: int) -> int:
        end = start + self.period
        self.ends[name] = end
        self.registered(name=name, owner=self.caller, end=end)
        return end
