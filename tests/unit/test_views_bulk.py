"""The inner loops of commits and flushes: the kernel's and the twin's do the same."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._kernel import installed
from holdfast.errors import CorruptionError
from holdfast.views.api import Rows
from holdfast.views.bulk import Bulk, NativeBulk, PureBulk
from holdfast.views.rows import encode_row
from holdfast.views.tables import STATE

_module = installed()
BULKS: list[Bulk] = [PureBulk(), *([] if _module is None else [NativeBulk(_module)])]
both = pytest.mark.parametrize("bulk", BULKS, ids=["pure", "kernel"][: len(BULKS)])

engine_keys = st.binary(min_size=2, max_size=70) | st.binary(min_size=1, max_size=60).map(STATE.prefix.__add__)
values = st.none() | st.binary(max_size=90)
tables = st.dictionaries(engine_keys, values, max_size=40)


@given(rows=tables)
def test_rows_go_there_and_back(rows: dict[bytes, bytes | None]) -> None:
    for bulk in BULKS:
        merge = bulk.merge()
        merge.add(rows, undo=False)
        assert merge.sort() == len(rows)
        stored = merge.batch(len(rows) + 1, 1 << 30)
        assert stored == {key: None if value is None else encode_row(key, value) for key, value in rows.items()}
        assert list(stored) == sorted(rows)
        assert bulk.decode(list(stored), list(stored.values())) == [rows[key] for key in sorted(rows)]


few_keys = st.sampled_from([b"", b"a", b"a\0", b"a\0\0", b"b", b"ab", b"a" * 9, b"a" * 8 + b"\0"])
long_keys = st.builds(lambda head, tail: b"prefix"[:head] + tail, st.integers(0, 6), st.binary(max_size=20))
layers = st.tuples(st.dictionaries(few_keys | long_keys, values, max_size=60), st.booleans())


@given(added=st.lists(layers, max_size=6), rows_max=st.integers(1, 50), bytes_max=st.integers(1, 2000))
def test_layers_are_merged(added: list[tuple[Rows, bool]], rows_max: int, bytes_max: int) -> None:
    """Against the obvious: a dictionary that is updated by layer after layer."""
    first: Rows = {}
    for number, (rows, undo) in enumerate(added):
        for key in rows:
            if undo and not any(key in below for below, _ in added[:number]):
                first[key] = b"stored of " + key if len(key) % 2 else None
    newest: Rows = {}
    for rows, _ in added:
        newest.update(rows)
    for bulk in BULKS:
        merge = bulk.merge()
        assert [merge.add(rows, undo) for rows, undo in added] == list(range(len(added)))
        assert merge.sort() == len(newest)
        asked: list[bytes] = []
        while part := merge.unknown(rows_max):
            assert len(part) <= rows_max
            merge.known([first[key] for key in part])
            asked += part
        assert asked == sorted(first)
        now = dict(first)
        for number, (rows, undo) in enumerate(added):
            if undo:
                found = merge.undo(number)
                assert list(found.items()) == [(key, now[key]) for key in sorted(rows)]
            now.update(rows)
        written: Rows = {}
        while batch := merge.batch(rows_max, bytes_max):
            assert len(batch) <= rows_max
            assert sum(len(key) + len(newest[key] or b"") for key in list(batch)[:-1]) < bytes_max
            written.update(batch)
        assert list(written) == merge.keys() == sorted(newest)
        assert written == {key: None if row is None else encode_row(key, row) for key, row in newest.items()}


def test_thousands_of_rows_are_merged() -> None:
    """Above the sizes at which both twins sort otherwise: prefixes of many lengths, keys in many layers."""
    generator = random.Random(3)
    added: list[Rows] = [
        {
            b"contract-address"[: generator.randrange(17)] + generator.randbytes(generator.randrange(1, 12)): b"x"
            for _ in range(3000)
        }
        for _ in range(4)
    ]
    shared = list(added[0])[:500]
    for rows in added[1:]:
        rows.update(dict.fromkeys(shared, b"y"))
    wanted = sorted(set().union(*added))
    for bulk in BULKS:
        merge = bulk.merge()
        for rows in added:
            merge.add(rows, undo=True)
        assert merge.sort() == len(wanted)
        assert merge.unknown(1 << 20) == wanted == merge.keys()
        assert list(merge.batch(1 << 20, 1 << 30)) == wanted


@both
@pytest.mark.parametrize("damage", ["value", "checksum", "short", "empty", "swapped"])
def test_a_damaged_row_is_named(bulk: Bulk, damage: str) -> None:
    keys = [b"\x80\x02key-%d" % number for number in range(5)]
    stored: list[bytes | None] = [encode_row(key, b"value of " + key) for key in keys]
    row = stored[3]
    assert row is not None
    stored[3] = {
        "value": row[:-1] + b"?",
        "checksum": bytes((row[0] ^ 1,)) + row[1:],
        "short": row[:3],
        "empty": b"",
        "swapped": stored[2],
    }[damage]
    with pytest.raises(CorruptionError) as caught:
        bulk.decode(keys, stored)
    assert caught.value.context["key"] == keys[3]


@given(rows=tables, most=st.integers(1, 400))
def test_parts_of_undo(rows: dict[bytes, bytes | None], most: int) -> None:
    first, *others = [list(bulk.undo_parts(rows, most)) for bulk in BULKS]
    assert all(other == first for other in others)
    assert sum(count for count, _ in first) == len(rows)
    body = b"".join(
        len(key).to_bytes(2, "big")
        + key
        + (b"\x00" if value is None else b"\x01" + len(value).to_bytes(4, "big") + value)
        for key, value in sorted(rows.items())
    )
    assert b"".join(data for _, data in first) == body
    assert all(len(data) >= most for _, data in first[:-1])


@given(rows=tables, height=st.integers(0, 2**63))
def test_rows_of_history(rows: dict[bytes, bytes | None], height: int) -> None:
    made = []
    for bulk in BULKS:
        into: dict[bytes, bytes | None] = {b"before": None}
        bulk.history({key: value for key, value in rows.items() if len(key) > 2}, STATE.prefix, height, into)
        made.append(into)
    assert all(other == made[0] for other in made)
    assert len(made[0]) == 1 + sum(key.startswith(STATE.prefix) and len(key) > 2 for key in rows)


@given(first=tables, second=tables)
def test_publishing(first: dict[bytes, bytes | None], second: dict[bytes, bytes | None]) -> None:
    for bulk in BULKS:
        nodes: dict[bytes, tuple[int, bytes | None, Any]] = {}
        size = bulk.publish(nodes, first, 7) + bulk.publish(nodes, second, 8)
        assert size == sum(len(key) + len(value or b"") for rows in (first, second) for key, value in rows.items())
        assert nodes == {
            **{key: (7, value, None) for key, value in first.items()},
            **{key: (8, value, (7, first[key], None) if key in first else None) for key, value in second.items()},
        }


@pytest.mark.skipif(_module is None, reason="the native kernel is not installed")
def test_the_kernel_merges_nothing_half_made() -> None:
    """A layer or an answer that is refused leaves nothing behind, and no undo is given that is not known."""
    assert _module is not None
    wrong: Any = 5
    merge = _module.RowMerge()
    with pytest.raises(TypeError):
        merge.add({b"a": b"1", b"b": wrong}, True)
    assert merge.add({b"b": b"2", b"c": None}, True) == 0
    assert merge.sort() == 2
    with pytest.raises(ValueError, match="sorted already"):
        merge.sort()
    with pytest.raises(ValueError, match="not known yet"):
        merge.undo(0)
    assert merge.unknown(9) == [b"b", b"c"]
    with pytest.raises(TypeError):
        merge.known([b"old", wrong])
    with pytest.raises(ValueError, match="not known yet"):
        merge.undo(0)
    merge.known([b"old", None])
    assert merge.undo(0) == {b"b": b"old", b"c": None}
    assert merge.keys() == [b"b", b"c"]
