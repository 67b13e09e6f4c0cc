"""A reader of snapshots and tree images made from docs/FORMAT.md alone; it imports nothing of the package.

Usage: ``python -m tests.golden.mini_snapshot DIRECTORY ROOT_HEX`` checks a snapshot and writes keys and values in hex.
"""

from __future__ import annotations

import json
import struct
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

Leaves = list[tuple[bytes, bytes]]

SCHEMES = {
    "jmt-sha256": (b"JMT::LeafNode", b"JMT::IntrnalNode", b"SPARSE_MERKLE_PLACEHOLDER_HASH__"),
    "ics23-smt": (b"\x00", b"\x01", bytes(32)),
}


class Refused(Exception):
    """The bytes are not a snapshot of that root."""


def need(condition: object, why: str) -> None:
    """Refuse unless it holds."""
    if not condition:
        raise Refused(why)


def bit(key_hash: bytes, depth: int) -> int:
    """Bit ``depth``, the most significant first."""
    return key_hash[depth // 8] >> (7 - depth % 8) & 1


def node(scheme: str, leaves: Leaves, depth: int) -> bytes:
    """node(S, d) of section 8."""
    _, inner, null = SCHEMES[scheme]
    if not leaves:
        return null
    if len(leaves) == 1:
        return leaves[0][1]
    sides = [[leaf for leaf in leaves if bit(leaf[0], depth) == side] for side in (0, 1)]
    return sha256(inner + node(scheme, sides[0], depth + 1) + node(scheme, sides[1], depth + 1)).digest()


def tree_value(value: bytes) -> bytes:
    """What stands in the tree."""
    if len(value) <= 65536:
        return value
    return b"HOLDFAST-BLOB" + struct.pack(">Q", len(value)) + sha256(value).digest()


def read_chunk(data: bytes, root: bytes) -> dict[bytes, bytes]:
    """Keys and values of a chunk file (9.1), proven against the root. Codec 0 only."""
    need(data[:8] == b"HFCHUNK1" and sha256(data[:-32]).digest() == data[-32:], "no chunk, or damaged")
    number, codec, zero, depth = struct.unpack_from(">IBBH", data, 8)
    scheme = data[16:48].rstrip(b"\0").decode()
    prefix, (count, raw, stored) = data[152:184], struct.unpack_from(">QQQ", data, 184)
    need((number, codec, zero) == (1, 0, 0) and raw == stored and data[120:152] == root, "another form or state")
    start = 208 + 32 * depth
    need(len(data) == start + stored + 32, "a wrong length")
    siblings = [data[at : at + 32] for at in range(208, start, 32)]
    rows, leaves, at = {}, [], start
    while at < start + stored:
        (length,) = struct.unpack_from(">H", data, at)
        key = data[at + 2 : at + 2 + length]
        (size,) = struct.unpack_from(">I", data, at + 2 + length)
        value = data[at + 6 + length : at + 6 + length + size]
        at += 6 + length + size
        need(1 <= length <= 400 and len(value) == size >= 1, "a record of a wrong length")
        need(not (size == 53 and value.startswith(b"HOLDFAST-BLOB")), "a reference in the place of a value")
        key_hash = sha256(key).digest()
        leaf = sha256(SCHEMES[scheme][0] + key_hash + sha256(tree_value(value)).digest()).digest()
        rows[key] = value
        leaves.append((key_hash, leaf))
    hashes = [leaf[0] for leaf in leaves]
    need(len(leaves) == count and hashes == sorted(set(hashes)), "keys are missing, double or out of order")
    need(all(bit(key_hash, n) == bit(prefix, n) for key_hash in hashes for n in range(depth)), "a key of elsewhere")
    found = node(scheme, leaves, depth)
    for level, sibling in enumerate(siblings):
        pair = (sibling, found) if bit(prefix, depth - 1 - level) else (found, sibling)
        found = sha256(SCHEMES[scheme][1] + pair[0] + pair[1]).digest()
    need(found == root, "not of this root")
    return rows


def read_snapshot(directory: Path, root: bytes) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    """The manifest (9.2), and every key and value of the snapshot."""
    text = (directory / "manifest.json").read_bytes()
    manifest = json.loads(text)
    spelling = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    need(spelling == text and manifest["kind"] == "holdfast-snapshot" and manifest["format"] == 1, "no manifest")
    need(manifest["root"] == root.hex(), "another root")
    chain = json.dumps(manifest["chain"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    rows: dict[bytes, bytes] = {}
    for chunk in manifest["chunks"]:
        data = (directory / "chunks" / f"{chunk['prefix']}-{chunk['depth']}.hfc").read_bytes()
        need(data[-32:].hex() == chunk["sha256"], "another chunk")
        need(data[48:80] == sha256(chain).digest(), "another chain")
        need(data[80:88] == struct.pack(">Q", manifest["block"]["height"]), "another height")
        need(data[88:120].hex() == manifest["block"]["hash"], "another block")
        found = read_chunk(data, root)
        need(len(found) == chunk["count"] and not found.keys() & rows.keys(), "keys twice")
        rows |= found
    need(len(rows) == manifest["count"], "keys are missing")
    return manifest, rows


def read_image(data: bytes, store_id: bytes, salt: bytes) -> tuple[int, bytes, bytes, Leaves]:
    """Seq, digest of the frame, root and leaves of a tree image (8.4)."""
    need(data[:16] == b"HFTREE_1" + bytes((0, 0, 0, 1)) + bytes(4) and data[16:32] == store_id, "no image")
    need(sha256(salt + data[:160]).digest() == data[160:192], "a damaged header")
    seq, digest, root, count = struct.unpack_from(">Q32s32sQ", data, 64)
    need(len(data) == 192 + 64 * count + 32 and data[144:160] == bytes(16), "a wrong length")
    need(sha256(salt + data[192:-32]).digest() == data[-32:], "damaged leaves")
    leaves = [(data[at : at + 32], data[at + 32 : at + 64]) for at in range(192, len(data) - 32, 64)]
    need(node(data[32:64].rstrip(b"\0").decode(), leaves, 0) == root, "leaves of another root")
    return seq, digest, root, leaves


if __name__ == "__main__":
    for row_key, row_value in sorted(read_snapshot(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))[1].items()):
        sys.stdout.write(f"{row_key.hex()} {row_value.hex()}\n")
