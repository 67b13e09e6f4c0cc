"""Keys of an encrypted repository (docs/FORMAT.md, section 10.1).

Invariants:
    * No secret is in a representation, a message or a log. A wrong one is ``BackupKeyError``, never wrong bytes.
    * What a repository asks of scrypt is bounded before anything is computed.
    * ``cryptography`` is imported only where a repository is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from .._fs import RealFileSystem
from ..errors import BackupDamaged, BackupKeyError, InvalidInputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["OVERHEAD_BYTES", "BackupKey", "Cipher", "Encryption", "new_cipher", "open_cipher"]

NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES

_KEY_FILE = re.compile(rb"[0-9a-fA-F]{64}\s*")
_KEY_FILE_BYTES_MAX = 4096
_SECRET_BYTES_MAX = 64 * 1024
_N_MIN, _N_MAX = 1 << 14, 1 << 20
_R_MAX, _P_MAX = 32, 16
_MEMORY_BYTES_MAX = 512 * 1024 * 1024
_DEFAULT_N, _DEFAULT_R, _DEFAULT_P = 1 << 17, 8, 1


class Encryption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the master key is sealed, as ``repository.json`` spells it: texts are lower hex."""

    kdf: Literal["scrypt", "key-file"]
    n: int
    p: int
    r: int
    salt: str
    sealed_key: str


class BackupKey:
    """What opens an encrypted repository: the content of a key file, or a passphrase. It never shows itself."""

    __slots__ = ("_secret", "kdf")

    def __init__(self, kdf: Literal["scrypt", "key-file"], secret: bytes) -> None:
        self.kdf = kdf
        self._secret = secret

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> BackupKey:
        """The key in a file of 64 hex digits. Raises ``InvalidInputError``, ``MissingFile``."""
        data = RealFileSystem().read_bytes(Path(path), limit=_KEY_FILE_BYTES_MAX)
        if _KEY_FILE.fullmatch(data) is None:
            raise InvalidInputError(
                "a key file holds 64 hex digits and nothing else",
                path=path,
                remedy="make one with 'openssl rand -hex 32 > FILE', and keep it apart from the backups",
            )
        return cls("key-file", bytes.fromhex(data.decode("ascii").strip()))

    @classmethod
    def from_passphrase(cls, text: str) -> BackupKey:
        """The passphrase ``text``. Raises ``InvalidInputError`` if it is empty."""
        data = text.encode("utf-8")
        if not 0 < len(data) <= _SECRET_BYTES_MAX:
            raise InvalidInputError("a passphrase has at least one character and at most 64 KiB")
        return cls("scrypt", data)

    @classmethod
    def from_passphrase_file(cls, path: str | os.PathLike[str]) -> BackupKey:
        """The passphrase in the first line of a file."""
        data = RealFileSystem().read_bytes(Path(path), limit=_SECRET_BYTES_MAX)
        line = data.split(b"\n", 1)[0].removesuffix(b"\r")
        try:
            return cls.from_passphrase(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise InvalidInputError("a passphrase is UTF-8 text", path=path) from None

    def derive(self, form: Encryption) -> bytes:
        """The key under which the master key is sealed."""
        salt = bytes.fromhex(form.salt)
        if form.kdf == "key-file":
            return hmac.digest(salt, self._secret, "sha256")
        memory = 128 * form.n * form.r + 128 * form.r * form.p + 1024 * 1024
        return hashlib.scrypt(self._secret, salt=salt, n=form.n, r=form.r, p=form.p, maxmem=memory, dklen=32)

    def __repr__(self) -> str:
        return f"BackupKey({self.kdf!r})"


class Cipher:
    """AES-256-GCM of one repository, and its names for chunks. Safe to use from any thread."""

    __slots__ = ("_box", "_name_key")

    def __init__(self, master: bytes) -> None:
        self._box = _aes(hmac.digest(master, b"holdfast backup data 1", "sha256"))
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


def _aes(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise InvalidInputError(
            "encrypted backups need the package 'cryptography'",
            remedy="install it with: pip install 'holdfast[backup-encryption]'",
        ) from error
    return AESGCM(key)


def new_cipher(key: BackupKey, repository_id: bytes, *, n: int = _DEFAULT_N) -> tuple[Encryption, Cipher]:
    """A fresh master key, how it is sealed under ``key``, and the cipher it gives."""
    master = secrets.token_bytes(32)
    scrypt = key.kdf == "scrypt"
    form = Encryption(
        kdf=key.kdf,
        n=n if scrypt else 0,
        p=_DEFAULT_P if scrypt else 0,
        r=_DEFAULT_R if scrypt else 0,
        salt=secrets.token_bytes(32).hex(),
        sealed_key="",
    )
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = nonce + _aes(key.derive(form)).encrypt(nonce, master, repository_id)
    return msgspec.structs.replace(form, sealed_key=sealed.hex()), Cipher(master)


def open_cipher(form: Encryption, key: BackupKey | None, repository_id: bytes, *, place: str) -> Cipher:
    """The cipher of an encrypted repository.

    Raises:
        BackupKeyError: no key was given, one of the other kind, or the wrong one.
        BackupDamaged: the parameters are not allowed.
    """
    from cryptography.exceptions import InvalidTag

    _check_form(form, place)
    kind = "a passphrase" if form.kdf == "scrypt" else "a key file"
    if key is None or key.kdf != form.kdf:
        raise BackupKeyError(f"the repository is encrypted with {kind}", path=place)
    sealed = bytes.fromhex(form.sealed_key)
    try:
        master = _aes(key.derive(form)).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], repository_id)
    except InvalidTag:
        raise BackupKeyError(f"{kind} was given, but not that of this repository", path=place) from None
    return Cipher(master)


def _check_form(form: Encryption, place: str) -> None:
    """Raises before any work that a stranger's numbers ask for."""
    hexes = re.fullmatch(r"[0-9a-f]{64}", form.salt) and re.fullmatch(r"[0-9a-f]{120}", form.sealed_key)
    if form.kdf == "key-file":
        fits = (form.n, form.r, form.p) == (0, 0, 0)
    else:
        power = _N_MIN <= form.n <= _N_MAX and form.n & (form.n - 1) == 0
        fits = power and 1 <= form.r <= _R_MAX and 1 <= form.p <= _P_MAX
        fits = fits and 128 * form.n * form.r <= _MEMORY_BYTES_MAX
    if not (hexes and fits):
        raise BackupDamaged(
            "the parameters of the encryption are not allowed", path=place, n=form.n, r=form.r, p=form.p
        )
