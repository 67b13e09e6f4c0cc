"""``store.rebuild()``: a new generation takes over while commits, reads, pins, indexes and followers go on."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

import holdfast
from holdfast import Settings
from holdfast.errors import InvalidInputError


def name(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def grow(store: holdfast.Store, start: int, stop: int) -> None:
    for number in range(start, stop):
        store.commit(store.draft(), hash=name(f"a{number}"), body=b"%d" % number, time=number, producer=b"p")


def contents(store: holdfast.Store) -> tuple[object, ...]:
    blocks = list(store.blocks.canonical())
    return ([info.hash for info in blocks], [store.blocks.body(info) for info in blocks], store.finalized)


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb", "lmdb"])
def test_the_store_is_the_same_afterwards(tmp_path: Path, engine: str) -> None:
    with holdfast.open(f"{engine}:{tmp_path / 's'}") as store:
        grow(store, 0, 40)
        store.add(holdfast.Block(name("b"), name("a37"), 38, b"x", b"y"))
        store.finalize(10)
        store.safety.save(b"me", (1, 2), b"vote")
        before, orphans = contents(store), list(store.blocks.orphans())
        with store.snapshot() as pinned:
            assert store.rebuild() == 2
            grow(store, 40, 45)
            assert pinned.tip is not None
            assert [info.height for info in pinned.blocks.canonical(35)] == [35, 36, 37, 38, 39]
        assert list(store.blocks.orphans()) == orphans
        store.reorg(name("b"))
        store.reorg(name("a44"))
        after = contents(store)
    with holdfast.open(tmp_path / "s") as store:
        assert contents(store) == after
        assert store.safety.load(b"me").payload == b"vote"
        assert isinstance(before[0], list)
        assert isinstance(after[0], list)
        assert after[0][:40] == before[0]
    assert [path.name for path in (tmp_path / "s" / "views").iterdir() if path.name.isdigit()] == ["2"]


def test_commits_and_reads_go_on_meanwhile(tmp_path: Path) -> None:
    settings = Settings(flush_interval_seconds=0.02)
    with holdfast.open(f"sqlite:{tmp_path / 's'}", settings=settings) as store:
        grow(store, 0, 300)
        stop, failures = threading.Event(), []

        def read() -> None:
            try:
                while not stop.is_set():
                    tip = store.tip
                    assert tip is not None
                    assert [info.height for info in store.blocks.canonical(290, 300)] == list(range(290, 300))
            except BaseException as error:
                failures.append(error)
                raise

        def write() -> None:
            try:
                grow(store, 300, 500)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            store.rebuild()
        threads[1].join()
        stop.set()
        threads[0].join()
        assert not failures
        assert [info.height for info in store.blocks.canonical()] == list(range(500))
        with holdfast.open(tmp_path / "s", read_only=True) as follower:
            assert follower.tip == store.tip
            store.rebuild()
            grow(store, 500, 510)
            follower.refresh()
            assert follower.tip == store.tip
            assert [info.height for info in follower.blocks.canonical(495)] == list(range(495, 510))


def test_indexes_come_back_and_a_failure_leaves_the_old_views(tmp_path: Path) -> None:
    @holdfast.index("bodies")
    def bodies(block: holdfast.Block) -> list[tuple[bytes, bytes]]:
        return [(block.body or b"-", block.hash)]

    class Stop(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Stop

    with holdfast.open(f"sqlite:{tmp_path / 's'}", indexes=[bodies]) as store:
        grow(store, 0, 30)
        with pytest.raises(Stop):
            store.rebuild(progress=stop)
        assert store.index("bodies").get(b"7") == [name("a7")]
        grow(store, 30, 35)
        seen: list[tuple[int, int]] = []
        store.rebuild(progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1]
        assert store.wait_for_indexes(10)
        grow(store, 35, 40)
        assert [store.index("bodies").get(b"%d" % number) for number in (7, 34, 39)] == [
            [name("a7")],
            [name("a34")],
            [name("a39")],
        ]


def test_a_store_in_memory_has_nothing_to_rebuild() -> None:
    with holdfast.open("memory:") as store, pytest.raises(InvalidInputError, match="no views on disk"):
        store.rebuild()


def test_a_store_on_disk_needs_an_engine_on_disk(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="needs an engine on disk"):
        holdfast.open(tmp_path / "s", settings=Settings(engine="memory"))
    assert not (tmp_path / "s").exists()
