"""The second act of the demo: a chain with state is killed while it is written, and every root and balance is right.

    python demo/state_act.py DIRECTORY      writes blocks for ever, and tells height and root of each durable one

The chain holds a token. Block h, from ``FIRST`` on, pays ``h`` from Anna to each of ``HOLDERS``, so anybody can say
what Anna has after it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from holdfast.contracts import Address, ContractChain, Transaction
    from holdfast.state.api import ReadableState
    from holdfast.store.store import Store

SOURCE = Path(__file__).resolve().parent.parent / "src"
STATE_KILLS = 3
BLOCKS_BETWEEN = 25
HOLDERS = 20
FIRST = 2
SUPPLY = 10**9
GAS = 200_000
TIMEOUT_SECONDS = 60

_VERIFIER = """
import json, sys
from holdfast import verify_proof
claim = json.load(sys.stdin)
key, root, proof = (bytes.fromhex(claim[name]) for name in ("key", "root", "proof"))
answers = []
for value in claim["values"]:
    try:
        verify_proof(proof, root, key, None if value is None else bytes.fromhex(value))
        answers.append("proved")
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps([answers, sorted(name for name in sys.modules if name.startswith("holdfast"))]))
"""


class Story(Protocol):
    """Who tells what happens."""

    def chapter(self, title: str) -> None:
        """A new part begins."""

    def say(self, text: str) -> None:
        """This happened."""

    def check(self, condition: bool, text: str) -> None:
        """``text`` is true, or the demo has failed."""


# -- the chain ------------------------------------------------------------------------------------------------------


def the_chain() -> ContractChain:
    from holdfast.contracts import ContractChain, ContractRegistry, ContractRules
    from holdfast.contracts.examples import EXAMPLES

    return ContractChain(ContractRegistry(EXAMPLES), ContractRules(network="demo"))


def person(number: int) -> Address:
    """Anna is 0, the holders are the others."""
    from holdfast.contracts import Address

    return Address(bytes([number + 1]) * 20)


def transactions(chain: ContractChain, state: ReadableState, height: int, amount: int) -> list[Transaction]:
    """What block ``height`` does; ``amount`` is what each holder gets."""
    from holdfast.contracts import contract_address
    from holdfast.contracts.tools import call_from_json, deploy_from_json

    anna, token = person(0), contract_address(person(0), 0)
    if height == 1:
        deployed = {"symbol": "DEMO", "decimals": "0"}
        return [deploy_from_json(chain.registry, "token", 1, deployed, caller=anna, gas_limit=GAS)]
    if height == FIRST:
        calls: list[tuple[str, list[object]]] = [("mint", ["0x" + anna.hex(), str(SUPPLY)])]
    else:
        calls = [("transfer", ["0x" + person(n).hex(), str(amount)]) for n in range(1, HOLDERS + 1)]
    return [
        call_from_json(chain.registry, state, token, method, arguments, caller=anna, gas_limit=GAS, nonce=height)
        for method, arguments in calls
    ]


def build(store: Store, chain: ContractChain, amount: int | None = None) -> tuple[int, str]:
    """One durable block on the tip: its height and state root. ``amount``: for each holder, instead of the height."""
    from holdfast.contracts import build_block

    assert store.tip is not None
    height = store.tip.height + 1
    wanted = transactions(chain, store.state, height, height if amount is None else amount)
    built = build_block(store, wanted, time=height)
    assert all(receipt.status.value == "ok" for receipt in built.receipts)
    return height, store.state.root.hex()


def balance_key(number: int) -> bytes:
    """The key of the state under which the token keeps what this person has."""
    from holdfast.contracts import contract_address
    from holdfast.contracts.codec import encode_key, type_of
    from holdfast.contracts.storage import contract_prefix, field_prefix

    who = person(number)
    return (
        contract_prefix(contract_address(person(0), 0)) + field_prefix("balances") + encode_key(who, type_of(type(who)))
    )


def balance(state: ReadableState, number: int) -> object:
    from holdfast.contracts import decode
    from holdfast.contracts.codec import type_of

    return decode(state[balance_key(number)], type_of(int))


def annas_balance(height: int) -> int:
    """What Anna must have after block ``height``, by arithmetic alone."""
    return SUPPLY - HOLDERS * sum(range(FIRST + 1, height + 1))


def write_for_ever(directory: str) -> None:
    import holdfast

    chain = the_chain()
    with holdfast.open(directory, chain=chain) as store:
        while True:
            height, root = build(store, chain)
            print(height, root, flush=True)


# -- the act --------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return own | {"PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, [own.get("PYTHONPATH")])])}


def kill_writer(directory: Path, blocks: int, delay: float) -> dict[int, str]:
    """A writer is killed after it told of ``blocks`` blocks: height and root of all that it told of."""
    told: dict[int, str] = {}
    with subprocess.Popen(
        [sys.executable, __file__, str(directory)], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            height, _, root = line.partition(" ")
            if root.endswith("\n"):
                told[int(height)] = root.strip()
            if len(told) == blocks:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the writer ended by itself with exit code {process.returncode}")
    return told


def kills(directory: Path, story: Story, rng: random.Random) -> dict[int, str]:
    """The writer is killed again and again; each time everything it told of is found. All heights and roots."""
    import holdfast

    told: dict[int, str] = {}
    for number in range(1, STATE_KILLS + 1):
        told |= kill_writer(directory, rng.randint(5, BLOCKS_BETWEEN), rng.uniform(0, 0.01))
        last = max(told)
        with holdfast.open(directory, chain=the_chain(), create=False) as store:
            tip = store.tip
            assert tip is not None
            right = all(_root_at(store, height) == root for height, root in told.items())
            right &= tip.state_root == store.state.root and last <= tip.height <= last + 1
            right &= balance(store.state, 0) == annas_balance(tip.height)
        story.check(
            right,
            f"kill -9 number {number}: told of height {last:2}, found {tip.height:2}; roots and balances are right",
        )
    return told


def _root_at(store: Store, height: int) -> str:
    info = store.blocks.at(height)
    assert info is not None
    assert info.state_root is not None
    return info.state_root.hex()


def executed_again(store: Store, story: Story) -> None:
    from holdfast.contracts import audit

    story.check(audit(store) > FIRST, "every block executed again, from nothing: each root is the stored one")


def prove(store: Store, story: Story) -> None:
    """A balance leaves this process as (key, value, proof), and another one checks it against the root."""
    key, tip = balance_key(7), store.tip
    assert tip is not None
    proof = store.state.prove(key)
    assert proof.value is not None
    forged = bytes([*proof.value[:-1], proof.value[-1] ^ 1])
    claim = {"key": key.hex(), "root": store.state.root.hex(), "proof": proof.data.hex()}
    values = [proof.value.hex(), forged.hex(), None]
    done = subprocess.run(
        [sys.executable, "-c", _VERIFIER],
        input=json.dumps(claim | {"values": values}),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    answers, modules = json.loads(done.stdout)
    story.say(f"     holder 7 has {balance(store.state, 7)}: key of {len(key)} bytes, proof of {len(proof.data)} bytes")
    story.check(answers[0] == "proved", "another process, with the root and holdfast.verify_proof alone: proved")
    heavy = [name for name in modules if name.split(".")[1:2] in (["store"], ["engine"], ["journal"], ["views"])]
    story.check(not heavy, f"it loaded {len(modules)} modules, none of store, engine or journal")
    story.check(all(text.startswith("ProofInvalid") for text in answers[1:]), "one unit more, or absence: refused")
    story.say(f"     {answers[1].partition(' (')[0]}")


def reorganise(store: Store, chain: ContractChain, story: Story) -> None:
    """Another node has a longer branch from three blocks below: its blocks come in, and the state goes along."""
    import holdfast

    tip = store.tip
    assert tip is not None
    before, fork = store.state.root, tip.height - 3
    with holdfast.open("memory:", chain=the_chain()) as other:
        for info in store.blocks.canonical(1, fork + 1):
            other.add(store.blocks.block(info))
        for _ in range(5):
            build(other, chain, amount=1)
        for info in other.blocks.canonical(fork + 1):
            store.add(other.blocks.block(info))
        now = store.tip
        assert now is not None
        story.check(
            now.height == fork + 5 and store.state.root == other.state.root != before,
            f"5 blocks from height {fork} replace 3: the root is that of the other node",
        )
    story.check(balance(store.state, 0) == annas_balance(fork) - 5 * HOLDERS, "Anna has what the new branch leaves her")
    store.reorg(tip.hash, reason="the demo")
    story.check(
        store.state.root == before and balance(store.state, 0) == annas_balance(tip.height),
        "and back: root and balance as they were",
    )


def look_back(store: Store, told: dict[int, str], story: Story) -> None:
    heights = [height for height in sorted(told) if height > FIRST]
    wrong = [
        height
        for height in heights
        if store.state.at(height).root.hex() != told[height]
        or balance(store.state.at(height), 0) != annas_balance(height)
    ]
    story.check(not wrong, f"the state at each of {len(heights)} old heights: root as it was told, balance as computed")
    old = heights[len(heights) // 2]
    proof = store.state.prove(balance_key(0), height=old)
    proof.verify(bytes.fromhex(told[old]), balance_key(0), store.state.at(old)[balance_key(0)])
    story.say(
        f"     e.g. height {old}: Anna had {balance(store.state.at(old), 0)}, proved under the root of that height"
    )


def chapters(directory: Path, story: Story, rng: random.Random) -> Iterator[None]:
    """The act, chapter by chapter; the store is in ``directory``."""
    import holdfast

    story.chapter("A token: each block changes 21 balances, its writer is killed with SIGKILL")
    told = kills(directory, story, rng)
    yield
    chain = the_chain()
    with holdfast.open(directory, chain=chain, create=False) as store:
        executed_again(store, story)
        story.chapter("A balance is proved to somebody who knows only the root")
        prove(store, story)
        yield
        story.chapter("A reorganisation takes the state along")
        reorganise(store, chain, story)
        yield
        story.chapter("Old heights")
        look_back(store, told, story)
    yield


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    write_for_ever(sys.argv[1])
