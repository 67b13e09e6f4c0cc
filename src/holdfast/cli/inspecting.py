"""``holdfast journal inspect``: segments, frames and parts as they lie on disk. Takes no lock and writes nothing."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import KeyRequired, NotFoundError, StoreNotFound
from . import retaining
from .options import DataDir, Json
from .output import Output

if TYPE_CHECKING:
    from ..journal.api import Frame
    from ..journal.reader import JournalReader

__all__ = ["register"]

_PREVIEW_BYTES = 32


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    group = typer.Typer(no_args_is_help=True, help="The journal, the truth under every view.")
    group.command("inspect")(inspect)
    retaining.register(group)
    app.add_typer(group, name="journal")


def inspect(
    data_dir: DataDir,
    segment: Annotated[int | None, typer.Option("--segment", min=1, help="List the frames of this segment.")] = None,
    frame: Annotated[int | None, typer.Option("--frame", min=1, help="Show the parts of this frame.")] = None,
    as_json: Json = False,
) -> None:
    """Show the durable journal: its segments, the frames of one, or the parts of one frame, hashes checked."""
    from .._fs import RealFileSystem
    from ..journal.reader import JournalReader
    from ..store.unlocking import unlock
    from .session import find_identity

    identity = find_identity(data_dir, mend=False)
    if identity is None:
        raise StoreNotFound("there is no store here", path=data_dir)
    out = Output(as_json=as_json)
    fs, cipher = RealFileSystem(), None
    with contextlib.suppress(KeyRequired):  # segments and frames are readable without it
        cipher = unlock(identity, None, data_dir, fs)
    parts = cipher.parts if cipher is not None else None
    reader = JournalReader.open(fs, data_dir, store_id=identity.store_id, salt=identity.salt, cipher=parts)
    try:
        if frame is not None:
            _show_frame(reader, frame, out)
        elif segment is not None:
            out.rows(["seq", "offset", "length", "time", "parts"], _frame_rows(reader, segment), empty="no frames")
        else:
            _show_segments(reader, out)
    finally:
        reader.close()


def _show_segments(reader: JournalReader, out: Output) -> None:
    mark = reader.mark
    rows: list[dict[str, object]] = [
        {
            "segment": info.number,
            "file": info.path.name,
            "first_seq": info.first_seq,
            "frames": info.count,
            "frames_end": info.frames_end,
            "file_bytes": info.file_bytes,
            "sealed": info.sealed,
            "generation": info.generation,
        }
        for info in reader.segments()
    ]
    values: dict[str, object] = {
        "durable_seq": mark.seq,
        "digest": mark.digest.hex(),
        "segment": mark.segment,
        "end_offset": mark.end_offset,
        "closed_cleanly": mark.clean,
    }
    if out.as_json:
        out.record({"watermark": values, "segments": rows})
        return
    out.record({"watermark": values})
    out.text("\n")
    out.rows(["segment", "file", "first_seq", "frames", "frames_end", "file_bytes", "sealed", "generation"], rows)


def _kind_names() -> dict[int, str]:
    from ..journal.api import Kind

    return {value: name.lower() for name, value in vars(Kind).items() if isinstance(value, int)}


def _when(frame: Frame) -> str:
    return datetime.fromtimestamp(frame.time_us / 1e6, UTC).isoformat(timespec="microseconds")


def _frame_rows(reader: JournalReader, number: int) -> Iterator[dict[str, object]]:
    names = _kind_names()
    for info in reader.segments():
        if info.number == number:
            break
    else:
        raise NotFoundError("no such segment", segment=number, remedy="'holdfast journal inspect' lists the segments")
    if info.count == 0:
        return
    for frame in reader.frames(info.first_seq, info.first_seq + info.count):
        yield {
            "seq": frame.seq,
            "offset": frame.offset,
            "length": frame.length,
            "time": _when(frame),
            "parts": [names.get(part.kind, f"{part.kind:#06x}") for part in frame.parts],
        }


def _show_frame(reader: JournalReader, seq: int, out: Output) -> None:
    names, frame = _kind_names(), reader.frame(seq)
    values: dict[str, object] = {
        "seq": frame.seq,
        "segment": frame.segment,
        "offset": frame.offset,
        "length": frame.length,
        "time": _when(frame),
        "previous": frame.previous.hex(),
        "digest": frame.digest.hex(),
        "durable_seq": frame.durable_seq,
    }
    rows: list[dict[str, object]] = []
    for number, part in enumerate(frame.parts):
        data = reader.part(frame, number)
        rows.append(
            {
                "part": number,
                "kind": names.get(part.kind, f"{part.kind:#06x}"),
                "critical": part.critical,
                "codec": part.codec,
                "stored_bytes": part.stored_bytes,
                "raw_bytes": part.raw_bytes,
                "sha256": hashlib.sha256(data).hexdigest(),
                "begins_with": data[:_PREVIEW_BYTES].hex(),
            }
        )
    if out.as_json:
        out.record(values | {"parts": rows})
        return
    out.record(values)
    out.text("\n")
    out.rows(["part", "kind", "critical", "stored_bytes", "raw_bytes", "begins_with"], rows)
