"""Bytes of snapshots and tree images that must stay as they are, read by a reader made from the document alone."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import pytest

from holdfast._fs import MemoryFileSystem, RealFileSystem
from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, Scheme
from holdfast.merkle.backend import backend_named
from holdfast.state.checkpoint import CheckpointDirectory
from holdfast.state.image import image_path, save_image
from holdfast.state.snapshot import verify_snapshot
from holdfast.state.snapshot_export import export_snapshot
from tests.golden import mini_snapshot
from tests.unit.snapshot_support import Source, numbered, source_of

HERE = Path(__file__).parent
GOLDEN = HERE / "snapshot-1.json"
BACKEND = backend_named("pure")


def golden_source(scheme: Scheme = JMT_SHA256) -> Source:
    """The state of the golden snapshot."""
    return source_of({**numbered(24), b"blob": b"b" * 65_537, b"\xff" * 400: b"\0"}, height=2**40, scheme=scheme)


def write(source: Source, place: Path) -> bytes:
    return export_snapshot(source, place, chunk_bytes=1024, compress=False, tree_backend=BACKEND).manifest_digest


def packed(place: Path) -> dict[str, str]:
    """Every file of a snapshot, as text."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(place)): base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode() for path in files
    }


def test_the_golden_snapshot_is_still_written_and_still_verifies(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text("ascii"))
    source = golden_source()
    digest = write(source, tmp_path / "now")
    assert digest.hex() == golden["manifest_digest"]
    old = tmp_path / "old"
    for name, text in golden["files"].items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_bytes(zlib.decompress(base64.b64decode(text)))
    for name in golden["files"]:
        assert (old / name).read_bytes() == (tmp_path / "now" / name).read_bytes(), name
    assert len(packed(tmp_path / "now")) == len(golden["files"])
    info = verify_snapshot(old, bytes.fromhex(golden["root"]), tree_backend=BACKEND)
    assert info.keys == len(source.values)


def test_a_checkpoint_is_the_golden_snapshot_without_its_heads(tmp_path: Path) -> None:
    """Section 11.1, from the document: no function of checkpoints is used to say what should be there."""
    golden = json.loads(GOLDEN.read_text("ascii"))
    files = {name: zlib.decompress(base64.b64decode(text)) for name, text in golden["files"].items()}
    manifest = files.pop("manifest.json")
    told = json.loads(manifest)
    wanted = {f"{2**40}-{told['block']['hash'][:16]}.manifest": manifest + sha256(manifest).digest()}
    for chunk in told["chunks"]:
        data = files.pop(f"chunks/{chunk['prefix']}-{chunk['depth']}.hfc")
        wanted[f"chunks/{chunk['hash']}"] = data[208 + 32 * chunk["depth"] : -32]
    assert not files
    place = CheckpointDirectory(RealFileSystem(), tmp_path, tree_backend=BACKEND)
    place.create(golden_source(), chunk_bytes=1024, compress=False)
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == wanted


@pytest.mark.parametrize("scheme", [JMT_SHA256, ICS23_SMT])
def test_a_reader_made_from_the_document_reads_it(scheme: Scheme, tmp_path: Path) -> None:
    source = golden_source(scheme)
    write(source, tmp_path)
    manifest, rows = mini_snapshot.read_snapshot(tmp_path, source.tree.root)
    assert rows == source.values
    assert manifest["block"]["hash"] == source.block.hash.hex()
    assert len(manifest["chunks"]) > 3
    chunk = next((tmp_path / "chunks").iterdir())
    data = chunk.read_bytes()
    changed = data[:-33] + bytes((data[-33] ^ 1,))
    chunk.write_bytes(changed + sha256(changed).digest())
    with pytest.raises(mini_snapshot.Refused):
        mini_snapshot.read_snapshot(tmp_path, source.tree.root)


def test_it_runs_without_the_package(tmp_path: Path) -> None:
    source = golden_source()
    write(source, tmp_path)
    code = "import sys; sys.modules['holdfast'] = None; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code.replace("sys.argv[1],", "sys.argv.pop(1),"),
            str(HERE / "mini_snapshot.py"),
            str(tmp_path),
            source.tree.root.hex(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {key.hex(): value.hex() for key, value in source.values.items()}


def test_a_reader_made_from_the_document_reads_the_image() -> None:
    fs, tree = MemoryFileSystem(), golden_source().tree
    save_image(
        fs, Path("/s"), store_id=b"i" * 16, salt=b"s" * 32, scheme=JMT_SHA256, tree=tree, seq=9, digest=b"d" * 32
    )
    data = fs.read_bytes(image_path(Path("/s")), limit=100_000)
    seq, digest, root, leaves = mini_snapshot.read_image(data, b"i" * 16, b"s" * 32)
    assert (seq, digest, root, len(leaves)) == (9, b"d" * 32, tree.root, tree.count)
    assert sha256(data).hexdigest() == json.loads(GOLDEN.read_text("ascii"))["image_sha256"]
