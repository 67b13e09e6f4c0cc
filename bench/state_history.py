"""As ``state_load``, with a history of every change."""

from __future__ import annotations

from .state_load import run_history as run

__all__ = ["run"]
