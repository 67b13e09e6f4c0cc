"""Generations of views on disk: ``views/N/`` beside each other, ``views/CURRENT`` names the live one.

Invariants:
    * A generation becomes current in one atomic step, after it is complete and synced.
    * Nothing of a generation that could not be read is deleted: it moves to ``quarantine/``.
"""

from __future__ import annotations

from pathlib import Path

from .._fs import FileSystem
from ..engine.open import engine_names
from ..errors import CorruptionError, Recovery

__all__ = ["Generations"]


class Generations:
    """The directory ``views/`` of a store on disk."""

    def __init__(self, fs: FileSystem, root: Path) -> None:
        self._fs = fs
        self.root = root
        """Directory of the store."""
        self._views = root / "views"

    def current(self) -> int | None:
        """Number of the live generation, or ``None`` if there is none. Raises ``CorruptionError``."""
        path = self._views / "CURRENT"
        if not self._fs.exists(path):
            return None
        text = self._fs.read_bytes(path, limit=64).decode("ascii", "replace").strip()
        if not text.isdigit() or int(text) < 1:
            raise CorruptionError(
                "views/CURRENT does not name a generation", path=path, found=text, recovery=Recovery.REBUILD
            )
        return int(text)

    def engine_name(self, number: int) -> str:
        """Name of the engine of generation ``number``."""
        path = self._views / str(number) / "engine"
        text = self._fs.read_bytes(path, limit=64).decode("ascii", "replace").strip()
        if text not in engine_names():
            raise CorruptionError(
                "the engine of the views is unknown", path=path, found=text, recovery=Recovery.REBUILD
            )
        return text

    def numbers(self) -> list[int]:
        """Numbers of the generations that are there, live or not, in order."""
        return sorted(int(name) for name in self._fs.names(self._views) if name.isdigit())

    def newest_engine(self) -> str | None:
        """Engine of the newest generation that says which one it has; for when no generation is live."""
        for number in reversed(self.numbers()):
            try:
                return self.engine_name(number)
            except CorruptionError:
                continue  # it cannot say; nothing is read from it
        return None

    def data_path(self, number: int) -> Path:
        """Where the engine of generation ``number`` keeps its files."""
        return self._views / str(number) / "data"

    def prepare(self, engine: str) -> int:
        """Number of a new, empty generation beside the others; not current yet."""
        self._fs.make_directory(self._views)
        numbers = [int(name) for name in self._fs.names(self._views) if name.isdigit()]
        quarantine = self.root / "quarantine"
        numbers += [
            int(name[6:]) for name in self._fs.names(quarantine) if name.startswith("views-") and name[6:].isdigit()
        ]
        number = max(numbers, default=0) + 1
        self._fs.make_directory(self._views / str(number))
        self._fs.write_atomic(self._views / str(number) / "engine", engine.encode("ascii") + b"\n")
        return number

    def switch(self, number: int) -> None:
        """Generation ``number`` is the live one, durable."""
        self._fs.write_atomic(self._views / "CURRENT", f"{number}\n".encode("ascii"))

    def quarantine(self, number: int) -> Path:
        """A generation that cannot be trusted is moved away as evidence."""
        target = self.root / "quarantine"
        self._fs.make_directory(target)
        path = target / f"views-{number}"
        self._fs.rename(self._views / str(number), path)
        self._fs.sync_directory(self._views)
        self._fs.sync_directory(target)
        return path

    def remove_others(self, keep: int) -> list[int]:
        """Every generation but ``keep`` is deleted: they are derived, and ``keep`` is complete."""
        removed = []
        for name in self._fs.names(self._views):
            if name.isdigit() and int(name) != keep:
                self._fs.remove_tree(self._views / name)
                removed.append(int(name))
        return removed
