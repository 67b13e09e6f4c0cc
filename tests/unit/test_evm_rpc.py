"""The JSON-RPC client against a node that misbehaves, and following a node that lies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import zstandard

import holdfast
from holdfast.chains.evm import EvmChain
from holdfast.chains.evm.rpc import RpcClient
from holdfast.chains.evm.sync import follow
from holdfast.errors import AnswerTooLarge, ForeignStore, InvalidBlock, InvalidInputError, RemoteError
from tests.import_makers import SAMPLES

Answer = Callable[[Any], tuple[int, bytes]]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@contextmanager
def client(answer: Answer, **options: Any) -> Iterator[RpcClient]:
    with server(answer) as url:
        made = RpcClient(url, sleep=lambda _: None, **options)
        try:
            yield made
        finally:
            made.close()


def result(request: Any, value: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": request["id"], "result": value}


def test_calls_and_batches_are_answered_in_order() -> None:
    def answer(request: Any) -> tuple[int, bytes]:
        if isinstance(request, list):
            return 200, json.dumps([result(item, item["params"]) for item in reversed(request)]).encode()
        return 200, json.dumps(result(request, None)).encode()

    with client(answer) as rpc:
        assert rpc.call("eth_nothing") is None
        assert rpc.batch([("a", (1,)), ("b", (2,)), ("c", ())]) == [[1], [2], []]
        assert rpc.batch([]) == []


def test_a_busy_node_is_asked_again() -> None:
    seen: list[int] = []

    def answer(request: Any) -> tuple[int, bytes]:
        seen.append(request["id"])
        return (503, b"busy") if len(seen) < 3 else (200, json.dumps(result(request, "0x1")).encode())

    with client(answer) as rpc:
        assert rpc.call("eth_chainId") == "0x1"
    assert len(seen) == 3


def test_pauses_double_and_end() -> None:
    pauses: list[float] = []
    with server(lambda _: (503, b"")) as url:
        rpc = RpcClient(url, retries=3, backoff_seconds=0.5, sleep=pauses.append)
        with pytest.raises(RemoteError, match="503") as caught:
            rpc.call("eth_chainId")
    assert pauses == [0.5, 1.0, 2.0]
    assert caught.value.context["attempts"] == 4
    assert caught.value.exit_code == 17


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>", "not JSON"),
        (200, b"[" * 100_000, "not JSON"),
        (200, b"5", "not JSON-RPC"),
        (200, b"{}", "unanswered"),
        (200, b'{"id": 999, "result": 1}', "unanswered"),
        (200, b'{"id": 1, "error": {"code": -32601, "message": "no such method"}}', "no such method"),
        (404, b"", "404"),
        (301, b"", "301"),
    ],
)
def test_unusable_answers(status: int, body: bytes, why: str) -> None:
    with client(lambda _: (status, body)) as rpc, pytest.raises(RemoteError, match=why):
        rpc.call("eth_chainId")


def test_an_answer_above_the_limit_is_not_kept() -> None:
    with client(lambda _: (200, b" " * 300_000), response_bytes_max=100_000) as rpc:
        with pytest.raises(AnswerTooLarge):
            rpc.call("eth_chainId")


def test_addresses() -> None:
    for bad in ("ftp://host", "host:8545", "", "http://", "http://host:port", "file:///etc/passwd"):
        with pytest.raises(InvalidInputError):
            RpcClient(bad)
    assert RpcClient("https://user:secret@host:1/path?key=secret").name == "https://host:1"


# -- a node that lies --------------------------------------------------------------------------------------------


class Liar(RpcClient):
    """A node that has the first recorded blocks, as changed by a test."""

    def __init__(self, count: int = 12) -> None:
        super().__init__("http://liar")
        with (SAMPLES / "anvil.jsonl.zst").open("rb") as packed:
            raw = zstandard.ZstdDecompressor().stream_reader(packed).read(200_000)
        self.chain: list[dict[str, Any]] = [json.loads(line)["block"] for line in raw.split(b"\n")[:count]]
        self.chain_id = "0x7a69"
        self.largest = 1000
        self.batches: list[int] = []

    def batch(self, calls: Any) -> list[object]:
        self.batches.append(len(calls))
        if len(calls) > self.largest:
            raise AnswerTooLarge("too large")
        return [self.chain_id if method == "eth_chainId" else self.block(*parameters) for method, parameters in calls]

    def block(self, which: str, _: bool) -> object:
        number = len(self.chain) - 1 if which == "latest" else int(which, 16)
        return self.chain[number] if number < len(self.chain) else None


def run(node: Liar, until: int | None = None, chain_id: int = 31337) -> int | None:
    with holdfast.open("memory:", chain=EvmChain(chain_id)) as store:
        try:
            until = len(node.chain) - 1 if until is None else until
            return follow(store, "http://liar", until=until, client=node, poll_seconds=0, batch_blocks=4).reached
        finally:
            tip = store.tip
            assert tip is None or tip.hash.hex() == node.chain[tip.height]["hash"][2:]


def test_an_honest_node_is_followed() -> None:
    assert run(Liar()) == 11
    assert run(Liar(), until=5) == 5


def test_too_large_answers_halve_the_batch() -> None:
    node = Liar()
    node.largest = 1
    assert run(node) == 11
    assert 4 in node.batches
    node.largest = 0
    with pytest.raises(RemoteError):
        run(node)


def test_a_block_with_lost_transactions_is_refused() -> None:
    node = Liar()
    node.chain[7]["transactions"] = []
    with pytest.raises(InvalidBlock, match="transactions root") as caught:
        run(node)
    assert caught.value.context["node"] == "http://liar"


def test_an_altered_header_is_refused() -> None:
    node = Liar()
    node.chain[7]["stateRoot"] = "0x" + "11" * 32
    with pytest.raises(InvalidBlock, match="stated hash"):
        run(node)


def test_answers_of_another_form_are_the_nodes_fault() -> None:
    answers: tuple[Any, ...] = (5, [], {"number": "0x1"})
    for answer in answers:
        node = Liar()
        node.chain[-1] = answer
        with pytest.raises(RemoteError):
            follow_once(node)
    node = Liar()
    node.chain_id = "seven"
    with pytest.raises(RemoteError):
        follow_once(node)


def follow_once(node: Liar) -> None:
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        follow(store, "http://liar", client=node, poll_seconds=0, until=1000)


def test_a_node_of_another_chain_is_refused() -> None:
    with pytest.raises(ForeignStore):
        run(Liar(), chain_id=1)


def test_a_node_that_switches_while_it_is_read_is_read_again() -> None:
    node = Liar()
    rounds: list[int] = []
    honest = node.block

    def block(which: str, whole: bool) -> object:
        answer = honest(which, whole)
        if which == "0x6" and whole and not rounds:
            rounds.append(1)
            return None
        return answer

    node.block = block  # type: ignore[method-assign, assignment]
    assert run(node) == 11
    assert rounds == [1]


def test_bad_arguments() -> None:
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        for name, value in (("poll_seconds", -1.0), ("batch_blocks", 0)):
            with pytest.raises(InvalidInputError):
                follow(store, "http://liar", client=Liar(), **{name: value})  # type: ignore[arg-type]


class Branches(Liar):
    """A node that can be put on any of the recorded branches, from block 500 on."""

    def __init__(self) -> None:
        super().__init__(1)
        with (SAMPLES / "anvil.jsonl.zst").open("rb") as packed:
            raw = zstandard.ZstdDecompressor().stream_reader(packed).read()
        records = [json.loads(line) for line in raw.splitlines()[500:]]
        self.by_hash = {record["block"]["hash"]: record["block"] for record in records}
        self.heads = {record["branch"]: record["block"] for record in records}
        self.numbers: dict[int, dict[str, Any]] = {}

    def switch(self, branch: str) -> None:
        block = self.heads[branch]
        self.numbers = {}
        while block is not None:
            self.numbers[int(block["number"], 16)] = block
            block = self.by_hash.get(block["parentHash"])

    def block(self, which: str, _: bool) -> object:
        return self.numbers.get(max(self.numbers) if which == "latest" else int(which, 16))


def test_the_nodes_head_is_followed_where_the_fork_choice_would_not() -> None:
    node = Branches()
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        for branch, height, reorgs in (("main", 503, 0), ("A", 508, 0), ("B", 510, 1), ("A", 508, 1), ("C", 510, 1)):
            node.switch(branch)
            report = follow(store, "http://liar", client=node, until=height, base_height=500, poll_seconds=0)
            assert store.tip is not None
            assert store.tip.hash.hex() == node.heads[branch]["hash"][2:]
            assert (report.reached, report.reorgs) == (height, reorgs)
        assert sorted(tip.branch_length for tip in store.blocks.tips()) == [0, 3, 5]
