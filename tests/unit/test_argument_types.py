"""An argument of a wrong type is refused by name where it is given, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import Store
from holdfast.errors import InvalidInputError
from tests.unit.state_support import commit

Call = Callable[[Store, Any], object]

NO_PATH = [5, None, b"bytes", "", "a\0b", object()]
NO_NUMBER = ["1", 1.5, b"1", True, [], -1]
NO_MAPPING = [5, [(b"k", b"v")], b"k", None]
NO_KEY = [bytearray(b"key"), memoryview(b"key"), "key", 5, None, [], b""]

CALLS: list[tuple[str, list[Any], Call]] = [
    ("commit draft", [5, None, b"draft", object()], lambda store, bad: store.commit(bad, hash=b"n" * 32)),
    (
        "commit safety",
        [5, b"abc", [], (b"id",)],
        lambda store, bad: store.commit(store.draft(), hash=b"n" * 32, safety=bad),
    ),
    ("add", [5, None, b"block", {}], lambda store, bad: store.add(bad)),
    ("add_many", [5, None, b"block", [5], {1: 2}], lambda store, bad: store.add_many(bad)),
    ("finalize", [*NO_NUMBER, None], lambda store, bad: store.finalize(bad)),
    ("force_blocks", NO_MAPPING, lambda store, bad: store.force_blocks(bad)),
    ("index", [5, None, b"name", []], lambda store, bad: store.index(bad)),
    ("export path", NO_PATH, lambda store, bad: store.export_snapshot(bad)),
    ("export height", NO_NUMBER, lambda store, bad: store.export_snapshot("unused", height=bad)),
    ("export chunk_bytes", ["4096", 4096.5, None], lambda store, bad: store.export_snapshot("unused", chunk_bytes=bad)),
    ("import source", NO_PATH, lambda store, bad: holdfast.import_snapshot("unused", bad, trust_manifest=True)),
    ("verify path", NO_PATH, lambda store, bad: holdfast.verify_snapshot(bad, trust_manifest=True)),
    ("scan prefix", [None, "a", 5, bytearray(b"a")], lambda store, bad: list(store.state.scan(bad))),
    ("put key", NO_KEY, lambda store, bad: store.documents("space").put(bad, b"value")),
    ("put value", [bytearray(b"v"), "v", 5, None], lambda store, bad: store.documents("space").put(b"key", bad)),
    ("get key", NO_KEY, lambda store, bad: store.documents("space").get(bad)),
    ("delete key", NO_KEY, lambda store, bad: store.documents("space").delete(bad)),
    ("write puts", NO_MAPPING, lambda store, bad: store.documents("space").write(bad)),
    ("write deletes", [5, b"key", None, [5]], lambda store, bad: store.documents("space").write(deletes=bad)),
    ("state key", NO_KEY, lambda store, bad: store.state.get(bad)),
    ("state keys", [5, None, "ab", b"ab", [b"a", None]], lambda store, bad: store.state.get_many(bad)),
    ("proof keys", [5, None, "ab", b"ab", [b"a", None]], lambda store, bad: store.state.prove_many(bad)),
    ("draft keys", [5, None, "ab", b"ab", [b"a", None]], lambda store, bad: store.draft().state.get_many(bad)),
    ("body", [5, None, b"i" * 32], lambda store, bad: store.blocks.body(bad)),
    ("header", [5, None, b"i" * 32], lambda store, bad: store.blocks.header(bad)),
    ("extra", [5, None, b"i" * 32], lambda store, bad: store.blocks.extra(bad)),
    ("block", [5, None, b"i" * 32], lambda store, bad: store.blocks.block(bad)),
    ("open settings", [5, {}, "settings"], lambda store, bad: holdfast.open("memory:", settings=bad)),
    ("open chain", [5, {}, "pow"], lambda store, bad: holdfast.open("memory:", chain=bad)),
    ("diff", [5, None, b"store"], holdfast.diff),
    ("settings of", [5, b"data", ""], lambda store, bad: holdfast.load_settings(bad)),
    ("draft key", NO_KEY, lambda store, bad: store.draft().state.__setitem__(bad, b"1")),
]


@pytest.fixture
def store() -> Iterator[Store]:
    with holdfast.open("memory:") as store:
        commit(store, "first", {b"a": b"1"})
        yield store


@pytest.mark.parametrize(
    ("bad", "call"),
    [
        pytest.param(bad, call, id=f"{name}, {number}, {type(bad).__name__}")
        for name, several, call in CALLS
        for number, bad in enumerate(several)
    ],
)
def test_a_wrong_type_is_invalid_input(
    bad: Any, call: Call, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = store.statistics()["chain"]
    with pytest.raises(InvalidInputError) as caught:
        call(store, bad)
    assert caught.value.code == "invalid_input"
    assert store.statistics()["chain"] == before
    assert store.document_spaces() == []
    assert list(tmp_path.iterdir()) == []
