"""Damage done to the files of a whole store at rest, and what may become of it: the same content, or a typed error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.crash.support import Agent, Outcome, Place

KINDS = (
    ("identity", r"holdfast\.toml"),
    ("watermark", r"watermark"),
    ("segment", r"journal/.*\.seg"),
    ("current generation", r"views/CURRENT"),
    ("engine name", r"views/\d+/engine"),
    ("lock", r"LOCK"),
    ("tree image", r"tree/image"),
    ("rocksdb table", r"views/.*\.sst"),
    ("rocksdb log", r"views/.*\.log"),
    ("rocksdb manifest", r"views/.*/MANIFEST-\d+"),
    ("rocksdb current", r"views/.*/CURRENT"),
    ("rocksdb options", r"views/.*/OPTIONS-\d+"),
    ("rocksdb text", r"views/.*/(LOG.*|IDENTITY|LOCK|rocksdict-config\.json)"),
    ("lmdb data", r"views/.*/data\.mdb"),
    ("lmdb lock", r"views/.*/lock\.mdb"),
    ("sqlite log", r"views/.*-wal"),
    ("sqlite shared memory", r"views/.*-shm"),
    ("sqlite database", r"views/\d+/data/[a-z]+\.(db|sqlite|sqlite3)"),
)
OWN = re.compile(r"LOCK|views/\d+/data/.*")
"""What a refused open may change: the name of the holder, and what an engine does to its own files."""

NO_CHECKSUMS = ("lmdb data", "sqlite database")
"""Files whose pages nothing but rows protects: where a page hides rows, reading cannot notice that they are missing."""


def kind_of(name: str) -> str:
    """What sort of file it is; fails for one that the tests do not know."""
    for kind, pattern in KINDS:
        if re.fullmatch(pattern, name):
            return kind
    raise AssertionError(f"an unknown file in the store: {name}")


class Damage(NamedTuple):
    """What was done, in words, and the files that are other now; ``None``: gone."""

    what: str
    files: Mapping[str, bytes | None]

    @property
    def kinds(self) -> list[str]:
        return [kind_of(name) for name in self.files]


def judge(outcome: Outcome) -> str:
    """What became of the store; fails for anything but the same content or a typed error."""
    assert outcome.failure is None, outcome.failure
    assert not outcome.signal, f"the process died of signal {outcome.signal}: {outcome.lines}"
    assert outcome.status == 0, outcome
    if outcome.has("e"):
        return "refused"
    if outcome.has("l"):
        return "refused later"
    assert outcome.has("x"), outcome
    return "rebuilt" if outcome.values("r") == [1] else "same"


@dataclass
class Rot:
    """A store that is damaged again and again, from its image ``good``."""

    agent: Agent
    place: Place
    arguments: dict[str, object]
    clean: bool
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def suffer(self, damage: Damage) -> str:
        """The verdict on one damage; what is wrong is kept."""
        self.place.restore("good")
        self._damage(damage.files)
        before = self.place.files()
        outcome = self.agent.run("rot", self.arguments)
        try:
            verdict = judge(outcome)
            if verdict == "refused":
                self._changed_nothing(before, damage.files)
        except AssertionError as error:
            verdict = "WRONG"
            if any(kind in NO_CHECKSUMS for kind in damage.kinds) and self._found_by_verify(damage.files):
                verdict = "found by verify alone"
                self.counts[verdict] += 1
            else:
                self.wrong.append(f"{damage.what}: {str(error)[-600:]}")
        self.counts[f"{' and '.join(dict.fromkeys(damage.kinds))} {verdict}"] += 1
        self.counts["damages"] += 1
        return verdict

    def _damage(self, files: Mapping[str, bytes | None]) -> None:
        for name, data in files.items():
            path = self.place.root / name
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)

    def _changed_nothing(self, before: dict[str, bytes], damaged: Iterable[str]) -> None:
        after = self.place.files()
        changed = [each for each in before if after.get(each) != before[each] and not OWN.fullmatch(each)]
        assert not changed or not self.clean, f"a refused open has changed {changed}"
        if changed:  # the tail of the journal was sealed before the damage was met: nothing is lost by that
            assert all(each.startswith("journal/") for each in changed), changed
            assert not {*damaged} & {*changed}
            self._damage({name: self.place.images["good"].get(name) for name in damaged})
            assert judge(self.agent.run("rot", self.arguments)) in ("same", "rebuilt")
            self.counts["sealed and refused"] += 1

    def _found_by_verify(self, files: Mapping[str, bytes | None]) -> bool:
        """True if ``verify --level views`` reports the damage."""
        self.place.restore("good")
        self._damage(files)
        outcome = self.agent.run("verify", {"url": self.arguments["url"], "level": "views"})
        return outcome.failure is not None and "Problem(" in outcome.failure

    def end(self) -> None:
        """Nothing was wrong."""
        count = self.counts["damages"]
        assert self.counts["found by verify alone"] <= max(3, count // 40)
        assert not self.wrong, f"{len(self.wrong)} of {count}:\n" + "\n".join(self.wrong[:8])


def rotten_store(agent: Agent, root: Path, engine: str, *, seed: int, operations: int, clean: bool) -> Rot:
    """A store at rest of so many operations, of which the last ten were not flushed."""
    place = Place(root)
    arguments: dict[str, object] = {"url": f"{engine}:{place.root}", "seed": seed, "body_max": 600}
    agent.must(
        "template", arguments | {"acked": 0, "operations": operations, "clean": clean, "flush_at": operations - 10}
    )
    place.keep("good")
    return Rot(agent, place, arguments | {"acked": operations}, clean)
