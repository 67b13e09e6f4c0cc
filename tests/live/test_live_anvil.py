"""Following a real node (``anvil``): backfill, polls, reorganisations, SIGKILL, and a node of another chain."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.chains.evm import EvmChain
from holdfast.chains.evm.rpc import RpcClient
from holdfast.chains.evm.sync import SyncReport, chain_of_node, follow
from holdfast.errors import FinalityError, ForeignStore, HoldfastError, RemoteError
from holdfast.types import BlockStatus

pytestmark = [pytest.mark.live, pytest.mark.slow]

ACCOUNT = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
OTHER = "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"
DEADLINE_SECONDS = 60


class Node:
    """One anvil on a free loopback port. Blocks are mined on demand only."""

    def __init__(self, binary: Path, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [str(binary), "--port", str(self.port), "--no-mining", "--silent", *arguments]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = RpcClient(self.url, retries=8, backoff_seconds=0.05)
        self.client.call("eth_chainId")

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(timeout=20)

    def send(self, count: int = 1) -> None:
        """Transactions that wait for the next block: transfers and a contract creation."""
        for number in range(count):
            call = {"from": ACCOUNT, "to": OTHER, "value": hex(1 + number)}
            if number % 3 == 2:
                call = {"from": ACCOUNT, "data": "0x6001600101600055"}
            self.client.call("eth_sendTransaction", call)

    def mine(self, count: int = 1) -> None:
        self.client.call("anvil_mine", hex(count))

    def reorg(self, depth: int) -> None:
        """The newest ``depth`` blocks are replaced by as many others."""
        transfer = {"from": ACCOUNT, "to": OTHER, "value": hex(10**9 + depth), "gas": "0x5208"}
        self.client.call("anvil_reorg", depth, [[transfer, 0]])

    def hash_at(self, height: int | str) -> bytes:
        which = hex(height) if isinstance(height, int) else height
        block = self.client.call("eth_getBlockByNumber", which, False)
        assert isinstance(block, dict)
        return bytes.fromhex(block["hash"][2:])

    @property
    def height(self) -> int:
        number = self.client.call("eth_blockNumber")
        assert isinstance(number, str)
        return int(number, 16)


@pytest.fixture
def node(anvil_path: Path) -> Iterator[Node]:
    started = Node(anvil_path)
    yield started
    started.stop()


def once(store: holdfast.Store, node: Node, *, receipts: bool = False, finality: bool = False) -> SyncReport:
    return follow(store, node.url, until=node.height, poll_seconds=0, receipts=receipts, finality=finality)


def assert_equal(store: holdfast.Store, node: Node) -> None:
    assert store.tip is not None
    assert store.tip.height == node.height
    for height in range(store.tip.height + 1):
        assert store.blocks.hash_at(height) == node.hash_at(height), height


def test_backfill_polls_and_reorganisations(node: Node, tmp_path: Path) -> None:
    chain = chain_of_node(node.url)
    assert chain.chain_id == 31337
    for _ in range(12):
        node.send(3)
        node.mine()
    node.mine(60)
    with holdfast.open(tmp_path / "store", chain=chain) as store:
        report = once(store, node, receipts=True)
        assert (report.added, report.reorgs, report.reached) == (73, 0, 72)
        assert_equal(store, node)
        info = store.blocks.at(3)
        assert info is not None
        assert len(json.loads(store.blocks.extra(info) or b"")) == 3

        old = [node.hash_at(height) for height in range(68, 73)]
        node.reorg(5)
        assert node.hash_at(68) != old[0]
        report = once(store, node, receipts=True)
        assert report.reorgs == 1
        assert_equal(store, node)
        assert all(store.blocks.status(block_hash) is BlockStatus.ORPHANED for block_hash in old)

        node.mine(5)
        assert once(store, node).added == 5
        node.reorg(30)
        node.mine(2)
        assert once(store, node).reorgs == 1
        assert_equal(store, node)
        assert once(store, node).added == 0


def test_a_killed_follower_goes_on_through_reorganisations(node: Node, tmp_path: Path) -> None:
    data = tmp_path / "store"
    script = (
        "import sys, holdfast\n"
        "from holdfast.chains.evm.sync import chain_of_node, follow\n"
        "with holdfast.open(sys.argv[1], chain=chain_of_node(sys.argv[2])) as store:\n"
        "    follow(store, sys.argv[2], poll_seconds=0.01, batch_blocks=4,\n"
        "           progress=lambda p: print(p.height, flush=True))\n"
    )
    node.mine(40)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for round_number in range(5):
        command = [sys.executable, "-c", script, str(data), node.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as follower:
            assert follower.stdout is not None
            for _ in range(1 + round_number):
                node.send()
                node.mine(6)
                follower.stdout.readline()
            if round_number % 2:
                node.reorg(7)
            time.sleep(0.02 * round_number)
            follower.send_signal(signal.SIGKILL)
        with holdfast.open(data, chain=EvmChain(31337)) as store:
            assert store.tip is not None
    with holdfast.open(data, chain=EvmChain(31337)) as store:
        once(store, node)
        assert_equal(store, node)


def test_a_shorter_head_on_another_branch_is_followed(node: Node) -> None:
    node.mine(20)
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        once(store, node)
        node.client.call("anvil_rollback", 8)
        assert once(store, node).reorgs == 0, "a node that lags is not followed back"
        assert store.tip is not None
        assert store.tip.height == 20
        node.send(2)
        node.mine(3)
        report = once(store, node)
        assert report.reorgs == 1
        assert store.tip.height == 15
        assert_equal(store, node)


def test_a_reorganisation_below_finality_is_refused(node: Node) -> None:
    node.mine(20)
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        once(store, node)
        store.finalize(15)
        node.reorg(3)
        once(store, node)
        tip = store.tip
        node.reorg(10)
        with pytest.raises(FinalityError) as caught:
            once(store, node)
        assert caught.value.context["finalized"] == 15
        assert store.tip == tip


def test_what_the_node_calls_finalized_is_final(node: Node) -> None:
    node.mine(200)
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        report = once(store, node, finality=True)
        assert report.finalized is not None
        assert 0 < report.finalized < 200


def test_a_node_of_another_chain_is_refused(node: Node, anvil_path: Path) -> None:
    node.mine(3)
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        once(store, node)
        for arguments in (("--chain-id", "5"), ("--timestamp", "1700000000")):
            other = Node(anvil_path, *arguments)
            try:
                with pytest.raises(ForeignStore) as caught:
                    once(store, other)
                assert caught.value.context["node"] == other.url
            finally:
                other.stop()


def test_an_empty_store_may_begin_above_genesis(node: Node) -> None:
    node.mine(10)
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        follow(store, node.url, until=10, base_height=6, poll_seconds=0)
        assert store.blocks.at(5) is None
        assert store.blocks.hash_at(6) == node.hash_at(6)
        node.mine(2)
        assert once(store, node).added == 2


def test_the_follower_keeps_up_and_stops_when_told(node: Node) -> None:
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        end = time.monotonic() + DEADLINE_SECONDS
        mined = itertools.count()

        def stop() -> bool:
            tip = store.tip
            if tip is not None and tip.height == node.height and next(mined) < 10:
                node.send()
                node.mine()
            return (tip is not None and tip.height == 10) or time.monotonic() > end

        report = follow(store, node.url, poll_seconds=0.01, stop=stop)
        assert (report.stopped, report.reached) == (True, 10)


def test_a_node_that_went_away_is_a_remote_error(anvil_path: Path) -> None:
    node = Node(anvil_path)
    node.mine(2)
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        once(store, node)
        node.stop()
        client = RpcClient(node.url, retries=1, backoff_seconds=0.01)
        with pytest.raises(RemoteError) as caught:
            follow(store, node.url, client=client)
        assert isinstance(caught.value, HoldfastError)
        assert caught.value.retryable
        assert caught.value.context["attempts"] == 2
