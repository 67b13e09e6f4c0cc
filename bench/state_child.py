"""Processes of the benchmarks of the state: ``python -m bench.state_child MODULE.FUNCTION``, arguments as JSON.

A process of its own decides which tree is used (the kernel, or the pure twin by ``HOLDFAST_PURE``), and its memory is
that of one store.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from holdfast._kernel import PURE_VARIABLE
from holdfast.merkle.backend import backend, backend_named

from .child import ROOT, environment

__all__ = ["Found", "run_job", "trees"]

Found = dict[str, Any]


def trees() -> tuple[str, ...]:
    """The trees that can be measured here, the kernel first if it is installed."""
    try:
        backend_named("kernel")
    except LookupError:
        return ("pure",)
    return ("kernel", "pure")


def run_job(job: Callable[..., Found], *, tree: str, killed: bool = False, **arguments: object) -> Found:
    """What ``job`` found in a process that uses ``tree`` (kernel or pure); ``killed`` if it ends itself by SIGKILL."""
    name = f"{job.__module__}.{job.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "bench.state_child", name],
        input=json.dumps(arguments | {"tree": tree}),
        env=environment() | {PURE_VARIABLE: "1" if tree == "pure" else "0"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    expected = -signal.SIGKILL if killed else 0
    if done.returncode != expected:
        raise RuntimeError(f"the child {name!r} ended with {done.returncode}, not {expected}")
    found: Found = json.loads(done.stdout) if done.stdout else {}
    return found


def main(arguments: Sequence[str]) -> None:
    """The job named in the arguments has said what it found."""
    module, _, name = arguments[0].rpartition(".")
    given: Found = json.loads(sys.stdin.read())
    wanted = given.pop("tree")
    if backend().name != wanted:
        raise SystemExit(f"the tree is {backend().name}, not {wanted}")
    job: Callable[..., Found] = getattr(importlib.import_module(module), name)
    sys.stdout.write(json.dumps(job(**given)))
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
