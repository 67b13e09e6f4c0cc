"""Keys that people give, and random keys sealed under them (docs/FORMAT.md, sections 3 and 10.1).

Invariants:
    * No secret is in a representation, a message or a log; a wrong one is told apart from damaged data.
    * What stored parameters ask of scrypt is bounded before anything is computed.
    * ``cryptography`` is imported only where something is encrypted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from ._fs import RealFileSystem
from .errors import InvalidInputError, ResourceExhausted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "KEY_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    "Encryption",
    "SecretKey",
    "StoreKey",
    "aes_gcm",
    "allowed",
    "given_key",
    "open_master",
    "seal_master",
    "using_key",
    "without_key",
]

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16

Kdf = Literal["scrypt", "key-file"]
_Key = TypeVar("_Key", bound="SecretKey")

_KEY_FILE = re.compile(rb"[0-9a-fA-F]{64}\s*")
_KEY_FILE_BYTES_MAX = 4096
_SECRET_BYTES_MAX = 64 * 1024
_N_MIN, _N_MAX = 1 << 14, 1 << 20
_R_MAX, _P_MAX = 32, 16
_MEMORY_BYTES_MAX = 512 * 1024 * 1024
_DEFAULT_N, _DEFAULT_R, _DEFAULT_P = 1 << 17, 8, 1


class Encryption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a random master key is sealed: texts are lower hex."""

    kdf: Kdf
    n: int
    p: int
    r: int
    salt: str
    sealed_key: str


class SecretKey:
    """The content of a key file, or a passphrase. It never shows itself."""

    __slots__ = ("_derived", "_secret", "kdf")

    def __init__(self, kdf: Kdf, secret: bytes) -> None:
        self.kdf = kdf
        self._secret = secret
        self._derived: tuple[tuple[object, ...], bytes] | None = None

    @classmethod
    def from_file(cls: type[_Key], path: str | os.PathLike[str]) -> _Key:
        """The key in a file of 64 hex digits. Raises ``InvalidInputError``, ``MissingFile``."""
        data = RealFileSystem().read_bytes(Path(path), limit=_KEY_FILE_BYTES_MAX)
        if _KEY_FILE.fullmatch(data) is None:
            raise InvalidInputError(
                "a key file holds 64 hex digits and nothing else",
                path=path,
                remedy="make one with 'openssl rand -hex 32 > FILE', and keep it apart from the data",
            )
        return cls("key-file", bytes.fromhex(data.decode("ascii").strip()))

    @classmethod
    def from_passphrase(cls: type[_Key], text: str) -> _Key:
        """The passphrase ``text``. Raises ``InvalidInputError`` if it is empty."""
        if not isinstance(text, str):
            raise InvalidInputError("a passphrase is text")
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidInputError("a passphrase is UTF-8 text") from None
        if not 0 < len(data) <= _SECRET_BYTES_MAX:
            raise InvalidInputError("a passphrase has at least one character and at most 64 KiB")
        return cls("scrypt", data)

    @classmethod
    def from_passphrase_file(cls: type[_Key], path: str | os.PathLike[str]) -> _Key:
        """The passphrase in the first line of a file."""
        data = RealFileSystem().read_bytes(Path(path), limit=_SECRET_BYTES_MAX)
        line = data.split(b"\n", 1)[0].removesuffix(b"\r")
        try:
            return cls.from_passphrase(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise InvalidInputError("a passphrase is UTF-8 text", path=path) from None

    def derive(self, form: Encryption) -> bytes:
        """The key under which the master key is sealed. The last answer is kept: scrypt is slow by design.

        Raises ``ResourceExhausted`` if the memory that scrypt needs is not there.
        """
        asked = (form.kdf, form.n, form.r, form.p, form.salt)
        if self._derived is not None and self._derived[0] == asked:
            return self._derived[1]
        salt = bytes.fromhex(form.salt)
        if form.kdf == "key-file":
            derived = hmac.digest(salt, self._secret, "sha256")
        else:
            memory = 128 * form.n * form.r + 128 * form.r * form.p + 1024 * 1024
            try:
                derived = hashlib.scrypt(
                    self._secret, salt=salt, n=form.n, r=form.r, p=form.p, maxmem=memory, dklen=KEY_BYTES
                )
            except (MemoryError, ValueError):  # OpenSSL says either
                raise ResourceExhausted("there is not enough memory for scrypt", needed_bytes=memory) from None
        self._derived = (asked, derived)
        return derived

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kdf!r})"


class StoreKey(SecretKey):
    """What opens an encrypted store: the content of a key file, or a passphrase. It never shows itself."""

    __slots__ = ()

    @classmethod
    def of(cls, key: bytes | StoreKey | None) -> StoreKey | None:
        """``key`` as a key: 32 bytes are those that a key file would hold. Raises ``InvalidInputError``."""
        if key is None or isinstance(key, StoreKey):
            return key
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise InvalidInputError(
                "the key of a store is a StoreKey, or 32 bytes",
                remedy="holdfast.StoreKey.from_file(PATH) or holdfast.StoreKey.from_passphrase(TEXT) make one",
            )
        return cls("key-file", key)


_given: ContextVar[StoreKey | None] = ContextVar("holdfast_store_key", default=None)


@contextlib.contextmanager
def using_key(key: bytes | StoreKey | None) -> Iterator[None]:
    """Stores that are opened inside, by this thread and without a key of their own, are opened with ``key``.

    ``None`` changes nothing.
    """
    found = StoreKey.of(key)
    if found is None:
        yield
        return
    token = _given.set(found)
    try:
        yield
    finally:
        _given.reset(token)


@contextlib.contextmanager
def without_key() -> Iterator[None]:
    """Stores that are opened inside, by this thread and without a key of their own, are opened without one."""
    token = _given.set(None)
    try:
        yield
    finally:
        _given.reset(token)


def given_key() -> StoreKey | None:
    """The key of the innermost ``using_key``."""
    return _given.get()


# -- the master key -------------------------------------------------------------------------------------------------


def aes_gcm(key: bytes) -> AESGCM:
    """AES-256-GCM under ``key``. Safe to use from any thread."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise InvalidInputError(
            "encryption needs the package 'cryptography'", remedy="install it with: pip install 'holdfast[encryption]'"
        ) from error
    return AESGCM(key)


def seal_master(key: SecretKey, bound: bytes, *, n: int | None = None) -> tuple[Encryption, bytes]:
    """A fresh master key of 32 bytes, and how it is sealed under ``key`` and bound to ``bound``."""
    master = secrets.token_bytes(KEY_BYTES)
    scrypt = key.kdf == "scrypt"
    form = Encryption(
        kdf=key.kdf,
        n=(n or _DEFAULT_N) if scrypt else 0,
        p=_DEFAULT_P if scrypt else 0,
        r=_DEFAULT_R if scrypt else 0,
        salt=secrets.token_bytes(32).hex(),
        sealed_key="",
    )
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = nonce + aes_gcm(key.derive(form)).encrypt(nonce, master, bound)
    return msgspec.structs.replace(form, sealed_key=sealed.hex()), master


def open_master(form: Encryption, key: SecretKey, bound: bytes) -> bytes | None:
    """The master key; ``None`` if ``key`` is not the one that sealed it. ``form`` must be ``allowed``."""
    box = aes_gcm(key.derive(form))
    from cryptography.exceptions import InvalidTag

    sealed = bytes.fromhex(form.sealed_key)
    try:
        return box.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
    except InvalidTag:
        return None


def allowed(form: Encryption) -> bool:
    """True if the parameters are within the limits: judged before any work that a stranger's numbers ask for."""
    if not (re.fullmatch(r"[0-9a-f]{64}", form.salt) and re.fullmatch(r"[0-9a-f]{120}", form.sealed_key)):
        return False
    if form.kdf == "key-file":
        return (form.n, form.r, form.p) == (0, 0, 0)
    power = _N_MIN <= form.n <= _N_MAX and form.n & (form.n - 1) == 0
    fits = power and 1 <= form.r <= _R_MAX and 1 <= form.p <= _P_MAX
    return form.kdf == "scrypt" and fits and 128 * form.n * form.r <= _MEMORY_BYTES_MAX
