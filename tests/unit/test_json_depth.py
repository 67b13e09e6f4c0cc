"""JSON that is nested too deeply is refused before a decoder sees it, whatever the recursion limit is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._json import DEPTH_MAX, check_depth

names = st.text(alphabet='[{"\\', max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\ab', max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=30,
)


@given(value=values, indent=st.none() | st.integers(0, 3))
def test_what_is_shallow_is_let_through(value: object, indent: int | None) -> None:
    check_depth(json.dumps(value, indent=indent).encode())


@pytest.mark.parametrize("text", [b"[", b"{", b'{"a":', b'[{"a":["]",'])
def test_what_is_deep_is_refused(text: bytes) -> None:
    for count in (DEPTH_MAX * 3, 100_000):
        with pytest.raises(ValueError, match="nested more than"):
            check_depth(text * count)
    with pytest.raises(ValueError, match="nested more than"):
        check_depth(b"[" * 300 + b"]" * 300)
    check_depth(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)


def _levels(data: str) -> int:
    """The deepest nesting that a decoder meets before ``data`` ends or closes what was never opened."""
    deepest = depth = at = 0
    while at < len(data) and depth >= 0:
        if data[at] == '"':
            at += 1
            while at < len(data) and data[at] != '"':
                at += 2 if data[at] == "\\" else 1
        depth += (data[at : at + 1] in ("[", "{")) - (data[at : at + 1] in ("]", "}"))
        deepest = max(deepest, depth)
        at += 1
    return deepest


@given(value=values, levels=st.integers(0, 6), cut=st.none() | st.integers(0, 60))
def test_the_bound_is_exact(value: object, levels: int, cut: int | None) -> None:
    text = json.dumps(value)[:cut]
    if _levels(text) <= levels:
        check_depth(text.encode(), levels)
    else:
        with pytest.raises(ValueError, match=f"more than {levels} levels"):
            check_depth(text.encode(), levels)


def test_the_bound_is_exact_where_objects_and_arrays_alternate() -> None:
    opened, closed = '[{"a":' * (DEPTH_MAX // 2), "}]" * (DEPTH_MAX // 2)
    for text in (opened, f"{opened}1{closed}"):
        check_depth(text.encode())
    for text in (f"{opened}[", f"{opened}[1]{closed}", f'{opened}1,"b":[]{closed}'):
        with pytest.raises(ValueError, match="nested more than"):
            check_depth(text.encode())


def test_brackets_in_text_are_no_levels() -> None:
    check_depth(json.dumps({"a": "[" * 100_000, "b": '"[' * 1000 + "\\"}).encode())


READERS = {
    "evm": "from holdfast.chains.evm.decoding import parse_json as read\n",
    "pow": (
        "import io\nfrom holdfast.chains.pow.json_format import read_records\n"
        "def read(data): next(read_records(io.StringIO('{\"hash\":' + data.decode())))\n"
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_high_recursion_limit_does_not_end_the_process(reader: str) -> None:
    program = (
        "import sys\nsys.setrecursionlimit(1_000_000)\nfrom holdfast.errors import InvalidBlock, InvalidInputError\n"
        f"{READERS[reader]}"
        "try:\n    read(b'[' * 200_000)\nexcept (InvalidBlock, InvalidInputError):\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize("writer", ["dump", "dump_indented", "encode_document"])
def test_a_high_recursion_limit_does_not_end_the_process_that_writes(writer: str) -> None:
    program = (
        "import sys\nsys.setrecursionlimit(100_000)\nfrom holdfast.errors import InvalidBlock\n"
        f"from holdfast.chains.xai.codec import {writer} as write\n"
        "write({'a': [{}, [1.5]]})\ndeep = []\nfor _ in range(200_000):\n    deep = [deep]\n"
        "try:\n    write({'a': ([], deep)})\nexcept InvalidBlock:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
