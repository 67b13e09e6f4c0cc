"""Results as a table for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from .measure import Result, Row

__all__ = ["append_json", "as_json", "show"]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _line(line: Row) -> list[str]:
    spread = f"{_number(line.low)} .. {_number(line.high)}"
    return [line.name, _number(line.median), _number(line.p99), spread, line.unit, f"{line.count:,}"]


def show(result: Result) -> str:
    """The table of one bench."""
    lines = [["", "median", "p99", "min .. max", "unit", "samples"], *map(_line, result.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    out = [f"== {result.bench}"]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [line[column].rjust(widths[column]) for column in range(1, 4)]
        cells += [line[4].ljust(widths[4]), line[5].rjust(widths[5])]
        out.append("  " + "  ".join(cells).rstrip())
    for bar in result.bars:
        verdict = "meets bar" if bar.met else "falls short"
        sign = ">=" if bar.at_least else "<="
        out.append(f"  {verdict}: {bar.text}: {_number(bar.found)} (bar: {sign} {_number(bar.limit)})")
    out += [f"  note: {note}" for note in result.notes]
    return "\n".join(out)


def as_json(result: Result, *, size: str, seconds: float, load_before: float) -> str:
    """One line of JSON: the result, and what may have disturbed it."""
    document = asdict(result) | {
        "bars": [asdict(bar) | {"met": bar.met} for bar in result.bars],
        "size": size,
        "seconds": round(seconds, 3),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "processors": os.cpu_count(),
        "machine": platform.platform(),
        "python": sys.version.split()[0],
    }
    return json.dumps(document)


def append_json(directory: Path, line: str) -> None:
    """The line stands at the end of ``results.jsonl``."""
    with (directory / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
