"""The original's files: formats, checksum rule, bytes kept, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.xai.codec import dump_indented
from holdfast.chains.xai.document import ChainChecksum, inner_chunks, package_chunks, read_document, rest_of
from holdfast.errors import CorruptionError, InvalidBlock, InvalidInputError, LimitExceeded
from tests import xai_makers as make

INNER = make.chain(5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(), values, max_size=4)


def test_all_three_formats_are_read() -> None:
    package, checkpoint, legacy = (
        read_document(data) for data in (make.package(INNER), make.checkpoint(INNER), make.legacy(INNER))
    )
    assert [found.kind for found in (package, checkpoint, legacy)] == ["package", "checkpoint", "legacy"]
    assert [found.verified for found in (package, checkpoint, legacy)] == [True, True, False]
    for found in (package, checkpoint, legacy):
        assert found.inner() == INNER
        assert len(found) == 5


def test_the_text_of_a_block_is_kept_byte_for_byte() -> None:
    data = make.package(INNER)
    found = read_document(data)
    for number, block in enumerate(INNER["chain"]):
        assert found.body(number) in data
        assert json.loads(found.body(number)) == block


@given(st.lists(objects, max_size=3), objects)
def test_what_is_written_is_what_the_original_writes(blocks: list[dict[str, Any]], rest: dict[str, Any]) -> None:
    rest = {key: value for key, value in rest.items() if key != "chain"}
    inner = {**rest, "chain": blocks}
    assert "".join(inner_chunks(blocks, rest)) == json.dumps(inner, indent=2, sort_keys=True)
    assert b"".join(package_chunks(blocks, rest, make.START)) == make.package(inner)
    running = ChainChecksum(rest)
    for block in blocks:
        running.add(block)
    assert running.value(rest) == make.checksum(inner)


class _Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        {"b": [1.5, -0.0, 1e300, 10**40, True, False, None], "a": ((), [], {}, [[]], ({},))},
        {"\u00e9\ud800": '\n"\\', "": _Text("x")},
        {1: "one", 2: [{"z": 1, "a": {}}]},
        [_Text("t"), {_Text("k"): {"v": 2.5}}],
        5,
        "text",
    ],
)
@pytest.mark.parametrize("margin", ["", "    "])
def test_indented_text_is_that_of_json(value: object, margin: str) -> None:
    wanted = json.dumps(value, sort_keys=True, allow_nan=False, indent=2).replace("\n", "\n" + margin)
    assert dump_indented(value, margin) == wanted


def test_what_json_does_not_have_is_refused_with_an_indent_too() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (float("nan"), {"a": [float("-inf")]}, {"a": {1, 2}}, [b"bytes"], {("a",): 1}, {1: 1, "a": 2}, deep):
        with pytest.raises(InvalidBlock, match="cannot be written as JSON"):
            dump_indented(value)


def test_a_checkpoint_passes_the_originals_check(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_5.json"
    path.write_bytes(b"".join(package_chunks(INNER["chain"], rest_of(INNER), make.START, height=5)))
    assert make.passes(path)
    assert json.loads(path.read_text())["block_height"] == 5
    assert read_document(path.read_bytes()).kind == "checkpoint"


@pytest.mark.parametrize("data", [make.package(INNER), make.checkpoint(INNER)])
def test_a_changed_value_is_found_by_the_checksum(data: bytes) -> None:
    changed = data.replace(b'"amount": 12.0', b'"amount": 13.0', 1)
    assert changed != data
    with pytest.raises(CorruptionError, match="checksum"):
        read_document(changed)


def test_every_truncation_is_a_typed_error() -> None:
    data = make.package(make.chain(2))
    for length in range(0, len(data), 7):
        with pytest.raises(CorruptionError):
            read_document(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"chain": 1}',
        b'{"chain": [1]}',
        b'{"chain": [], "chain": []}',
        b'{"chain": []} x',
        b'{"blockchain": {}}',
        b'{"blockchain": {"chain": []}, "metadata": 1}',
        b'{"blockchain": {"chain": []}, "metadata": {"checksum": 1}}',
        b'{"blockchain": {"chain": []}, "metadata": {"checksum": "' + b"0" * 64 + b'"}}',
        b'{"chain": [{"a": NaN}]}',
        b'{"chain": [], "x": Infinity}',
        b'{"chain": [{"a": ' + b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_malformed_file_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(CorruptionError):
        read_document(data)


def test_a_number_beyond_all_floats_does_not_pass_a_checksum() -> None:
    data = make.package(INNER).replace(b'"risk_score": 0.0', b'"risk_score": 1e999')
    with pytest.raises((CorruptionError, ValueError)):
        read_document(data)


def test_a_file_above_the_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded):
        read_document(make.package(INNER), limit=100)


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        rest_of({"chain": [], 1: 2})  # type: ignore[dict-item]
