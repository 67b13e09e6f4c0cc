"""The key of an encrypted store (docs/FORMAT.md, section 3.1).

Invariants:
    * Whether a store is encrypted is decided when it is created, for ever: one that is not takes no key.
    * A wrong or missing key is refused before anything is written.
"""

from __future__ import annotations

from pathlib import Path

from .._keys import StoreKey, given_key, open_master
from .._seal import StoreCipher
from ..errors import KeyRejected, KeyRequired
from .identity import Identity

__all__ = ["key_for", "unlock"]


def key_for(key: StoreKey | None) -> StoreKey | None:
    """``key``, or the one that ``using_key`` gave."""
    return key if key is not None else given_key()


def unlock(identity: Identity, key: StoreKey | None, place: Path) -> StoreCipher | None:
    """The ciphers of the store, ``None`` if it is not encrypted. ``key``: else the one that ``using_key`` gave.

    Raises:
        KeyRequired: it is encrypted, and there is no key.
        KeyRejected: the key is another one, or the store is not encrypted.
        InvalidInputError: the package ``cryptography`` is not there.
    """
    form, key = identity.encryption, key_for(key)
    if form is None:
        if key is not None:
            raise KeyRejected(
                "a key was given, but the store is not encrypted",
                path=place,
                remedy="open it without a key; to have an encrypted one, export its blocks into a new store with a key",
            )
        return None
    kind = "a passphrase" if form.kdf == "scrypt" else "a key file"
    if key is None:
        raise KeyRequired(f"the store is encrypted with {kind}", path=place)
    if key.kdf != form.kdf:
        raise KeyRejected(f"the store is encrypted with {kind}, and the key is of the other kind", path=place)
    master = open_master(form, key, identity.store_id)
    if master is None:
        raise KeyRejected(f"{kind} was given, but not that of this store", path=place)
    return StoreCipher(master, identity.store_id)
