"""Engines by name. A library is imported only when its engine is asked for."""

from __future__ import annotations

from pathlib import Path

from ..errors import InvalidInputError
from .api import Engine

__all__ = ["CACHE_BYTES_DEFAULT", "engine_names", "open_engine", "probe_engine"]

CACHE_BYTES_DEFAULT = 32 * 1024 * 1024

_NAMES = ("memory", "rocksdb", "lmdb", "sqlite")


def engine_names() -> tuple[str, ...]:
    """Every name that ``open_engine`` takes."""
    return _NAMES


def _missing(name: str, exc: ImportError) -> InvalidInputError:
    return InvalidInputError(
        f"the engine {name!r} needs a library that is not installed: {exc.name or exc}",
        remedy=f"install it with: pip install 'holdfast[{name}]'",
    )


def _unknown(name: str) -> InvalidInputError:
    return InvalidInputError("there is no engine of this name", found=name, known=", ".join(_NAMES))


def open_engine(
    name: str, path: Path | None, *, create: bool, read_only: bool = False, cache_bytes: int = CACHE_BYTES_DEFAULT
) -> Engine:
    """The engine ``name`` is open at ``path``.

    Args:
        name: one of ``engine_names()``.
        path: its directory; ``memory`` needs none.
        create: make it if it is not there. Without it a missing one is ``MissingFile``.
        read_only: for another process than the writing one.
        cache_bytes: cache of the engine, where it has one of its own.
    Raises:
        InvalidInputError: unknown name, or its library is not installed.
        MissingFile, CorruptionError, StoreLocked, EngineError: it does not open; nothing was changed.
    """
    engine: Engine
    try:
        if name == "memory":
            from .memory import MemoryEngine

            return MemoryEngine()
        if name not in _NAMES:
            raise _unknown(name)
        if path is None:
            raise InvalidInputError("this engine needs a directory", engine=name)
        if name == "rocksdb":
            from .rocksdb import RocksDbEngine

            engine = RocksDbEngine(path, create=create, read_only=read_only, cache_bytes=cache_bytes)
        elif name == "lmdb":
            from .lmdb import LmdbEngine

            engine = LmdbEngine(path, create=create, read_only=read_only)
        else:
            from .sqlite import SqliteEngine

            engine = SqliteEngine(path, create=create, read_only=read_only, cache_bytes=cache_bytes)
    except ImportError as exc:
        raise _missing(name, exc) from exc
    return engine


def probe_engine(name: str, path: Path, deadline_seconds: float = 20.0) -> None:
    """``path`` can be opened by the engine ``name`` without hanging or killing the process; nothing was changed.

    Raises:
        InvalidInputError: unknown name, or its library is not installed.
        MissingFile, CorruptionError, RecoveryTimeout: it must not be opened in this process.
    """
    try:
        if name == "rocksdb":
            from .rocksdb import probe

            probe(path, deadline_seconds)
        elif name == "lmdb":
            from .lmdb import probe as probe_lmdb

            probe_lmdb(path, deadline_seconds)
        elif name == "sqlite":
            from .sqlite import probe as probe_sqlite

            probe_sqlite(path)
        elif name != "memory":
            raise _unknown(name)
    except ImportError as exc:
        raise _missing(name, exc) from exc
