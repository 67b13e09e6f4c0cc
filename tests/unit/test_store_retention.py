"""``store.retention``: what goes and what never does, the archive before it, and that it comes back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import File, RealFileSystem
from holdfast.errors import (
    BackupNotFound,
    CorruptionError,
    FinalityError,
    InvalidInputError,
    PrunedError,
    ReadOnlyError,
    StateError,
)
from holdfast.journal.api import Kind
from holdfast.recovery import rebuild_views, verify_store
from holdfast.store.retention import RetentionPolicy
from holdfast.types import Block
from tests.unit.backup_support import SMALL, small_segments
from tests.unit.state_support import writer_backend
from tests.unit.store_support import chain_of, make, open_quick, quick

__all__ = ["small_segments"]

pytestmark = pytest.mark.usefixtures("small_segments")
DEPTH = 6
COUNT = 120


def opened(path: Path, **fields: object) -> Store:
    return open_quick(path, max_reorg_depth=DEPTH, proof_window_blocks=0, compression="none", **fields)


def filled(path: Path, count: int = COUNT) -> list[Block]:
    blocks = chain_of(None, count)
    with opened(path) as store:
        for block in blocks:
            store.add(block)
            if block.height == 10:
                store.add(make(blocks[9], "side", producer=b"side"))
    return blocks


def without(store: Store, blocks: list[Block]) -> list[int]:
    """Heights that miss their body; every other one, and all that never goes, is right."""
    found = []
    for block in blocks:
        info = store.blocks.at(block.height)
        assert info is not None
        assert (info.hash, store.blocks.header(info)) == (block.hash, block.header)
        try:
            body = store.blocks.body(info)
        except PrunedError as error:
            named = error.context["least_readable"]
            found.append(block.height)
            with pytest.raises(PrunedError):
                store.blocks.block(info)
            if named != store.retention.status().floor:
                found.append(-1)
            continue
        assert (body, store.blocks.extra(info)) == (block.body, block.extra)
    return found


def without_bodies(reader: Store) -> list[int]:
    """As ``without``, of a store that has no ``retention``."""
    found = []
    for info in reader.blocks.canonical():
        try:
            reader.blocks.body(info)
        except PrunedError:
            found.append(info.height)
    return found


def pruned(store: Store, mode: str, amount: int) -> int:
    report = store.retention.prune(RetentionPolicy(mode, amount), without_archive=True)  # type: ignore[arg-type]
    assert report.complete
    return report.floor_after


# -- what goes ---------------------------------------------------------------------------------------------------------


def test_bodies_below_the_floor_are_refused_and_all_else_stays(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        files = store.retention.status().file_bytes
        plan = store.retention.prune(RetentionPolicy("below", 50), dry_run=True)
        assert without(store, blocks) == []
        report = store.retention.prune(RetentionPolicy("below", 50), without_archive=True)
        assert (plan.blocks, plan.pruned_bytes, plan.segments) == (report.blocks, report.pruned_bytes, report.segments)
        assert (report.floor_before, report.floor_after, report.complete) == (0, 50, True)
        assert report.blocks >= 50
        assert without(store, blocks) == list(range(50))
        status = store.retention.status()
        assert (status.floor, status.pruned_bytes) == (50, report.pruned_bytes)
        assert status.file_bytes == files - report.freed_bytes
        side = store.blocks.load(next(store.blocks.orphans()).hash)
        with pytest.raises(PrunedError):
            store.blocks.body(side)
        again = store.retention.prune(RetentionPolicy("below", 50), without_archive=True)
        assert (again.blocks, again.segments) == (0, 0)
        assert store.retention.prune(RetentionPolicy("below", 20), without_archive=True).floor_after == 50
    for level in ("quick", "links", "full"):
        found = verify_store(tmp_path / "s", level=level)
        assert found.ok
        assert (found.facts["pruned_bytes"], found.facts["retained_from"]) == (report.pruned_bytes, 50)
        assert any("were pruned" in note for note in found.notes)
    rebuild_views(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        assert without(store, blocks) == list(range(50))
        assert store.compact().complete
        assert pruned(store, "below", 60) == 60
        assert without(store, blocks) == list(range(60))
    with holdfast.open(tmp_path / "s", read_only=True) as store:
        info = store.blocks.at(3)
        assert info is not None
        with pytest.raises(PrunedError) as error:
            store.blocks.body(info)
        assert error.value.context["least_readable"] == 60


def test_the_modes(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    final = COUNT - 1 - DEPTH
    with opened(tmp_path / "s") as store:
        assert store.retention.prune(without_archive=True).segments == 0  # the settings keep all
        assert pruned(store, "blocks", 100) == final - 99
        assert without(store, blocks) == list(range(final - 99))
        # a block is 10 seconds: nothing is a day old
        assert store.retention.prune(RetentionPolicy("days", 1), without_archive=True).segments == 0
        assert pruned(store, "space", 1) <= final


def of_two_kinds(path: Path) -> list[Block]:
    """Bodies that compress well, and extras that do not."""
    blocks: list[Block] = []
    with opened(path) as store:
        for number in range(COUNT):
            parent = blocks[-1] if blocks else None
            extra = b"".join(sha256(b"%d/%d" % (number, index)).digest() for index in range(8))
            blocks.append(dataclasses.replace(make(parent, number), body=b"tx %d " % number * 60, extra=extra))
            store.add(blocks[-1])
    return blocks


def test_space_gives_up_no_body_where_compaction_is_enough(tmp_path: Path) -> None:
    blocks = of_two_kinds(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        amount = store.compact(dry_run=True).journal_bytes_after + SMALL
        with pytest.raises(StateError):
            store.retention.prune(RetentionPolicy("space", amount))
        assert store.retention.status().compacted == 0
        plan = store.retention.prune(RetentionPolicy("space", amount), dry_run=True)
        report = store.retention.prune(RetentionPolicy("space", amount), without_archive=True)
        assert (plan.blocks, report.blocks, report.floor_after, report.archived) == (0, 0, 0, False)
        assert without(store, blocks) == []
        status = store.retention.status()
        assert status.compacted > 5
        assert status.file_bytes <= amount
        assert abs(plan.freed_bytes - report.freed_bytes) < report.freed_bytes // 20


@pytest.mark.parametrize("compact_first", [False, True])
def test_space_ends_with_the_segment_that_makes_it_fit(tmp_path: Path, compact_first: bool) -> None:
    blocks = of_two_kinds(tmp_path / "s")
    asked: list[int] = []
    with opened(tmp_path / "s") as store:
        amount = store.compact(dry_run=True).journal_bytes_after - 5_000
        if compact_first:
            store.compact()
        plan = store.retention.prune(RetentionPolicy("space", amount), dry_run=True)
        report = store.retention.prune(RetentionPolicy("space", amount), archive=lambda number, _: asked.append(number))
        status = store.retention.status()
        assert amount - 2_000 < status.file_bytes <= amount  # one more segment would have given about a KiB
        assert without(store, blocks) == list(range(report.floor_after))
        assert 0 < report.floor_after < COUNT // 2
        assert asked == sorted(set(asked))  # once each
        assert 0 < plan.segments <= report.segments
        assert abs(plan.freed_bytes - report.freed_bytes) <= SMALL  # the frame of the floor may begin a segment
        assert store.retention.prune(RetentionPolicy("space", amount), without_archive=True).segments == 0


def test_the_smallest_blocks_there_can_be_are_pruned(tmp_path: Path) -> None:
    """Many in a frame, of equal bytes: as many holes in a segment as there can be."""
    blocks: list[Block] = []
    with open_quick(tmp_path / "s", max_reorg_depth=DEPTH, proof_window_blocks=0) as store:
        for number in range(400):
            parent = blocks[-1].hash if blocks else bytes(32)
            blocks.append(Block(bytes(30) + (number + 1).to_bytes(2, "big"), parent, number, b"", body=b"x", time=0))
        store.add(blocks[0])
        store.add_many(blocks[1:])
        for block in chain_of(blocks[-1], 60):
            store.add(block)
        assert pruned(store, "below", 390) == 390
        assert without(store, blocks) == list(range(390))


def test_a_dry_run_measures_what_would_be_kept(tmp_path: Path) -> None:
    of_two_kinds(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        policy = RetentionPolicy("below", 80)
        plan = store.retention.prune(policy, dry_run=True)
        report = store.retention.prune(policy, without_archive=True)
        assert abs(plan.freed_bytes - report.freed_bytes) <= SMALL


def test_days_count_from_the_tip_by_the_time_of_the_chain(tmp_path: Path) -> None:
    parent = None
    with opened(tmp_path / "s") as store:
        for number in range(60):
            parent = make(parent, number, time=1_000_000 + number * 43_200)  # half a day each
            store.add(parent)
        report = store.retention.prune(RetentionPolicy("days", 10), dry_run=True)
        assert report.floor_after == 60 - 1 - 20 + 1


def test_what_is_not_final_or_may_be_proved_never_goes(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        most = store.retention.floor_max()
        assert most == COUNT - 1 - DEPTH
        with pytest.raises(FinalityError):
            store.retention.prune(RetentionPolicy("below", most + 1), without_archive=True)
        assert pruned(store, "blocks", 1) <= most
        assert all(height < most for height in without(store, blocks))
    with open_quick(tmp_path / "t", max_reorg_depth=DEPTH, proof_window_blocks=90, compression="none") as store:
        for block in blocks:
            store.add(block)
        assert store.retention.floor_max() == most - 90


@pytest.mark.parametrize(
    ("mode", "amount"),
    [("blocks", 0), ("days", 0), ("space", 0), ("below", -1), ("ever", 1), ("blocks", True), ("blocks", 2.0)],
)
def test_a_policy_that_says_nothing_is_refused(mode: str, amount: int) -> None:
    with pytest.raises(InvalidInputError):
        RetentionPolicy(mode, amount)  # type: ignore[arg-type]


def test_the_setting_needs_an_amount_and_is_the_default(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    with pytest.raises(InvalidInputError, match="amount for the retention 'blocks'"):
        opened(tmp_path / "s", journal_retention="blocks")
    with opened(tmp_path / "s", journal_retention="blocks", journal_retention_amount=40) as store:
        assert store.retention.prune(dry_run=True).floor_after == COUNT - DEPTH - 40


def test_a_reader_goes_on_with_the_files_that_it_has_open(tmp_path: Path) -> None:
    """As docs/OPERATIONS.md says."""
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store, holdfast.open(tmp_path / "s", read_only=True) as reader:
        assert without(reader, blocks) == []
        pruned(store, "below", 50)
        assert without(reader, blocks) == []
        with holdfast.open(tmp_path / "s", read_only=True) as later:
            assert without_bodies(later) == list(range(50))


def test_a_reader_has_no_retention(tmp_path: Path) -> None:
    filled(tmp_path / "s", 5)
    with holdfast.open(tmp_path / "s", read_only=True) as store, pytest.raises(ReadOnlyError):
        store.retention.status()


# -- the floor and the archive ----------------------------------------------------------------------------------------


def floors(store: Store) -> list[tuple[int, int]]:
    journal = writer_backend(store).opened.journal
    return [
        (int.from_bytes(data[:8], "big"), data[8])
        for frame in journal.frames(1)
        for index, part in enumerate(frame.parts)
        if part.kind == Kind.FLOOR
        for data in [journal.part(frame, index)]
    ]


def test_the_floor_is_durable_before_a_byte_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        journal = writer_backend(store).opened.journal

        def dies(*_: object, **__: object) -> None:
            assert floors(store) == [(50, 0)]
            assert journal.durable_seq == journal.appended_seq
            raise KeyboardInterrupt

        monkeypatch.setattr(journal, "compact", dies)
        with pytest.raises(KeyboardInterrupt):
            pruned(store, "below", 50)
        monkeypatch.undo()
        assert without(store, blocks) == []
        assert pruned(store, "below", 50) == 50
        assert without(store, blocks) == list(range(50))


def test_nothing_goes_without_an_archive_that_has_it(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    asked: list[int] = []

    def archive(number: int, digest: bytes) -> None:
        asked.append(number)
        if number == 4:
            raise BackupNotFound("no backup holds this segment")

    with opened(tmp_path / "s") as store:
        with pytest.raises(StateError):
            store.retention.prune(RetentionPolicy("below", 50))
        with pytest.raises(BackupNotFound):
            store.retention.prune(RetentionPolicy("below", 50), archive=archive)
        assert asked == [1, 2, 3, 4]
        assert without(store, blocks) == []
        assert floors(store) == []
        journal = writer_backend(store).opened.journal
        right = {info.number: journal.frame(info.first_seq + info.count - 1).digest for info in journal.segments()}

        def all_there(number: int, digest: bytes) -> None:
            assert right[number] == digest

        report = store.retention.prune(RetentionPolicy("below", 50), archive=all_there)
        assert report.archived
        assert floors(store) == [(50, 1)]


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        left = iter(range(60))
        report = store.retention.prune(
            RetentionPolicy("below", 50), without_archive=True, keep_going=lambda: next(left, None) is not None
        )
        assert not report.complete
        first = without(store, blocks)
        assert 0 < len(first) < 50
        assert pruned(store, "below", 50) == 50
        assert without(store, blocks) == list(range(50))


# -- back again --------------------------------------------------------------------------------------------------------


class Kept:
    """Copies of the segments as they were."""

    def __init__(self, path: Path) -> None:
        self.files = {int(file.stem): file.read_bytes() for file in (path / "journal").glob("*.seg")}
        self.place = path.parent / "kept"
        self.place.mkdir()
        self.spoil = 0

    @contextlib.contextmanager
    def __call__(self, number: int, digest: bytes) -> Iterator[File]:
        if number not in self.files:
            raise BackupNotFound("no backup holds this segment")
        data = bytearray(self.files[number])
        if number == self.spoil:
            data[len(data) // 2] ^= 1
        path = self.place / f"{number}"
        path.write_bytes(data)
        file = RealFileSystem().open(path, read_only=True)
        try:
            yield file
        finally:
            file.close()


def test_it_is_told(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    kept = Kept(tmp_path / "s")
    heard: list[holdfast.Event] = []
    names = ["journal_pruned", "journal_compacted", "journal_refilled"]
    with opened(tmp_path / "s") as store, holdfast.on_event(heard.append, names=names) as subscription:
        store.retention.prune(RetentionPolicy("below", 50), dry_run=True)
        store.compact(dry_run=True)
        pruned(store, "below", 50)
        store.compact()
        store.retention.refill(kept)
        subscription.wait(10)
        assert [event.name for event in heard] == names


def test_what_went_comes_back_and_is_checked(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    kept = Kept(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        before = store.retention.status()
        pruned(store, "below", 50)
        pruned(store, "below", 70)
        report = store.retention.refill(kept, from_height=30)
        assert (report.floor_before, report.floor_after, report.missing) == (70, 30, ())
        assert without(store, blocks) == list(range(30))
        kept.spoil = 2
        held = (tmp_path / "s" / "journal" / "0000000002.seg").read_bytes()
        with pytest.raises(CorruptionError):
            store.retention.refill(kept)
        assert (tmp_path / "s" / "journal" / "0000000002.seg").read_bytes() == held
        kept.spoil = 0
        gone = kept.files.pop(3)
        report = store.retention.refill(kept, missing=BackupNotFound)
        assert report.missing == (3,)
        assert 0 < report.floor_after < 30
        kept.files[3] = gone
        left = iter(range(1))
        assert not store.retention.refill(kept, keep_going=lambda: next(left, None) is not None).complete
        assert store.retention.refill(kept).complete
        after = store.retention.status()
        assert (before.floor, after.floor, after.pruned_bytes) == (0, 0, 0)
        assert without(store, blocks) == []
        for bad in (-1, True, 1.5):
            with pytest.raises(InvalidInputError):
                store.retention.refill(kept, from_height=bad)  # type: ignore[arg-type]
    assert verify_store(tmp_path / "s", level="full").ok


def test_an_encrypted_store_is_pruned_and_filled_as_any_other(tmp_path: Path) -> None:
    key = bytes(range(32))
    blocks = chain_of(None, 60)
    fields = quick(max_reorg_depth=DEPTH, proof_window_blocks=0, compression="none")
    with holdfast.open(tmp_path / "s", key=key, settings=fields) as store:
        for block in blocks:
            store.add(block)
    kept = Kept(tmp_path / "s")
    with holdfast.open(tmp_path / "s", key=key, settings=fields) as store:
        store.compact()
        assert without(store, blocks) == []
        assert pruned(store, "below", 30) == 30
        assert without(store, blocks) == list(range(30))
    for given in (None, key):  # without it bytes and digests alone
        assert verify_store(tmp_path / "s", level="links", key=given).ok
    with holdfast.open(tmp_path / "s", key=key, settings=fields) as store:
        assert store.retention.refill(kept).floor_after == 0
        assert without(store, blocks) == []
    assert verify_store(tmp_path / "s", level="full", key=key).ok


def test_an_index_over_bodies_is_named_and_says_why_it_cannot_be_made_anew(tmp_path: Path) -> None:
    @holdfast.index("by_body")
    def by_body(block: Block) -> Iterator[tuple[bytes, bytes]]:
        yield block.body[:4] if block.body else b"none", b"x"

    fields = quick(max_reorg_depth=DEPTH, proof_window_blocks=0)
    blocks = chain_of(None, 60)
    with holdfast.open(tmp_path / "s", settings=fields, indexes=[by_body]) as store:
        for block in blocks:
            store.add(block)
        report = store.retention.prune(RetentionPolicy("below", 30), without_archive=True)
        assert report.indexes == ("by_body",)
    assert verify_store(tmp_path / "s", level="views").ok
    rebuild_views(tmp_path / "s")
    with holdfast.open(tmp_path / "s", settings=fields, indexes=[by_body]) as store:
        with pytest.raises(PrunedError):
            store.wait_for_indexes(30)
        assert store.tip is not None
        assert without(store, blocks) == list(range(30))
        assert "pruned" in str(store.indexes()[0].failure)
