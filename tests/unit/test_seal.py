"""What an encrypted store writes: parts and rows open in their place, under their key, and nowhere else."""

from __future__ import annotations

import hashlib
import struct
from hashlib import sha256
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._keys import SecretKey, StoreKey, allowed, given_key, open_master, seal_master, using_key, without_key
from holdfast._seal import (
    FILE_OVERHEAD_BYTES,
    PART_OVERHEAD_BYTES,
    ROW_OVERHEAD_BYTES,
    FileCipher,
    PartCipher,
    PartPlace,
    RowCipher,
    StoreCipher,
)
from holdfast.engine.api import Batch
from holdfast.engine.memory import MemoryEngine
from holdfast.engine.sealed import SealedEngine
from holdfast.errors import (
    CorruptionError,
    FormatTooNew,
    InvalidInputError,
    KeyRequired,
    LimitExceeded,
    ResourceExhausted,
    SnapshotInvalid,
)
from holdfast.journal import codec
from holdfast.journal.api import PLAIN_KINDS, Frame, Kind, Part, PartInfo
from holdfast.journal.codec import CODEC_SEALED, decode_part, encode_frame, encode_parts, parse_head
from holdfast.limits import ROW_VALUE_BYTES_MAX
from holdfast.state.sealing import Sealing, decode_sealed

SALT = bytes(range(32))
PLACE: PartPlace = (bytes(32), 7)


def cipher(key: int = 1, store: int = 1) -> PartCipher:
    return PartCipher(bytes([key]) * 32, bytes([store]) * 16)


# -- parts ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(1, 2**40))
def test_a_part_opens_where_it_was_sealed(data: bytes, segment: int) -> None:
    sealed = cipher().seal(data, segment, PLACE)
    assert len(sealed) == len(data) + PART_OVERHEAD_BYTES
    assert cipher().open(sealed, segment, PLACE) == data


@pytest.mark.parametrize("field", range(len(PLACE)))
def test_a_part_does_not_open_in_another_place(field: int) -> None:
    sealed = cipher().seal(b"abc", 1, PLACE)
    other: list[object] = list(PLACE)
    was = other[field]
    other[field] = was + 1 if isinstance(was, int) else b"\1" * 32
    assert cipher().open(sealed, 1, cast("PartPlace", tuple(other))) is None


def test_a_part_does_not_open_in_another_segment_store_or_under_another_key() -> None:
    sealed = cipher().seal(b"abc", 1, PLACE)
    assert cipher().open(sealed, 2, PLACE) is None
    assert cipher(store=2).open(sealed, 1, PLACE) is None
    assert cipher(key=2).open(sealed, 1, PLACE) is None


@given(st.integers(0, 30), st.integers(0, 7))
def test_a_flipped_bit_is_noticed(at: int, bit: int) -> None:
    sealed = bytearray(cipher().seal(b"abc", 1, PLACE))
    sealed[at] ^= 1 << bit
    assert cipher().open(bytes(sealed), 1, PLACE) is None


@pytest.mark.parametrize("length", range(PART_OVERHEAD_BYTES))
def test_what_is_too_short_to_be_sealed_does_not_open(length: int) -> None:
    assert cipher().open(bytes(length), 1, PLACE) is None


def test_a_nonce_is_drawn_each_time_also_for_the_same_place() -> None:
    """A tail that was cut leaves its seqs to other frames: a counter would repeat."""
    one, two = cipher().seal(b"abc", 1, PLACE), cipher().seal(b"abc", 1, PLACE)
    assert one[:12] != two[:12]


@pytest.mark.parametrize("compress", [False, True])
def test_a_frame_of_sealed_parts_comes_back(compress: bool) -> None:
    parts = [
        Part(Kind.INCARNATION, b"i" * 32, True),
        Part(Kind.BLOCK, b"plain block", True),
        Part(Kind.BODY, b"plain body " * 100, compress=True),
        Part(Kind.NOTE, b""),
    ]
    encoding = encode_parts(parts, compress=compress, seal=True)
    data, _ = encode_frame(
        encoding, salt=SALT, seq=3, durable_seq=2, time_us=5, previous=b"p" * 32, cipher=cipher(), segment=9
    )
    assert len(data) == encoding.length
    assert b"plain" not in data
    frame = parse_head(data, salt=SALT, segment=9, offset=0)
    assert [bool(info.codec & CODEC_SEALED) for info in frame.parts] == [False, True, True, True]
    assert stored_of(data, frame.parts[0]) == b"i" * 32
    for index, part in enumerate(parts):
        assert opened(data, frame, index, cipher()) == part.data
    with pytest.raises(KeyRequired):
        opened(data, frame, 1, None)
    with pytest.raises(CorruptionError, match="not sealed for its place"):
        opened(data, frame, 1, cipher(key=2))
    with pytest.raises(CorruptionError, match="not sealed for its place"):
        opened(data, msgspec.structs.replace(frame, bound=bytes(32)), 1, cipher())


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 4}, {"durable_seq": 1}, {"time_us": 6}, {"previous": bytes(32)}, {"cut": 1}, {"critical": 1},
        {"incarnation": 1}, {"raw": 1},
    ],
)  # fmt: skip
def test_nothing_of_a_frame_can_be_changed_without_the_key(change: dict[str, object]) -> None:
    """The digest is right again each time: it only needs the salt, which everybody can read."""
    parts = [Part(Kind.INCARNATION, b"i" * 32, True), Part(Kind.NOTE, b"a" * 8), Part(Kind.SAFETY, b"vote" * 2, True)]
    data, _ = encode_frame(
        encode_parts(parts, seal=True),
        salt=SALT, seq=3, durable_seq=2, time_us=5, previous=b"p" * 32, cipher=cipher(), segment=9,
    )  # fmt: skip
    frame = parse_head(data, salt=SALT, segment=9, offset=0)
    assert opened(data, frame, 1, cipher()) == b"a" * 8
    count = 2 if "cut" in change else 3
    bodies = data[frame.parts[0].offset : frame.parts[2].offset if count == 2 else None]
    rows = [bytearray(data[72 + 48 * index : 120 + 48 * index]) for index in range(count)]
    rows[-1][3] ^= "critical" in change
    if "incarnation" in change:
        bodies = b"j" * 32 + bodies[32:]
        rows[0][16:] = sha256(b"j" * 32).digest()
    if "raw" in change:  # of a part that is compressed, or so it says
        rows[-1][2] |= 1
    told = {"seq": 3, "durable_seq": 2, "time_us": 5, "previous": b"p" * 32} | change
    names = ("seq", "durable_seq", "time_us", "previous")
    length = 72 + 48 * count + 32 + len(bodies)
    head = struct.pack(">4sHHQQQQ32s", b"HFRM", 1, count, length, *(told[name] for name in names)) + b"".join(rows)
    forged = head + sha256(SALT + head).digest() + bodies
    with pytest.raises(CorruptionError, match="not sealed for its place"):
        opened(forged, parse_head(forged, salt=SALT, segment=9, offset=0), 1, cipher())


def test_a_frame_of_plain_parts_gets_a_note_that_is_encrypted() -> None:
    plain = [Part(kind, b"abc", True) for kind in sorted(PLAIN_KINDS)]
    assert encode_parts(plain).count == 3
    assert encode_parts(plain, seal=True).count == 4
    assert len(encode_parts(plain, seal=True).unsealed) == 1
    with pytest.raises(InvalidInputError, match="at least one part"):
        encode_parts([], seal=True)


def stored_of(data: bytes, info: PartInfo) -> bytes:
    return data[info.offset : info.offset + info.stored_bytes]


def opened(data: bytes, frame: Frame, index: int, by: PartCipher | None) -> bytes:
    info = frame.parts[index]
    return decode_part(stored_of(data, info), info, segment=9, seq=frame.seq, index=index, bound=frame.bound, cipher=by)


def test_a_plain_part_in_an_encrypted_journal_is_corruption() -> None:
    """Who can write to the disk but has no key must not be able to slip a part in."""
    for kind in (Kind.BODY, Kind.SAFETY, Kind.FENCE, Kind.NOTE):
        info = PartInfo(kind, 0, False, 3, 3, sha256(b"abc").digest(), 0)
        assert decode_part(b"abc", info, segment=1, seq=1) == b"abc"
        with pytest.raises(CorruptionError, match="not sealed"):
            decode_part(b"abc", info, segment=1, seq=1, cipher=cipher())
    for kind in PLAIN_KINDS:
        info = PartInfo(kind, 0, False, 3, 3, sha256(b"abc").digest(), 0)
        assert decode_part(b"abc", info, segment=1, seq=1, cipher=cipher()) == b"abc"


@pytest.mark.parametrize(("stored", "raw"), [(27, 0), (30, 3), (31, 2)])
def test_lengths_that_no_sealed_part_has_are_refused(stored: int, raw: int) -> None:
    row = struct.pack(">HBBIII32s", Kind.NOTE, CODEC_SEALED, 0, stored, raw, 0, bytes(32))
    length = 72 + 48 + 32 + stored + (-stored & 7)
    head = struct.pack(">4sHHQQQQ32s", b"HFRM", 1, 1, length, 1, 0, 0, bytes(32)) + row
    with pytest.raises(CorruptionError, match="impossible length"):
        parse_head(head + sha256(SALT + head).digest(), salt=SALT, segment=1, offset=0)


def test_there_must_be_room_for_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "PART_BYTES_MAX", 100)
    parts = [Part(Kind.BODY, bytes(100 - PART_OVERHEAD_BYTES + 1))]
    encode_parts(parts)
    with pytest.raises(LimitExceeded, match="part is too long"):
        encode_parts(parts, seal=True)


# -- rows -----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=60), max_size=20))
def test_rows_open_under_their_key_only(rows: dict[bytes, bytes]) -> None:
    rows_cipher = RowCipher(bytes(32))
    seal = rows_cipher.batch()
    for key, value in rows.items():
        stored = seal(key, value)
        assert len(stored) == len(value) + ROW_OVERHEAD_BYTES
        assert rows_cipher.open(key, stored) == value
        assert rows_cipher.open(key + b"x", stored) is None
        assert RowCipher(bytes([1]) * 32).open(key, stored) is None


def test_no_nonce_of_a_batch_is_used_twice_and_no_batch_has_the_name_of_another() -> None:
    rows_cipher = RowCipher(bytes(32))
    heads = {seal(b"k", b"v")[:20] for seal in (rows_cipher.batch(), rows_cipher.batch()) for _ in range(100)}
    assert len(heads) == 200
    assert len({head[:16] for head in heads}) == 2


@given(st.integers(0, 38), st.integers(0, 7))
def test_a_flipped_bit_of_a_row_is_noticed(at: int, bit: int) -> None:
    rows_cipher = RowCipher(bytes(32))
    stored = bytearray(rows_cipher.batch()(b"key", b"abc"))
    stored[at] ^= 1 << bit
    assert rows_cipher.open(b"key", bytes(stored)) is None
    assert rows_cipher.open(b"key", bytes(stored[:at])) is None


def engine() -> tuple[MemoryEngine, SealedEngine]:
    below = MemoryEngine()
    return below, SealedEngine(below, RowCipher(bytes(32)))


def test_nothing_in_plain_text_reaches_the_engine_below() -> None:
    below, above = engine()
    above.apply(Batch({b"a": b"plain", b"b": None, b"c": b""}), sync=True)
    assert {key for key, _ in below.scan().rows} == {b"a", b"c"}
    assert not any(b"plain" in value for _, value in below.scan().rows)
    assert above.scan().rows == [(b"a", b"plain"), (b"c", b"")]


def test_rows_that_changed_places_are_corruption() -> None:
    below, above = engine()
    above.apply(Batch({b"a": b"1", b"b": b"2"}), sync=True)
    stored = dict(below.scan().rows)
    below.apply(Batch({b"a": stored[b"b"], b"b": stored[b"a"]}), sync=True)
    for read in (
        lambda: above.get(b"a"),
        lambda: above.get_many([b"c", b"b"]),
        lambda: above.floor(b"a"),
        lambda: above.ceiling(b"b", b"c"),
        above.scan,
    ):
        with pytest.raises(CorruptionError, match="not sealed for its place"):
            read()
    with above.snapshot() as held, pytest.raises(CorruptionError, match="not sealed for its place"):
        held.get(b"a")


def test_a_value_leaves_room_for_its_seal() -> None:
    _, above = engine()
    longest = above.capabilities.value_bytes_max
    assert longest == ROW_VALUE_BYTES_MAX - ROW_OVERHEAD_BYTES
    with pytest.raises(LimitExceeded):
        above.apply(Batch({b"a": bytes(longest + 1)}), sync=True)


# -- keys -----------------------------------------------------------------------------------------------------------


def test_subkeys_of_a_store_have_labels_of_their_own() -> None:
    """Golden: docs/FORMAT.md, section 3.1."""
    import hmac

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    master, store = bytes(range(32)), bytes([7]) * 16
    ciphers = StoreCipher(master, store)
    sealed = ciphers.parts.seal(b"abc", 5, PLACE)
    journal = hmac.digest(master, b"holdfast store journal 1", "sha256")
    key = hmac.digest(journal, (5).to_bytes(8, "big"), "sha256")
    bound = store + struct.pack(">32sH", *PLACE)
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], bound) == b"abc"
    row = ciphers.rows.batch()(b"\x80\x02key", b"value")
    rows = hmac.digest(master, b"holdfast store rows 1", "sha256")
    key = hmac.digest(rows, row[:16], "sha256")
    assert AESGCM(key).decrypt(bytes(8) + row[16:20], row[20:], b"\x80\x02key") == b"value"


@pytest.mark.parametrize("shown", [repr, str])
def test_no_secret_is_shown(shown: type) -> None:
    secret = b"\x0fSECRETSECRETSECRETSECRETSECRET\x0f"
    things: list[object] = [StoreKey.of(secret), StoreKey.from_passphrase("SECRET"), StoreCipher(secret, bytes(16))]
    things += [StoreCipher(secret, bytes(16)).parts, StoreCipher(secret, bytes(16)).rows]
    for thing in things:
        assert "SECRET" not in shown(thing)
        assert secret.hex() not in shown(thing)


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), "x" * 32, 5, bytearray(32), SecretKey("scrypt", b"x")])
def test_a_key_is_32_bytes_or_a_store_key(bad: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        StoreKey.of(bad)
    assert "xxxx" not in str(caught.value)


def test_a_key_is_given_for_a_while() -> None:
    key = StoreKey.from_passphrase("x")
    assert given_key() is None
    with using_key(key):
        assert given_key() is key
        with using_key(None):
            assert given_key() is key
        with without_key():
            assert given_key() is None
        assert given_key() is key
    assert given_key() is None


def test_scrypt_is_asked_once_for_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def scrypt(secret: bytes, **more: int) -> bytes:
        calls.append(secret)
        return real(secret, **more)  # type: ignore[arg-type]

    real = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    key = StoreKey.from_passphrase("x")
    form, master = seal_master(key, b"bound", n=1 << 14)
    assert open_master(form, key, b"bound") == master
    assert open_master(form, key, b"other") is None
    assert len(calls) == 1
    other, _ = seal_master(key, b"bound", n=1 << 14)
    assert len(calls) == 2
    assert open_master(form, key, b"bound") == master
    assert other.salt != form.salt
    assert open_master(form, StoreKey.from_passphrase("y"), b"bound") is None


@pytest.mark.parametrize("error", [MemoryError(), ValueError("memory limit exceeded")])
def test_too_little_memory_for_scrypt_is_a_typed_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def scrypt(secret: bytes, **more: int) -> bytes:
        raise error

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    with pytest.raises(ResourceExhausted):
        seal_master(StoreKey.from_passphrase("x"), b"bound")


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 13}, {"n": 1 << 21}, {"n": 3 << 14}, {"r": 0}, {"r": 33}, {"p": 0}, {"p": 17}, {"salt": "00"},
        {"n": 1 << 20, "r": 8}, {"sealed_key": "00"}, {"salt": "AA" * 32}, {"kdf": "key-file"},
    ],
)  # fmt: skip
def test_what_asks_for_too_much_is_not_allowed(change: dict[str, object]) -> None:
    form, _ = seal_master(StoreKey.from_passphrase("x"), b"", n=1 << 14)
    assert allowed(form)
    assert not allowed(msgspec.structs.replace(form, **change))


# -- files ----------------------------------------------------------------------------------------------------------


def files(key: int = 1, store: int = 1) -> FileCipher:
    return StoreCipher(bytes([key]) * 32, bytes([store]) * 16).checkpoints


@given(st.binary(max_size=300), st.text("abc/.", max_size=20), st.binary(max_size=50))
def test_a_file_opens_under_its_name_behind_its_front(data: bytes, name: str, front: bytes) -> None:
    sealed = files().seal(name, data, front)
    assert len(sealed) == len(data) + FILE_OVERHEAD_BYTES
    assert files().open(name, sealed, front) == data
    assert files().seal(name, data, front) == sealed, "it is made again byte for byte"


def test_a_file_opens_nowhere_else() -> None:
    sealed = files().seal("name", b"abc", b"front")
    assert files().open("other", sealed, b"front") is None
    assert files().open("name", sealed, b"fronx") is None
    assert files().open("name", sealed[:-1], b"front") is None
    assert files().open("name", b"", b"front") is None
    assert files(store=2).open("name", sealed, b"front") is None
    assert files(key=2).open("name", sealed, b"front") is None
    assert StoreCipher(bytes([1]) * 32, bytes([1]) * 16).base.open("name", sealed, b"front") is None


def test_no_nonce_is_used_for_two_files() -> None:
    """A name has a key of its own; under one name any other content or front has another nonce."""
    sealed = [files().seal("name", data, front) for data in (b"", b"a", b"b") for front in (b"", b"a", b"b")]
    assert len({each[:12] for each in sealed}) == len(sealed)
    one, two = (files().seal(name, bytes(16))[12:] for name in ("one", "two"))
    assert one != two


def test_a_keyed_name_is_that_of_one_store() -> None:
    names = {each.name_of(node) for each in (files(), files(2), files(1, 2)) for node in (bytes(32), b"n" * 32)}
    assert len(names) == 4, "the store id is bound in what is sealed; a key belongs to one store"
    assert all(len(bytes.fromhex(name)) == 32 for name in names)


@given(st.binary(max_size=400), st.booleans(), st.booleans())
def test_any_bytes_are_a_sealed_file_or_a_typed_error(data: bytes, magic: bool, digest: bool) -> None:
    whole = b"HFSEALED" * magic + data
    whole += hashlib.sha256(whole).digest() * digest
    with pytest.raises((SnapshotInvalid, FormatTooNew)):
        decode_sealed(whole, "name")


def test_a_sealed_file_says_whose_it_is() -> None:
    form, master = seal_master(StoreKey("key-file", bytes(32)), bytes(16))
    sealing = Sealing(bytes(16), form, StoreCipher(master, bytes(16)))
    data = sealing.file(sealing.cipher.base, "name", b"content", b"for everybody")
    found = decode_sealed(data, "name")
    assert (found.store_id, found.form, found.plain) == (bytes(16), form, b"for everybody")
    assert found.opened(sealing.cipher.base, "name") == b"content"
    newer = data[:11] + b"\2" + data[12:-32]
    with pytest.raises(FormatTooNew):
        decode_sealed(newer + hashlib.sha256(newer).digest(), "name")
    for at, changed in ((12, b"\2"), (13, b"\1"), (32, b"\1"), (136, b"\xff")):
        bad = data[:at] + changed + data[at + 1 : -32]
        with pytest.raises(SnapshotInvalid):
            decode_sealed(bad + hashlib.sha256(bad).digest(), "name")
