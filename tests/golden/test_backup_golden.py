"""Objects of a repository of format 1, as bytes that never change: written the same, and read."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

from holdfast.backup import BackupKey
from holdfast.backup.envelope import CHUNK, MANIFEST, MARK, open_object, seal_object
from holdfast.backup.keys import open_cipher
from holdfast.backup.manifest import (
    ChunkRef,
    Manifest,
    Mark,
    SegmentFile,
    Tip,
    decode_manifest,
    decode_mark,
    decode_repository,
    encode,
    totals_of,
)
from tests.cli.cli_tools import ROOT

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "backup-1.json").read_text(encoding="ascii"))
NAME = "20261121T180000123456Z-0badcafe"
IDENTITY = (
    'format = 1\nstore_id = "11111111111111111111111111111111"\n'
    'salt = "2222222222222222222222222222222222222222222222222222222222222222"\ncreated_us = 1760000000000000\n\n'
    '[chain]\nname = "custom"\nid = "golden"\nfork_choice = "heaviest"\nepoch_length = 0\nepoch_origin = 0\n'
    'scheme = "jmt-sha256"\n\n[chain.parameters]\n'
)


def manifest() -> Manifest:
    """A backup of one segment of 300 bytes."""
    chunk = ChunkRef("ab" * 32, 200)
    segment = SegmentFile(1, 1, 3, "cd" * 32, 296, 300, True, "ef" * 32, (chunk,))
    from holdfast.backup.manifest import ChainName

    return Manifest(
        name=NAME,
        repository="33" * 16,
        created_us=1_763_748_000_123_456,
        store_id="11" * 16,
        chain=ChainName(id="golden", name="custom"),
        identity=IDENTITY.encode().hex(),
        first_seq=1,
        last_seq=3,
        last_digest="cd" * 32,
        last_time_us=1_763_748_000_000_000,
        tip=Tip(2, "99" * 32, None),
        segments=(segment,),
        base=(),
        totals=totals_of((segment,), ()),
    )


def test_the_example_of_the_document() -> None:
    text = " ".join((ROOT / "docs" / "FORMAT.md").read_text(encoding="ascii").split())
    (shown,) = re.findall(r"without codec and encryption is `([0-9a-f ]+)`", text)
    data = bytes.fromhex(shown)
    assert seal_object(CHUNK, "", b"abc", None, id=sha256(b"abc").digest()) == data
    assert open_object(CHUNK, "", data, None)[0] == b"abc"


def test_a_manifest() -> None:
    raw = GOLDEN["manifest"].encode()
    assert encode(manifest()) == raw
    assert decode_manifest(raw, name=NAME, repository="33" * 16, place="golden") == manifest()
    name = f"backups/{NAME}.manifest"
    assert open_object(MANIFEST, name, bytes.fromhex(GOLDEN["manifest_object"]), None) == (raw, sha256(raw).digest())


def test_a_mark() -> None:
    raw, _ = open_object(MARK, f"backups/{NAME}.verified", bytes.fromhex(GOLDEN["mark_object"]), None)
    assert decode_mark(raw, place="golden") == Mark(at_us=5, digest="cd" * 32)
    assert encode(Mark(at_us=5, digest="cd" * 32)) == raw


def test_encrypted_repositories() -> None:
    for word, key in (
        ("scrypt", BackupKey.from_passphrase("correct horse")),
        ("key_file", BackupKey("key-file", bytes(range(32)))),
    ):
        form = decode_repository(GOLDEN[f"{word}_repository"].encode(), place="golden")
        assert encode(form).decode() == GOLDEN[f"{word}_repository"]
        assert form.encryption is not None
        cipher = open_cipher(form.encryption, key, bytes.fromhex(form.id), place="golden")
        identifier = cipher.name(b"some bytes")
        name = f"chunks/{identifier.hex()[:2]}/{identifier.hex()}"
        data = bytes.fromhex(GOLDEN[f"{word}_chunk"])
        assert open_object(CHUNK, name, data, cipher) == (b"some bytes", identifier)
