"""The verifiers of others, as 'make test-proofs' builds them, and the history that is put before them.

``python -m tests.proofs.others --write`` records what they say into ``tests/golden/proofs-1.json``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "proofs-1.json"
TOOLS = ROOT / ".tools" / "proofs"
BINARIES = {"rust": TOOLS / "rust" / "target" / "release" / "holdfast-proofs-rust", "go": TOOLS / "go" / "verifier"}

Changes: TypeAlias = dict[bytes, bytes | None]
Check: TypeAlias = tuple[str, bytes, bytes, bytes | None, bytes]
"""Scheme, root, key, value (``None``: absent), proof."""


def built(name: str) -> bool:
    return BINARIES[name].exists()


def ask(name: str, commands: Sequence[str]) -> list[str]:
    """The answers of ``rust`` or ``go``, one for each command."""
    done = subprocess.run(
        [str(BINARIES[name])], input="".join(f"{line}\n" for line in commands), capture_output=True, text=True
    )
    answers = done.stdout.split("\n")[:-1]
    assert done.returncode == 0, done.stderr
    assert len(answers) == len(commands), done.stderr
    return answers


def accepted(name: str, checks: Sequence[Check]) -> list[bool]:
    """What ``rust`` or ``go`` says of each proof, under the published spec."""
    lines = []
    for scheme, root, key, value, proof in checks:
        claim = f"absent {scheme} {root.hex()} {key.hex()}"
        if value is not None:
            claim = f"exist {scheme} {root.hex()} {key.hex()} {value.hex()}"
        lines.append(f"{claim} {proof.hex()}")
    return [answer == "yes" for answer in ask(name, lines)]


def history(seed: int, versions: int, changes_max: int, keys_max: int) -> list[Changes]:
    """Random versions: inserts, updates and deletions, also of absent keys; each thirteenth wipes all."""
    source = random.Random(seed)
    present: set[bytes] = set()
    found = []
    for number in range(versions):
        wipe = number % 13 == 12
        changes: Changes = dict.fromkeys(sorted(present)) if wipe else {}
        for _ in range(0 if wipe else source.randint(1, changes_max)):
            key = b"k%d" % source.randrange(keys_max)
            changes[key] = None if source.random() < 0.3 else source.randbytes(source.randint(1, 40))
        for key, value in changes.items():
            present.discard(key) if value is None else present.add(key)
        found.append(changes)
    return found


def told(changes: Mapping[bytes, bytes | None], end: str) -> list[str]:
    """The commands of one version."""
    return [f"del {k.hex()}" if v is None else f"put {k.hex()} {v.hex()}" for k, v in changes.items()] + [end]


def roots(name: str, versions: Sequence[Changes]) -> list[bytes]:
    """Roots of ``jmt`` (rust) or of ``celestiaorg/smt`` (go) after each version."""
    end = "commit" if name == "rust" else "root"
    answers = ask(name, [line for changes in versions for line in told(changes, end)])
    found, at = [], -1
    for changes in versions:
        at += len(changes) + 1
        found.append(bytes.fromhex(answers[at]))
    return found


def proofs(versions: Sequence[Changes], wanted: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
    """The ICS-23 proofs of ``jmt`` for these keys in each version."""
    lines: list[str] = []
    places: list[range] = []
    for changes, keys in zip(versions, wanted, strict=True):
        lines += told(changes, "commit")
        places.append(range(len(lines), len(lines) + len(keys)))
        lines += [f"prove {key.hex()}" for key in keys]
    answers = ask("rust", lines)
    return [[bytes.fromhex(answers[at]) for at in place] for place in places]


# -- the recording -------------------------------------------------------------------------------------------------


def rows_after(versions: Sequence[Changes]) -> list[dict[bytes, bytes]]:
    """The whole state after each version."""
    rows: dict[bytes, bytes] = {}
    found = []
    for changes in versions:
        rows = {key: value for key, value in {**rows, **changes}.items() if value is not None}
        found.append(rows)
    return found


def recording() -> dict[str, Any]:
    """What ``tests/golden/proofs-1.json`` holds: bytes as hex, made by the programs of others alone."""
    versions = history(seed=2026, versions=16, changes_max=12, keys_max=24)
    states = rows_after(versions)
    source = random.Random(1)
    wanted = [
        [*source.sample(sorted(rows), min(2, len(rows))), *(b"absent-%d-%d" % (number, part) for part in range(2))]
        if rows
        else []
        for number, rows in enumerate(states)
    ]
    made = proofs(versions, wanted)
    both = zip(roots("rust", versions), roots("go", versions), strict=True)
    return {
        "made by": "jmt 0.12.0 (roots, ICS-23 proofs), celestiaorg/smt 0.3.0 (roots of ics23-smt)",
        "versions": [
            {
                "changes": {key.hex(): None if value is None else value.hex() for key, value in changes.items()},
                "jmt-sha256": jmt.hex(),
                "ics23-smt": smt.hex(),
                "proofs": {key.hex(): proof.hex() for key, proof in zip(keys, given, strict=True)},
            }
            for changes, (jmt, smt), keys, given in zip(versions, both, wanted, made, strict=True)
        ],
    }


if __name__ == "__main__":
    missing = [name for name in BINARIES if not built(name)]
    if missing or "--write" not in sys.argv:
        sys.exit(f"usage: make test-proofs, then python -m tests.proofs.others --write (missing: {missing})")
    GOLDEN.write_text(json.dumps(recording(), indent=1) + "\n")
