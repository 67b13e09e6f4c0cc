"""Keys of an encrypted repository (docs/FORMAT.md, section 10.1).

Invariants:
    * No secret is in a representation, a message or a log. A wrong one is ``BackupKeyError``, never wrong bytes.
    * What a repository asks of scrypt is bounded before anything is computed.
    * ``cryptography`` is imported only where a repository is encrypted.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from .._keys import NONCE_BYTES, TAG_BYTES, Encryption, SecretKey, aes_gcm, allowed, open_master, seal_master
from ..config import Settings
from ..errors import BackupDamaged, BackupKeyError, InvalidInputError

__all__ = ["OVERHEAD_BYTES", "BackupKey", "Cipher", "Encryption", "new_cipher", "open_cipher", "usual_key"]

OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
_PASSPHRASE_VARIABLE = "HOLDFAST_BACKUP_PASSPHRASE"


class BackupKey(SecretKey):
    """What opens an encrypted repository: the content of a key file, or a passphrase. It never shows itself."""

    __slots__ = ()


def usual_key(settings: Settings, root: str | os.PathLike[str] | None) -> BackupKey | None:
    """The key of the repository of the store at ``root`` where none is given: the setting ``backup_key_file``.

    Without that, the passphrase in ``HOLDFAST_BACKUP_PASSPHRASE``; ``None`` if there is neither.

    Raises:
        InvalidInputError, MissingFile: the file is not there or not a key file; or it is relative, and to no store.
    """
    if not settings.backup_key_file:
        text = os.environ.get(_PASSPHRASE_VARIABLE)
        return BackupKey.from_passphrase(text) if text else None
    path = Path(settings.backup_key_file)
    if root is None and not path.is_absolute():
        raise InvalidInputError(
            "the setting 'backup_key_file' is relative, and nothing says to which store",
            path=path,
            remedy="write it with its whole path, or give --data-dir or --key-file",
        )
    return BackupKey.from_file(path if root is None else Path(root) / path)


class Cipher:
    """AES-256-GCM of one repository, and its names for chunks. Safe to use from any thread."""

    __slots__ = ("_box", "_name_key")

    def __init__(self, master: bytes) -> None:
        self._box = aes_gcm(hmac.digest(master, b"holdfast backup data 1", "sha256"))
        self._name_key = hmac.digest(master, b"holdfast backup name 1", "sha256")

    def name(self, data: bytes) -> bytes:
        """The id of ``data``, 32 bytes."""
        return hmac.digest(self._name_key, data, "sha256")

    def encrypt(self, data: bytes, bound: bytes) -> bytes:
        """Nonce, ciphertext and tag; ``bound`` is bound to them."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._box.encrypt(nonce, data, bound)

    def decrypt(self, data: bytes, bound: bytes) -> bytes | None:
        """What was encrypted with ``bound``; ``None`` if a byte of either is another one."""
        from cryptography.exceptions import InvalidTag

        if len(data) < OVERHEAD_BYTES:
            return None
        try:
            return self._box.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], bound)
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return "Cipher()"


def new_cipher(key: BackupKey, repository_id: bytes, *, n: int | None = None) -> tuple[Encryption, Cipher]:
    """A fresh master key, how it is sealed under ``key``, and the cipher it gives."""
    form, master = seal_master(key, repository_id, n=n)
    return form, Cipher(master)


def open_cipher(form: Encryption, key: BackupKey | None, repository_id: bytes, *, place: str) -> Cipher:
    """The cipher of an encrypted repository.

    Raises:
        BackupKeyError: no key was given, one of the other kind, or the wrong one.
        BackupDamaged: the parameters are not allowed.
    """
    if not allowed(form):
        raise BackupDamaged(
            "the parameters of the encryption are not allowed", path=place, n=form.n, r=form.r, p=form.p
        )
    kind = "a passphrase" if form.kdf == "scrypt" else "a key file"
    if key is None or key.kdf != form.kdf:
        raise BackupKeyError(f"the repository is encrypted with {kind}", path=place)
    master = open_master(form, key, repository_id)
    if master is None:
        raise BackupKeyError(f"{kind} was given, but not that of this repository", path=place)
    return Cipher(master)
