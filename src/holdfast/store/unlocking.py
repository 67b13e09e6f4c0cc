"""The key of an encrypted store (docs/FORMAT.md, section 3.1).

Invariants:
    * Whether a store is encrypted is decided when it is created, for ever: one that is not takes no key.
    * A wrong or missing key is refused before anything is written.
    * No key is called wrong because of a damaged identity: the first frame of the journal holds it once more.
"""

from __future__ import annotations

from pathlib import Path

from .._fs import FileSystem
from .._keys import StoreKey, given_key
from .._seal import StoreCipher, unlocked
from ..errors import CorruptionError, KeyRejected
from ..state.sealing import FileKeys, Sealing
from .first_frame import identity_in_journal
from .identity import IDENTITY_NAME, Identity, decode_identity

__all__ = ["file_keys", "key_for", "sealing_of", "unlock"]


def key_for(key: StoreKey | None) -> StoreKey | None:
    """``key``, or the one that ``using_key`` gave."""
    return key if key is not None else given_key()


def unlock(identity: Identity, key: StoreKey | None, place: Path, fs: FileSystem | None = None) -> StoreCipher | None:
    """The ciphers of the store, ``None`` if it is not encrypted. ``key``: else the one that ``using_key`` gave.

    ``fs``: where the store lies at ``place``, so that its journal can be asked.

    Raises:
        KeyRequired: it is encrypted, and there is no key.
        KeyRejected: the key is another one, or the store is not encrypted.
        CorruptionError: so it seems, but the first frame of its journal says that the identity is another one.
        InvalidInputError: the package ``cryptography`` is not there.
    """
    try:
        return _unlocked(identity, key_for(key), place)
    except KeyRejected:
        if fs is not None:
            _check_identity(identity, fs, place)
        raise


def _check_identity(identity: Identity, fs: FileSystem, place: Path) -> None:
    inner = identity_in_journal(fs, place)
    if inner is not None and decode_identity(inner) != identity:
        raise CorruptionError(
            f"{IDENTITY_NAME} differs from the first frame of the journal", path=place / IDENTITY_NAME
        )


def _unlocked(identity: Identity, key: StoreKey | None, place: Path) -> StoreCipher | None:
    form = identity.encryption
    if form is None:
        if key is not None:
            raise KeyRejected(
                "a key was given, but the store is not encrypted",
                path=place,
                remedy="if it was made without a key, open it without one; if with one, somebody changed its files:"
                " restore it from a backup",
            )
        return None
    return unlocked(form, identity.store_id, key, place)


def sealing_of(identity: Identity, cipher: StoreCipher | None) -> Sealing | None:
    """How the store seals files; ``None`` if it is not encrypted, or without its key."""
    if identity.encryption is None or cipher is None:
        return None
    return Sealing(identity.store_id, identity.encryption, cipher)


def file_keys(identity: Identity, cipher: StoreCipher | None, key: StoreKey | None) -> FileKeys:
    """What opens the checkpoints of the store, and those of another with the same key that it was made of."""
    return FileKeys(sealing_of(identity, cipher), key, encrypted=identity.encryption is not None)
