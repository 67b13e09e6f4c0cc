"""Where a store is and which engine its views use: ``memory:``, ``ENGINE:PATH`` or a bare path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInputError

__all__ = ["StoreUrl", "parse_url"]

_ENGINES = ("rocksdb", "lmdb", "sqlite")


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """``path`` is ``None`` in memory; ``engine`` is ``None`` when the URL does not choose one."""

    path: Path | None
    engine: str | None


def parse_url(url: str | os.PathLike[str]) -> StoreUrl:
    """The place that ``url`` names. Raises ``InvalidInputError``."""
    text = os.fspath(url) if isinstance(url, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text:
        raise InvalidInputError("a store is named by a path or a URL", found=repr(url))
    if text == "memory:":
        return StoreUrl(None, "memory")
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _ENGINES:
        if not rest:
            raise InvalidInputError("a path is needed behind the engine's name", found=text)
        return StoreUrl(Path(rest), scheme)
    if colon and scheme == "memory":
        raise InvalidInputError("a store in memory has no path; write 'memory:'", found=text)
    if colon and "/" not in scheme and len(scheme) > 1 and not isinstance(url, os.PathLike):
        raise InvalidInputError(
            "unknown engine in the URL",
            found=scheme,
            expected="memory:, rocksdb:PATH, lmdb:PATH, sqlite:PATH or a path",
        )
    if not text:
        raise InvalidInputError("a path is needed")
    return StoreUrl(Path(text), None)
