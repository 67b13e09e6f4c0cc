"""``holdfast diff``: where two stores, or a store and a backup, part, and which keys of their states differ."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import HoldfastError, InvalidInputError
from .backup_options import KeyFile, PassphraseFile, open_place
from .keys import in_json, parse_bytes, shown, shown_short
from .options import Config, Hex, Json
from .output import Output

if TYPE_CHECKING:
    from ..recovery.diff import DiffSource
    from ..recovery.diff_report import BlockFacts, DiffReport, KeyDifference, SeenValue

__all__ = ["register"]

_LIMIT = 50
_BACKUP = "backup:"


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("diff")(diff)


def diff(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="Directory of a store, or backup:REPOSITORY#NAME; the newest without #NAME."),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    state: Annotated[bool, typer.Option("--state", help="Compare the keys of the state too.")] = False,
    at_height: Annotated[
        int | None,
        typer.Option("--at-height", min=0, help="Compare the states after this height; else where the stores part."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Keys to list at most.")] = _LIMIT,
    from_key: Annotated[
        str | None, typer.Option("--from-key", metavar="KEY", help="Go on where an earlier listing ended.")
    ] = None,
    as_hex: Hex = False,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", metavar="DIR", help="Where the state of a backup is restored for the time."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show where two stores part: first block that differs, and keys of the state. Exit code 0 also if they differ.

    Time is in proportion to the difference. Changes nothing; either may be open in another process. Of a backup the
    journal is read once; for keys of its state it is restored to a new directory, which is removed afterwards.
    """
    from ..recovery.diff import diff as compare

    start = None if from_key is None else parse_bytes(from_key, what="--from-key", as_hex=as_hex)
    out = Output(as_json=as_json)

    def backup(place: str) -> DiffSource:
        from ..backup import BackupSource

        repository, backup_name = _names(place)
        found = open_place(repository, key_file, passphrase_file)
        return BackupSource(found, backup_name, directory=work_dir, on_restore=lambda path: out.note(_restoring(path)))

    with contextlib.ExitStack() as stack:
        sides = [
            backup(place) if place.startswith(_BACKUP) else _opened(Path(place), config, stack)
            for place in (first, second)
        ]
        report = compare(*sides, state=state, at_height=at_height, limit=limit, from_key=start)
        name = sides[0].spec.name
    if as_json:
        out.record(_as_json(report, name))
    else:
        _print(report, name, out)


def _names(place: str) -> tuple[str, str | None]:
    """Repository and backup of ``backup:REPOSITORY#NAME``; no name is the newest."""
    repository, mark, name = place.removeprefix(_BACKUP).partition("#")
    if not repository or (mark and not name):
        raise InvalidInputError(
            "this does not name a backup", found=place, remedy="write backup:REPOSITORY or backup:REPOSITORY#NAME"
        )
    return repository, name or None


def _restoring(place: Path) -> str:
    return f"the backup is restored to {place}, so that its state can be walked; that directory is removed afterwards"


def _opened(place: Path, config: Path | None, stack: contextlib.ExitStack) -> DiffSource:
    from ..recovery.diff import StoreSource
    from .session import open_to_read

    try:
        return StoreSource(stack.enter_context(open_to_read(place, config)))
    except HoldfastError as error:
        error.context.setdefault("store", str(place))
        raise


def _as_json(report: DiffReport, name: str) -> dict[str, object]:
    values = report.as_dict()
    for place in (values["tip_a"], values["tip_b"], values["common"]):
        _show_hashes(place, name)
    for pair in (values["first"], values["executed"]):
        if isinstance(pair, dict):
            _show_hashes(pair["a"], name)
            _show_hashes(pair["b"], name)
    if report.state is not None:
        state = values["state"]
        assert isinstance(state, dict)
        for row, key in zip(state["keys"], report.state.keys, strict=True):
            row |= in_json("key", key.key)
            _show_hashes(row["changed_a"], name)
            _show_hashes(row["changed_b"], name)
        state |= in_json("next_key", report.state.next_key)
    return values


def _show_hashes(block: object, name: str) -> None:
    """Hashes of a block as people know them on this chain."""
    from .chains import display_hash

    if isinstance(block, dict):
        for field in ("hash", "parent"):
            block[field] = display_hash(name, bytes.fromhex(block[field]))


def _print(report: DiffReport, name: str, out: Output) -> None:
    from .chains import display_hash

    def block(facts: BlockFacts | None) -> str | None:
        return None if facts is None else f"{facts.height} {display_hash(name, facts.hash)}"

    rows: dict[str, object] = {"relation": report.relation.replace("_", " ")}
    rows |= {"a": report.a, "tip of a": block(report.tip_a), "b": report.b, "tip of b": block(report.tip_b)}
    rows |= {fact: f"{one} / {two}" for fact, (one, two) in report.facts.items()}
    rows["newest common block"] = block(report.common)
    for title, found in (("first difference", report.first), ("executed differently", report.executed)):
        if found is not None:
            rows[title] = f"at height {found.a.height}: {', '.join(found.parts)}"
            rows[f"{title}, a"] = f"{display_hash(name, found.a.hash)} root {found.a.root.hex()}"
            rows[f"{title}, b"] = f"{display_hash(name, found.b.hash)} root {found.b.root.hex()}"
    if report.state is not None:
        rows["states after height"] = report.state.height
        rows["keys that differ"] = f"{len(report.state.keys)}{' and more' if report.state.next_key else ''}"
    out.record(rows)
    if report.state is not None and report.state.keys:
        columns = ["key", "a", "changed a", "b", "changed b"]
        out.rows(columns, [_row(key) for key in report.state.keys])
    for note in report.notes:
        out.note(note)
    if report.state is not None and report.state.next_key is not None:
        out.note(f"the first {len(report.state.keys)}; --from-key '{shown(report.state.next_key)}' goes on")


def _row(key: KeyDifference) -> dict[str, object]:
    return {
        "key": shown(key.key),
        "a": _value(key.a),
        "changed a": None if key.changed_a is None else key.changed_a.height,
        "b": _value(key.b),
        "changed b": None if key.changed_b is None else key.changed_b.height,
    }


def _value(value: SeenValue | None) -> str:
    if value is None:
        return "(absent)"
    return shown_short(value.data) or f"{value.length} bytes, sha256 {value.sha256.hex()[:16]}"
