"""docs/FORMAT.md is what the code does: its examples, the numbers in its tables, and its references to itself."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec
import pytest

from holdfast._seal import StoreCipher
from holdfast.doctor.apply import Marker
from holdfast.doctor.report import Plan
from holdfast.journal.api import Kind
from holdfast.merkle.api import SCHEMES
from holdfast.merkle.backend import backend
from holdfast.merkle.changes import decode_changes, encode_changes
from holdfast.merkle.ics23 import encode
from holdfast.merkle.multiproof import prove_many, verify_many
from holdfast.merkle.prove import prove
from holdfast.merkle.values import tree_value
from holdfast.merkle.verify import verify_proof
from holdfast.spaces.records import decode_documents, encode_documents
from holdfast.spaces.rows import rows_of
from holdfast.state.snapshot_format import encode_records
from holdfast.views.history import encode_old, history_key, ordered
from holdfast.views.rows import encode_row
from holdfast.views.tables import TABLES
from holdfast.views.undo import encode_undo
from tests.cli.cli_tools import ROOT
from tests.unit.merkle_support import Rows

TEXT = (ROOT / "docs" / "FORMAT.md").read_text(encoding="ascii")
SECTIONS = set(re.findall(r"^#+ ([0-9]+(?:\.[0-9]+)*)\.? ", TEXT, re.MULTILINE))


def shown(pattern: str) -> list[bytes]:
    """The bytes of the one place that ``pattern`` finds: each group is hex with spaces."""
    found = re.findall(pattern, " ".join(TEXT.split()))
    assert len(found) == 1, pattern
    groups = found[0] if isinstance(found[0], tuple) else (found[0],)
    return [bytes.fromhex(group.replace(" ", "")) for group in groups]


def test_changes() -> None:
    (data,) = shown(r"`62`: `cc`, new} is `([0-9a-f ]+)`")
    changes = {b"a": None, b"b": b"\xcc"}
    assert encode_changes(changes, [b"b"]) == backend().encode_changes(changes, [b"b"]) == data
    assert decode_changes(data) == (changes, [b"b"])


def test_documents_and_their_rows() -> None:
    (data,) = shown(r"`cc` in the space `evm` is `([0-9a-f ]+)`")
    assert encode_documents(b"evm", {b"b": b"\xcc"}, [b"a"]) == [data]
    batch = decode_documents(data)
    row, value = shown(r"with the value `cc` is the row `([0-9a-f ]+)` with the value `([0-9a-f ]+)`")
    assert rows_of(batch.space, batch.puts, ())[row] == value


def test_a_sealed_file_and_a_keyed_name() -> None:
    cipher = StoreCipher(bytes(range(32)), b"\x07" * 16)
    (data,) = shown(r"nothing before it, is `([0-9a-f ]+)`")
    assert cipher.base.seal("manifest.json", b"abc") == data
    assert cipher.base.open("manifest.json", data) == b"abc"
    (name,) = shown(r"32 times `09` in `checkpoints/` is `([0-9a-f]+)`")
    assert bytes.fromhex(cipher.checkpoints.name_of(b"\x09" * 32)) == name


def test_an_encrypted_part_and_an_encrypted_row() -> None:
    ciphers = StoreCipher(bytes(range(32)), bytes([7]) * 16)
    (part,) = shown(r"is stored as `(202122[0-9a-f ]+)`")
    assert ciphers.parts.open(part, 1, (bytes([9]) * 32, 1)) == b"abc"
    (row,) = shown(r"is stored as `(05050505[0-9a-f ]+)`")
    key = bytes.fromhex("80010000000000000001")
    opened = ciphers.rows.open(key, row)
    assert opened == encode_row(key, b"\xaa")


def test_a_row() -> None:
    key, value, stored = shown(r"the row `(8001 [0-9a-f ]+)` with the value `(aa)` is stored as `([0-9a-f ]+)`")
    assert encode_row(key, value) == stored


def test_undo() -> None:
    assert "block 2 with hash `22..22`" in TEXT
    assert "`f001 0000000000000002 22..22 0000`" in TEXT
    (value,) = shown(r"22\.\.22 0000` the value `([0-9a-f ]+)`")
    key = bytes.fromhex("f001 0000000000000002" + "22" * 32 + "0000")
    rows = {bytes.fromhex("800161"): b"\xbb\xcc", bytes.fromhex("800162"): None}
    assert encode_undo(2, b"\x22" * 32, rows) == {key: value}


def test_history() -> None:
    flat = " ".join(TEXT.split())
    assert "`61` is `61 00..00 01` with 15 zero bytes" in flat
    assert ordered(b"a") == b"a" + bytes(15) + b"\x01"
    assert "16 times `6b` is `6b..6b 10`, 17 times is `6b..6b ff 6b 00..00 01`" in flat
    assert ordered(b"k" * 16) == b"k" * 16 + b"\x10"
    assert ordered(b"k" * 17) == b"k" * 16 + b"\xffk" + bytes(15) + b"\x01"
    assert "is the row `f002 61 00..00 01 0000000000000002` with the value `01 bb`" in flat
    assert history_key(b"a", 2) == b"\xf0\x02" + ordered(b"a") + (2).to_bytes(8, "big")
    assert encode_old(b"\xbb") == b"\x01\xbb"


def test_the_tree_and_its_proofs() -> None:
    rows = {b"key-%d" % number: b"value-%d" % number for number in range(3)}
    tree = backend().empty(SCHEMES["jmt-sha256"]).update(rows).tree
    root, absence = shown(r"has the root `([0-9a-f]{64})`, and the absence of `absent` is `([0-9a-f]+)`")
    assert tree.root == root
    assert encode(prove(tree, b"absent", Rows(rows))) == absence
    verify_proof(absence, root, b"absent", None)
    (many,) = shown(r"leaf of `key-2`: ``` ([0-9a-f ]+) ```")
    claim = {b"key-1": b"value-1", b"absent": None}
    assert prove_many(tree, claim, Rows(rows)) == many
    verify_many(many, root, claim)


def test_a_record_of_a_chunk() -> None:
    (record,) = shown(r"of depth 0 with the record `([0-9a-f ]+)`")
    assert encode_records([(b"k", b"value")]) == record


def test_the_kinds_of_parts() -> None:
    rows = re.findall(r"^\| (0x[0-9a-f]{4}) \| (\(?\w+\)?) \| (?:yes|no) \|", TEXT, re.MULTILINE)
    written = {name: int(number, 16) for number, name in rows if not name.startswith("(")}
    assert written == {name.lower(): kind for name, kind in vars(Kind).items() if isinstance(kind, int)}
    assert not [number for number, name in rows if name.startswith("(")]


def test_the_tables_of_the_views() -> None:
    part = TEXT[TEXT.index("## 7. Views") : TEXT.index("### 7.1 Rows")]
    rows = re.findall(r"^\| ((?:0x[0-9A-F]{4} ?)+) \| ([a-z, ]+) \|", part, re.MULTILINE)
    written = {
        int(number, 16): name
        for numbers, names in rows
        for number, name in zip(numbers.split(), names.split(", "), strict=True)
    }
    assert written == {table.number: table.name for table in TABLES}


def test_the_constants_of_the_schemes() -> None:
    for scheme in SCHEMES.values():
        (row,) = re.findall(rf"^\| `{scheme.name}` \| `(.*?)` \| `(.*?)` \| (.*?) \|", TEXT, re.MULTILINE)
        texts = [text if scheme.name == "jmt-sha256" else bytes.fromhex(text).decode() for text in row[:2]]
        assert [text.encode() for text in texts] == [scheme.leaf_prefix, scheme.inner_prefix]
        assert row[2] == ("32 zero bytes" if scheme.null == bytes(32) else f"`{scheme.null.decode()}`")


def test_every_reference_leads_somewhere() -> None:
    named = re.findall(r"[Ss]ections? ([0-9](?:\.[0-9]+)*)", TEXT)
    named += re.findall(r"[( ]([5-9]\.[0-9]+(?:\.[0-9]+)?)(?=[),; ])", TEXT)
    assert len(named) > 30
    assert {name for name in named if name not in SECTIONS} == set()
    assert len(SECTIONS) == len(re.findall(r"^#+ [0-9]", TEXT, re.MULTILINE))
    for name in SECTIONS:  # none is left out
        above, _, last = name.rpartition(".")
        assert last == "1" or f"{above}.{int(last) - 1}".lstrip(".") in SECTIONS, name


@pytest.mark.parametrize("room", ["src", "tests"])
def test_every_reference_to_it_leads_somewhere(room: str) -> None:
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        text = path.read_text(encoding="ascii")
        for numbers in re.findall(r"FORMAT\.md,\s+sections? ([0-9.]+(?:(?:, | and | to )[0-9.]+)*)", text):
            for number in re.findall(r"[0-9]+(?:\.[0-9]+)*", numbers):
                if number not in SECTIONS:
                    wrong.append(f"{path.name}: {number}")
    assert wrong == []


def test_the_reference_to_a_large_value() -> None:
    value = bytes(65537)
    assert "u64 length, SHA-256 of the value" in " ".join(TEXT.split())
    assert tree_value(value) == b"HOLDFAST-BLOB" + (65537).to_bytes(8, "big") + sha256(value).digest()


def test_the_plan_of_a_repair() -> None:
    (text,) = re.findall(r"`(\{\"away\".*?\})`", TEXT)
    plan = Plan("lossless", (), 0, 0, None, False, None)
    name = "journal/0000000002.seg"
    marker = Marker("repair-1", "00", True, (name,), (name,), "", plan)
    data = msgspec.json.encode(marker, order="sorted").decode()
    assert data.replace('"00"', '"..."').replace(msgspec.json.encode(plan, order="sorted").decode(), "{...}") == text
    for bad in ("repair-0", "../x", "repair-1/.."):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(data.replace("repair-1", bad), type=Marker)
    for bad in ("../x", "/etc/x", "journal/../x", "journal/.x", "holdfast.toml", "backups/x", "base/chunks/a/b"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(data.replace(name, bad), type=Marker)
