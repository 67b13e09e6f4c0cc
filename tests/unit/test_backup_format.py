"""The bytes of a repository: round trips, strictness, bounds, hostile objects and keys (docs/FORMAT.md, section 10)."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backup import BackupKey, BackupRepository, DirectoryTarget, open_repository
from holdfast.backup import manifest as forms
from holdfast.backup.envelope import CHUNK, CHUNK_BYTES, HEAD_BYTES, MANIFEST, open_object, seal_object
from holdfast.backup.keys import Cipher, new_cipher, open_cipher
from holdfast.backup.manifest import Manifest, decode_manifest, encode
from holdfast.backup.repository import chunk_name
from holdfast.errors import (
    BackupDamaged,
    BackupKeyError,
    FormatTooNew,
    HoldfastError,
    InvalidInputError,
    MissingFile,
)
from tests.unit.backup_support import backup, check, chunk_files, grown, noise, repository, restored

ID = bytes(32)
N_MIN = 1 << 14


# -- objects --------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=2000), st.booleans())
def test_an_object_comes_back_and_any_other_bytes_are_refused(raw: bytes, encrypted: bool) -> None:
    cipher = Cipher(b"k" * 32) if encrypted else None
    from holdfast.backup.envelope import name_bytes

    data = seal_object(CHUNK, "chunks/x", raw, cipher, id=name_bytes(raw, cipher))
    assert open_object(CHUNK, "chunks/x", data, cipher) == (raw, name_bytes(raw, cipher))
    for at in (*range(0, HEAD_BYTES, 5), len(data) - 1):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(BackupDamaged):
            open_object(CHUNK, "chunks/x", changed, cipher)
    for other in (data[:-1], data + b"\0", b"", data[:HEAD_BYTES]):
        with pytest.raises(BackupDamaged):
            open_object(CHUNK, "chunks/x", other, cipher)
    with pytest.raises(BackupDamaged):
        open_object(MANIFEST, "chunks/x", data, cipher)
    with pytest.raises(BackupDamaged):
        open_object(CHUNK, "chunks/x", data, None if encrypted else Cipher(b"k" * 32))
    if encrypted:
        with pytest.raises(BackupDamaged):
            open_object(CHUNK, "chunks/y", data, cipher)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BackupDamaged):
        open_object(CHUNK, "x", data, None)


def head(raw_bytes: int, stored: int, *, codec: int = 1) -> bytes:
    return struct.pack(">8sBBBxIQ32s", b"HFBACK_1", CHUNK, codec, 0, raw_bytes, stored, ID)


@pytest.mark.parametrize("says", [1000, CHUNK_BYTES])
def test_a_bomb_does_not_explode(says: int) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 1024 * 1024))
    assert 64 * 1024 * 1024 / len(bomb) > 10_000
    body = bomb + bytes(max(0, says - len(bomb)))
    with pytest.raises(BackupDamaged):
        open_object(CHUNK, "x", head(says, len(body)) + body, None)
    with pytest.raises(BackupDamaged):
        open_object(CHUNK, "x", head(CHUNK_BYTES, len(bomb)) + bomb, None)
    with pytest.raises(BackupDamaged):
        open_object(CHUNK, "x", head(CHUNK_BYTES + 1, len(bomb)) + bomb, None)


def test_a_window_that_is_too_large_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    maker = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = maker.compress(bytes(1000)) + maker.flush()
    with pytest.raises(BackupDamaged):
        open_object(CHUNK, "x", head(1000, len(body)) + body, None)


# -- manifests ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[BackupRepository, Manifest]:
    path = tmp_path_factory.mktemp("made")
    grown(path / "s", 5)
    place = repository(path / "r")
    return place, backup(path / "s", place)


Made = tuple[BackupRepository, Manifest]


def decoded(form: Manifest, data: bytes | None = None) -> Manifest:
    data = encode(form) if data is None else data
    return decode_manifest(data, name=form.name, repository=form.repository, place="here")


def test_a_manifest_comes_back(made: Made) -> None:
    assert decoded(made[1]) == made[1]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "20000101T000000000000Z-00000000"},
        {"repository": "00" * 16},
        {"store_id": "00" * 16},
        {"identity": ""},
        {"identity": b"format = 1".hex()},
        {"first_seq": 2},
        {"last_seq": 1},
        {"last_digest": "00" * 32},
        {"segments": ()},
        {"kind": "other"},
        {"format": 0},
        {"created_us": forms.NAME_US_MAX + 1},
        {"base": (forms.BaseFile("../manifest.json", 1, "00" * 32, (forms.ChunkRef("00" * 32, 60),)),)},
        {"base": (forms.BaseFile("/etc/passwd", 1, "00" * 32, (forms.ChunkRef("00" * 32, 60),)),)},
        {"base": (forms.BaseFile("chunks/a", 1, "00" * 32, (forms.ChunkRef("00" * 32, 60),)),)},
        {"base": (forms.BaseFile("manifest.json", 1, "00" * 32, ()),)},
        {"totals": forms.Totals(1, 1, 1, 1)},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: dict[str, object], made: Made) -> None:
    form = msgspec.structs.replace(made[1], **change)
    if "base" in change:
        form = msgspec.structs.replace(form, totals=forms.totals_of(form.segments, form.base))
    with pytest.raises(BackupDamaged):
        decoded(made[1], encode(form))


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"number": 0},
        {"first_seq": 2},
        {"frames_end": 129},
        {"frames_end": 0},
        {"length": 2**40},
        {"length": 5},
        {"sealed": False},
        {"chunks": ()},
        {"chunks": (forms.ChunkRef("00" * 32, 60),) * 2},
        {"digest": "00" * 32},
        {"sha256": "zz"},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_segment_that_cannot_be_is_refused(change: dict[str, object], made: Made) -> None:
    segment = msgspec.structs.replace(made[1].segments[0], **change)
    segments = (segment, *made[1].segments[1:])
    form = msgspec.structs.replace(made[1], segments=segments, totals=forms.totals_of(segments, ()))
    with pytest.raises(BackupDamaged):
        decoded(made[1], encode(form))


def test_another_spelling_is_refused(made: Made) -> None:
    data = encode(made[1])
    table = json.loads(data)
    for other in (
        json.dumps(table).encode(),
        json.dumps({**table, "more": 1}, separators=(",", ":"), sort_keys=True).encode(),
        data + b"\n",
        data[:-1],
        b"[" * 100_000,
        b'{"kind":"holdfast-backup","format":1,"segments":' + b"9" * 5000 + b"}",
        b"\xff",
        b"null",
    ):
        with pytest.raises(BackupDamaged):
            decoded(made[1], other)
    assert json.dumps(table, separators=(",", ":"), sort_keys=True).encode() == data


@given(data=st.data())
def test_a_changed_manifest_is_refused_or_says_the_same_form(data: st.DataObject, made: Made) -> None:
    whole = encode(made[1])
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    try:
        assert encode(decoded(made[1], changed)) == changed
    except (BackupDamaged, FormatTooNew):
        return


def test_a_newer_format_is_refused_untouched(tmp_path: Path, made: Made) -> None:
    with pytest.raises(FormatTooNew):
        decoded(made[1], encode(msgspec.structs.replace(made[1], format=2)))
    place = repository(tmp_path / "r")
    path = tmp_path / "r" / "repository.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(FormatTooNew):
        repository(tmp_path / "r")
    path.write_bytes(b"{}")
    with pytest.raises(BackupDamaged):
        repository(tmp_path / "r")
    assert place.names() == []


def test_a_repository_of_which_nothing_says_which_it_is_is_not_made_again(tmp_path: Path) -> None:
    grown(tmp_path / "s", 2)
    name = backup(tmp_path / "s", repository(tmp_path / "r")).name
    (tmp_path / "r" / "repository.json").unlink()
    manifest = tmp_path / "r" / "backups" / f"{name}.manifest"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(BackupDamaged):
        repository(tmp_path / "r")
    manifest.unlink()
    with pytest.raises(BackupDamaged):
        repository(tmp_path / "r")


@pytest.mark.parametrize("how", ["flip", "cut", "swap", "empty", "link"])
def test_a_damaged_manifest_is_an_error_and_others_stay_usable(how: str, tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 5)
    place = repository(tmp_path / "r")
    first = backup(tmp_path / "s", place)
    grown(tmp_path / "s", 5, after=blocks[-1])
    second = backup(tmp_path / "s", place)
    path = tmp_path / "r" / "backups" / f"{second.name}.manifest"
    data = path.read_bytes()
    if how == "link":
        path.unlink()
        path.symlink_to("/etc/hostname")
    else:
        other = (tmp_path / "r" / "backups" / f"{first.name}.manifest").read_bytes()
        changed = {"flip": data[:80] + bytes([data[80] ^ 1]) + data[81:], "cut": data[:-3], "swap": other, "empty": b""}
        path.write_bytes(changed[how])
    with pytest.raises(BackupDamaged):
        place.manifest(second.name)
    with pytest.raises(BackupDamaged):
        check(place, second.name)
    with pytest.raises(BackupDamaged):
        restored(place, second.name, tmp_path / "t")
    assert place.newest() == first
    third = backup(tmp_path / "s", place)
    assert check(place, third.name).ok
    assert not (tmp_path / "t").exists()


def test_a_target_takes_only_names_of_objects(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "r")
    for name in (
        "",
        "..",
        "lock",
        "chunks/../x",
        "/etc/passwd",
        "chunks/ab/" + "cd" * 32,
        "chunks/ab/ab" + "0" * 61,
        "backups/x.manifest",
        "backups/20000101T000000000000Z-00000000.other",
        "backups/20000101T000000000000Z-00000000.manifest\n",
    ):
        with pytest.raises(InvalidInputError):
            target.write(name, b"x")
        with pytest.raises(InvalidInputError):
            target.read(name, limit=1)
    assert not (tmp_path / "r").exists()
    with pytest.raises(MissingFile):
        target.read("repository.json", limit=1)
    (tmp_path / "r" / "chunks" / "zz").mkdir(parents=True)
    (tmp_path / "r" / "chunks" / "zz" / ("zz" * 32)).write_text("x")
    (tmp_path / "r" / "chunks" / "ab").mkdir()
    (tmp_path / "r" / "chunks" / "ab" / "note").write_text("x")
    assert list(target.list("chunks/")) == []


def test_a_repository_that_lost_its_identity_is_known_by_its_manifests(tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 5)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    identity = tmp_path / "r" / "repository.json"
    identity.unlink()
    found = open_repository(tmp_path / "r")
    assert found.id == place.id
    assert check(found, form.name).ok
    restored(found, form.name, tmp_path / "t")
    assert not identity.exists()
    with pytest.raises(InvalidInputError, match="not encrypted"):
        open_repository(tmp_path / "r", create=True, key=BackupKey.from_passphrase("a pass phrase"))
    assert not identity.exists()
    grown(tmp_path / "s", 5, after=blocks[-1])
    newer = backup(tmp_path / "s", repository(tmp_path / "r"))
    assert open_repository(tmp_path / "r").id == place.id
    assert identity.exists()
    assert [name for name in place.names() if check(place, name).ok] == [form.name, newer.name]


def test_an_encrypted_repository_that_lost_its_identity_says_what_brings_it_back(
    key: BackupKey, tmp_path: Path
) -> None:
    grown(tmp_path / "s", 5)
    backup(tmp_path / "s", open_repository(tmp_path / "r", create=True, key=key, scrypt_n=N_MIN))
    (tmp_path / "r" / "repository.json").rename(tmp_path / "kept")
    for create in (False, True):
        with pytest.raises(BackupDamaged) as caught:
            open_repository(tmp_path / "r", create=create, key=key)
        assert "from a copy of the repository" in caught.value.remedy
    (tmp_path / "kept").rename(tmp_path / "r" / "repository.json")
    assert open_repository(tmp_path / "r", key=key).names()


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["scrypt", "key-file"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> BackupKey:
    if request.param == "scrypt":
        return BackupKey.from_passphrase("a pass phrase")
    (tmp_path / "key").write_text("ab" * 32 + "\n")
    return BackupKey.from_file(tmp_path / "key")


def test_an_encrypted_repository(key: BackupKey, tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 20)
    place = open_repository(tmp_path / "r", create=True, key=key, scrypt_n=N_MIN)
    form = backup(tmp_path / "s", place)
    again = open_repository(tmp_path / "r", key=key)
    assert check(again, form.name).ok
    restored(again, form.name, tmp_path / "t")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file())
    assert blocks[0].header not in everything
    assert form.store_id.encode() not in everything
    assert key._secret not in everything
    assert key._secret.hex().encode() not in everything
    for wrong in (None, BackupKey.from_passphrase("another"), BackupKey("key-file", b"x" * 32)):
        with pytest.raises(BackupKeyError) as caught:
            open_repository(tmp_path / "r", key=wrong)
        assert "pass phrase" not in repr(caught.value) + str(caught.value.as_dict())
    files = chunk_files(again)
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    assert not check(again, form.name).ok
    assert "pass phrase" not in repr(key) + repr(again) + repr(Cipher(b"k" * 32))


def test_equal_chunks_of_two_encrypted_repositories_have_other_names(key: BackupKey, tmp_path: Path) -> None:
    names = {
        open_repository(tmp_path / name, create=True, key=key, scrypt_n=N_MIN).put_chunk(b"same").ref.id
        for name in "ab"
    }
    assert len(names) == 2
    plain = repository(tmp_path / "c")
    with pytest.raises(InvalidInputError):
        open_repository(tmp_path / "c", key=key)
    assert plain.put_chunk(b"abc").ref.id == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "change",
    [{"n": 1 << 30}, {"n": N_MIN + 1}, {"n": 2}, {"r": 0}, {"r": 1000}, {"p": 17}, {"n": 1 << 20, "r": 32},
     {"salt": "zz"}, {"sealed_key": "00"}],
    ids=str,
)  # fmt: skip
def test_parameters_that_would_take_all_memory_are_refused_before_work(change: dict[str, object]) -> None:
    key = BackupKey.from_passphrase("x")
    form, _ = new_cipher(key, b"i" * 16, n=N_MIN)
    with pytest.raises(BackupDamaged):
        open_cipher(msgspec.structs.replace(form, **change), key, b"i" * 16, place="here")


def test_a_sealed_key_belongs_to_its_repository(key: BackupKey) -> None:
    form, _ = new_cipher(key, b"i" * 16, n=N_MIN)
    assert open_cipher(form, key, b"i" * 16, place="here").name(b"x")
    with pytest.raises(BackupKeyError):
        open_cipher(form, key, b"j" * 16, place="here")


def test_keys_come_from_files_and_texts_that_can_be_keys(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for bad in ("", "short", "zz" * 32, "ab" * 33):
        path.write_text(bad)
        with pytest.raises(InvalidInputError):
            BackupKey.from_file(path)
    path.write_text("the phrase\nmore")
    assert BackupKey.from_passphrase_file(path)._secret == b"the phrase"
    path.write_text("\n")
    with pytest.raises(InvalidInputError):
        BackupKey.from_passphrase_file(path)
    with pytest.raises(HoldfastError):
        BackupKey.from_file(tmp_path / "none")


def test_without_the_package_encryption_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(InvalidInputError, match="cryptography") as caught:
        open_repository(tmp_path / "r", create=True, key=BackupKey("key-file", b"x" * 32))
    assert "holdfast[encryption]" in caught.value.remedy


def test_names_of_chunks() -> None:
    assert chunk_name("ab" * 32) == "chunks/ab/" + "ab" * 32
    assert noise(1, 3) == noise(1, 3)
