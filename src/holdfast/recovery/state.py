"""The state of a store at rest: its rows, its tree and its newest history, against what the journal says.

What is compared, and against what:
    * the tree built from the flat rows, with the root in the journal's record of the last flush;
    * ``state`` and ``preimages`` with each other, both ways; references with their ``blobs``, every blob with its hash;
    * the image of the tree with itself, with the frame it names and, where that is the last one, with the root;
    * history rows of the newest ``HISTORY_HEIGHTS`` canonical blocks: the values they hold lead, block by block, to the
      roots that were recorded. The whole history is compared by level ``views`` (see ``rows``).

Invariants:
    * Nothing is changed. What is wrong becomes a problem that names the row; the check goes on behind it.
    * Rows are read page by page. Memory: the tree, and one large value.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

from .._fs import FileSystem
from ..blocks.lookup import load_canonical
from ..blocks.state import ChainState, has_root, root_after
from ..engine.api import Engine
from ..errors import CorruptionError, NotFoundError, Recovery
from ..limits import STATE_INLINE_BYTES_MAX, STATE_KEY_BYTES_MAX
from ..merkle.api import Scheme, Tree
from ..merkle.backend import backend
from ..merkle.values import is_reference
from ..state.image import IMAGE_NAME, load_image
from ..state.rows import BLOB_CHUNK_BYTES, full_value, preimage_key, state_key
from ..store.identity import Identity
from ..store.replay import execution_of
from ..store.tree import another_root
from ..views.history import decode_old, history_key, load_history
from ..views.rows import decode_row
from ..views.tables import BLOBS, PREIMAGES, STATE
from .links import Counter, Frames, bad_row, engine_rows, plain_row

__all__ = ["HISTORY_HEIGHTS", "check_blobs", "check_image", "check_preimages", "check_recent_history", "check_rows"]

HISTORY_HEIGHTS = 64
"""So many of the newest canonical blocks have their history rows checked against the roots."""

_PAGE_ROWS = 1000
_PREFIX = len(STATE.prefix)
_HASH = 32


def _pages(engine: Engine, start: bytes, stop: bytes, tally: Counter) -> Iterator[list[tuple[bytes, bytes]]]:
    """Engine keys and plain values, page by page; rows with a bad checksum are reported and left out."""
    more: bytes | None = start
    while more is not None:
        page = engine.scan(more, stop, limit=_PAGE_ROWS)
        rows = []
        for key, stored in page.rows:
            tally.step()
            try:
                rows.append((key, decode_row(key, stored)))
            except CorruptionError as error:
                tally.problem(error)
        yield rows
        more = page.resume


# -- the tip --------------------------------------------------------------------------------------------------------


def check_rows(engine: Engine, scheme: Scheme, state: ChainState, tally: Counter) -> Tree | None:
    """Every row of ``state`` is well formed, has its preimage and its large value, and all together have the root.

    Returns the tree over them, or ``None`` if it has another root.
    """
    tree = backend().build(scheme, _records(engine, scheme, tally))
    if has_root(tree, state.state_root):
        return tree
    tally.problem(another_root(tree, state))
    return None


def _records(engine: Engine, scheme: Scheme, tally: Counter) -> Iterator[bytes]:
    whole: set[bytes] = set()
    for page in _pages(engine, STATE.prefix, STATE.end, tally):
        rows = [(key[_PREFIX:], value) for key, value in page if _well_formed(key, value, tally)]
        wanted = [preimage_key(sha256(key).digest()) for key, _ in rows]
        for (key, value), row, stored in zip(rows, wanted, engine.get_many(wanted), strict=True):
            if stored is None:
                tally.problem(bad_row("the preimage of a key of the state is missing", row, state_key=key))
            if is_reference(value) and value not in whole:
                _check_value(value, engine, key, tally)
                if len(whole) < _PAGE_ROWS:
                    whole.add(value)
        yield backend().hash_rows(scheme, rows)


def _check_value(value: bytes, engine: Engine, key: bytes, tally: Counter) -> None:
    try:
        full_value(value, partial(plain_row, engine))
    except CorruptionError as error:
        error.context.setdefault("state_key", key)
        tally.problem(error)


def _well_formed(key: bytes, value: bytes, tally: Counter) -> bool:
    if not _PREFIX < len(key) <= _PREFIX + STATE_KEY_BYTES_MAX:
        tally.problem(bad_row("a key of the state has a wrong length", key, found=len(key) - _PREFIX))
        return False
    if not 0 < len(value) <= STATE_INLINE_BYTES_MAX:
        tally.problem(bad_row("a value of the state has a wrong length", key, found=len(value)))
        return False
    return True


def check_preimages(engine: Engine, tally: Counter) -> None:
    """Every row of ``preimages`` is the key that its hash names, and that key has a value."""
    for page in _pages(engine, PREIMAGES.prefix, PREIMAGES.end, tally):
        named: list[tuple[bytes, bytes]] = []
        for key, value in page:
            if not value or key[_PREFIX:] != sha256(value).digest():
                tally.problem(bad_row("a preimage is not the key that its hash names", key, found=value))
            else:
                named.append((key, state_key(value)))
        for (key, row), stored in zip(named, engine.get_many([row for _, row in named]), strict=True):
            if stored is None:
                tally.problem(bad_row("a preimage belongs to no key of the state", key, found=row[_PREFIX:]))


def check_blobs(engine: Engine, tally: Counter) -> None:
    """Every large value that is stored, at whatever height it was one, is what its hash names, from its first piece."""
    digest, hasher, pieces, last = b"", sha256(), 0, BLOB_CHUNK_BYTES

    def end() -> None:
        if pieces and hasher.digest() != digest:
            tally.problem(bad_row("a large value is not what its hash names", BLOBS.prefix + digest))

    for key, stored in engine_rows(engine, BLOBS.prefix, BLOBS.end):
        tally.step()
        inside = key[_PREFIX:]
        if len(inside) != _HASH + 4:
            tally.problem(bad_row("a key of a large value has a wrong length", key, found=len(inside)))
            continue
        if inside[:_HASH] != digest:
            end()
            digest, hasher, pieces, last = inside[:_HASH], sha256(), 0, BLOB_CHUNK_BYTES
        try:
            value = decode_row(key, stored)
        except CorruptionError as error:
            tally.problem(error)
            value = b""
        number = int.from_bytes(inside[_HASH:], "big")
        if number != pieces or last != BLOB_CHUNK_BYTES or not 0 < len(value) <= BLOB_CHUNK_BYTES:
            tally.problem(bad_row("a piece of a large value is missing or has a wrong length", key, number=number))
        hasher.update(value)
        pieces, last = pieces + 1, len(value)
    end()


# -- the image ------------------------------------------------------------------------------------------------------


def check_image(
    fs: FileSystem,
    root: Path,
    identity: Identity,
    scheme: Scheme,
    source: Frames,
    last: tuple[int, bytes],
    tally: Counter,
) -> None:
    """The image of the tree, if there is one, is whole and of a frame of this journal.

    Args:
        last: number of the last frame in the views, and the root after it: an image of that frame has that root.
    """

    def report(message: str, **context: object) -> None:
        tally.problem(
            CorruptionError(
                message,
                path=root / "tree" / IMAGE_NAME,
                recovery=Recovery.REPLAY,
                remedy="open the store and close it: the tree is made from the rows of the state, the image anew",
                **context,
            )
        )

    loaded = load_image(fs, root, store_id=identity.store_id, salt=identity.salt, scheme=scheme, backend=backend())
    tally.step()
    if loaded.reason:
        report(f"the image of the tree cannot be used: {loaded.reason}")
    image = loaded.image
    if image is None:
        return
    try:
        known = source.frame(image.seq).digest == image.digest
    except NotFoundError:
        known = False
    if not known:
        report("the image of the tree belongs to another history of the journal", seq=image.seq)
    elif image.seq == last[0] and not has_root(image.tree, last[1]):
        report("the image of the tree has another root", seq=image.seq, expected=last[1], found=image.tree.root)


# -- the history ----------------------------------------------------------------------------------------------------


def check_recent_history(source: Frames, engine: Engine, state: ChainState, tree: Tree, tally: Counter) -> None:
    """What history says about the newest blocks leads from the tip's ``tree`` to the root below each of them."""
    record = load_history(engine.get)
    if record is None or not state.has_tip:
        return
    lowest = max(record.floor, state.root_height)
    get = partial(plain_row, engine)
    info = load_canonical(get, state.tip_height)
    for height in range(state.tip_height, max(lowest, state.tip_height - HISTORY_HEIGHTS), -1):
        below = load_canonical(get, height - 1)
        if info.executed is not None:
            old = {}
            keys = list(execution_of(source, info).changes)
            rows = [history_key(key, height) for key in keys]
            for key, row, stored in zip(keys, rows, engine.get_many(rows), strict=True):
                tally.step()
                if stored is None:
                    raise bad_row("a history row is missing", row, state_key=key, height=height)
                value = decode_old(row, decode_row(row, stored))
                if value is not None and is_reference(value):
                    full_value(value, get)
                old[key] = value
            tree = tree.update(old).tree
        expected = root_after(below)
        if not has_root(tree, expected):
            raise CorruptionError(
                "the history does not lead to the root that the journal says",
                height=height - 1,
                hash=below.hash,
                expected=expected,
                found=tree.root,
                recovery=Recovery.REBUILD,
            )
        info = below
