"""Encrypted stores that must open for ever, and be read by a reader made from the document alone.

``encrypted-1.json`` was made once, by ``made`` below, ``sealed-1.json`` by ``made_on_a_snapshot``: keys and nonces are
random, so the same bytes are never made again.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

import holdfast
from holdfast import StoreKey
from holdfast.recovery.verify import verify_store
from holdfast.store.checkpoints import checkpoints_at
from tests.golden import mini_sealed, mini_snapshot
from tests.unit.snapshot_support import numbered
from tests.unit.store_support import hash_of, quick

GOLDEN = Path(__file__).parent / "encrypted-1.json"
SEALED = Path(__file__).parent / "sealed-1.json"
SECRETS: dict[str, tuple[StoreKey, bytes]] = {
    "key-file": (StoreKey.of(bytes(range(32))) or StoreKey("key-file", b""), bytes(range(32))),
    "scrypt": (StoreKey.from_passphrase("correct horse"), b"correct horse"),
}
BODY = b"a body that compresses " * 20
STATE = {**numbered(24), b"key": b"value 0"}


def made(place: Path, kdf: str) -> dict[str, str]:
    """The files of a store of three blocks but its views. The golden ones have n = 2^14, to be quick."""
    with holdfast.open(f"sqlite:{place}", key=SECRETS[kdf][0], settings=quick()) as store:
        for height in range(3):
            draft = store.draft()
            draft.state[b"key"] = b"value %d" % height
            store.commit(draft, hash=hash_of("golden", height), header=b"header %d" % height, body=BODY)
        store.safety.save(b"validator", (1, 2), b"vote")
        store.documents("space").put(b"document", b"text")
    names = ["holdfast.toml", "watermark", "journal/0000000001.seg"]
    return {name: base64.b64encode(zlib.compress((place / name).read_bytes(), 9)).decode() for name in names}


def made_on_a_snapshot(place: Path, beside: Path) -> dict[str, str]:
    """The truth and the checkpoints of a store that stands on a sealed base, and has one block more."""
    with holdfast.open(f"sqlite:{beside / 'plain'}", settings=quick()) as store:
        draft = store.draft()
        draft.state.update(STATE)
        store.commit(draft, hash=hash_of("golden", 0), header=b"header 0")
        store.export_snapshot(beside / "snapshot", chunk_bytes=1024, compress=False)
    key = SECRETS["key-file"][0]
    holdfast.import_snapshot(f"sqlite:{place}", beside / "snapshot", trust_manifest=True, key=key)
    with holdfast.open(place, key=key, settings=quick()) as store:
        draft = store.draft()
        draft.state[b"key"] = b"value 1"
        store.commit(draft, hash=hash_of("golden", 1), header=b"header 1")
        store.checkpoints.create()
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "LOCK"]
    names = [str(path.relative_to(place)) for path in files]
    return {
        name: base64.b64encode(zlib.compress((place / name).read_bytes(), 9)).decode()
        for name in names
        if name.split("/")[0] in ("holdfast.toml", "watermark", "journal", "base", "checkpoints")
    }


def unpacked(place: Path, kdf: str) -> Path:
    source = SEALED if kdf == "sealed" else GOLDEN
    for name, text in json.loads(source.read_text("ascii"))[kdf].items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(zlib.decompress(base64.b64decode(text)))
    return place


@pytest.mark.parametrize("kdf", SECRETS)
def test_the_golden_store_opens(kdf: str, tmp_path: Path) -> None:
    key = SECRETS[kdf][0]
    path = unpacked(tmp_path / "store", kdf)
    with holdfast.open(f"sqlite:{path}", key=key, settings=quick()) as store:
        assert store.recovery.views_rebuilt
        assert store.tip is not None
        assert store.tip.hash == hash_of("golden", 2)
        assert store.blocks.body(store.tip) == BODY
        assert store.state[b"key"] == b"value 2"
        assert store.state.at(height=0)[b"key"] == b"value 0"
        assert store.documents("space").get(b"document") == b"text"
    assert verify_store(path, level="full", key=key).ok


@pytest.mark.parametrize("kdf", SECRETS)
@pytest.mark.parametrize("golden", [True, False])
def test_a_reader_of_the_document_alone_reads_it(kdf: str, golden: bool, tmp_path: Path) -> None:
    path = tmp_path / "store"
    if golden:
        unpacked(path, kdf)
    else:
        made(path, kdf)
    found = list(mini_sealed.parts(path, SECRETS[kdf][1]))
    assert [raw for _, kind, raw in found if kind == 0x0011] == [b"header %d" % height for height in range(3)]
    assert [raw for _, kind, raw in found if kind == 0x0012] == [BODY] * 3
    assert any(raw.endswith(b"vote") for _, kind, raw in found if kind == 0x0040)
    for name in ("journal/0000000001.seg", "watermark", "holdfast.toml"):
        assert b"header 1" not in (path / name).read_bytes()


def test_the_golden_store_on_a_sealed_base_opens_and_its_checkpoint_becomes_a_store(tmp_path: Path) -> None:
    key, path = SECRETS["key-file"][0], unpacked(tmp_path / "store", "sealed")
    (name,) = checkpoints_at(path, key=key).names()
    holdfast.restore_checkpoint(path, f"sqlite:{tmp_path / 'again'}", key=key)
    for place in (path, tmp_path / "again"):
        with holdfast.open(f"sqlite:{place}", key=key, settings=quick()) as store:
            assert store.tip is not None
            assert store.tip.hash == hash_of("golden", 1)
            assert dict(store.state.scan()) == {**STATE, b"key": b"value 1"}
        assert verify_store(place, level="full", key=key).ok
    assert checkpoints_at(path, key=key).verify(name).height == 1


@pytest.mark.parametrize("golden", [True, False])
def test_a_reader_of_the_document_alone_reads_base_and_checkpoint(golden: bool, tmp_path: Path) -> None:
    secret, path = SECRETS["key-file"][1], tmp_path / "store"
    if golden:
        unpacked(path, "sealed")
    else:
        made_on_a_snapshot(path, tmp_path)
    mini_sealed.plain_base(path, secret, tmp_path / "base")
    root = bytes.fromhex(json.loads((tmp_path / "base" / "manifest.json").read_text("ascii"))["root"])
    manifest, rows = mini_snapshot.read_snapshot(tmp_path / "base", root)
    assert (manifest["block"]["height"], rows) == (0, STATE)
    (name,) = checkpoints_at(path).names()
    manifest, rows = mini_sealed.checkpoint(path / "checkpoints", name, secret)
    assert bytes.fromhex(manifest["block"]["header"]) == b"header 1"
    assert rows == {**STATE, b"key": b"value 1"}
