"""``holdfast state``: keys and values of the state, at the tip or at a height, their history and the root.

Invariants:
    * Each command answers from one version of the state: that of the block it names, whatever a writer does meanwhile.
    * ``scan`` and ``diff`` hold a page at a time, however large the state is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BlockNotFound, InvalidInputError, NotFoundError
from ..limits import HEIGHT_MAX
from .keys import BYTES_HELP, in_json, parse_bytes, shown, shown_short
from .options import AtBlock, Config, DataDir, Height, Hex, Json
from .output import Output

if TYPE_CHECKING:
    from ..state.api import ReadableState
    from ..store.store import Store
    from ..types import BlockInfo

__all__ = ["block_at", "height_of", "null_root", "register", "state_of"]

_LIMIT = 50
_Key = Annotated[str, typer.Argument(metavar="KEY", help="A key: text, or 0x and hex digits.")]


def register(app: typer.Typer) -> None:
    """The group is part of ``app``."""
    from . import growth

    group = typer.Typer(no_args_is_help=True, help=f"The state after a block, and its history. {BYTES_HELP}")
    group.command("get")(get)
    group.command("scan")(scan)
    group.command("history")(history)
    group.command("root")(root)
    group.command("diff")(diff)
    growth.register(group)
    app.add_typer(group, name="state")


# -- which state ----------------------------------------------------------------------------------------------------


def block_at(store: Store, height: int | None, at_block: str | None) -> BlockInfo | None:
    """The canonical block that was asked for; ``None`` if none was.

    Raises ``BlockNotFound``, ``PrunedError`` below the base of the store, ``InvalidInputError``.
    """
    from .looking import find_hash

    if height is not None and at_block is not None:
        raise InvalidInputError("--height and --at-block exclude each other")
    if height is not None:
        found = store.blocks.at(height) if height <= HEIGHT_MAX else None
        return store.state.at(height).block if found is None else found  # which says why there is none
    if at_block is None:
        return None
    info = find_hash(store, at_block, remedy="--at-block takes a hash, in full; --height takes a height")
    if not store.blocks.is_canonical(info):
        raise BlockNotFound(
            "the block is not canonical, and the state is kept of canonical blocks only",
            hash=info.hash,
            height=info.height,
            remedy="name a canonical block; 'holdfast blocks' lists them",
        )
    return info


@contextmanager
def state_of(
    store: Store, height: int | None, at_block: str | None = None
) -> Iterator[tuple[BlockInfo | None, ReadableState]]:
    """The block that was asked for, or the tip (``None`` in an empty store), and the state after it: one version."""
    info = block_at(store, height, at_block)
    if info is None:
        with store.snapshot() as moment:
            yield moment.tip, moment.state
        return
    state = store.state.at(info.height)
    if state.block.hash != info.hash:
        raise BlockNotFound("the block is not canonical any more", hash=info.hash, height=info.height)
    yield state.block, state


def null_root(store: Store) -> bytes:
    """Root of the empty state of this store's scheme."""
    from ..merkle.api import SCHEMES

    return SCHEMES[store.spec.scheme].null


def height_of(store: Store, text: str) -> int:
    """A height, or that of the tip. Raises ``InvalidInputError``."""
    from .looking import parse_height

    if text == "tip":
        return 0 if store.tip is None else store.tip.height
    height = parse_height(text)
    if height is None:
        raise InvalidInputError("a height is a whole number without leading zeros, or the word tip", found=text[:80])
    return height


def _block_fields(store: Store, info: BlockInfo | None) -> dict[str, object]:
    from .chains import display_hash

    if info is None:
        return {"height": None, "block": None}
    return {"height": info.height, "block": display_hash(store.spec.name, info.hash)}


# -- commands -------------------------------------------------------------------------------------------------------


def get(
    key: _Key,
    data_dir: DataDir,
    height: Height = None,
    at_block: AtBlock = None,
    as_hex: Hex = False,
    raw: Annotated[bool, typer.Option("--raw", help="Print the bytes of the value and nothing else.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the value of one key. Exit code 14 if it has none."""
    from .session import open_to_read

    wanted = parse_bytes(key, what="the key", as_hex=as_hex)
    with open_to_read(data_dir, config) as store, state_of(store, height, at_block) as (info, state):
        value = state.get(wanted)
        out = Output(as_json=as_json)
        fields = _block_fields(store, info)
        if value is None:
            raise NotFoundError(
                "the key has no value in the state",
                key=shown(wanted),
                height=fields["height"],
                remedy="'holdfast state scan' lists the keys, 'holdfast state history KEY' when this one had a value",
            )
        if raw and not as_json:
            out.data(value)
        elif as_json:
            out.record(fields | in_json("key", wanted) | in_json("value", value) | {"bytes": len(value)})
        else:
            out.record(fields | {"key": shown(wanted), "value": shown(value), "bytes": len(value)})


def scan(
    data_dir: DataDir,
    prefix: Annotated[str, typer.Option("--prefix", metavar="KEY", help="Only keys that begin so.")] = "",
    start: Annotated[str | None, typer.Option("--start", metavar="KEY", help="The lowest key.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", metavar="KEY", help="Keys below this one.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Highest key first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 = all.")] = _LIMIT,
    height: Height = None,
    at_block: AtBlock = None,
    as_hex: Hex = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List keys and values in the order of the keys. With --json one object a line, as they are read."""
    from .session import open_to_read

    first = parse_bytes(prefix, what="--prefix", as_hex=as_hex)
    low = None if start is None else parse_bytes(start, what="--start", as_hex=as_hex)
    high = None if stop is None else parse_bytes(stop, what="--stop", as_hex=as_hex)
    with open_to_read(data_dir, config) as store, state_of(store, height, at_block) as (_, state):
        found = state.scan(first, start=low, stop=high, reverse=reverse)
        rows = (_row(key, value, as_json=as_json) for key, value in found)
        out = Output(as_json=as_json)
        count = out.lines(["key", "value", "bytes"], islice(rows, min(limit, sys.maxsize) or None), empty="no keys")
        if limit and count == limit:
            out.note(f"the first {limit}; --limit 0 shows all")


def _row(key: bytes, value: bytes, *, as_json: bool) -> dict[str, object]:
    if as_json:
        return in_json("key", key) | in_json("value", value)
    return {"key": shown(key), "value": shown_short(value), "bytes": len(value)}


def history(key: _Key, data_dir: DataDir, as_hex: Hex = False, config: Config = None, as_json: Json = False) -> None:
    """List the values a key had, each with the height from which it had it; the first is at the lowest height kept."""
    from .session import open_to_read

    wanted = parse_bytes(key, what="the key", as_hex=as_hex)
    with open_to_read(data_dir, config) as store:
        rows: list[dict[str, object]] = []
        for height, value in store.state.history(wanted):
            if as_json:
                rows.append({"height": height} | in_json("value", value))
            else:
                size = None if value is None else len(value)
                rows.append({"height": height, "value": shown_short(value) or "(absent)", "bytes": size})
        Output(as_json=as_json).rows(["height", "value", "bytes"], rows, empty="no history")


def root(
    data_dir: DataDir,
    height: Height = None,
    at_block: AtBlock = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the root of the state after a block; it is kept for every block, however old."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        info = block_at(store, height, at_block) or store.tip
        found = info.state_root if info is not None and info.state_root is not None else null_root(store)
        out = Output(as_json=as_json)
        out.record(_block_fields(store, info) | {"root": found.hex(), "scheme": store.spec.scheme})


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A height, or tip.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    data_dir: DataDir,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 = all.")] = _LIMIT,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the keys that differ between two heights, in order; exit code 0 also if some do.

    With --json one object a line, as they are found.
    """
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        changes = store.state.diff(height_of(store, first), height_of(store, second))
        rows = (_change(*change, as_json=as_json) for change in changes)
        out = Output(as_json=as_json)
        columns = ["change", "key", "before", "after"]
        count = out.lines(columns, islice(rows, min(limit, sys.maxsize) or None), empty="no difference")
        if limit and count == limit:
            out.note(f"the first {limit}; --limit 0 shows all")


def _change(key: bytes, before: bytes | None, after: bytes | None, *, as_json: bool) -> dict[str, object]:
    kind = "added" if before is None else "removed" if after is None else "changed"
    if as_json:
        return {"change": kind} | in_json("key", key) | in_json("before", before) | in_json("after", after)
    return {"change": kind, "key": shown(key), "before": shown_short(before), "after": shown_short(after)}
