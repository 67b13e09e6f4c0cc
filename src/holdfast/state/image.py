"""The tree's image: one file that makes opening quick (docs/FORMAT.md, section 8.4).

Invariants:
    * The image is derived. It is never needed and never trusted: its records must give the root that its header names,
      and the caller compares that root with the journal's. Whatever is wrong with it is a reason to build the tree
      from the flat state, never a reason not to open.
    * ``tree/image`` is the old image or the new one, after any crash; one that does not verify is never loaded.
    * Saving reads one immutable version of the tree: commits go on meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from .._failpoints import hit
from .._fs import File, FileSystem, NewFile
from ..errors import HoldfastError
from ..merkle.api import RECORD_BYTES, Backend, Scheme, Tree

__all__ = ["IMAGE_NAME", "Image", "LoadedImage", "image_path", "load_image", "save_image"]

IMAGE_NAME = "image"
IMAGE_FORMAT = 1

_MAGIC = b"HFTREE_1"
_HEADER = struct.Struct(">8sI4s16s32sQ32s32sQ16s")
_DIGEST_BYTES = 32
_RECORDS_AT = _HEADER.size + _DIGEST_BYTES
_SLICE_RECORDS = 64 * 1024
_RESERVED = (bytes(4), bytes(16))
assert _HEADER.size == 160


class Image(NamedTuple):
    """A tree as it was saved: the state after frame ``seq``, whose digest is ``digest``."""

    seq: int
    digest: bytes
    tree: Tree


class LoadedImage(NamedTuple):
    """The image, or why there is none. ``reason`` is empty if nothing was found or nothing is wrong."""

    image: Image | None
    reason: str


class _Unusable(Exception):
    """The image does not verify; the message says why."""


def image_path(root: Path) -> Path:
    """Where the store at ``root`` keeps its image."""
    return root / "tree" / IMAGE_NAME


# -- saving ---------------------------------------------------------------------------------------------------------


def save_image(
    fs: FileSystem,
    root: Path,
    *,
    store_id: bytes,
    salt: bytes,
    scheme: Scheme,
    tree: Tree,
    seq: int,
    digest: bytes,
    keep_going: Callable[[], bool] | None = None,
) -> bool:
    """True once the image of ``tree`` is durable at ``tree/image``; False if ``keep_going`` ended it, nothing changed.

    Args:
        store_id: 16 bytes, salt: 32 bytes; both of the store's identity.
        scheme: the scheme of ``tree``.
        tree: the state after frame ``seq``.
        digest: digest of that frame, 32 bytes.
        keep_going: asked about every 4 MiB, and before the file takes its place.
    Raises:
        HoldfastError: the file could not be written; an older image is still there.
    Cost:
        64 bytes a key, written and synced once; one SHA-256 over them.
    """
    path = image_path(root)
    fs.make_directory(path.parent)
    head = _HEADER.pack(
        _MAGIC,
        IMAGE_FORMAT,
        bytes(4),
        store_id,
        scheme.name.encode("ascii").ljust(32, b"\0"),
        seq,
        digest,
        tree.root,
        tree.count,
        bytes(16),
    )
    with NewFile(fs, path) as file:
        hit("state.image.created")
        file.write(head + sha256(salt + head).digest())
        hasher = sha256(salt)
        for records in _slices(tree):
            if keep_going is not None and not keep_going():
                return False
            hasher.update(records)
            file.write(records)
            hit("state.image.slice")
        file.write(hasher.digest())
        if keep_going is not None and not keep_going():
            return False
        hit("state.image.written")
        file.sync()
        hit("state.image.synced")
        file.publish()
        hit("state.image.published")
    return True


def _slices(tree: Tree) -> Iterator[bytes]:
    """Every record of the tree, in order of the key hashes, in pieces."""
    start: bytes | None = bytes(32)
    found = 0
    while start is not None:
        records = tree.records(start, _SLICE_RECORDS)
        if records:
            yield records
        found += len(records) // RECORD_BYTES
        start = None if len(records) < _SLICE_RECORDS * RECORD_BYTES else _after(records[-RECORD_BYTES:][:32])
    assert found == tree.count


def _after(key_hash: bytes) -> bytes | None:
    """The smallest key hash above, or ``None``."""
    number = int.from_bytes(key_hash, "big") + 1
    return number.to_bytes(32, "big") if number < 1 << 256 else None


# -- loading --------------------------------------------------------------------------------------------------------


def load_image(
    fs: FileSystem, root: Path, *, store_id: bytes, salt: bytes, scheme: Scheme, backend: Backend
) -> LoadedImage:
    """The tree in ``tree/image``, checked against its own header; the caller checks ``seq``, ``digest`` and the root.

    Never raises for what is in the file or on the disk: ``reason`` says what is wrong, and nothing was touched.

    Cost: 64 bytes a key read and held once, and what ``backend.build`` costs.
    """
    path = image_path(root)
    try:
        if not fs.exists(path):
            return LoadedImage(None, "")
        file = fs.open(path, read_only=True)
        try:
            return LoadedImage(_load(file, store_id, salt, scheme, backend), "")
        finally:
            file.close()
    except _Unusable as error:
        return LoadedImage(None, f"tree/{IMAGE_NAME}: {error}")
    except HoldfastError as error:
        return LoadedImage(None, f"tree/{IMAGE_NAME} cannot be read: {error}")


def _load(file: File, store_id: bytes, salt: bytes, scheme: Scheme, backend: Backend) -> Image:
    head = file.pread(_RECORDS_AT, 0)
    if len(head) != _RECORDS_AT:
        raise _Unusable("shorter than its header")
    magic, number, reserved_a, owner, name, seq, digest, root, count, reserved_b = _HEADER.unpack_from(head)
    if magic != _MAGIC:
        raise _Unusable("no image")
    if number != IMAGE_FORMAT:
        raise _Unusable(f"of format {number}, this version knows {IMAGE_FORMAT}")
    if head[_HEADER.size :] != sha256(salt + head[: _HEADER.size]).digest() or owner != store_id:
        raise _Unusable("damaged, or of another store")
    if name.rstrip(b"\0") != scheme.name.encode("ascii"):
        raise _Unusable("of another tree scheme")
    if (reserved_a, reserved_b) != _RESERVED:
        raise _Unusable("reserved bytes are not zero")
    end = _RECORDS_AT + count * RECORD_BYTES
    if file.size() != end + _DIGEST_BYTES:
        raise _Unusable("its length does not fit its count of keys")
    hasher = sha256(salt)
    slices: list[bytes] = []
    for offset in range(_RECORDS_AT, end, _SLICE_RECORDS * RECORD_BYTES):
        piece = file.pread(min(_SLICE_RECORDS * RECORD_BYTES, end - offset), offset)
        hasher.update(piece)
        slices.append(piece)
    if file.pread(_DIGEST_BYTES, end) != hasher.digest():
        raise _Unusable("its records are damaged")
    try:
        tree = backend.build(scheme, slices)
    except ValueError as error:
        raise _Unusable(f"its records are no tree: {error}") from error
    if tree.root != root or tree.count != count:
        raise _Unusable("its records do not give its root")
    return Image(seq, digest, tree)
