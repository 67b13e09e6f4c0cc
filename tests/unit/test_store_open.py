"""Opening: what may become a store, what is refused untouched, and views that are made anew from the journal."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import holdfast
from holdfast import ChainSpec, CustomChain, Store
from holdfast._fs import RealFileSystem
from holdfast.engine.api import Batch
from holdfast.engine.open import open_engine
from holdfast.errors import (
    ClosedError,
    CommitLoss,
    CorruptionError,
    EngineMismatch,
    ForeignStore,
    FormatTooNew,
    InvalidInputError,
    MissingFile,
    StoreLocked,
    StoreNotFound,
)
from holdfast.store.factory import open_store
from holdfast.views.api import Applied
from holdfast.views.flush import load_applied
from holdfast.views.rows import APPLIED_KEY, FLUSHING_KEY, encode_applied, encode_flushing, encode_row
from holdfast.views.tables import META
from tests.unit.store_support import chain_of, filled, make, open_quick, quick

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ["rocksdb", "lmdb", "sqlite"]


def tree(path: Path) -> dict[str, bytes]:
    """Every file below ``path`` but LOCK."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "LOCK")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def only(path: Path) -> Path:
    """The live generation."""
    return path / "views" / (path / "views" / "CURRENT").read_text().strip()


# -- what may become a store --------------------------------------------------------------------------------------


def test_a_missing_and_an_empty_directory_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b"):
        with open_quick(path) as store:
            assert store.recovery.created
            assert store.tip is None
        with open_quick(path) as store:
            assert not store.recovery.created


def test_create_false_makes_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreNotFound):
            holdfast.open(path, create=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["notes.txt", "watermark.old", "views"])
def test_a_foreign_directory_is_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ForeignStore):
        open_quick(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ForeignStore):
        open_quick(tmp_path / "file")


def test_settings_in_the_directory_do_not_make_it_foreign(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with open_quick(tmp_path) as store:
        assert store.recovery.created


class Killed(BaseException):
    """The process died here."""


@pytest.mark.parametrize("at", ["LOCK", "journal", "0000000001.tmp", "watermark", "holdfast.toml", "CURRENT"])
def test_an_unfinished_creation_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        for name in ("open", "make_directory", "write_atomic", "rename", "lock"):
            original = getattr(RealFileSystem, name)

            def dying(
                self: RealFileSystem, path: Path, *rest: object, _call: object = original, **more: object
            ) -> object:
                if path.name == at:
                    raise Killed
                assert callable(_call)
                return _call(self, path, *rest, **more)

            patch.setattr(RealFileSystem, name, dying)
        with pytest.raises(Killed):
            open_quick(path)
    with open_quick(path) as store:
        assert store.recovery.created == (at != "CURRENT")
        store.add(make(None))
    with open_quick(path) as store:
        assert store.tip is not None


def test_a_journal_with_commits_and_no_identity_is_refused_untouched(tmp_path: Path) -> None:
    """By the store alone; ``holdfast.open`` looks for the identity in the first frame."""
    filled(tmp_path)
    (tmp_path / "holdfast.toml").unlink()
    before = tree(tmp_path)
    with pytest.raises(MissingFile):
        open_store(tmp_path)
    shutil.rmtree(tmp_path / "views")
    with pytest.raises(MissingFile):
        open_store(tmp_path)
    assert {name: data for name, data in before.items() if not name.startswith("views/")} == tree(tmp_path)


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    filled(tmp_path)
    identity = tmp_path / "holdfast.toml"
    identity.write_bytes(identity.read_bytes().replace(b"format = 1", b"format = 2"))
    before = tree(tmp_path)
    with pytest.raises(FormatTooNew):
        open_quick(tmp_path)
    assert tree(tmp_path) == before


def test_a_changed_identity_is_corruption(tmp_path: Path) -> None:
    filled(tmp_path)
    identity = tmp_path / "holdfast.toml"
    original = identity.read_bytes()
    for old, new in ((b"epoch_length = 0", b"epoch_length = 9"), (b"format = 1", b"format = x"), (b"salt", b"sold")):
        identity.write_bytes(original.replace(old, new))
        with pytest.raises(CorruptionError):
            open_store(tmp_path)
    identity.write_bytes(original)
    open_quick(tmp_path).close()


def test_another_chain_is_refused(tmp_path: Path) -> None:
    mine = ChainSpec("custom", id="one", epoch_length=4)
    with holdfast.open(tmp_path, chain=CustomChain(mine)) as store:
        store.add(make(None))
    for spec in (
        ChainSpec("custom", id="two", epoch_length=4),
        ChainSpec("custom", id="one", epoch_length=5),
        ChainSpec("custom", id="one", epoch_length=4, parameters={"a": "b"}),
    ):
        with pytest.raises(ForeignStore):
            holdfast.open(tmp_path, chain=CustomChain(spec))
    with open_quick(tmp_path) as store:
        assert store.spec == mine


# -- one writer ---------------------------------------------------------------------------------------------------


def test_a_second_opener_is_told_who_has_it(tmp_path: Path) -> None:
    with open_quick(tmp_path):
        with pytest.raises(StoreLocked) as caught:
            open_quick(tmp_path)
        assert str(caught.value.context["holder"]) == f"{os.getpid()} {socket.gethostname()}"
    open_quick(tmp_path).close()


def test_a_holder_is_named_before_it_has_written_its_name(tmp_path: Path) -> None:
    """The file still named an earlier holder that lives: this process."""
    open_quick(tmp_path).close()
    script = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "LOCK")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreLocked) as caught:
            open_quick(tmp_path)
        assert str(caught.value.context["holder"]) == f"{other.pid} {socket.gethostname()}"


def test_a_failed_open_leaves_the_lock_free(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    watermark = (tmp_path / "watermark").read_bytes()
    (tmp_path / "watermark").write_bytes(bytes(8192))
    for _ in range(2):
        with pytest.raises(CorruptionError):
            open_quick(tmp_path)
    (tmp_path / "watermark").write_bytes(watermark)
    with pytest.raises(EngineMismatch):
        open_quick(f"lmdb:{tmp_path}")
    with open_quick(tmp_path) as store:
        assert store.tip is not None


def test_the_child_of_a_fork_may_not_use_the_store(tmp_path: Path) -> None:
    with open_quick(tmp_path) as store:
        store.add(make(None))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store.draft()
            except ClosedError:
                try:
                    store.blocks.statistics()
                except ClosedError:
                    code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(StoreLocked):  # the child's end did not free the parent's lock
            open_quick(tmp_path)
        assert store.tip is not None
        store.add(make(store.tip))


def test_every_call_on_a_closed_store_says_so() -> None:
    store = open_quick("memory:")
    block = make(None)
    store.add(block)
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.tip,
        lambda: store.finalized,
        lambda: store.has(block.hash),
        store.draft,
        lambda: store.add(make(block)),
        lambda: store.reorg(block.hash),
        lambda: store.finalize(0),
        store.sync,
        store.flush,
        store.statistics,
        lambda: store.safety.save(b"me", (1,), b""),
        lambda: store.blocks.get(block.hash),
        lambda: list(store.blocks.canonical()),
        lambda: store.blocks.header(None),  # type: ignore[arg-type]
        lambda: store.snapshot().__enter__(),
    ]
    for call in calls[:-3]:
        with pytest.raises(ClosedError):
            call()


# -- engines and generations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_chain_over_every_engine(tmp_path: Path, engine: str) -> None:
    blocks = filled(f"{engine}:{tmp_path}")
    with open_quick(tmp_path) as store:
        assert store.engine == engine
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
        assert store.recovery.frames_replayed == 0
    other = ENGINES[ENGINES.index(engine) - 1]
    with pytest.raises(EngineMismatch) as caught:
        open_quick(f"{other}:{tmp_path}")
    assert "convert" in caught.value.remedy


def damage_current(path: Path) -> None:
    (path / "views" / "CURRENT").write_bytes(b"\xffgarbage")


def damage_current_long(path: Path) -> None:
    (path / "views" / "CURRENT").write_bytes(b"1" * 100)


def damage_current_other(path: Path) -> None:
    (path / "views" / "CURRENT").write_bytes(b"77\n")


def remove_current(path: Path) -> None:
    (path / "views" / "CURRENT").unlink()


def remove_views(path: Path) -> None:
    shutil.rmtree(path / "views")


def remove_generation(path: Path) -> None:
    shutil.rmtree(only(path))


def remove_engine_name(path: Path) -> None:
    (only(path) / "engine").unlink()


def damage_engine_name(path: Path) -> None:
    (only(path) / "engine").write_bytes(b"abacus\n")


def remove_data(path: Path) -> None:
    shutil.rmtree(only(path) / "data")


def damage_data(path: Path) -> None:
    for file in (only(path) / "data").iterdir():
        file.write_bytes(b"\x5a" * max(file.stat().st_size, 100))


@pytest.mark.parametrize(
    "damage",
    [
        damage_current,
        damage_current_long,
        damage_current_other,
        remove_current,
        remove_views,
        remove_generation,
        remove_engine_name,
        damage_engine_name,
        remove_data,
        damage_data,
    ],
)
def test_views_that_cannot_be_used_are_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    damage(tmp_path)
    with holdfast.open(f"sqlite:{tmp_path}") as store:
        assert store.recovery.views_rebuilt
        assert store.recovery.notes
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
        assert len(list(store.blocks.orphans())) == 3
    with open_quick(tmp_path) as store:
        assert store.engine == "sqlite"
        assert not store.recovery.views_rebuilt
        assert store.recovery.notes == ()


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb", "sqlite"])
def test_rows_that_are_found_damaged_at_open_are_made_anew(tmp_path: Path, engine: str) -> None:
    """Also after a clean close, when nobody probes the engine: the engine opens, and what opening reads is wrong."""
    url = f"{engine}:{tmp_path}"
    blocks = filled(url)
    damaged = open_engine(engine, only(tmp_path) / "data", create=False)
    damaged.apply(Batch({META.prefix + b"incarnation": b"not a row"}), sync=True)
    damaged.close()
    with open_quick(url) as store:
        assert store.recovery.views_rebuilt
        assert "the old ones are in views-1" in store.recovery.notes[0]
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
        assert not store.safety.fenced
    assert (tmp_path / "quarantine" / "views-1" / "data").is_dir()
    with open_quick(tmp_path) as store:
        assert (store.engine, store.recovery.views_rebuilt, store.recovery.notes) == (engine, False, ())


def test_a_damaged_table_of_rocksdb_is_no_matter_after_a_clean_close(tmp_path: Path) -> None:
    blocks = filled(f"rocksdb:{tmp_path}", 40)
    tables = list((only(tmp_path) / "data").glob("*.sst"))
    assert tables
    for table in tables:
        data = bytearray(table.read_bytes())
        for at in range(0, len(data) // 2, 64):
            data[at] ^= 0x10
        table.write_bytes(data)
    with open_quick(f"rocksdb:{tmp_path}") as store:
        assert store.recovery.clean
        assert store.recovery.views_rebuilt
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]


def test_without_a_live_generation_the_engine_is_still_known(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    damage_current(tmp_path)
    with open_quick(tmp_path) as store:
        assert store.engine == "sqlite"


def change_meta(path: Path, *, applied: Applied | None = None, flushing: int | None = None) -> None:
    """The views' own records are others."""
    engine = open_engine("sqlite", only(path) / "data", create=False)
    rows: dict[bytes, bytes | None] = {}
    if applied is not None:
        rows[APPLIED_KEY] = encode_row(APPLIED_KEY, encode_applied(applied))
    if flushing is not None:
        rows[FLUSHING_KEY] = encode_row(FLUSHING_KEY, encode_flushing(flushing, None))
    engine.apply(Batch(rows), sync=True)
    engine.close()


def read_meta(path: Path) -> Applied:
    engine = open_engine("sqlite", only(path) / "data", create=False)
    applied = load_applied(engine)
    engine.close()
    assert applied is not None
    return applied


def test_views_of_another_history_are_made_anew(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    applied = read_meta(tmp_path)
    change_meta(tmp_path, applied=Applied(applied.seq - 1, bytes(32), applied.state, applied.undo_floor, None))
    with open_quick(tmp_path) as store:
        assert store.recovery.views_rebuilt
        assert any("another history" in note for note in store.recovery.notes)
        assert store.tip is not None
        assert store.tip.hash == blocks[-1].hash
    assert (tmp_path / "quarantine" / "views-1").is_dir()


@pytest.mark.parametrize("flushing", [False, True])
def test_views_ahead_of_the_journal_are_lost_commits(tmp_path: Path, flushing: bool) -> None:
    filled(f"sqlite:{tmp_path}")
    applied = read_meta(tmp_path)
    if flushing:
        change_meta(tmp_path, flushing=applied.seq + 1)
    else:
        change_meta(tmp_path, applied=Applied(applied.seq + 1, bytes(32), applied.state, applied.undo_floor, None))
    before = tree(tmp_path / "journal")
    with pytest.raises(CommitLoss):
        open_quick(tmp_path)
    with pytest.raises(CommitLoss):  # whoever only looks must not be told of blocks that nobody has
        holdfast.open(tmp_path, read_only=True, settings=quick())
    assert tree(tmp_path / "journal") == before


def test_an_older_copy_of_the_journal_is_lost_commits(tmp_path: Path) -> None:
    path = tmp_path / "store"
    blocks = filled(f"sqlite:{path}")
    for name in ("journal", "watermark"):
        source = path / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    with open_quick(path) as store:
        store.add(make(blocks[-1]))
    with pytest.raises(CommitLoss):  # the watermark alone tells it
        _put(tmp_path, path, "journal", lambda: open_quick(path))
    looks: tuple[Callable[[], Store], ...] = (
        lambda: open_quick(path),
        lambda: holdfast.open(path, read_only=True, settings=quick()),
    )
    for look in looks:  # and so do the views
        with pytest.raises(CommitLoss):
            _put(tmp_path, path, "watermark", partial(_put, tmp_path, path, "journal", look))
    shutil.rmtree(path / "views")


def _put(source: Path, path: Path, name: str, then: Callable[[], object]) -> None:
    """The old ``name`` is in place while ``then`` runs."""
    (path / name).rename(path.parent / f"new-{name}")
    try:
        old = source / name
        shutil.copytree(old, path / name) if old.is_dir() else shutil.copy(old, path / name)
        then()
    finally:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
        (path.parent / f"new-{name}").rename(path / name)


# -- after a kill -------------------------------------------------------------------------------------------------

_AGENT = """
import os, signal, sys
from tests.unit.store_support import chain_of, open_quick
store = open_quick(sys.argv[1])
tip = store.tip
blocks = chain_of(tip, 40, "killed")
for block in blocks[:30]:
    store.add(block)
if sys.argv[2] == "flush":
    store.flush()
for block in blocks[30:]:
    store.add(block)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flush", "keep"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_store_has_every_commit_that_returned(tmp_path: Path, engine: str, how: str) -> None:
    blocks = filled(f"{engine}:{tmp_path}")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", _AGENT, str(tmp_path), how], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    with open_quick(tmp_path) as store:
        assert not store.recovery.clean
        assert not store.recovery.views_rebuilt
        assert store.recovery.frames_replayed == (10 if how == "flush" else 40)
        assert store.tip is not None
        assert store.tip.height == blocks[-1].height + 40
        assert [info.hash for info in store.blocks.canonical(len(blocks))] == [
            block.hash for block in chain_of(blocks[-1], 40, "killed")
        ]


# -- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "memory:x", "rocksdb:", "postgres:x", "a\0b"])
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        holdfast.open(url)


def test_a_store_in_memory_is_not_opened_read_only() -> None:
    with pytest.raises(InvalidInputError):
        holdfast.open("memory:", read_only=True)


def test_only_text_and_paths_name_a_store() -> None:
    for wrong in (5, b"store", None, "a\0b"):
        with pytest.raises(InvalidInputError):
            holdfast.open(wrong)  # type: ignore[arg-type]
