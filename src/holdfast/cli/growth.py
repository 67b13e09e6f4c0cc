"""``holdfast state growth``: how many keys and bytes each prefix of the state has, over height.

The state at the lowest height is counted once; from there the recorded changes are followed, so the cost is that of one
scan and of the changes, however many heights are shown.

Invariant: at every height that is shown the counts are those of the state after its canonical block.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError, LimitExceeded, StateError
from .files import check_new, write_new
from .keys import parse_bytes, shown
from .options import Config, DataDir, Hex, Json, Seconds
from .output import Output
from .progress import Progress

if TYPE_CHECKING:
    from ..store.store import Store

__all__ = ["Counts", "Growth", "register", "short_names"]

_HEIGHTS = 24
"""About so many heights are shown if ``--step`` does not say."""
_HEIGHTS_MAX = 10_000
_GROUPS_SHOWN = 8
_GROUPS_MAX = 100_000
_PREFIX_BYTES_MAX = 64
_NAME_CHARS_MAX = 20
_KEYS_A_STEP = 1_000


@dataclass(slots=True)
class Counts:
    """Keys, and bytes of keys and values together."""

    keys: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Growth:
    """``series[prefix][i]`` are the counts at ``heights[i]``; the prefix ``None`` is everything else."""

    heights: list[int]
    series: dict[bytes | None, list[Counts]]

    def total(self, at: int) -> Counts:
        """All prefixes together at ``heights[at]``."""
        columns = [column[at] for column in self.series.values()]
        return Counts(sum(item.keys for item in columns), sum(item.size for item in columns))


def register(group: typer.Typer) -> None:
    """The command is part of the group ``state``."""
    group.command("growth")(growth)


def growth(
    data_dir: DataDir,
    prefix_bytes: Annotated[
        int | None,
        typer.Option("--prefix-bytes", min=0, help="Group keys by so many first bytes; 1 if nothing is given."),
    ] = None,
    prefixes: Annotated[
        list[str] | None, typer.Option("--prefix", metavar="KEY", help="Count this prefix; may be repeated.")
    ] = None,
    first: Annotated[int | None, typer.Option("--from", min=0, help="Lowest height; else the lowest kept.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=0, help="Highest height; else the tip.")] = None,
    step: Annotated[int | None, typer.Option("--step", min=1, help="Heights between two rows.")] = None,
    groups: Annotated[
        int, typer.Option("--groups", min=1, help="So many prefixes, the largest, are named; the rest is one.")
    ] = _GROUPS_SHOWN,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it too: a new .svg or .png (extra 'plot').")
    ] = None,
    as_hex: Hex = False,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show keys and bytes of the state by prefix over height, from its history; --plot draws it."""
    from .session import open_to_read

    if prefixes and prefix_bytes is not None:
        raise InvalidInputError("--prefix and --prefix-bytes exclude each other")
    named = [parse_bytes(text, what="--prefix", as_hex=as_hex) for text in prefixes or ()]
    if len(set(named)) != len(named):
        raise InvalidInputError("--prefix is given twice with the same bytes")
    width = 1 if prefix_bytes is None else prefix_bytes
    if width > _PREFIX_BYTES_MAX:
        raise InvalidInputError("--prefix-bytes is too large", found=width, limit=_PREFIX_BYTES_MAX)
    if plot is not None:
        from .plotting import check_plot

        check_new(plot)
        check_plot(plot)
    with open_to_read(data_dir, config) as store:
        heights = _heights(store, first, last, step)
        with Progress("counting", None, unit="keys", quiet=as_json, seconds=progress_seconds, last_line=False) as shown:
            found = _largest(_measure(store, heights, _Groups(named, width), shown.update), groups, named)
        chain = store.spec.name
    out = Output(as_json=as_json)
    _tell(found, out)
    if plot is not None:
        from .plotting import draw_growth

        write_new(plot, draw_growth(found, plot.suffix, title=f"State of {data_dir.name} ({chain})"))
        out.note(f"drawn into {plot}")


def _heights(store: Store, first: int | None, last: int | None, step: int | None) -> list[int]:
    """The heights to show, ascending; the highest is always among them."""
    tip = store.tip
    if tip is None:
        raise StateError("the store holds no block yet", remedy="add blocks first")
    lowest = store.state.statistics(tree=False)["history_floor"]
    if not isinstance(lowest, int):
        raise StateError(
            "the store keeps no history of its state, so only the present is known",
            remedy="set 'history' to 'on' to keep one from now on",
        )
    low, high = lowest if first is None else first, tip.height if last is None else last
    if low > high:
        raise InvalidInputError("--from is above --to", found=low, expected=f"<= {high}")
    stride = step or max(1, -(-(high - low) // _HEIGHTS))
    if (high - low) // stride >= _HEIGHTS_MAX:
        raise LimitExceeded("too many heights", limit=_HEIGHTS_MAX, remedy="give a larger --step")
    return sorted({*range(low, high + 1, stride), high})


class _Groups:
    """To which prefix a key belongs: the longest of those named, or its first bytes."""

    def __init__(self, named: Sequence[bytes], width: int) -> None:
        self._named = sorted(named, key=len, reverse=True)
        self._width = width

    def of(self, key: bytes) -> bytes | None:
        if not self._named:
            return key[: self._width]
        return next((prefix for prefix in self._named if key.startswith(prefix)), None)


def _measure(store: Store, heights: Sequence[int], groups: _Groups, step: Callable[[int], None]) -> Growth:
    """The counts of every group at these heights; ``step`` is called with the rows and changed keys read so far."""
    read = 0
    series: dict[bytes | None, list[Counts]] = {}

    def seen() -> None:
        nonlocal read
        read += 1
        if read % _KEYS_A_STEP == 0:
            step(read)

    def add(key: bytes, at: int, keys: int, size: int) -> None:
        group = groups.of(key)
        column = series.get(group)
        if column is None:
            if len(series) >= _GROUPS_MAX:
                raise LimitExceeded("too many prefixes", limit=_GROUPS_MAX, remedy="give a smaller --prefix-bytes")
            column = series[group] = [Counts() for _ in heights]
        column[at].keys += keys
        column[at].size += size

    for key, value in store.state.at(heights[0]).scan():
        add(key, 0, 1, len(key) + len(value))
        seen()
    if len(heights) > 1:
        for key, values in store.state.changes(heights[0], heights[-1]):
            for height, keys, size in _steps(key, values):
                add(key, bisect_left(heights, height), keys, size)
            seen()
    for column in series.values():  # what was added are differences to the height before
        for before, after in itertools.pairwise(column):
            after.keys += before.keys
            after.size += before.size
    return Growth(list(heights), series)


def _steps(key: bytes, values: Sequence[tuple[int, bytes | None]]) -> Iterator[tuple[int, int, int]]:
    """(height, keys more, bytes more) for each change of a key."""
    sizes = [(height, None if value is None else len(key) + len(value)) for height, value in values]
    for (_, before), (height, after) in itertools.pairwise(sizes):
        yield height, (after is not None) - (before is not None), (after or 0) - (before or 0)


def _largest(growth: Growth, count: int, named: Sequence[bytes]) -> Growth:
    """The ``count`` groups that were largest at their largest, by their prefix, and the sum of the others; or those
    that were ``named``, in their order."""
    if named:
        nothing = [Counts() for _ in growth.heights]
        chosen: list[bytes | None] = list(named)
        series = {prefix: growth.series.get(prefix, nothing) for prefix in chosen}
    else:
        ranked = sorted(growth.series, key=lambda name: (-max(item.size for item in growth.series[name]), name or b""))
        chosen = sorted(ranked[:count], key=lambda name: name or b"")
        series = {name: growth.series[name] for name in chosen}
    rest = [column for name, column in growth.series.items() if name not in series]
    if rest:
        series[None] = [
            Counts(sum(item.keys for item in row), sum(item.size for item in row)) for row in zip(*rest, strict=True)
        ]
    return Growth(growth.heights, series)


def _tell(growth: Growth, out: Output) -> None:
    names = short_names(growth)
    rows: list[dict[str, object]] = []
    for at, height in enumerate(growth.heights):
        total = growth.total(at)
        row: dict[str, object] = {"height": height, "keys": total.keys, "bytes": total.size}
        if out.as_json:
            row["prefixes"] = [
                {"prefix": None if name is None else name.hex(), "keys": column[at].keys, "bytes": column[at].size}
                for name, column in growth.series.items()
            ]
        else:
            row |= {names[name]: column[at].keys for name, column in growth.series.items()}
        rows.append(row)
    out.rows(["height", "keys", "bytes", *names.values()], rows)
    if not out.as_json and names:
        out.text("(below each prefix: its keys)\n")


def short_names(growth: Growth) -> dict[bytes | None, str]:
    """The prefixes for people, each another name; long ones are cut in the middle."""
    full = {name: _name_of(name) for name in growth.series}
    short = {name: text if len(text) <= _NAME_CHARS_MAX else f"{text[:10]}..{text[-8:]}" for name, text in full.items()}
    return short if len(set(short.values())) == len(short) else full


def _name_of(prefix: bytes | None) -> str:
    if prefix is None:
        return "(others)"
    return shown(prefix) if prefix else "(all)"
