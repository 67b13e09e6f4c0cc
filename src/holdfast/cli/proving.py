"""``holdfast prove`` and ``verify-proof``: proofs about the state, made from a store and checked without one.

Invariants:
    * ``verify-proof`` opens no store and believes nothing in a file but the proof: the root comes from the caller,
      except with ``--trust-file``, and then a warning says so.
    * What ``prove`` writes, ``verify-proof`` reads; anything that is not exactly that form is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from .._json import check_depth
from ..errors import InvalidInputError
from ..limits import PROOF_BYTES_MAX, PROOF_KEYS_MAX, STATE_VALUE_BYTES_MAX
from .files import check_new, read_limited, write_new
from .keys import parse_bytes, parse_hash32, shown
from .options import AtBlock, Config, DataDir, Height, Hex, Json
from .output import Output

if TYPE_CHECKING:
    from ..state.proof import MultiProof

__all__ = ["register"]

_FILE_BYTES_MAX = 2 * (STATE_VALUE_BYTES_MAX + 4 * PROOF_BYTES_MAX)
"""A proof of the largest value in hex, or one of many keys with values of ordinary length."""


def register(app: typer.Typer) -> None:
    """The commands are part of ``app``."""
    app.command("prove")(prove)
    app.command("verify-proof")(verify)


class _Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    value: str | None


class _ProofFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of a proof: of one key (``key`` and ``value``), or of many (``values``)."""

    scheme: str
    root: str
    proof: str
    height: int | None = None
    block: str | None = None
    key: str | None = None
    value: str | None = None
    values: list[_Claim] | None = None


# -- prove ----------------------------------------------------------------------------------------------------------


def prove(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys: text, or 0x and hex digits.")],
    data_dir: DataDir,
    height: Height = None,
    at_block: AtBlock = None,
    many: Annotated[bool, typer.Option("--many", help="One compact proof for all keys; so it is for several.")] = False,
    as_hex: Hex = False,
    file: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="A new file; else stdout.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Prove what value keys have, or that they have none, under the root of the state after a block.

    The answer is JSON with everything in hex; 'holdfast verify-proof' checks it anywhere.
    """
    from .session import open_to_read
    from .state import block_at

    wanted = [parse_bytes(key, what="a key", as_hex=as_hex) for key in keys]
    if len(wanted) > PROOF_KEYS_MAX:
        raise InvalidInputError("too many keys for one proof", found=len(wanted), limit=PROOF_KEYS_MAX)
    if file is not None:
        check_new(file)
    with open_to_read(data_dir, config) as store:
        info = block_at(store, height, at_block)
        at = None if info is None else info.height
        if many or len(wanted) > 1:
            found = _many_as_dict(store.state.prove_many(wanted, height=at), wanted)
        else:
            found = store.state.prove(wanted[0], height=at).as_dict()
    out = Output(as_json=as_json)
    if file is None:
        Output(as_json=True).record(found)
        return
    write_new(file, json.dumps(found, indent=2).encode("ascii") + b"\n")
    out.record({name: found[name] for name in ("height", "root")} | {"keys": len(wanted), "file": str(file)})


def _many_as_dict(proof: MultiProof, keys: Sequence[bytes]) -> dict[str, object]:
    values = [(key, proof.values[key]) for key in keys]
    return {
        "scheme": proof.scheme,
        "height": None if proof.block is None else proof.block.height,
        "block": None if proof.block is None else proof.block.hash.hex(),
        "root": proof.root.hex(),
        "values": [{"key": key.hex(), "value": None if value is None else value.hex()} for key, value in values],
        "proof": proof.data.hex(),
    }


# -- verify-proof ---------------------------------------------------------------------------------------------------


def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="What 'prove' wrote; - is stdin. Not needed with --proof.")
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", metavar="HEX", help="The root, from a source that you trust.")
    ] = None,
    trust_file: Annotated[
        bool, typer.Option("--trust-file", help="Take the root in the file: only shows that the file fits together.")
    ] = False,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="The key, instead of the file's.")] = None,
    value: Annotated[
        str | None, typer.Option("--value", metavar="VALUE", help="The value that the key should have.")
    ] = None,
    absent: Annotated[bool, typer.Option("--absent", help="The key should have no value.")] = False,
    proof: Annotated[str | None, typer.Option("--proof", metavar="HEX", help="The proof, instead of a file.")] = None,
    scheme: Annotated[
        str | None, typer.Option("--scheme", metavar="NAME", help="Rules of the tree; the file's, or jmt-sha256.")
    ] = None,
    as_hex: Hex = False,
    as_json: Json = False,
) -> None:
    """Check a proof without a store. Exit code 0 and 'proved', or 10 and why not.

    The root is yours to know: from a block that you trust, or 'holdfast state root' of your own node.
    """
    from ..merkle.multiproof import verify_many
    from ..merkle.verify import verify_proof

    if (file is None) == (proof is None):
        raise InvalidInputError("one of the two is needed: a file with the proof, or --proof")
    if absent and value is not None:
        raise InvalidInputError("--value and --absent exclude each other")
    told = None if file is None else _read(file)
    out = Output(as_json=as_json)
    trusted = _trusted_root(root, told, trust_file=trust_file, out=out)
    data = _unhex(proof if told is None else told.proof, "the proof")
    claims = _claims(told, key, value, absent=absent, as_hex=as_hex)
    rules = scheme or (told.scheme if told is not None else "jmt-sha256")
    if told is not None and told.values is not None:
        verify_many(data, trusted, claims, scheme=rules)
    else:
        ((wanted, expected),) = claims.items()
        verify_proof(data, trusted, wanted, expected, scheme=rules)
    _tell(out, trusted, claims, of_file=told is not None and root is None)


def _read(file: Path) -> _ProofFile:
    raw = read_limited(file, limit=_FILE_BYTES_MAX)
    try:
        check_depth(raw)
        told = msgspec.json.decode(raw, type=_ProofFile)
    except ValueError as error:
        raise InvalidInputError(f"the file is not what 'holdfast prove' writes: {error}", path=file) from error
    if (told.values is None) == (told.key is None) or (told.values is not None and told.value is not None):
        raise InvalidInputError("the file has to say what is proved: 'key' and 'value', or 'values'", path=file)
    return told


def _unhex(text: str | None, what: str) -> bytes:
    assert text is not None
    return parse_bytes(text, what=what, as_hex=True)


def _trusted_root(root: str | None, told: _ProofFile | None, *, trust_file: bool, out: Output) -> bytes:
    if root is not None:
        if trust_file:
            raise InvalidInputError("--root and --trust-file exclude each other")
        return parse_hash32(root, what="the root")
    if told is None or not trust_file:
        raise InvalidInputError(
            "a proof is checked against a root that you know from elsewhere",
            remedy="give --root; with a file, --trust-file takes its own root and proves only that the file is whole",
        )
    out.note("warning: the root is the file's own; this does not show that any chain has it")
    return parse_hash32(told.root, what="the root in the file")


def _claims(
    told: _ProofFile | None, key: str | None, value: str | None, *, absent: bool, as_hex: bool
) -> dict[bytes, bytes | None]:
    """What shall be proved: what the file says, with the options in its place."""
    if told is not None and told.values is not None:
        if key is not None or value is not None or absent:
            raise InvalidInputError("--key, --value and --absent are for a proof of one key; this file has many")
        pairs = [(_unhex(item.key, "a key in the file"), item.value) for item in told.values]
        claims = {name: None if text is None else _unhex(text, "a value in the file") for name, text in pairs}
        if len(claims) != len(pairs):
            raise InvalidInputError("the file names a key twice")
        return claims
    if key is not None:
        wanted = parse_bytes(key, what="--key", as_hex=as_hex)
    elif told is not None:
        wanted = _unhex(told.key, "the key in the file")
    else:
        raise InvalidInputError("--proof needs a claim: --key, and --value or --absent")
    if absent:
        return {wanted: None}
    if value is not None:
        return {wanted: parse_bytes(value, what="--value", as_hex=as_hex)}
    if told is None:
        raise InvalidInputError("--proof needs a claim: --key, and --value or --absent")
    return {wanted: None if told.value is None else _unhex(told.value, "the value in the file")}


def _tell(out: Output, root: bytes, claims: dict[bytes, bytes | None], *, of_file: bool) -> None:
    if out.as_json:
        proved = [{"key": key.hex(), "value": None if value is None else value.hex()} for key, value in claims.items()]
        out.record({"proved": True, "root": root.hex(), "root_from_file": of_file, "claims": proved})
        return
    for key, value in claims.items():
        what = "is absent" if value is None else f"has the value {shown(value)}"
        out.text(f"proved: {shown(key)} {what}\n")
    out.text(f"root    {root.hex()}{' (of the file itself)' if of_file else ''}\n")
