"""The asyncio twin: the loop is never blocked, cancelled awaits lose nothing, order is kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

import holdfast
from holdfast import aio
from holdfast.backup import BackupRepository, open_repository, verify_backup
from holdfast.backup.repository import StoredChunk
from holdfast.errors import BlockNotFound, ClosedError, PrunedError, RepositoryLocked
from holdfast.state.api import MutableState


def name(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def grow(store: aio.AsyncStore, start: int, stop: int) -> None:
    for number in range(start, stop):
        draft = await store.draft()
        await store.commit(draft, hash=name(f"a{number}"), header=b"h", body=b"b", time=number, producer=b"p")


def test_the_operations_of_the_store_are_there(tmp_path: Path) -> None:
    @holdfast.index("by_body")
    def by_body(block: holdfast.Block) -> list[tuple[bytes, bytes]]:
        return [(block.body or b"-", block.hash)]

    async def story() -> None:
        async with await aio.open_async(tmp_path / "s", indexes=[by_body]) as store:
            await grow(store, 0, 150)
            assert store.tip is not None
            assert store.tip.height == 149
            heights = [info.height async for info in store.blocks.canonical(10, 140)]
            assert heights == list(range(10, 140))
            assert [info.height async for info in store.blocks.by_producer(b"p")] == list(range(150))
            assert [info.height async for info in store.blocks.by_time(3, 5)] == [3, 4]
            side = holdfast.Block(name("b"), name("a148"), 149, b"x", b"y")
            assert (await store.add(side)).status.value == "side"
            assert [orphan.hash async for orphan in store.blocks.orphans()] == [name("b")]
            assert (await store.reorg(name("b"))) is not None
            assert (await store.blocks.body(await store.blocks.load(name("b")))) == b"y"
            assert await store.index("by_body", b"y") == [name("b")]
            await store.finalize(100)
            assert store.finalized == 100
            with pytest.raises(BlockNotFound):
                await store.blocks.load(name("nothing"))
        with pytest.raises(ClosedError):
            await store.sync()

    asyncio.run(story())
    with holdfast.open(tmp_path / "s") as store:
        assert store.tip is not None
        assert store.tip.hash == name("b")


def test_a_slow_device_does_not_block_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdatasync

    def slow(fd: int) -> None:
        time.sleep(0.03)
        real(fd)

    async def story() -> float:
        longest = 0.0
        async with await aio.open_async(tmp_path / "s") as store:
            monkeypatch.setattr(os, "fdatasync", slow)
            writing = asyncio.create_task(grow(store, 0, 5))
            before = time.monotonic()
            while not writing.done():
                await asyncio.sleep(0.001)
                now = time.monotonic()
                longest = max(longest, now - before)
                before = now
            await writing
            monkeypatch.setattr(os, "fdatasync", real)
        return longest

    # five commits wait 0.15 s for the device; a blocked loop would show a gap as long as one of them
    assert asyncio.run(story()) < 0.15


def test_a_cancelled_await_does_not_cancel_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdatasync

    async def story() -> None:
        async with await aio.open_async(tmp_path / "s") as store:
            draft = await store.draft()
            began = asyncio.Event()
            loop = asyncio.get_running_loop()

            def slow(fd: int) -> None:
                loop.call_soon_threadsafe(began.set)
                time.sleep(0.02)
                real(fd)

            monkeypatch.setattr(os, "fdatasync", slow)
            task = asyncio.create_task(store.commit(draft, hash=name("a0")))
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            monkeypatch.setattr(os, "fdatasync", real)
            await store.sync()
            assert store.tip is not None
            assert store.tip.hash == name("a0")

    asyncio.run(story())
    with holdfast.open(tmp_path / "s") as store:
        assert store.tip is not None
        assert store.tip.hash == name("a0")


def test_the_state_its_proofs_and_the_documents_are_there(tmp_path: Path) -> None:
    async def story() -> None:
        async with await aio.open_async(tmp_path / "s") as store:
            for number in range(30):
                draft = await store.draft()

                def change(state: MutableState, number: int = number) -> bytes | None:
                    state[b"key"] = b"%d" % number
                    state[b"n%03d" % number] = b"v"
                    return state.get(b"n000")

                assert await store.build(draft, change) == b"v"
                await store.commit(draft, hash=name(f"a{number}"))
            state = store.state
            assert (await state.get(b"key"), await state.get_many([b"n003", b"none"])) == (b"29", [b"v", None])
            assert [key async for key, _ in state.scan(b"n", start=b"n010")] == [b"n%03d" % at for at in range(10, 30)]
            old = await state.at(3)
            assert await old.get(b"key") == b"3"
            assert [key async for key, _ in old.scan(reverse=True)] == [b"n003", b"n002", b"n001", b"n000", b"key"]
            assert (await state.history(b"key"))[-1] == (29, b"29")
            assert [row async for row in state.diff(4, 5)] == [(b"key", b"4", b"5"), (b"n005", None, b"v")]
            proof = await state.prove(b"absent", height=20)
            assert proof.block == await store.blocks.at(20)
            proof.verify(proof.root, b"absent", None)
            (await state.prove_many([b"key", b"none"])).verify(state.root, {b"key": b"29", b"none": None})
            await store.finalize(20)
            assert (await store.prune(below=10)).floor_after == 10
            assert (await store.compact(dry_run=True)).complete
            with pytest.raises(PrunedError):
                await state.at(3)
            assert (await store.export_snapshot(tmp_path / "snapshot")).height == 29
            documents = store.documents("notes")
            await asyncio.gather(*(documents.put(b"same", b"%d" % at) for at in range(20)))
            await documents.write({b"a": b"1", b"b": b"2"}, [b"none"])
            await documents.delete(b"b")
            assert await documents.get(b"same") == b"19"
            assert await documents.get_many([b"a", b"b"]) == [b"1", None]
            assert [key async for key, _ in documents.scan()] == [b"a", b"same"]
            assert await store.document_spaces() == ["notes"]
        for read in (state.get(b"key"), documents.get(b"a"), documents.put(b"a", b"b")):
            with pytest.raises(ClosedError):
                await read

    asyncio.run(story())


def test_checkpoints_and_backups(tmp_path: Path) -> None:
    async def story() -> None:
        repository = open_repository(tmp_path / "r", create=True)
        async with await aio.open_async(tmp_path / "s") as store:
            await grow(store, 0, 5)
            made = await store.checkpoints.create()
            await grow(store, 5, 8)
            backup, newest = await asyncio.gather(store.create_backup(repository), store.checkpoints.create(6))
            assert [info.name for info in await store.checkpoints.list()] == [newest.name, made.name]
            assert (await store.checkpoints.verify(newest.name)).height == 6
            assert (await store.checkpoints.prune(0, newest=1)).removed == (made.name,)
            assert backup.manifest.tip is not None
            assert backup.manifest.tip.height == 7
        assert verify_backup(repository, backup.manifest.name).ok

    asyncio.run(story())


def test_a_cancelled_backup_ends_and_leaves_the_repository_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next piece is the last one: nothing of it is listed, and the next run may begin."""
    begun, go_on = threading.Event(), threading.Event()
    put = BackupRepository.put_chunk

    def slow(self: BackupRepository, raw: bytes, *, check: bool = False) -> StoredChunk:
        begun.set()
        assert go_on.wait(30)
        return put(self, raw, check=check)

    async def story() -> None:
        repository = open_repository(tmp_path / "r", create=True)
        async with await aio.open_async(tmp_path / "s") as store:
            for number in range(3):
                draft = await store.draft()
                await store.commit(draft, hash=name(f"a{number}"), header=b"h", body=os.urandom(1 << 20))
            monkeypatch.setattr(BackupRepository, "put_chunk", slow)
            task = asyncio.create_task(store.create_backup(repository))
            await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            monkeypatch.setattr(BackupRepository, "put_chunk", put)
            while True:
                try:
                    made = await store.create_backup(repository)
                    break
                except RepositoryLocked:  # the thread of the first one is about to see that nobody waits
                    continue
            assert repository.names() == [made.manifest.name]

    asyncio.run(story())
