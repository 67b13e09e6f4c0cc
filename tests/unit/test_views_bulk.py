"""The inner loops of commits and flushes: the kernel's and the twin's do the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._kernel import installed
from holdfast.errors import CorruptionError
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
    keys = list(rows)
    for bulk in BULKS:
        stored = bulk.encode(keys, rows)
        assert stored == {key: None if value is None else encode_row(key, value) for key, value in rows.items()}
        assert list(stored) == keys
        assert bulk.decode(keys, list(stored.values())) == list(rows.values())


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
