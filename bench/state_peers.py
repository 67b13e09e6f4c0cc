"""Contestants that do blocks on demand: ``python -m bench.state_peers KIND KEYS PER_BLOCK PATH``.

The same on stdin and stdout as ``bench/jmt``: "ready ROOT" once the keys are there; for each line, a number of blocks,
the seconds of each block and the root after the last one. Making the changes is off the clock.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from holdfast._kernel import PURE_VARIABLE
from holdfast.merkle.api import JMT_SHA256
from holdfast.merkle.backend import backend

from .child import ROOT, environment
from .state_data import ABSORBING, LOAD, Changes, Maker, commit_changes, fill_state, first_value, key, open_state

__all__ = ["Peer"]

Step = Callable[[Changes], bytes]
"""A block with these changes is done; the root after it."""
LMDB_BYTES = 8 << 30


class Peer:
    """A contestant's process. Use it in a ``with``; ``ready`` before the first ``blocks``."""

    def __init__(self, command: Sequence[str], *, tree: str = "kernel") -> None:
        made = environment() | {PURE_VARIABLE: "1" if tree == "pure" else "0"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=made
        )

    @classmethod
    def of(cls, kind: str, keys: int, per_block: int, path: Path, *, tree: str = "kernel") -> Peer:
        """A contestant of this module: ``store``, ``tree`` or ``hexary``."""
        arguments = [sys.executable, "-m", "bench.state_peers", kind, str(keys), str(per_block), str(path)]
        return cls(arguments, tree=tree)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the contestant {self._process.args!r} ended with {self._process.wait()}")
        return line

    def ready(self) -> str:
        """The root once all keys are there, as hex."""
        word, root = self._line().split()
        assert word == "ready"
        return root

    def blocks(self, count: int) -> tuple[list[float], str]:
        """Seconds of each of ``count`` more blocks, and the root after the last one."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        times, root = self._line().split()
        return [float(text) for text in times.split(",")], root

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _store(keys: int, path: Path) -> Iterator[tuple[bytes, Step]]:
    """Durable commits through the public API; no flush runs meanwhile."""
    fill_state(path, keys)
    with open_state(path, **ABSORBING) as store:

        def step(changes: Changes) -> bytes:
            root = commit_changes(store, changes).state_root
            assert root is not None
            return root

        yield store.state.root, step


@contextlib.contextmanager
def _tree(keys: int, _path: Path) -> Iterator[tuple[bytes, Step]]:
    """The tree alone, in memory."""
    tree = backend().empty(JMT_SHA256)
    for first in range(0, keys, LOAD):
        numbers = range(first, min(keys, first + LOAD))
        tree = tree.update({key(number): first_value(number) for number in numbers}).tree

    def step(changes: Changes) -> bytes:
        nonlocal tree
        tree = tree.update(changes).tree
        return tree.root

    yield tree.root, step


@contextlib.contextmanager
def _hexary(keys: int, path: Path) -> Iterator[tuple[bytes, Step]]:
    """``trie.HexaryTrie`` with its nodes in LMDB, one transaction for a block, and nothing pruned.

    That is its quickest way: squashing the changes of a block first, or pruning, takes half as long again. Keys are
    hashed first, with SHA-256, which is quicker than what Ethereum uses.
    """
    import lmdb
    from trie.hexary import HexaryTrie

    with contextlib.closing(lmdb.open(str(path), map_size=LMDB_BYTES)) as environment_:
        nodes = _Nodes(environment_)
        trie = HexaryTrie(nodes)

        def step(changes: Changes) -> bytes:
            with environment_.begin(write=True) as nodes.transaction:
                for name, value in changes.items():
                    assert value is not None
                    trie[sha256(name).digest()] = value
            root: bytes = trie.root_hash
            return root

        root = b""
        for first in range(0, keys, LOAD):
            root = step({key(number): first_value(number) for number in range(first, min(keys, first + LOAD))})
        yield root, step


class _Nodes:
    """The mapping that a trie writes to: LMDB within the transaction of the block."""

    def __init__(self, environment_: object) -> None:
        self.transaction: object = None
        self._environment = environment_

    def __getitem__(self, name: bytes) -> bytes:
        found = self.transaction.get(name)  # type: ignore[attr-defined]
        if found is None:
            raise KeyError(name)
        value: bytes = found
        return value

    def __setitem__(self, name: bytes, value: bytes) -> None:
        self.transaction.put(name, value)  # type: ignore[attr-defined]

    def __delitem__(self, name: bytes) -> None:
        self.transaction.delete(name)  # type: ignore[attr-defined]

    def __contains__(self, name: bytes) -> bool:
        return self.transaction.get(name) is not None  # type: ignore[attr-defined]


KINDS: dict[str, Callable[[int, Path], contextlib.AbstractContextManager[tuple[bytes, Step]]]] = {
    "store": _store,
    "tree": _tree,
    "hexary": _hexary,
}


def main(arguments: Sequence[str]) -> None:
    """Blocks are done until the input ends."""
    kind, keys, per_block, path = arguments
    maker = Maker(int(keys), int(per_block))
    done = 0
    with KINDS[kind](int(keys), Path(path)) as (root, step), os.fdopen(1, "w") as out:
        out.write(f"ready {root.hex()}\n")
        out.flush()
        for line in sys.stdin:
            made = [maker.changes(block) for block in range(done, done + int(line))]
            done += len(made)
            times = []
            for changes in made:
                begun = time.perf_counter()
                root = step(changes)
                times.append(time.perf_counter() - begun)
            out.write(",".join(f"{seconds:.9f}" for seconds in times) + f" {root.hex()}\n")
            out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
