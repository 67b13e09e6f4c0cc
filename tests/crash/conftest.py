"""What every crash test shares: a test leaves no crowd of threads behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

_THREADS_LEFT = 8
"""A test that fails inside an open store, as the planted bugs do, leaves the few threads of that one."""


@pytest.fixture(autouse=True)
def few_threads_are_left() -> Iterator[None]:
    """A 'dead' process whose threads live on slows every later test down: a thousand of them stop the machine."""
    before = threading.active_count()
    yield
    left = threading.active_count() - before
    assert left <= _THREADS_LEFT, f"{left} threads are left"
