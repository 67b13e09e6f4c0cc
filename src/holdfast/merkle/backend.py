"""Which implementation of the tree is used: the native kernel where it is installed, else its pure twin.

Invariant: the choice never changes a byte of what is stored or a hash; it changes the speed.
"""

from __future__ import annotations

from functools import cache

from .._kernel import installed, kernel
from .api import Backend

__all__ = ["backend", "backend_named"]


@cache
def backend() -> Backend:
    """The backend of this process. The first call decides, and warns if a kernel of another version is installed."""
    return backend_named("pure") if kernel() is None else backend_named("kernel")


def backend_named(name: str) -> Backend:
    """The backend ``kernel`` or ``pure``, whatever the environment says.

    Raises ``LookupError`` if the kernel is not installed or of another version, ``ValueError`` for another name.
    """
    if name == "pure":
        from .pure import BACKEND

        return BACKEND
    if name != "kernel":
        raise ValueError(f"a backend is called kernel or pure, not {name!r}")
    found = _kernel()
    if found is None:
        raise LookupError("the native kernel is not installed in the version that is needed; install it: make setup")
    return found


@cache
def _kernel() -> Backend | None:
    from .kernel import KernelBackend

    module = installed()
    return None if module is None else KernelBackend(module)
