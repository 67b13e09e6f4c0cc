"""What happens in a store, as records of the standard ``logging`` module, for programs to route as they like.

Invariants:
    * Nothing here configures logging: one logger, ``holdfast``, with a ``NullHandler``, its level left alone.
    * A record carries its name in ``holdfast_event`` and its facts, plain JSON values, in ``holdfast_fields``; the
      message is the same for people. Names of events are append-only, as codes of errors are.
"""

from __future__ import annotations

import logging

from .types import RecoveryStats

__all__ = ["LOGGER_NAME", "emit", "store_opened"]

LOGGER_NAME = "holdfast"

_logger = logging.getLogger(LOGGER_NAME)
_logger.addHandler(logging.NullHandler())


def emit(name: str, level: int, message: str, /, **fields: object) -> None:
    """The event ``name`` is logged at ``level``. Costs one comparison where nobody listens at that level.

    Args:
        name: a word, for programs.
        level: of ``logging``, such as ``logging.INFO``.
        message: a sentence, for people; never formatted with ``%``.
        fields: facts, as JSON values.
    """
    if _logger.isEnabledFor(level):
        extra = {"holdfast_event": name, "holdfast_fields": fields}
        _logger.log(level, message, extra=extra, stacklevel=2)


def store_opened(stats: RecoveryStats, *, url: str, engine: str, read_only: bool) -> None:
    """A store is open. WARNING if its last writer was not closed or recovery had anything to mend, else INFO.

    The journal of a store that is only read may be one that another process writes: it is never clean then, and that
    alone is no warning.
    """
    alarming = stats.eventful or not (stats.clean or read_only)
    level = logging.WARNING if alarming else logging.INFO
    if _logger.isEnabledFor(level):
        emit("opened", level, _sentence(stats, url), url=url, engine=engine, read_only=read_only, **stats.as_dict())


def _sentence(stats: RecoveryStats, url: str) -> str:
    if stats.created:
        return f"created the store {url}"
    parts = [f"{stats.frames_found} frames found", f"{stats.frames_replayed} replayed"]
    parts += [f"{cut.length} bytes set aside ({cut.reason}) as {cut.quarantined_as}" for cut in stats.discarded]
    if stats.damaged_watermark_slots:
        parts.append(f"{stats.damaged_watermark_slots} slots of the watermark were damaged")
    if stats.views_rebuilt:
        parts.append("the views were made anew from the journal")
    if stats.finished_flush:
        parts.append("a begun flush was finished")
    if stats.tree:
        parts.append(f"the state's tree of {stats.tree_keys} keys: {stats.tree.replace('_', ' ')}")
    after = "a clean end" if stats.clean else "an unclean end"
    return f"opened the store {url} after {after} in {stats.seconds:.3f} s: " + ", ".join((*parts, *stats.notes))
