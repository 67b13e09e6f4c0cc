"""What an operator runs on a store at rest: verify it, rebuild its views, convert them to another engine; and what a
program does after an error (``recover``)."""

from __future__ import annotations

from .advice import Outcome, recover, retrying
from .convert import convert_store
from .rebuild import rebuild_views
from .report import Check, Level, Problem, RebuildReport, VerifyReport
from .verify import verify_store

__all__ = [
    "Check",
    "Level",
    "Outcome",
    "Problem",
    "RebuildReport",
    "VerifyReport",
    "convert_store",
    "rebuild_views",
    "recover",
    "retrying",
    "verify_store",
]
