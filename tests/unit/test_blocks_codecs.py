"""Entries and rows about blocks and votes: round trips, order, any bytes at all, and the golden ones."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from holdfast.blocks.entries import (
    BlockEntry,
    CanonicalEntry,
    ExecutedEntry,
    FinalizedEntry,
    OrphanEntry,
    decode_block,
    decode_canonical,
    decode_executed,
    decode_finalized,
    encode_block,
    encode_canonical,
    encode_executed,
    encode_finalized,
)
from holdfast.blocks.fork_choice import fork_choice_named
from holdfast.blocks.records import (
    block_key,
    canonical_key,
    decode_block_record,
    decode_orphan_record,
    encode_block_record,
    encode_orphan_record,
    hash_of_height_key,
    height_key,
    producer_key,
    producer_prefix,
    time_key,
)
from holdfast.blocks.state import EMPTY, ChainState, decode_state, encode_state
from holdfast.consensus.records import SafetyRecord, decode_fence, decode_safety, encode_fence, encode_safety
from holdfast.errors import CorruptionError, InvalidInputError
from holdfast.types import OrphanInfo

hashes = st.binary(min_size=32, max_size=32)
other_hashes = hashes.filter(any)
u64 = st.integers(0, 2**64 - 1)
u256 = st.integers(0, 2**256 - 1)
lengths = st.none() | st.integers(0, 2**28)
reasons = st.text(max_size=60)
entries = st.builds(
    BlockEntry,
    hash=hashes,
    parent=hashes,
    height=u64,
    time=u64,
    work=u256,
    total_work=u256,
    producer=st.binary(max_size=128),
    header_bytes=lengths,
    body_bytes=lengths,
    extra_bytes=lengths,
    part=st.integers(0, 4095),
)
orphan_entries = st.builds(
    OrphanEntry, hash=hashes, competing=st.none() | other_hashes, was_canonical=st.booleans(), reason=reasons
)
canonicals = st.builds(
    CanonicalEntry,
    fork=st.none() | st.tuples(u64, hashes),
    tip=st.tuples(u64, hashes),
    floor=u64,
    orphans=st.lists(orphan_entries, max_size=4).map(tuple),
)
finals = st.builds(FinalizedEntry, height=u64, hash=hashes, floor=u64)
orphans = st.builds(
    OrphanInfo,
    hash=hashes,
    height=u64,
    reason=reasons,
    competing_hash=st.none() | other_hashes,
    seen_us=u64,
    orphaned_us=u64,
    was_canonical=st.booleans(),
)
heights = st.integers(0, 2**63 - 1)
states = st.builds(
    lambda fields, root: ChainState(*fields, *root),
    st.tuples(heights, hashes, heights, hashes, st.integers(-1, 2**63 - 1), u64, u64, u64, u64, u64, u64),
    st.just((bytes(32), False)) | st.tuples(hashes, st.just(True)),
)
positions = st.lists(u64, min_size=1, max_size=8).map(tuple)
identities = st.binary(min_size=1, max_size=128)
votes = st.builds(SafetyRecord, identity=identities, position=positions, payload=st.binary(max_size=200))


# -- there and back -------------------------------------------------------------------------------------------------


@given(entry=entries)
def test_block_entries(entry: BlockEntry) -> None:
    found, header, body, extra = decode_block(encode_block(entry))
    assert (header, body, extra) == tuple(
        length is not None for length in (entry.header_bytes, entry.body_bytes, entry.extra_bytes)
    )
    found.header_bytes, found.body_bytes, found.extra_bytes = entry.header_bytes, entry.body_bytes, entry.extra_bytes
    found.part = entry.part
    assert found == entry


@given(block_hash=hashes, root=hashes, count=st.integers(0, 2**32 - 1), more=st.binary(min_size=1, max_size=3))
def test_executed_entries(block_hash: bytes, root: bytes, count: int, more: bytes) -> None:
    entry = ExecutedEntry(block_hash, root, count)
    data = encode_executed(entry)
    assert decode_executed(data) == entry
    for bad in (data + more, data[:-1], data[:64] + bytes((data[64] ^ 1,)) + data[65:]):
        with pytest.raises(CorruptionError):
            decode_executed(bad)


@given(entry=canonicals, final=finals)
def test_canonical_and_finality_entries(entry: CanonicalEntry, final: FinalizedEntry) -> None:
    assert decode_canonical(encode_canonical(entry)) == entry
    assert decode_finalized(encode_finalized(final)) == final


@given(entry=entries, seq=u64, seen=u64, orphan=orphans, state=states)
def test_rows(entry: BlockEntry, seq: int, seen: int, orphan: OrphanInfo, state: ChainState) -> None:
    info = decode_block_record(entry.hash, encode_block_record(entry, seq, seen))
    for name in (
        "hash",
        "parent",
        "height",
        "time",
        "work",
        "total_work",
        "producer",
        "body_bytes",
        "extra_bytes",
        "part",
    ):
        assert getattr(info, name) == getattr(entry, name)
    assert (info.seq, info.seen_us, info.header_bytes) == (seq, seen, entry.header_bytes or 0)
    assert (info.state_root, info.executed) == (None, None)
    executed = structs.replace(entry, state_root=entry.hash, executed=entry.part)
    info = decode_block_record(entry.hash, encode_block_record(executed, seq, seen))
    assert (info.state_root, info.executed) == (entry.hash, entry.part)
    assert info.producer == entry.producer
    assert decode_orphan_record(orphan.hash, encode_orphan_record(orphan)) == orphan
    assert decode_state(encode_state(state)) == state
    assert decode_state(encode_state(EMPTY)) == EMPTY


@given(vote=votes)
def test_votes_and_fences(vote: SafetyRecord) -> None:
    assert decode_safety(encode_safety(vote)) == vote
    assert decode_fence(encode_fence(vote.identity, vote.position)) == (vote.identity, vote.position)


# -- order ----------------------------------------------------------------------------------------------------------


@given(a=st.tuples(u64, hashes), b=st.tuples(u64, hashes))
def test_keys_are_in_height_order(a: tuple[int, bytes], b: tuple[int, bytes]) -> None:
    assert (height_key(*a) < height_key(*b)) == (a < b)
    assert (canonical_key(a[0]) < canonical_key(b[0])) == (a[0] < b[0])
    assert hash_of_height_key(height_key(*a)) == a
    assert height_key(a[0]) <= height_key(*a)
    assert (producer_key(b"p", *a) < producer_key(b"p", *b)) == (a < b)
    assert len({block_key(a[1]), block_key(b[1])}) == len({a[1], b[1]})


@given(a=st.tuples(u64, u64, hashes), b=st.tuples(u64, u64, hashes))
def test_times_are_in_order(a: tuple[int, int, bytes], b: tuple[int, int, bytes]) -> None:
    assert (time_key(*a) < time_key(*b)) == (a < b)


@given(one=st.binary(min_size=1, max_size=128), two=st.binary(min_size=1, max_size=128), height=u64, block=hashes)
def test_no_producer_is_found_among_another_ones_blocks(one: bytes, two: bytes, height: int, block: bytes) -> None:
    assert producer_key(one, height, block).startswith(producer_prefix(two)) == (one == two)


# -- any bytes ------------------------------------------------------------------------------------------------------

DECODERS: list[tuple[Callable[[bytes], object], Callable[[], bytes]]] = [
    (decode_block, lambda: encode_block(BlockEntry(b"h" * 32, b"p" * 32, 7, 8, 9, 10, b"me", 1, None, 2))),
    (
        decode_canonical,
        lambda: encode_canonical(
            CanonicalEntry((1, b"f" * 32), (2, b"t" * 32), 1, (OrphanEntry(b"o" * 32, None, True, "r\u00e9"),) * 2)
        ),
    ),
    (decode_finalized, lambda: encode_finalized(FinalizedEntry(1, b"h" * 32, 1))),
    (
        lambda data: decode_block_record(b"h" * 32, data),
        lambda: encode_block_record(BlockEntry(b"h" * 32, b"p" * 32, 7, 8, 9, 10, b"me", 1, None, 2), 3, 4),
    ),
    (
        lambda data: decode_orphan_record(b"h" * 32, data),
        lambda: encode_orphan_record(OrphanInfo(b"h" * 32, 1, "r\u00e9", None, 2, 3, False)),
    ),
    (decode_state, lambda: encode_state(EMPTY._replace(tip_height=3, finalized=2))),
    (decode_safety, lambda: encode_safety(SafetyRecord(b"me", (1, 2), b"payload"))),
    (decode_fence, lambda: encode_fence(b"me", (1, 2))),
    (hash_of_height_key, lambda: height_key(1, b"h" * 32)),
]


@pytest.mark.parametrize(("decode", "good"), DECODERS)
@given(data=st.binary(max_size=300))
def test_any_bytes_decode_or_are_corruption(
    decode: Callable[[bytes], object], good: Callable[[], bytes], data: bytes
) -> None:
    for candidate in (data, good()[: len(data)] + data, data + good()):
        with contextlib.suppress(CorruptionError):
            decode(candidate)


@pytest.mark.parametrize(("decode", "good"), DECODERS)
def test_every_other_length_is_corruption(decode: Callable[[bytes], object], good: Callable[[], bytes]) -> None:
    data = good()
    decode(data)
    for length in range(len(data)):
        with pytest.raises(CorruptionError):
            decode(data[:length])
    with pytest.raises(CorruptionError):
        decode(data + b"\x00")


def test_fields_that_cannot_be() -> None:
    canonical = bytearray(encode_canonical(CanonicalEntry(None, (1, b"t" * 32), 1)))
    for flags in (0, 1, 4, 255):
        canonical[0] = flags
        with pytest.raises(CorruptionError):
            decode_canonical(bytes(canonical))
    canonical[0], canonical[8] = 2, 1  # a fork point that it says it has not
    with pytest.raises(CorruptionError):
        decode_canonical(bytes(canonical))
    state = bytearray(encode_state(EMPTY))
    state[0] = 4
    with pytest.raises(CorruptionError):
        decode_state(bytes(state))
    block = bytearray(encode_block(BlockEntry(b"h" * 32, b"p" * 32, 7, 8, 9, 10, b"", None, None, None)))
    block[144] = 8
    with pytest.raises(CorruptionError):
        decode_block(bytes(block))
    orphan = bytearray(encode_orphan_record(OrphanInfo(b"h" * 32, 1, "x", None, 2, 3, False)))
    orphan[56] = 2
    with pytest.raises(CorruptionError):
        decode_orphan_record(b"h" * 32, bytes(orphan))
    orphan[56], orphan[-1] = 0, 0xFF
    with pytest.raises(CorruptionError):
        decode_orphan_record(b"h" * 32, bytes(orphan))
    huge = struct.pack(">BQ32sQ32sQI", 3, 0, bytes(32), 0, bytes(32), 0, 2**32 - 1)
    with pytest.raises(CorruptionError):
        decode_canonical(huge)


# -- the bytes of docs/FORMAT.md, section 7 -------------------------------------------------------------------------


def test_golden_bytes() -> None:
    one, two, three = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32
    entry = BlockEntry(one, two, 7, 8, 9, 10, b"me", 80, None, 0, part=3)
    assert encode_block_record(entry, 5, 6).hex() == (
        "0000000000000005" + "0003" + "0000000000000006" + "0000000000000007" + "0000000000000008"
        + "22" * 32 + "00" * 31 + "09" + "00" * 31 + "0a" + "00000050" + "ffffffff" + "00000000" + "02" + "6d65"
    )  # fmt: skip
    orphan = OrphanInfo(one, 7, "no", three, 5, 6, True)
    assert encode_orphan_record(orphan).hex() == (
        "0000000000000007" + "0000000000000005" + "0000000000000006" + "33" * 32 + "01" + "0002" + "6e6f"
    )  # fmt: skip
    state = ChainState(1, one, 2, two, 3, 4, 5, 6, 7, 8, 9)
    assert encode_state(state).hex() == (
        "03" + "0000000000000001" + "11" * 32 + "0000000000000002" + "22" * 32
        + "".join(f"{number:016x}" for number in range(3, 10))
    )  # fmt: skip
    assert encode_state(EMPTY) == bytes(137)
    executed = state._replace(state_root=one, stateful=True)
    assert encode_state(executed) == b"\x07" + encode_state(state)[1:] + one
    assert encode_executed(ExecutedEntry(one, two, 3)).hex() == "11" * 32 + "22" * 32 + "01" + "00000003"
    assert block_key(one).hex() == "0101" + "11" * 32
    assert height_key(7, one).hex() == "0102" + "0000000000000007" + "11" * 32
    assert time_key(8, 7, one).hex() == "0103" + "0000000000000008" + "0000000000000007" + "11" * 32
    assert producer_key(b"me", 7, one).hex() == "0104" + "02" + "6d65" + "0000000000000007" + "11" * 32
    assert canonical_key(7).hex() == "8001" + "0000000000000007"
    vote = SafetyRecord(b"me", (1, 2), b"ab")
    head = "0002" + "6d65" + "02" + "0000000000000001" + "0000000000000002"
    assert encode_safety(vote).hex() == head + "00000002" + "6162"
    assert encode_fence(b"me", (1, 2)).hex() == head


def test_fork_choices_have_names() -> None:
    for name in ("heaviest", "longest", "manual"):
        assert fork_choice_named(name).name == name
    with pytest.raises(InvalidInputError):
        fork_choice_named("luck")
