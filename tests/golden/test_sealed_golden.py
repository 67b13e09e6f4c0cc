"""An encrypted store that must open for ever, and be read by a reader made from the document alone.

``encrypted-1.json`` was made once, by ``made`` below: nonces are random, so the same bytes are never made again.
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
from tests.golden import mini_sealed
from tests.unit.store_support import hash_of, quick

GOLDEN = Path(__file__).parent / "encrypted-1.json"
SECRETS: dict[str, tuple[StoreKey, bytes]] = {
    "key-file": (StoreKey.of(bytes(range(32))) or StoreKey("key-file", b""), bytes(range(32))),
    "scrypt": (StoreKey.from_passphrase("correct horse"), b"correct horse"),
}
BODY = b"a body that compresses " * 20


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


def unpacked(place: Path, kdf: str) -> Path:
    for name, text in json.loads(GOLDEN.read_text("ascii"))[kdf].items():
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
