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
