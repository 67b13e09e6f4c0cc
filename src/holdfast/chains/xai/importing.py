"""Chains of the original's files taken into a store, and written out of one.

Invariants:
    * A file is checked whole, checksum included, before the first block is stored.
    * Blocks that are stored already are skipped, so a stopped import is continued by the same call.
    * Every block is validated and executed; a bad one ends the import, and what came before it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ...errors import CorruptionError, InvalidBlock, InvalidInputError
from ...types import AddStatus, Block
from .chain import XaiChain, XaiParameters, to_stored
from .codec import encode_document, parse_block, parse_json, read_block
from .document import ChainDocument, metadata_of

if TYPE_CHECKING:
    from ...blocks.reader import BlockReader
    from ...store import Store
    from ...store.documents import Documents
    from ...types import BlockInfo

__all__ = [
    "METADATA_KEY",
    "PENDING",
    "PENDING_BYTES_MAX",
    "PENDING_MAX",
    "SPACE",
    "block_documents",
    "chain_of_document",
    "import_document",
    "import_rest",
    "load_rest",
    "rest_rows",
    "save_rest",
    "saved_tip",
]

PENDING: Final = "pending_transactions"
SPACE: Final = "xai"
"""The space of documents of everything that stands beside the blocks."""
METADATA_KEY: Final = b"m"
_TIP_KEY: Final = b"t"
_PENDING: Final = b"p"
_OTHER: Final = b"r"
_NAME_BYTES_MAX: Final = 200
PENDING_MAX: Final = 100_000
PENDING_BYTES_MAX: Final = 256 * 1024 * 1024
"""All of them are written in one batch of documents where each moves to another number."""
_BATCH: Final = 128
_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Blocks of a batch are durable together, and still decoded when they are judged."""


def chain_of_document(document: ChainDocument, rules: XaiParameters | None = None) -> XaiChain:
    """The chain whose genesis block is the first of the file, with the other parameters of ``rules``.

    Raises ``InvalidInputError`` for a file without blocks, ``InvalidBlock`` if its first block, or what stands beside
    the chain, cannot be kept.
    """
    if not document.places:
        raise InvalidInputError("the file holds no blocks; a chain has at least its genesis block")
    rest_rows(document.rest)
    genesis = parse_block(document.body(0)).hash
    return XaiChain(XaiParameters(genesis) if rules is None else replace(rules, genesis=genesis))


def import_document(
    store: Store,
    document: ChainDocument,
    *,
    first: int = 0,
    end: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Every block of ``document`` is in ``store``, durable; how many were added.

    ``first`` and ``end``: only blocks with such a number, ``first`` included. ``stop`` is asked between batches; what
    was added stays, and the same call goes on from there. Raises ``InvalidBlock`` that names the number of the block in
    the file, and whatever the store raises.
    """
    added, number = 0, first
    total = len(document) if end is None else end
    while number < total:
        if stop is not None and stop():
            return added
        blocks, size, failure = list[Block](), 0, None
        try:
            while number < total and len(blocks) < _BATCH and size < _BATCH_BYTES:
                blocks.append(to_stored(read_block(document.body(number))))
                size += len(blocks[-1].body or b"")
                number += 1
        except InvalidBlock as error:
            failure = error
        try:
            results = store.add_many(blocks, root_allowed=store.tip is None)
            if failure is not None:
                raise failure
        except InvalidBlock as error:
            error.context.setdefault("block", error.context.get("height", number))
            raise
        added += sum(result.status is not AddStatus.KNOWN for result in results)
        if progress is not None:
            progress(number, total)
    return added


def block_documents(blocks: BlockReader, infos: Iterable[BlockInfo]) -> Iterator[dict[str, Any]]:
    """The decoded documents of stored blocks, one at a time. Raises ``CorruptionError``."""
    for info in infos:
        body = blocks.body(info)
        if body is None:
            raise CorruptionError("a stored block has no document", hash=info.hash, height=info.height)
        try:
            yield parse_json(body, "a stored block")
        except InvalidBlock as error:
            raise CorruptionError("a stored block does not decode", hash=info.hash, height=info.height) from error


# -- what is kept beside the blocks ----------------------------------------------------------------------------------


def rest_rows(rest: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Documents of everything beside the chain: ``p`` and number of each pending transaction, ``r`` and other names.

    Raises ``InvalidBlock`` for what cannot be kept.
    """
    pending = rest.get(PENDING, [])
    if not isinstance(pending, (list, tuple)) or len(pending) > PENDING_MAX:
        raise InvalidBlock(f"pending transactions are a list of at most {PENDING_MAX}", found=type(pending).__name__)
    rows = {
        _PENDING + number.to_bytes(4, "big"): encode_document(item, f"pending transaction {number}")
        for number, item in enumerate(pending)
    }
    for name, value in rest.items():
        if name != PENDING:
            key = name.encode("utf-8", "surrogatepass")
            if not 1 <= len(key) <= _NAME_BYTES_MAX:
                raise InvalidBlock(f"a name beside the chain has 1 to {_NAME_BYTES_MAX} bytes", found=name[:80])
            rows[_OTHER + key] = encode_document(value, f"'{name[:80]}'")
    return rows


def save_rest(store: Store, rest: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """What stands beside the chain, the metadata and the hash of the tip that they are of are kept in one atomic batch.

    Nothing else is beside the chain then.
    """
    rows = {**rest_rows(rest), METADATA_KEY: encode_document(dict(metadata), "the metadata")}
    if store.tip is not None:
        rows[_TIP_KEY] = store.tip.hash
    space = store.documents(SPACE)
    stored = dict(space.scan())
    puts = {key: value for key, value in rows.items() if stored.get(key) != value}
    space.write(puts, [key for key in stored if key not in rows])


def import_rest(store: Store, document: ChainDocument) -> None:
    """What stands beside the chain of ``document`` is kept, if its last block is the tip; else nothing happens."""
    tip = store.tip
    if tip is None or parse_block(document.body(len(document) - 1)).hash != tip.hash:
        return
    assert document.running is not None, "it was counted when the file was read"
    checksum = document.running.value(document.rest)
    facts = document.outer.get("metadata", document.outer)
    timestamp = float(tip.time)
    if isinstance(facts, dict) and isinstance(facts.get("timestamp"), (int, float)):
        timestamp = facts["timestamp"]
    save_rest(store, document.rest, metadata_of(len(document), checksum, timestamp))


def load_rest(space: Documents) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is kept beside the chain, pending transactions included, and the metadata. Raises ``CorruptionError``."""
    rest: dict[str, Any] = {}
    pending = []
    metadata = None
    try:
        for key, value in space.scan():
            if key == _TIP_KEY:
                continue
            found = parse_json(value, "a document")
            if key == METADATA_KEY:
                metadata = found
            elif key.startswith(_PENDING):
                pending.append(found)
            else:
                rest[key[len(_OTHER) :].decode("utf-8", "surrogatepass")] = found
    except InvalidBlock as error:
        raise CorruptionError(f"a document beside the chain does not decode: {error}") from error
    rest[PENDING] = pending
    return rest, metadata


def saved_tip(space: Documents) -> bytes | None:
    """The hash of the block that was the tip when ``save_rest`` last ran; ``None`` if it never did."""
    return space.get(_TIP_KEY)
