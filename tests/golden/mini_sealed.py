"""A reader of encrypted stores, written from docs/FORMAT.md (3.1, 5.5) alone; imports nothing of the package."""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.golden import mini_reader
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


def bound_to(head: bytes) -> bytes:
    """SHA-256 of head and part table without the hashes of encrypted parts (5.5)."""
    found = head[:72]
    for at in range(72, len(head), 48):
        row = head[at : at + 48]
        found += row[:16] + bytes(32) if row[2] & 0x80 else row
    return hashlib.sha256(found).digest()
