"""Staged writes: seen by every later read, merged into scans, undone exactly, never in the state below."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts.codec import Address
from holdfast.contracts.storage import SYSTEM, StagedState, contract_prefix, field_prefix, namespace
from holdfast.errors import InvalidInputError
from tests.contract_makers import DictState

keys = st.binary(min_size=1, max_size=3).filter(lambda key: True) | st.sampled_from(
    [b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff", b"\x00"]
)
values = st.binary(min_size=1, max_size=2)
bounds = st.none() | st.binary(max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, st.none() | values),
        st.tuples(st.just("mark"), st.none(), st.none()),
        st.tuples(st.just("undo"), st.none(), st.none()),
        st.tuples(st.just("keep"), st.none(), st.none()),
    ),
    max_size=25,
)


def scanned(
    rows: dict[bytes, bytes], prefix: bytes, start: bytes | None, stop: bytes | None, reverse: bool
) -> list[tuple[bytes, bytes]]:
    return [
        (key, value)
        for key, value in sorted(rows.items(), reverse=reverse)
        if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
    ]


@given(
    below=st.dictionaries(keys, values, max_size=8),
    program=steps,
    prefix=st.binary(max_size=2) | st.sampled_from([b"\xff", b"\xff\xff", b"a\xff"]),
    start=bounds,
    stop=bounds,
    reverse=st.booleans(),
)
def test_staged_equals_a_stack_of_dicts(
    below: dict[bytes, bytes],
    program: list[tuple[str, bytes | None, bytes | None]],
    prefix: bytes,
    start: bytes | None,
    stop: bytes | None,
    reverse: bool,
) -> None:
    base = DictState(below)
    staged = StagedState(base)
    model = dict(below)
    marks: list[tuple[int, dict[bytes, bytes]]] = []
    for what, key, value in program:
        if what == "put":
            assert key is not None
            staged.put(key, value)
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        elif what == "mark":
            marks.append((staged.mark(), dict(model)))
        elif what == "undo" and marks:
            mark, model = marks.pop()
            staged.undo_to(mark)
        elif what == "keep" and marks:
            marks.pop()
        assert list(staged.scan(prefix, start=start, stop=stop, reverse=reverse)) == scanned(
            model, prefix, start, stop, reverse
        )
    for key in {*below, *model, b"zz"}:
        assert staged.get(key) == model.get(key)
    assert base.rows == below
    assert base.updates == 0
    changes = staged.changes()
    assert list(changes) == sorted(changes)
    base.update(changes)
    assert base.rows == model


def test_what_is_undone_leaves_no_trace_in_the_changes() -> None:
    staged = StagedState(DictState({b"a": b"1"}))
    staged.put(b"k", b"1")
    mark = staged.mark()
    staged.put(b"a", None)
    staged.put(b"k", b"2")
    staged.put(b"n", b"3")
    staged.undo_to(mark)
    assert staged.changes() == {b"k": b"1"}


@pytest.mark.parametrize(("key", "value"), [(b"", b"v"), (b"k" * 401, b"v"), (b"k", b"")])
def test_what_the_state_would_refuse_is_refused_at_once(key: bytes, value: bytes) -> None:
    staged = StagedState(DictState())
    with pytest.raises(InvalidInputError):
        staged.put(key, value)
    assert staged.changes() == {}
    assert staged.mark() == 0


def test_no_namespace_begins_another() -> None:
    address = Address(bytes(range(20)))
    assert contract_prefix(address) == b"\x14" + bytes(range(20))
    assert SYSTEM == b"\x12holdfast/contracts"
    assert field_prefix("total") == b"\x05total"
    assert not namespace(b"ab").startswith(namespace(b"a"))
    for wrong in (b"", b"n" * 65):
        with pytest.raises(InvalidInputError):
            namespace(wrong)
