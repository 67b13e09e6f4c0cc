"""``python -m bench``: every benchmark in a process of its own, or one of them with ``--only``."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .measure import Plan, Result, SizeName
from .report import append_json, as_json, show

__all__ = ["BENCHES", "main", "run_one"]

BENCHES = {
    "commit": "commit",
    "group": "group",
    "height": "height",
    "flush": "flush",
    "open": "opening",
    "import4g": "importing",
    "smallblocks": "smallblocks",
    "reads": "reads",
    "follower": "follower",
    "engines": "engines",
    "kernel": "kernel",
    "cache": "cache",
    "state": "state",
    "stateload": "state_load",
    "statehistory": "state_history",
    "stateprofile": "state_profile",
    "statereads": "state_reads",
    "stateopen": "state_open",
    "checkpoint": "checkpoint",
    "sidebyside": "sidebyside",
    "verify": "verify",
    "xai": "xai",
    "compact": "compact",
    "backup": "backup",
    "encryption": "encryption",
    "profile": "where",
}
"""Name of a bench, and the module it is in."""

OUT = Path(__file__).resolve().parent / "out"


def run_one(name: str, size: SizeName, out: Path = OUT) -> tuple[Result, str]:
    """The bench ran in a fresh directory below ``out``; its result, also as the line of JSON that was kept."""
    (out / "tmp").mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"{__package__}.{BENCHES[name]}")
    load = os.getloadavg()[0]
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=out / "tmp"))
    begun = time.perf_counter()
    try:
        result: Result = module.run(Plan(directory, size))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    line = as_json(result, size=size, seconds=time.perf_counter() - begun, load_before=load)
    append_json(out, line)
    return result, line


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 if every bench ran, whatever it found."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHES), help="run this one alone")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each bench instead of a table")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and less data: figures are rough")
    asked = parser.parse_args(arguments)
    size: SizeName = "quick" if asked.quick else "full"
    if asked.only is not None:
        result, line = run_one(asked.only, size)
        print(line if asked.json else show(result), flush=True)
        return 0
    failed = []
    for name in BENCHES:
        flags = [flag for flag, given in (("--json", asked.json), ("--quick", asked.quick)) if given]
        if subprocess.run([sys.executable, "-m", "bench", "--only", name, *flags], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"did not run to the end: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
