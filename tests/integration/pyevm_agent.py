"""A process that mines the chain of ``examples/pyevm_chain.py``, and says what it has when each call has returned.

python pyevm_agent.py mine DIRECTORY BLOCKS     one line a block: height, hash, counter; then waits for a line
python pyevm_agent.py die DIRECTORY STEPS       for each n up to STEPS a child mines in DIRECTORY/n, says it in the
                                                file n.said, and kills itself behind the n-th frame it appended
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import pyevm_chain  # type: ignore[import-not-found,unused-ignore]

from holdfast.chains.evm.database import HoldfastDB
from holdfast.journal.journal import Journal


def mine(url: str, blocks: int, say: Callable[[str], object]) -> None:
    """A new counter, then so many blocks that raise it."""
    with HoldfastDB(url) as database:
        chain = pyevm_chain.open_chain(database)
        contract = pyevm_chain.deploy(chain)
        for _ in range(blocks):
            block, _ = pyevm_chain.mine(chain, contract)
            say(f"{block.number} {block.hash.hex()} {pyevm_chain.counter(chain, contract)}\n")
        sys.stdin.readline()


def die_behind(count: int) -> None:
    """The process kills itself as soon as it has appended so many frames."""
    original = Journal.append
    seen = 0

    def append(journal: Journal, *args: Any, **more: Any) -> int:
        nonlocal seen
        seq = original(journal, *args, **more)
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return seq

    Journal.append = append  # type: ignore[assignment,method-assign]


def die(directory: Path, steps: int) -> None:
    """One child after the other; each must have died as it should."""
    for step in range(1, steps + 1):
        pid = os.fork()
        if pid == 0:
            with open(directory / f"{step}.said", "w", buffering=1) as said:
                die_behind(step)
                mine(f"sqlite:{directory / str(step)}", steps, said.write)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


if __name__ == "__main__":
    place, number = Path(sys.argv[2]), int(sys.argv[3])
    if sys.argv[1] == "mine":
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        mine(str(place), number, sys.stdout.write)
    else:
        die(place, number)
