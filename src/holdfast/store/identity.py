"""``holdfast.toml``: what a store is for ever (docs/FORMAT.md, section 3). Pure.

Invariants:
    * ``decode_identity(encode_identity(i)) == i``; the bytes are published once and never rewritten.
    * ``format`` is judged before anything else, so newer data is refused untouched.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import cast

import msgspec

from .._keys import Encryption, allowed
from ..errors import CorruptionError, FormatTooNew, FormatTooOld, InvalidInputError
from ..limits import HEIGHT_MAX
from ..merkle.api import SCHEMES
from .chain import ChainSpec, ForkChoiceName, SchemeName

__all__ = [
    "FORMAT",
    "IDENTITY_BYTES_MAX",
    "IDENTITY_NAME",
    "Identity",
    "decode_identity",
    "encode_identity",
    "stored_format",
]

FORMAT = 1
IDENTITY_NAME = "holdfast.toml"
IDENTITY_BYTES_MAX = 64 * 1024
_KEYS = {"format", "store_id", "salt", "created_us", "chain"}
_FORK_CHOICES = ("heaviest", "longest", "manual")


@dataclass(frozen=True, slots=True)
class Identity:
    """Store id (16 bytes), salt (32 bytes), time of creation (microseconds since 1970), chain, and how the key of an
    encrypted store is sealed."""

    store_id: bytes
    salt: bytes
    created_us: int
    spec: ChainSpec
    encryption: Encryption | None = None


def _quote(text: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError("a chain's identity is made of text", found=repr(text))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError("UTF-8 cannot hold this part of a chain's identity", found=repr(text)) from error
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(char) < 32 or ord(char) == 127 for char in escaped):
        raise InvalidInputError("control characters cannot be part of a chain's identity", found=repr(text))
    return f'"{escaped}"'


def encode_identity(identity: Identity) -> bytes:
    """The file's bytes."""
    spec = identity.spec
    if spec.fork_choice not in _FORK_CHOICES:
        raise InvalidInputError("unknown fork choice", found=spec.fork_choice, expected=", ".join(_FORK_CHOICES))
    if spec.scheme not in SCHEMES:
        raise InvalidInputError("unknown scheme of the tree", found=spec.scheme, expected=", ".join(SCHEMES))
    for name, number in (("epoch_length", spec.epoch_length), ("epoch_origin", spec.epoch_origin)):
        if type(number) is not int or not 0 <= number <= HEIGHT_MAX:
            raise InvalidInputError(f"'{name}' of a chain is a number from 0", found=number)
    lines = [
        f"format = {FORMAT}",
        f'store_id = "{identity.store_id.hex()}"',
        f'salt = "{identity.salt.hex()}"',
        f"created_us = {identity.created_us}",
        "",
        "[chain]",
        f"name = {_quote(spec.name)}",
        f"id = {_quote(spec.id)}",
        f"fork_choice = {_quote(spec.fork_choice)}",
        f"epoch_length = {spec.epoch_length}",
        f"epoch_origin = {spec.epoch_origin}",
        f"scheme = {_quote(spec.scheme)}",
        "",
        "[chain.parameters]",
        *(f"{_quote(key)} = {_quote(value)}" for key, value in sorted(spec.parameters.items())),
    ]
    form = identity.encryption
    if form is not None:
        lines += ["", "[encryption]", f'kdf = "{form.kdf}"', f"n = {form.n}", f"p = {form.p}", f"r = {form.r}"]
        lines += [f'salt = "{form.salt}"', f'sealed_key = "{form.sealed_key}"']
    data = ("\n".join(lines) + "\n").encode("utf-8")
    if len(data) > IDENTITY_BYTES_MAX:
        raise InvalidInputError("the chain's parameters are too long", found=len(data), limit=IDENTITY_BYTES_MAX)
    return data


def _bad(reason: str, path: object) -> CorruptionError:
    return CorruptionError(f"{IDENTITY_NAME} is damaged: {reason}", path=path)


def _integer(table: dict[str, object], key: str, path: object) -> int:
    value = table.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _bad(f"'{key}' must be a number that is not negative", path)
    return value


def _text(table: dict[str, object], key: str, path: object) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise _bad(f"'{key}' must be text", path)
    return value


def _hex(table: dict[str, object], key: str, length: int, path: object) -> bytes:
    try:
        value = bytes.fromhex(_text(table, key, path))
    except ValueError as error:
        raise _bad(f"'{key}' must be hexadecimal", path) from error
    if len(value) != length:
        raise _bad(f"'{key}' must be {length} bytes", path)
    return value


def _table(data: bytes, path: object) -> dict[str, object]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _bad(str(error), path) from error


def _format(table: dict[str, object], path: object) -> int:
    number = _integer(table, "format", path)
    if number > FORMAT:
        raise FormatTooNew("the store was written in a newer format", found=number, expected=FORMAT, path=path)
    return number


def stored_format(data: bytes, *, path: object = None) -> int:
    """The format that these bytes of an identity name, at most ``FORMAT``. Raises ``FormatTooNew``."""
    return _format(_table(data, path), path)


def decode_identity(data: bytes, *, path: object = None) -> Identity:
    """The identity in these bytes.

    Raises ``FormatTooNew`` and ``FormatTooOld`` before looking at anything but ``format``.
    """
    table = _table(data, path)
    number = _format(table, path)
    if number != FORMAT:
        raise FormatTooOld("the store was written in an older format", found=number, expected=FORMAT, path=path)
    chain = table.get("chain")
    if not isinstance(chain, dict) or set(table) - {"encryption"} != _KEYS:
        raise _bad("keys are missing or unknown", path)
    parameters = chain.get("parameters")
    known = {"name", "id", "fork_choice", "epoch_length", "epoch_origin", "parameters"}
    if not isinstance(parameters, dict) or set(chain) - {"scheme"} != known:
        raise _bad("keys of [chain] are missing or unknown", path)
    fork_choice = _text(chain, "fork_choice", path)
    if fork_choice not in _FORK_CHOICES:
        raise _bad("unknown fork choice", path)
    scheme = _text(chain, "scheme", path) if "scheme" in chain else "jmt-sha256"
    if scheme not in SCHEMES:
        raise _bad("unknown scheme of the tree", path)
    spec = ChainSpec(
        name=_text(chain, "name", path),
        id=_text(chain, "id", path),
        fork_choice=cast(ForkChoiceName, fork_choice),
        epoch_length=_integer(chain, "epoch_length", path),
        epoch_origin=_integer(chain, "epoch_origin", path),
        scheme=cast(SchemeName, scheme),
        parameters={key: _text(parameters, key, path) for key in parameters},
    )
    return Identity(
        _hex(table, "store_id", 16, path),
        _hex(table, "salt", 32, path),
        _integer(table, "created_us", path),
        spec,
        _encryption(table, path),
    )


def _encryption(table: dict[str, object], path: object) -> Encryption | None:
    """How the key is sealed; its parameters are within the limits."""
    if "encryption" not in table:
        return None
    try:
        form = msgspec.convert(table["encryption"], Encryption)
    except msgspec.ValidationError as error:
        raise _bad(f"[encryption]: {error}", path) from error
    if not allowed(form):
        raise _bad("the parameters of the encryption are not allowed", path)
    return form
