"""``holdfast tip``, ``show`` and ``blocks``: looking at blocks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import BlockNotFound, InvalidInputError
from .options import Config, DataDir, Json
from .output import Output, time_text

if TYPE_CHECKING:
    from ..store.store import Store
    from ..types import BlockInfo

__all__ = ["block_row", "find_block", "find_hash", "parse_height", "register"]

_LIMIT = 50
_SECONDS_DIGITS_MAX = 20
_HEIGHT = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def register(app: typer.Typer) -> None:
    """The commands are part of ``app``."""
    app.command("tip")(tip)
    app.command("show")(show)
    app.command("blocks")(blocks)


def block_row(store: Store, info: BlockInfo) -> dict[str, object]:
    """What every list of blocks says about one."""
    from .chains import display_hash, display_producer

    name = store.spec.name
    return {
        "height": info.height,
        "hash": display_hash(name, info.hash),
        "parent": display_hash(name, info.parent),
        "time": info.time,
        "work": str(info.work),
        "total_work": str(info.total_work),
        "producer": display_producer(name, info.producer),
        "epoch": store.blocks.epoch_of(info.height),
        "bytes": info.header_bytes + (info.body_bytes or 0) + (info.extra_bytes or 0),
    }


def parse_height(text: str) -> int | None:
    """The height that ``text`` is: decimal digits, the first of several not 0. ``None`` for anything else."""
    return int(text) if _HEIGHT.fullmatch(text) else None


def find_block(store: Store, text: str) -> BlockInfo:
    """The block that a hash, a canonical height or the word ``tip`` names. Raises ``BlockNotFound``."""
    if text == "tip":
        if store.tip is None:
            raise BlockNotFound("the store holds no block yet")
        return store.tip
    height = parse_height(text)
    if height is None:
        return find_hash(
            store, text, remedy="a height has no leading zeros, a hash all of its 64 hex digits; or say tip"
        )
    info = store.blocks.at(height)
    if info is None:
        raise BlockNotFound("no canonical block at this height", height=height)
    return info


def find_hash(store: Store, text: str, *, remedy: str) -> BlockInfo:
    """The block, of any branch, whose hash is ``text``.

    Raises ``BlockNotFound``, or ``InvalidInputError`` with this ``remedy`` for anything but 64 hex digits.
    """
    from .chains import parse_hash

    try:
        block_hash = parse_hash(store.spec.name, text)
    except InvalidInputError as error:
        error.remedy = remedy
        raise
    found = store.blocks.get(block_hash)
    if found is None:
        raise BlockNotFound("no such block is stored", hash=text)
    return found


def tip(data_dir: DataDir, config: Config = None, as_json: Json = False) -> None:
    """Show the head of the canonical chain."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        info = find_block(store, "tip")
        row = block_row(store, info) | {"finalized": store.finalized}
        Output(as_json=as_json).record(row if as_json else _readable(row))


def _readable(row: dict[str, object]) -> dict[str, object]:
    time = row["time"]
    assert isinstance(time, int)
    return row | {"time": f"{time} ({time_text(time)} UTC)"}


def show(
    data_dir: DataDir,
    block: Annotated[str, typer.Argument(metavar="HASH|HEIGHT|tip", help="A block of any branch, or a height.")],
    raw: Annotated[
        Literal["header", "body", "extra"] | None,
        typer.Option("--raw", help="Print these stored bytes in hex instead."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show one block: where it stands, its branch, its size."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        info = find_block(store, block)
        out = Output(as_json=as_json)
        if raw is not None:
            _show_raw(store, info, raw, out)
            return
        row = block_row(store, info) | _standing(store, info)
        out.record(row if as_json else _readable(row))


def _show_raw(store: Store, info: BlockInfo, raw: str, out: Output) -> None:
    reader = store.blocks
    read: dict[str, Callable[[BlockInfo], bytes | None]] = {
        "header": reader.header,
        "body": reader.body,
        "extra": reader.extra,
    }
    data = read[raw](info)
    if out.as_json:
        out.record({raw: None if data is None else data.hex()})
    elif data is None:
        raise BlockNotFound(f"the block was stored without {raw}", hash=info.hash)
    else:
        out.text(data.hex() + "\n")


def _standing(store: Store, info: BlockInfo) -> dict[str, object]:
    from .chains import display_hash

    name, reader = store.spec.name, store.blocks
    status = reader.status(info.hash)
    values: dict[str, object] = {
        "status": None if status is None else status.value,
        "final": store.finalized is not None and info.height <= store.finalized and reader.is_canonical(info),
        "header_bytes": info.header_bytes,
        "body_bytes": info.body_bytes,
        "extra_bytes": info.extra_bytes,
        "journal_frame": info.seq,
        "seen": datetime.fromtimestamp(info.seen_us / 1e6, UTC).isoformat(timespec="milliseconds"),
        "children": [display_hash(name, child.hash) for child in reader.children(info.hash)],
        "competitors": [display_hash(name, other.hash) for other in reader.competitors(info.height) if other != info],
    }
    orphan = reader.orphan(info.hash)
    if orphan is not None:
        competing = orphan.competing_hash
        values["orphaned"] = {
            "reason": orphan.reason,
            "competing": None if competing is None else display_hash(name, competing),
            "was_canonical": orphan.was_canonical,
            "at": datetime.fromtimestamp(orphan.orphaned_us / 1e6, UTC).isoformat(timespec="milliseconds"),
        }
    return values


def blocks(
    data_dir: DataDir,
    start: Annotated[int | None, typer.Option("--from", min=0, help="Lowest height.")] = None,
    stop: Annotated[int | None, typer.Option("--to", min=0, help="Highest height, itself included.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 = all.")] = _LIMIT,
    reverse: Annotated[bool, typer.Option("--reverse", help="Highest first.")] = False,
    epoch: Annotated[int | None, typer.Option("--epoch", min=0, help="Only this epoch.")] = None,
    producer: Annotated[str | None, typer.Option("--producer", help="Only this producer (peer id or address).")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Unix seconds or ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List canonical blocks by height, epoch, time or producer; none of them scans the chain."""
    from .session import open_to_read

    times = _time(since, "--since"), _time(until, "--until")
    with open_to_read(data_dir, config) as store:
        low, high = start or 0, None if stop is None else stop + 1
        if epoch is not None:
            first, after = store.blocks.epoch_range(epoch)
            low, high = max(low, first), after if high is None else min(high, after)
        found = _found(store, low, high, times, producer, reverse=reverse)
        rows = (block_row(store, info) for info in found)
        out = Output(as_json=as_json)
        columns = ["height", "hash", "when", "producer", "bytes"]
        shown = ({**row, "when": time_text(_int(row["time"]))} for row in rows) if not as_json else rows
        count = out.rows(columns, islice(shown, min(limit, sys.maxsize) or None), empty="no blocks")
        if limit and count == limit:
            out.note(f"the first {limit}; --limit 0 shows all")


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _found(
    store: Store,
    low: int,
    high: int | None,
    times: tuple[int | None, int | None],
    producer: str | None,
    *,
    reverse: bool,
) -> Iterator[BlockInfo]:
    """Canonical blocks that meet every condition, found by the narrowest index and lowest first, or last."""
    from .chains import parse_producer

    since, until = times
    wanted = None if producer is None else parse_producer(store.spec.name, producer)
    reader = store.blocks
    if wanted is None and since is None and until is None:
        yield from reader.canonical(low, high, reverse=reverse)
        return
    source = reader.by_producer(wanted) if wanted is not None else reader.by_time(since or 0, until)
    chosen = (
        info
        for info in source
        if info.height >= low
        and (high is None or info.height < high)
        and (since is None or info.time >= since)
        and (until is None or info.time < until)
    )
    yield from reversed(list(chosen)) if reverse else chosen


def _time(text: str | None, option: str) -> int | None:
    """Seconds since 1970; a time without a zone is UTC."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= _SECONDS_DIGITS_MAX:
        return min(int(text), 2**63 - 1)
    try:
        when = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInputError(f"{option} is neither Unix seconds nor an ISO 8601 time", found=text[:80]) from exc
    return int((when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp())
