"""What an operator runs on a store at rest: verify it, rebuild its views, convert them to another engine."""

from __future__ import annotations

from .convert import convert_store
from .rebuild import rebuild_views
from .report import Check, Level, Problem, RebuildReport, VerifyReport
from .verify import verify_store

__all__ = [
    "Check",
    "Level",
    "Problem",
    "RebuildReport",
    "VerifyReport",
    "convert_store",
    "rebuild_views",
    "verify_store",
]
