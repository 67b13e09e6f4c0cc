"""RLP against pyrlp, and trie roots against vectors of ethereum/tests (``TrieTests/trieanyorder.json``)."""

from __future__ import annotations

import pytest
import rlp
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.evm.codec import (
    EMPTY_LIST_HASH,
    EMPTY_TRIE_ROOT,
    Item,
    encode_bytes,
    encode_integer,
    encode_list,
    item_at,
    keccak256,
    list_items,
    ordered_trie_root,
    trie_root,
)
from holdfast.errors import InvalidBlock

Tree = bytes | list["Tree"]
trees: st.SearchStrategy[Tree] = st.recursive(
    st.one_of(st.binary(max_size=70), st.binary(min_size=250, max_size=260)),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


def encode(tree: Tree) -> bytes:
    return encode_bytes(tree) if isinstance(tree, bytes) else encode_list(encode(item) for item in tree)


def decode(data: bytes, item: Item) -> Tree:
    if not item.is_list:
        return data[item.payload : item.end]
    return [decode(data, inner) for inner in list_items(data, item)]


@given(trees)
def test_encoding_is_that_of_pyrlp(tree: Tree) -> None:
    assert encode(tree) == rlp.encode(tree)


@given(trees)
def test_what_was_encoded_is_read_back(tree: Tree) -> None:
    data = encode(tree)
    item = item_at(data, 0, len(data))
    assert item.end == len(data)
    assert decode(data, item) == tree


@given(
    st.binary(max_size=80) | trees.map(encode).flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n]))
)
def test_any_bytes_are_judged_as_pyrlp_judges_them(data: bytes) -> None:
    try:
        expected = rlp.decode(data)
    except rlp.DecodingError:
        expected = None
    try:
        item = item_at(data, 0, len(data))
        found = decode(data, item) if item.end == len(data) else None
    except InvalidBlock:
        found = None
    assert found == expected


@given(st.integers(0, 2**256))
def test_integers(value: int) -> None:
    assert encode_integer(value) == rlp.encode(value)


def test_deep_nesting_is_read_level_by_level() -> None:
    data = b"\xc0"
    for _ in range(5000):
        data = encode_list((data,))
    assert len(list_items(data)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"\xf8\xff", b"\xf9\x00\x40", b"\xff" + b"\xff" * 8, b"\x80", b"\xc0\x00", b"\xf8\x05aaaaa"]
)
def test_lists_that_are_none(data: bytes) -> None:
    with pytest.raises(InvalidBlock):
        list_items(data)


def test_constants() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert EMPTY_TRIE_ROOT.hex() == "56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"
    assert EMPTY_LIST_HASH.hex() == "1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347"


@pytest.mark.parametrize(
    ("pairs", "root"),
    [
        ({}, EMPTY_TRIE_ROOT.hex()),
        ({"A": "a" * 50}, "d23786fb4a010da3ce639d66d5e904a11dbc02746d1ce25029e53290cabf28ab"),
        (
            {"doe": "reindeer", "dog": "puppy", "dogglesworth": "cat"},
            "8aad789dff2f538bca5d8ea56e8abe10f4c7ba3a5dea95fea4cd6e7c3a1168d3",
        ),
        (
            {"do": "verb", "horse": "stallion", "doge": "coin", "dog": "puppy"},
            "5991bb8c6514148a29db676a14ac506cd2cd5775ace63c30a4fe457715e9ac84",
        ),
        ({"foo": "bar", "food": "bass"}, "17beaa1648bafa633cda809c90c04af50fc8aed3cb40d16efbddee6fdf63c4c3"),
    ],
)
def test_published_trie_roots(pairs: dict[str, str], root: str) -> None:
    assert trie_root({key.encode(): value.encode() for key, value in pairs.items()}).hex() == root
    assert trie_root({key.encode(): value.encode() for key, value in reversed(pairs.items())}).hex() == root


def test_an_ordered_root_depends_on_the_order() -> None:
    values = [bytes((number,)) * 40 for number in range(1, 200)]
    assert ordered_trie_root(values) != ordered_trie_root([*values[1:], values[0]])
    assert ordered_trie_root(values[:1]) == trie_root({b"\x80": values[0]})
