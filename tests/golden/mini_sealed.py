"""A reader of encrypted stores, written from docs/FORMAT.md (3.1, 3.2, 5.5, 9.4, 11.1) alone; imports nothing of the
package."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.golden import mini_reader, mini_snapshot
from tests.golden.mini_reader import need

PLAIN = {0x0001, 0x0002, 0x0041}


def store_key(identity: dict[str, object], secret: bytes) -> bytes:
    """The key that is sealed under ``secret``: 32 bytes of a key file, or a passphrase (3.1)."""
    form = identity["encryption"]
    assert isinstance(form, dict)
    need(set(form) == {"kdf", "n", "p", "r", "salt", "sealed_key"}, "encryption: keys")
    salt = bytes.fromhex(form["salt"])
    n, r, p = form["n"], form["r"], form["p"]
    if form["kdf"] == "key-file":
        need((n, r, p) == (0, 0, 0), "key-file: parameters")
        key = hmac.digest(salt, secret, "sha256")
    else:
        need(form["kdf"] == "scrypt" and n in {1 << bit for bit in range(14, 21)}, "scrypt: n")
        need(1 <= r <= 32 and 1 <= p <= 16 and 128 * n * r <= 512 << 20, "scrypt: parameters")
        key = hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=1 << 30, dklen=32)
    sealed = bytes.fromhex(form["sealed_key"])
    owner = identity["store_id"]
    assert isinstance(owner, str)
    return AESGCM(key).decrypt(sealed[:12], sealed[12:], bytes.fromhex(owner))


def parts(data: Path, secret: bytes, segment: int = 1) -> Iterator[tuple[int, int, bytes]]:
    """(seq, kind, raw bytes) of every part of a journal of one segment."""
    identity = tomllib.loads((data / "holdfast.toml").read_text("utf-8"))
    journal = hmac.digest(store_key(identity, secret), b"holdfast store journal 1", "sha256")
    box = AESGCM(hmac.digest(journal, segment.to_bytes(8, "big"), "sha256"))
    owner = bytes.fromhex(identity["store_id"])
    for frame in mini_reader.frames(data):
        need(any(part.codec & 0x80 for part in frame.parts), f"frame {frame.seq}: nothing is encrypted")
        for index, part in enumerate(frame.parts):
            need((part.kind in PLAIN) == (part.codec & 0x80 == 0), f"frame {frame.seq}: part {index}")
            raw = part.data
            if part.kind not in PLAIN:
                bound = owner + bound_to(frame.head) + index.to_bytes(2, "big")
                raw = mini_reader.decode(part.codec & 0x7F, box.decrypt(raw[:12], raw[12:], bound), part.raw_length)
            yield frame.seq, part.kind, raw


def unsealed(purpose: bytes, owner: bytes, name: str, stored: bytes, front: bytes) -> bytes:
    """What nonce, ciphertext and tag hold, sealed for ``name`` behind ``front`` (3.2)."""
    bound = owner + name.encode("ascii") + b"\0" + front
    data = AESGCM(hmac.digest(purpose, name.encode("ascii"), "sha256")).decrypt(stored[:12], stored[12:], bound)
    all_of_it = hashlib.sha256(bound).digest() + hashlib.sha256(data).digest()
    nonce = hmac.digest(hmac.digest(purpose, b"\0", "sha256"), all_of_it, "sha256")[:12]
    need(nonce == stored[:12], f"{name}: nonce")
    return data


def sealed_file(data: bytes, name: str, use: str, secret: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Plain part and content of a sealed file (3.2); the key of its use, ``base`` or ``checkpoints``; the store id."""
    need(data[:8] == b"HFSEALED" and hashlib.sha256(data[:-32]).digest() == data[-32:], f"{name}: damaged")
    number, kdf, zero, owner, n, r, p, salt, sealed, length = struct.unpack_from(">IB3s16sIII32s60sQ", data, 8)
    need((number, zero) == (1, bytes(3)), f"{name}: format")
    kind = ("scrypt", "key-file")[kdf]
    form = {"kdf": kind, "n": n, "p": p, "r": r, "salt": salt.hex(), "sealed_key": sealed.hex()}
    key = store_key({"encryption": form, "store_id": owner.hex()}, secret)
    purpose = hmac.digest(key, f"holdfast store {use} 1".encode(), "sha256")
    end = 144 + length
    return data[144:end], unsealed(purpose, owner, name, data[end:-32], data[:end]), purpose, owner


def plain_base(data: Path, secret: bytes, place: Path) -> None:
    """``place`` is the snapshot that the base of the store at ``data`` holds (9.4)."""
    file = (data / "base" / "manifest.json").read_bytes()
    table, text, _, _ = sealed_file(file, "manifest.json", "base", secret)
    (place / "chunks").mkdir(parents=True)
    (place / "manifest.json").write_bytes(text)
    names = []
    for prefix, depth, length, digest in struct.iter_unpack(">32sHQ32s", table):
        names.append(f"{prefix.hex()}-{depth}.hfc")
        chunk = (data / "base" / "chunks" / names[-1]).read_bytes()
        need(len(chunk) == length and chunk[-32:] == digest, f"{names[-1]}: another file")
        plain, inner, _, _ = sealed_file(chunk, f"chunks/{names[-1]}", "base", secret)
        need(not plain, f"{names[-1]}: a plain part")
        (place / "chunks" / names[-1]).write_bytes(inner)
    need(names == [f"{each['prefix']}-{each['depth']}.hfc" for each in json.loads(text)["chunks"]], "the table")
    need({path.name for path in (data / "base" / "chunks").iterdir()} == set(names), "files")


def checkpoint(place: Path, name: str, secret: bytes) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    """Manifest and state of a checkpoint in ``place`` (11.1)."""
    file = (place / f"{name}.manifest").read_bytes()
    plain, text, purpose, owner = sealed_file(file, f"{name}.manifest", "checkpoints", secret)
    manifest, rows = json.loads(text), {}
    need(not plain and name == f"{manifest['block']['height']}-{manifest['block']['hash'][:16]}", "the name")
    for chunk in manifest["chunks"]:
        names = hmac.digest(purpose, b"\1", "sha256")
        keyed = hmac.digest(names, bytes.fromhex(chunk["hash"]), "sha256").hex()
        stored = unsealed(purpose, owner, f"chunks/{chunk['hash']}", (place / "chunks" / keyed).read_bytes(), b"")
        need(len(stored) == chunk["stored_bytes"] <= chunk["raw_bytes"], "a length")
        if len(stored) < chunk["raw_bytes"]:
            stored = zstandard.ZstdDecompressor().decompress(stored)
        need(len(stored) == chunk["raw_bytes"], "a raw length")
        at = 0
        while at < len(stored):
            (length,) = struct.unpack_from(">H", stored, at)
            (size,) = struct.unpack_from(">I", stored, at + 2 + length)
            rows[stored[at + 2 : at + 2 + length]] = stored[at + 6 + length : at + 6 + length + size]
            at += 6 + length + size
    scheme = mini_snapshot.SCHEMES[manifest["scheme"]][0]
    leaves = []
    for key, value in rows.items():
        key_hash = hashlib.sha256(key).digest()
        value_hash = hashlib.sha256(mini_snapshot.tree_value(value)).digest()
        leaves.append((key_hash, hashlib.sha256(scheme + key_hash + value_hash).digest()))
    need(mini_snapshot.node(manifest["scheme"], sorted(leaves), 0).hex() == manifest["root"], "the root")
    return manifest, rows


def bound_to(head: bytes) -> bytes:
    """SHA-256 of head and part table without the hashes of encrypted parts (5.5)."""
    found = head[:72]
    for at in range(72, len(head), 48):
        row = head[at : at + 48]
        found += row[:16] + bytes(32) if row[2] & 0x80 else row
    return hashlib.sha256(found).digest()
