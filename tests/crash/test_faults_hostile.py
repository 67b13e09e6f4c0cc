"""What strangers make on purpose: names that climb, bombs, texts that run code, forged snapshots and proofs."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard

import holdfast
from holdfast._fs import MemoryFileSystem
from holdfast.backup import DirectoryTarget, create_backup, envelope, open_repository, restore_backup, verify_backup
from holdfast.backup.envelope import CHUNK, CHUNK_BYTES, open_object
from holdfast.backup.manifest import decode_mark, decode_repository
from holdfast.chains.xai.document import read_document
from holdfast.config import load_settings
from holdfast.errors import HoldfastError
from holdfast.merkle.pure import BACKEND
from holdfast.state.snapshot import CHUNKS_NAME, MANIFEST_NAME, verify_snapshot
from holdfast.state.snapshot_format import decode_manifest, encode_manifest
from holdfast.store.checkpoints import restore_checkpoint
from holdfast.store.identity import decode_identity
from holdfast.store.snapshots import import_snapshot
from holdfast.testing.machine import new_machine
from tests.crash.support import contents, flipped, report, typed
from tests.unit.snapshot_support import PLACE, export, numbered, reader_of, source_of
from tests.unit.state_support import commit
from tests.unit.store_support import filled, quick
from tests.unit.test_merkle_proofs import CASES, proof_of, rebuilt, refused, state

ALL_FROM = 200


# -- names that climb ------------------------------------------------------------------------------------------------

CLIMBING = (
    "..",
    ".",
    "",
    "../canary",
    "../../canary",
    "/etc/passwd",
    "a/../../canary",
    "./../canary",
    "..\\canary",
    "canary\0.txt",
    "a\nb",
    "x" * 300,
    "x/" * 200,
    "~/canary",
    "$HOME",
    "\u202e../canary",
    "e\u0301",
    "\u00e9",
    "CON",
    "backups/../../canary",
    "chunks/ab/../../../canary",
    "7-../../../../canary",
    "20000101T000000000000Z-../../canary",
    " ",
    "-rf",
    "%2e%2e/canary",
)


@pytest.mark.crash
def test_names_do_not_climb(tmp_path: Path) -> None:
    """Names of backups, objects, checkpoints and chunks; what lies outside is the same before and after."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "canary").write_bytes(b"untouched")
    filled(f"sqlite:{inside / 'store'}")
    place = open_repository(inside / "repository", create=True)
    create_backup(inside / "store", place, workers=0)
    target = DirectoryTarget(inside / "repository")
    (inside / "repository" / "chunks" / "zz").symlink_to(tmp_path)
    counts: Counter[str] = Counter()
    with holdfast.open(f"sqlite:{inside / 'store'}", settings=quick()) as store:
        commit(store, 0, {b"key": b"value"})
        store.checkpoints.create()
        before = {**contents(inside), "canary": (tmp_path / "canary").read_bytes()}
        for name in CLIMBING:
            calls: list[Callable[[], object]] = [
                lambda name=name: verify_backup(place, name, workers=0),  # type: ignore[misc]
                lambda name=name: place.drop_manifest(name),  # type: ignore[misc]
                lambda name=name: restore_backup(place, name, inside / "target", workers=0),  # type: ignore[misc]
                lambda name=name: target.write(name, b"x"),  # type: ignore[misc]
                lambda name=name: target.read(name, limit=100),  # type: ignore[misc]
                lambda name=name: target.delete(name),  # type: ignore[misc]
                lambda name=name: store.checkpoints.verify(name),  # type: ignore[misc]
                lambda name=name: restore_checkpoint(inside / "store", inside / "target", name=name),  # type: ignore[misc]
            ]
            for number, call in enumerate(calls):
                assert typed(call) is not None, f"call {number} took {name!r}"
                counts["refused"] += 1
            error = typed(lambda name=name: store.documents(name).put(b"../../canary", b"x"))  # type: ignore[misc]
            counts["refused" if error is not None else "a row, not a path"] += 1
        assert not (inside / "target").exists()
        outside = {each for each in tmp_path.rglob("*") if inside not in (each, *each.parents)}
        assert outside == {tmp_path / "canary"}
        found = {**contents(inside), "canary": (tmp_path / "canary").read_bytes()}
        changed = {each for each in before if found.get(each) != before[each]}
        assert all("store/journal/" in each or each.endswith("watermark") for each in changed), changed
    report("climbing names", counts, at_least={"refused": 200}, rows={24: "refused"})


@pytest.mark.crash
def test_without_the_check_of_names_they_climb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control."""
    monkeypatch.setattr(DirectoryTarget, "_at", lambda self, name: self.path / name)
    with pytest.raises((AssertionError, ValueError, OSError)):
        test_names_do_not_climb(tmp_path)


# -- bombs -----------------------------------------------------------------------------------------------------------

BOMB_BYTES = 256 << 20
MEMORY_MAX = 48 << 20


def bombs() -> Iterator[tuple[str, Callable[[], object]]]:
    """Few bytes that say little and hold much, in every frame we read compressed bytes or nested text from."""
    declared = zstandard.ZstdCompressor().compress(bytes(BOMB_BYTES))
    maker = zstandard.ZstdCompressor().compressobj()
    streamed = b"".join((*(maker.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)), maker.flush()))
    nested = zstandard.ZstdCompressor().compress(declared)
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    ).compressobj()
    window = wide.compress(bytes(1000)) + wide.flush()
    for name, body in {"declared": declared, "streamed": streamed, "nested": nested, "window": window}.items():
        for says in (0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, 2**32 - 1):
            head = struct.pack(">8sBBBxIQ32s", b"HFBACK_1", CHUNK, 1, 0, says, len(body), bytes(32))
            yield f"backup, {name}, {says}", lambda data=head + body: open_object(CHUNK, "x", data, None)  # type: ignore[misc]
        source = source_of(numbered(20))
        fs, _ = export(source, compress=True)
        for path, data in list(fs._files.items()):
            if path.parent.name == CHUNKS_NAME:
                at = bytes(data).find(b"\x28\xb5\x2f\xfd")
                assert at > 0, "chunks are not compressed"
                fs._files[path] = bytearray(bytes(data[:at]) + body)
        yield (
            f"snapshot, {name}",
            lambda fs=fs, root=source.tree.root: verify_snapshot(  # type: ignore[misc]
                PLACE, root, fs=fs, workers=1, tree_backend=BACKEND
            ),
        )
    for text in (b"[" * 100_000, b'{"a":' * 100_000, b'[{"a":' * 50_000):
        yield "nested document", lambda text=text: read_document(text)  # type: ignore[misc]
    yield "digits", lambda: read_document(b'{"chain": [{"index": ' + b"9" * 100_000 + b"}]}")


@pytest.mark.crash
def test_bombs_do_not_explode() -> None:
    """Refused, and never more memory than a few buffers."""
    counts: Counter[str] = Counter()
    for what, call in bombs():
        tracemalloc.start()
        try:
            error = typed(call)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert error is not None, f"{what} was taken"
        assert peak < MEMORY_MAX, f"{what} took {peak} bytes"
        counts["bombs"] += 1
    report("bombs", counts, at_least={"bombs": 30}, rows={25: "bombs"})


@pytest.mark.crash
def test_a_length_that_a_frame_declares_is_not_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control: the limit of the library is trusted."""

    def trusted(decompressor: zstandard.ZstdDecompressor, stored: bytes, raw_bytes: int) -> bytes:
        return decompressor.decompress(stored, max_output_size=raw_bytes + 1)

    monkeypatch.setattr(envelope, "read_bounded", trusted)
    with pytest.raises(AssertionError, match="bytes"):
        test_bombs_do_not_explode()


# -- texts that run code ---------------------------------------------------------------------------------------------


class _Payload:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._canary,)


def hostile(canary: Path) -> Iterator[bytes]:
    """Bytes that touch the canary where somebody runs them, or that confuse a reader."""
    command = f"touch {canary}"
    for protocol in range(6):
        yield pickle.dumps(_Payload(canary), protocol)
    for tag in ("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"):
        yield f"!!{tag} [{command!r}]".encode()
        yield f"engine: !!{tag} [{command!r}]\n".encode()
    yield b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(8)
    )
    yield b"[" * 1100
    yield b'{"a": ' * 1100
    yield b"9" * 5000
    yield b'{"format": ' + b"9" * 5000 + b"}"
    yield b'{"engine": "sqlite", "engine": "lmdb"}'
    yield b"engine = 'sqlite'\nengine = 'lmdb'\n"
    yield b'{"a": NaN, "b": Infinity}'
    yield b"\xff\xfe\x00" * 40
    yield b"\x00" * 1000
    yield b"\xdf\xff\xff\xff\xff" + b"\x81" * 20
    yield b"\xdd\xff\xff\xff\xff"
    yield b"\xc6\xff\xff\xff\xff"
    yield json.dumps({"__class__": "os.system", "args": [command]}).encode()
    yield b"__import__('os').system('touch x')"
    yield b"${jndi:ldap://x}"


@pytest.mark.crash
def test_no_text_runs_code_or_ends_untyped(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(_Payload(canary)))
    assert canary.exists(), "the payload is no payload"
    canary.unlink()
    blocks = filled(f"sqlite:{tmp_path / 'store'}")
    good = contents(tmp_path / "store")
    counts: Counter[str] = Counter()
    settings = tmp_path / "settings"
    settings.mkdir()

    def stored(name: str, data: bytes) -> None:
        """Refused, or mended from the journal; then it is the same store."""
        path = tmp_path / "store" / name
        path.write_bytes(data)
        try:
            with holdfast.open(f"sqlite:{tmp_path / 'store'}", settings=quick()) as store:
                assert name == "watermark" or path.read_bytes() == good[name]
                assert store.tip is not None
                assert store.tip.hash == blocks[-1].hash
                counts["mended"] += 1
        except HoldfastError:
            counts["refused"] += 1
        finally:
            path.write_bytes(good[name])

    for data in hostile(canary):
        for suffix in ("toml", "yaml", "yml"):
            path = settings / f"x.{suffix}"
            path.write_bytes(data)
            with contextlib.suppress(HoldfastError):
                load_settings(config=path, environ={})
            counts["texts"] += 1
        readers: dict[str, Callable[[bytes], object]] = {
            "document": read_document,
            "identity": decode_identity,
            "repository": lambda data: decode_repository(data, place="x"),
            "mark": lambda data: decode_mark(data, place="x"),
            "snapshot": decode_manifest,
        }
        for name, read in readers.items():
            assert typed(lambda data=data, read=read: read(data)) is not None, f"{name} took {data[:60]!r}"  # type: ignore[misc]
            counts["texts"] += 1
        for name in ("holdfast.toml", "watermark"):
            stored(name, data)
            counts["texts"] += 1
    assert not canary.exists(), "code was run"
    report("hostile texts", counts, at_least={"texts": 200}, rows={26: "texts"})


# -- snapshots of an untrusted peer ----------------------------------------------------------------------------------


def forged(fs: MemoryFileSystem, rng: random.Random, count: int) -> Iterator[tuple[str, MemoryFileSystem]]:
    """The snapshot with something flipped, dropped, swapped, doubled or taken from another one."""
    good = {path: bytes(data) for path, data in fs._files.items()}
    other, _ = export(source_of(numbered(60, b"other")))
    chunks = [path for path in good if path.parent.name == CHUNKS_NAME]

    def with_files(files: dict[Path, bytes]) -> MemoryFileSystem:
        made = MemoryFileSystem()
        made._directories = set(fs._directories)
        made._files = {path: bytearray(data) for path, data in files.items()}
        return made

    for path, whole in good.items():
        yield f"{path.name} gone", with_files({each: data for each, data in good.items() if each != path})
        for bad in flipped(whole, rng, count):
            if bad != whole:
                yield f"{path.name} changed", with_files({**good, path: bad})
        foreign = bytes(other._files.get(path, whole))
        if foreign != whole:
            yield f"{path.name} of another", with_files({**good, path: foreign})
    manifest = decode_manifest(good[PLACE / MANIFEST_NAME])
    files = {path: bytes(data) for path, data in other._files.items()}
    claimed = decode_manifest(files[PLACE / MANIFEST_NAME])
    changed = msgspec.structs.replace
    for claim in (changed(claimed, root=manifest.root), changed(manifest, chunks=claimed.chunks)):
        yield "a claim of the root", with_files({**files, PLACE / MANIFEST_NAME: encode_manifest(claim)})
    for one, two in itertools.pairwise(chunks):
        yield "swapped", with_files({**good, one: good[two], two: good[one]})
        yield "doubled", with_files({**good, one: good[two]})


@pytest.mark.crash
def test_a_forged_snapshot_is_never_a_store(tmp_path: Path, crash_rounds: int) -> None:
    """With the digest of its manifest everything is refused; the root alone proves the state, and no other is taken."""
    source = source_of(numbered(60))
    fs, info = export(source)

    def verified(bad: MemoryFileSystem, **more: bytes) -> object:
        root = source.tree.root
        return verify_snapshot(PLACE, root, fs=bad, workers=1, tree_backend=BACKEND, **more)  # type: ignore[arg-type]

    def rows_of(bad: MemoryFileSystem) -> dict[bytes, bytes]:
        reader = reader_of(bad)
        reader.trust(trusted_root=source.tree.root)
        return dict(row for chunk in reader.chunks(workers=1) for row in chunk.rows)

    rng = random.Random(3)
    counts: Counter[str] = Counter()
    for number, (what, bad) in enumerate(forged(fs, rng, 4 if crash_rounds < ALL_FROM else 60)):
        assert typed(lambda bad=bad: verified(bad, manifest_digest=info.manifest_digest)), f"{what} was taken"  # type: ignore[misc]
        taken = typed(lambda bad=bad: verified(bad)) is None  # type: ignore[misc]
        counts["taken, with the same state"] += taken
        assert not taken or (what == "manifest.json changed" and rows_of(bad) == source.values), f"{what} was taken"
        counts["forged"] += 1
        if number % 8 == 0:
            machine = new_machine(tmp_path / str(number))
            for path in (machine.root, PLACE, PLACE / CHUNKS_NAME):
                machine.fs.make_directory(path)
            for path, data in bad._files.items():
                machine.fs.open(path, create=True).pwrite(bytes(data), 0)
            refused_import = contextlib.nullcontext() if taken else pytest.raises(HoldfastError)
            with machine.running(), refused_import:
                import_snapshot(
                    f"sqlite:{machine.root}",
                    PLACE,
                    trusted_root=source.tree.root,
                    settings=quick(),
                    workers=1,
                    fs=machine.fs,
                )
            assert taken or machine.root / "holdfast.toml" not in machine.fs.files(), f"{what} became a store"
            counts["imports"] += 1
    other = source_of(numbered(60, b"other"))
    whole, _ = export(other)
    assert typed(lambda: verify_snapshot(PLACE, source.tree.root, fs=whole, workers=1, tree_backend=BACKEND))
    assert (PLACE / MANIFEST_NAME) in whole._files
    report("snapshots", counts, at_least={"forged": 100, "imports": 10}, rows={27: "forged"})


# -- proofs ----------------------------------------------------------------------------------------------------------


@pytest.mark.crash
def test_a_forged_proof_proves_nothing(crash_rounds: int) -> None:
    """Messages with a field dropped, doubled, moved or renamed; bytes flipped; other keys, values, roots."""
    rng = random.Random(11)
    counts: Counter[str] = Counter()
    for scheme, count, key in CASES:
        tree, rows = state(count, scheme)
        proof = proof_of(tree, key, rows, scheme)
        value = rows.rows.get(key)
        bad = [each for each in rebuilt("proof", proof) if each != proof]
        bad += [each for each in flipped(proof, rng, 40 if crash_rounds < ALL_FROM else len(proof)) if each != proof]
        for each in (*bad, proof + b"\x00", b"", proof * 2):
            refused(each, tree.root, key, value, scheme)
            counts["forged"] += 1
        another, _ = state(count + 1, scheme)
        refused(proof, another.root, key, value, scheme)
        refused(proof, bytes(32), key, value, scheme)
        refused(proof, tree.root, key + b"x", value, scheme)
        refused(proof, tree.root, key, b"another" if value is None else None, scheme)
        counts["forged"] += 4
    report("proofs", counts, at_least={"forged": 2000}, rows={28: "forged"})
