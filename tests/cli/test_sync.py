"""``holdfast sync``: against a node that replays the recording, with its side branches as reorganisations."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import zstandard

from tests.cli.cli_tools import ANVIL, done, holdfast, start


class Node:
    """A JSON-RPC node whose canonical chain is a list of recorded blocks."""

    def __init__(self) -> None:
        with ANVIL.open("rb") as file:
            text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("ascii")
        records = [json.loads(line) for line in text.splitlines()]
        self.by_hash = {record["block"]["hash"]: record["block"] for record in records}
        self.branches: dict[str, list[dict[str, object]]] = {}
        for record in records:
            self.branches.setdefault(record["branch"], []).append(record["block"])
        self.chain: list[dict[str, object]] = []
        self.show(str(self.branches["main"][-1]["hash"]))
        self.url = ""

    def show(self, block_hash: str) -> None:
        """From now on the branch that ends in this block is canonical."""
        chain = []
        block = self.by_hash.get(block_hash)
        while block is not None:
            chain.append(block)
            block = self.by_hash.get(block["parentHash"])
        self.chain = chain[::-1]

    def answer(self, call: dict[str, object]) -> object:
        method, parameters = call["method"], call["params"]
        assert isinstance(parameters, list)
        if method == "eth_chainId":
            return "0x7a69"
        if method == "eth_blockNumber":
            return hex(len(self.chain) - 1)
        assert method == "eth_getBlockByNumber", method
        which = parameters[0]
        number = len(self.chain) - 1 if which == "latest" else int(which, 16)
        return self.chain[number] if number < len(self.chain) else None


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls = asked if isinstance(asked, list) else [asked]
            answers = [{"jsonrpc": "2.0", "id": call["id"], "result": made.answer(call)} for call in calls]
            raw = json.dumps(answers if isinstance(asked, list) else answers[0]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_node_is_followed_through_its_reorganisations(node: Node, tmp_path: Path) -> None:
    store = tmp_path / "s"
    half = done("sync", "evm", node.url, "-d", store, "--until", "100", "--json").record
    assert (half["reached"], half["added"]) == (100, 101)
    for branch in ("main", "A", "B", "C"):
        head = str(node.branches[branch][-1]["hash"])
        node.show(head)
        done("sync", "evm", node.url, "-d", store, "--once", "--json")
        assert done("tip", "-d", store, "--json").record["hash"] == head
    stats = done("stats", "-d", store, "--json").record
    assert stats["chain"]["blocks"] == len(node.by_hash)  # type: ignore[index]
    assert stats["store"]["chain_id"] == "31337"  # type: ignore[index]
    done("verify", "--level", "links", "-d", store)


@pytest.mark.slow
def test_a_signal_ends_following_and_it_resumes(node: Node, tmp_path: Path) -> None:
    process = start("sync", "evm", node.url, "-d", tmp_path / "s", "--poll", "0.05", "--progress-seconds", "0")
    assert process.stderr is not None
    for line in process.stderr:
        if "height 63" in line:
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "next: run the same command again" in err
    report = done("sync", "evm", node.url, "-d", tmp_path / "s", "--once", "--json").record
    assert int(str(report["added"])) <= len(node.chain) - 64
    assert report["reached"] == len(node.chain) - 1


@pytest.mark.slow
def test_a_node_of_another_chain_is_refused(node: Node, pow_store: Path, tmp_path: Path) -> None:
    refused = holdfast("sync", "evm", node.url, "-d", pow_store, "--once", "--json")
    assert (refused.code, refused.error["code"]) == (16, "foreign_store")
    done("init", "-d", tmp_path / "s", "--chain", "evm", "--network", "1", "--json")
    refused = holdfast("sync", "evm", node.url, "-d", tmp_path / "s", "--once", "--json")
    assert (refused.code, refused.error["code"]) == (16, "foreign_store")
