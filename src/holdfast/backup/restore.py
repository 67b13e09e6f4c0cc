"""A store from a backup: whole, or as it was at a height or a time.

Invariants:
    * The target is a directory that is not there or is empty, and nothing else is touched. It stays so until the store
      beside it, in ``TARGET.partial``, is complete and was opened: it takes its place by one rename.
    * Every byte was checked before that: chunks, frames, digests, and the tip and root after the last frame.
    * Every file is durable before that. They are synced while others are fetched and while the store is opened, so a
      file that lies beside the target is trusted by a later run only once it was read again, and is synced again.
    * The store is fenced: a frame of its own says that it is another copy, whatever the disk's inodes say.
    * A run that was stopped at any moment is gone on with by the next one with the same backup.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import msgspec

from .. import events
from .._failpoints import hit
from .._fs import File, FileSystem, RealFileSystem, is_mount_point, path_of
from .._keys import StoreKey, using_key
from .._seal import StoreCipher
from ..config import Settings
from ..errors import (
    BackupDamaged,
    BlockNotFound,
    CorruptionError,
    FinalityError,
    ForeignStore,
    HoldfastError,
    InvalidInputError,
    OutOfSpace,
    PrunedError,
    StoreExists,
)
from ..journal.api import DurableMark, TipMark
from ..journal.reader import JournalReader
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.segment import segment_name
from ..journal.watermark import WATERMARK_NAME, Watermark
from ..limits import HEIGHT_MAX
from ..store.factory import open_store
from ..store.identity import IDENTITY_NAME, Identity
from ..store.opening import make_directories
from ..store.unlocking import unlock
from ..store.url import StoreUrl, parse_url
from .cut import Cut, cut_at_height, cut_at_time
from .envelope import CHUNK_BYTES
from .manifest import BaseFile, Manifest, SegmentFile, decode_store
from .pieces import (
    ChunksAhead,
    PieceFile,
    Progress,
    Syncing,
    Whole,
    exhaust,
    file_name,
    pool_of,
    scan_segment,
    workers_of,
)
from .repository import BackupRepository
from .verify import check_base

__all__ = ["RestoreReport", "restore_backup"]

_PARTIAL = ".partial"
_MARKER = "restore.json"
_STORE = "store"
_MARKER_BYTES_MAX = 4096
_ZERO = bytes(32)


class RestoreReport(msgspec.Struct, frozen=True):
    """The store that was made. ``kept_bytes`` lay there from a run before; ``cut_seq`` is the last frame kept.

    ``files_seconds``: until every file was there, checked and durable; meanwhile the views were begun.
    """

    name: str
    path: str
    cut_seq: int
    height: int | None
    hash: str | None
    root: str | None
    raw_bytes: int
    kept_bytes: int
    seconds: float
    files_seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            **msgspec.structs.asdict(self),
            "fenced": True,
            "seconds": round(self.seconds, 3),
            "files_seconds": round(self.files_seconds, 3),
        }


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose the directory of an unfinished restore is."""

    digest: str
    kind: str = "holdfast-restore"


def restore_backup(
    repository: BackupRepository,
    name: str,
    target: str | os.PathLike[str],
    *,
    to_height: int | None = None,
    to_time_us: int | None = None,
    chain_id: str | None = None,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    store_key: bytes | StoreKey | None = None,
    fs: FileSystem | None = None,
) -> RestoreReport:
    """The store of the backup ``name`` is at ``target``, closed, verified and fenced for signing.

    Args:
        target: a path, or a URL that names the engine; nothing, or an empty directory, is there.
        to_height: the tip is the block that is canonical at this height at the end of the backup, and the store is as
            it was when it last became so.
        to_time_us: the store is as it was after the last frame that is not younger (microseconds since 1970, UTC).
        chain_id: refuse the backup of any other chain.
        progress: called with (bytes, bytes in all), then with (frames, frames in all) of the views; may raise to stop.
        store_key: that of an encrypted store, as for ``open``; that of the repository is another one.
    Raises:
        StoreExists, ForeignStore: the target holds something, or the backup is of another chain; nothing was touched.
        BackupDamaged, CorruptionError: the backup is not whole; the target is as it was.
        BackupNotFound: there is none, or none any more: it was pruned meanwhile.
        BlockNotFound, PrunedError, NotFoundError: the height or the time is not in the backup.
        OutOfSpace: there is no room. KeyRequired, KeyRejected: the store is encrypted, and this is not its key.
    """
    started = time.monotonic()
    url = parse_url(target)
    _check_request(url, to_height, to_time_us)
    files = fs or RealFileSystem()
    form, digest = repository.manifest_and_digest(name)
    _check_form(form, chain_id, to_height, repository)
    assert url.path is not None
    root = path_of(url.path, "a store").absolute()
    check_target(files, root)
    unfinished, count = _Staging(files, root, repository, form, digest), workers_of(workers)
    with (
        using_key(store_key),
        unfinished.unlocked() as staging,
        Syncing(files, threads=count > 0) as syncing,
        pool_of(count) as pool,
    ):
        with repository.reading(name):
            staging.fill(pool, count, progress, syncing)
        cut = staging.cut(_chooser(to_height, to_time_us), syncing)
        report = staging.finish(url.engine, settings or Settings(), cut, progress, to_height)
        staging.publish(syncing)
    seconds, files_seconds = time.monotonic() - started, syncing.ended - started
    report = msgspec.structs.replace(report, seconds=seconds, files_seconds=files_seconds)
    facts = report.as_dict() | {"repository": repository.place}
    events.emit("backup_restored", logging.INFO, f"restored {root} from backup {name}", **facts)
    return report


def _check_request(url: StoreUrl, height: int | None, time_us: int | None) -> None:
    if height is not None and time_us is not None:
        raise InvalidInputError("a store is restored to a height or to a time, not to both")
    if height is not None and not 0 <= height <= HEIGHT_MAX:
        raise InvalidInputError("a height is a number from 0", found=height)
    if url.path is None or url.engine == "memory":
        raise InvalidInputError("a backup is restored to a directory on disk")


def _check_form(form: Manifest, chain_id: str | None, to_height: int | None, repository: BackupRepository) -> None:
    if chain_id is not None and form.chain.id != chain_id:
        raise ForeignStore(
            "the backup belongs to another chain",
            path=repository.place,
            found=form.chain.id,
            expected=chain_id,
            remedy="choose a backup of that chain: 'holdfast backup list' shows which chain each is of",
        )
    if to_height is not None and (form.tip is None or to_height > form.tip.height):
        raise BlockNotFound(
            "the backup ends below this height",
            height=to_height,
            tip=None if form.tip is None else form.tip.height,
            remedy="take a later backup: 'holdfast backup list' shows the height of each",
        )


def _chooser(height: int | None, time_us: int | None) -> Callable[[JournalReader], Cut] | None:
    if height is not None:
        return lambda reader: cut_at_height(reader, height)
    if time_us is not None:
        return lambda reader: cut_at_time(reader, time_us)
    return None


def _is(found: File, file: SegmentFile | BaseFile) -> bool:
    """True if the file is what the manifest says."""
    if found.size() != file.length:
        return False
    state = sha256()
    for offset in range(0, file.length, CHUNK_BYTES):
        state.update(found.pread(min(CHUNK_BYTES, file.length - offset), offset))
    return state.hexdigest() == file.sha256


def check_target(fs: FileSystem, root: Path) -> None:
    """Nothing happens if ``root`` is not there or is an empty directory, which is no mount. Nothing is touched."""
    if not fs.exists(root):
        return
    names = fs.names(root)
    if IDENTITY_NAME in names:
        raise StoreExists(
            "there is a store already; a backup is restored into a new directory",
            path=root,
            remedy="choose another directory, or move the store away; do not delete it before the other is checked",
        )
    if names:
        raise ForeignStore("the directory is not empty; nothing was touched", path=root, found=names[:8])
    if is_mount_point(fs, root):
        raise InvalidInputError(
            "something is mounted at the target, so that no store can take its place in one step; nothing was touched",
            path=root,
            remedy=f"restore to a new directory below it, such as {root / _STORE}",
        )


class _Staging:
    """The directory beside the target in which the store is made."""

    def __init__(self, fs: FileSystem, root: Path, repository: BackupRepository, form: Manifest, digest: str) -> None:
        self._fs = fs
        self._root = root
        self._repository = repository
        self._form = form
        self._digest = digest
        self._identity: Identity = decode_store(form, place=repository.place)
        self._verified = repository.verified_us(form.name, digest) is not None
        self._place = root.with_name(root.name + _PARTIAL)
        self._store = self._place / _STORE
        self._kept = 0
        self._cipher: StoreCipher | None = None

    def unlocked(self) -> _Staging:
        """The same, once the store's key is known to fit. Raises ``KeyRequired``, ``KeyRejected``."""
        self._cipher = unlock(self._identity, None, self._root)
        return self

    # -- begin and end ------------------------------------------------------------------------------------------

    def __enter__(self) -> _Staging:
        """The directory is ours and locked; of an earlier run only whole files are left."""
        fs, place = self._fs, self._place
        if fs.exists(place) and not self._ours():
            raise ForeignStore(
                "the directory beside the target, in which the store would be made, holds something else",
                path=place,
                remedy="move it away, or restore to another directory",
            )
        make_directories(fs, place)
        self._lock = fs.lock(place / "lock", f"{os.getpid()} restore")
        try:
            if not self._same():
                fs.remove_tree(self._store)
            marker = msgspec.json.encode(_Marker(self._digest))
            fs.write_atomic(place / _MARKER, marker)
            make_directories(fs, self._store / JOURNAL_DIRECTORY)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _marker(self) -> _Marker | None:
        if _MARKER not in self._fs.names(self._place):
            return None
        data = self._fs.read_bytes(self._place / _MARKER, limit=_MARKER_BYTES_MAX)
        try:
            return msgspec.json.decode(data, type=_Marker)
        except ValueError:
            return None

    def _ours(self) -> bool:
        """True if only an unfinished restore is there, or one that had not written its first file."""
        return self._marker() is not None or set(self._fs.names(self._place)) <= {"lock", f"{_MARKER}.tmp"}

    def _same(self) -> bool:
        marker = self._marker()
        return marker is not None and marker.digest == self._digest

    def publish(self, syncing: Syncing) -> None:
        """The store is at the target, durably, and the staging directory is gone."""
        fs = self._fs
        check_target(fs, self._root)
        syncing.wait()
        for below in self._directories():
            fs.sync_directory(below)
        hit("backup.restore.before_publish")
        fs.rename(self._store, self._root)
        fs.sync_directory(self._root.parent)
        fs.sync_directory(self._place)
        fs.remove_tree(self._place)

    # -- files --------------------------------------------------------------------------------------------------

    def fill(self, pool: ThreadPoolExecutor | None, workers: int, progress: Progress | None, syncing: Syncing) -> None:
        """Every file of the backup is there, and durable once ``syncing`` is done."""
        wanted = {file_name(file): file for file in self._form.files()}
        self._clear(set(wanted))
        missing = [file for name, file in wanted.items() if not self._there(name, file, syncing)]
        self._check_room(sum(file.length for file in missing))
        total = self._form.totals.raw_bytes
        self._kept = done = total - sum(file.length for file in missing)

        def step(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        if not missing:
            step(0)  # or the frames, which are counted next, would be taken for bytes
        for below in self._directories():
            make_directories(self._fs, below)
        self._fs.write_atomic(self._store / IDENTITY_NAME, self._form.identity_bytes)
        self._write_mark(self._last_mark())
        chunks = ChunksAhead(self._repository, missing, pool, workers)
        for file in missing:
            syncing.add(self._fetch(file, chunks.of(file), step), self._store / file_name(file))

    def _directories(self) -> list[Path]:
        """Those of the files, the lowest first."""
        found = {(self._store / file_name(file)).parent for file in self._form.files()}
        return sorted(found, key=lambda path: len(path.parts), reverse=True)

    def _clear(self, wanted: set[str]) -> None:
        """What an earlier run made of the files is gone, and files that no manifest names."""
        fs = self._fs
        for name in fs.names(self._store):
            if name not in ("base", JOURNAL_DIRECTORY):
                fs.remove_tree(self._store / name) if self._is_directory(name) else fs.remove(self._store / name)
        for below in (JOURNAL_DIRECTORY, "base", "base/chunks"):
            for name in fs.names(self._store / below):
                if f"{below}/{name}" not in wanted and f"{below}/{name}" != "base/chunks":
                    fs.remove(self._store / below / name)

    def _is_directory(self, name: str) -> bool:
        return name in ("views", "tree", "quarantine")

    def _there(self, name: str, file: SegmentFile | BaseFile, syncing: Syncing) -> bool:
        """True if the file lies there as the manifest says; it is synced then, since the run before may not have."""
        path = self._store / name
        if not self._fs.exists(path):
            return False
        found = self._fs.open(path)
        if _is(found, file):
            syncing.add(found, path)
            return True
        found.close()
        return False

    def _check_room(self, needed: int) -> None:
        free = self._fs.space(self._place).free
        if free < needed:
            raise OutOfSpace(
                "there is no room for the files of the backup, and none was written",
                path=self._place,
                needed=needed,
                free=free,
                remedy="free some space, or restore to another disk; then run the same command again",
            )

    def _fetch(self, file: SegmentFile | BaseFile, load: Callable[[int], bytes], step: Callable[[int], None]) -> File:
        """The file is there, to be synced; every byte was checked by its chunk.

        Of a backup that was never verified the parts of a segment are checked, too: a chunk may hold what its writer
        made wrong.
        """
        path = self._store / file_name(file)
        temporary = path.with_name(path.name + ".tmp")
        self._fs.remove(temporary)
        new = self._fs.open(temporary, create=True)
        try:
            self._fetch_into(new, file, load, step)
            self._fs.rename(temporary, path)
        except BaseException:
            new.close()
            with contextlib.suppress(HoldfastError):  # the first error is the one to tell
                self._fs.remove(temporary)
            raise
        return new

    def _fetch_into(
        self, new: File, file: SegmentFile | BaseFile, load: Callable[[int], bytes], step: Callable[[int], None]
    ) -> None:
        end = 0

        def take(piece: bytes) -> None:
            nonlocal end
            new.pwrite(piece, end)
            end += len(piece)
            hit("backup.restore.piece")
            step(len(piece))

        if isinstance(file, SegmentFile):
            pieces = PieceFile(new.path, file.length, load, take)
            index = file.number - self._form.segments[0].number
            before = self._form.segments[index - 1].digest if index else None
            exhaust(scan_segment(pieces, file, self._identity, before, parts=not self._verified))
            pieces.finish()
        else:
            whole = Whole(take)
            pieces = PieceFile(new.path, file.length, load, whole)
            check_base(pieces, file)
            pieces.finish()
            whole.check(file, file_name(file))

    # -- the end of the journal ---------------------------------------------------------------------------------

    def _last_mark(self) -> DurableMark:
        form, last = self._form, self._form.segments[-1]
        tip = form.tip
        known = None
        if tip is not None:
            root = _ZERO if tip.root is None else bytes.fromhex(tip.root)
            known = TipMark(tip.height, bytes.fromhex(tip.hash), root)
        digest = bytes.fromhex(form.last_digest)
        return DurableMark(1, form.last_seq, digest, last.number, last.frames_end, last.sealed, known)

    def _write_mark(self, mark: DurableMark) -> None:
        self._fs.remove(self._store / WATERMARK_NAME)
        Watermark.create(self._fs, self._store, salt=self._identity.salt, first=mark).close()

    def cut(self, choose: Callable[[JournalReader], Cut] | None, syncing: Syncing) -> Cut:
        """The journal ends with the frame that was chosen; the last frame, and the block to switch to."""
        if choose is None:
            return Cut(self._form.last_seq, None)
        syncing.wait()
        identity = self._identity
        parts = self._cipher.parts if self._cipher is not None else None
        reader = JournalReader.open(self._fs, self._store, store_id=identity.store_id, salt=identity.salt, cipher=parts)
        try:
            cut = choose(reader)
            if cut.seq == self._form.last_seq:
                return cut
            frame = reader.frame(cut.seq)
        finally:
            reader.close()
        entry = self._form.segments[frame.segment - self._form.segments[0].number]
        if entry.raw_length:
            raise PrunedError(
                "the store cannot end where the journal was pruned",
                seq=cut.seq,
                least_readable=self._retained_from(),
                remedy="restore to a later height, or take an older backup, which has all of the journal",
            )
        end = frame.offset + frame.length
        journal = self._store / JOURNAL_DIRECTORY
        for later in range(self._form.segments[-1].number, entry.number, -1):
            self._fs.remove(journal / segment_name(later))
        self._fs.sync_directory(journal)
        whole = entry.sealed and end == entry.frames_end
        if not whole:
            file = self._fs.open(journal / segment_name(entry.number))
            try:
                file.truncate(end)
                file.sync()
            finally:
                file.close()
        self._write_mark(DurableMark(1, cut.seq, frame.digest, frame.segment, end, whole, None))
        return cut

    def _retained_from(self) -> int:
        """Lowest height from which on no block of the backup misses anything."""
        identity = self._identity
        reader = JournalReader.open(self._fs, self._store, store_id=identity.store_id, salt=identity.salt)
        try:
            return max(info.retained_from for info in reader.segments())
        finally:
            reader.close()

    # -- the store ----------------------------------------------------------------------------------------------

    def finish(
        self,
        engine: str | None,
        settings: Settings,
        cut: Cut,
        progress: Progress | None,
        height: int | None,
    ) -> RestoreReport:
        """The store was opened: it is fenced, has its views, and its tip and root are those of the backup."""
        url = str(self._store) if engine is None else f"{engine}:{self._store}"
        with open_store(url, create=False, settings=settings, progress=progress, fs=self._fs) as store:
            store.safety.fence()
            if cut.seq == self._form.last_seq:
                self._check_tip(store.tip.height if store.tip else None, store.tip.hash if store.tip else None)
            if cut.block is not None:
                try:
                    store.reorg(cut.block, reason=f"restored to height {height}")
                except FinalityError as error:
                    raise FinalityError(
                        "the blocks above this height became final in the same frame",
                        height=height,
                        next_height=None if store.tip is None else store.tip.height,
                        remedy="restore to 'next_height', the height that the frame ends with",
                    ) from error
            tip = store.tip
            root = None if tip is None else tip.state_root
            if cut.seq == self._form.last_seq and cut.block is None:
                self._check_root(root)
            if cut.block is not None and (tip is None or tip.hash != cut.block):
                raise CorruptionError("the restored store has another tip than it should", height=height)
        return RestoreReport(
            name=self._form.name,
            path=str(self._root),
            cut_seq=cut.seq,
            height=None if tip is None else tip.height,
            hash=None if tip is None else tip.hash.hex(),
            root=None if root is None else root.hex(),
            raw_bytes=self._form.totals.raw_bytes,
            kept_bytes=self._kept,
            seconds=0.0,
        )

    def _check_tip(self, height: int | None, block: bytes | None) -> None:
        told = self._form.tip
        expected = (None, None) if told is None else (told.height, told.hash)
        if (height, None if block is None else block.hex()) != expected:
            raise BackupDamaged(
                "the journal of the backup ends with another tip than the manifest says",
                path=self._repository.place,
                found=height,
                expected=expected[0],
            )

    def _check_root(self, root: bytes | None) -> None:
        told = self._form.tip
        if told is not None and told.root is not None and told.root != (None if root is None else root.hex()):
            raise BackupDamaged(
                "the state of the backup has another root than the manifest says",
                path=self._repository.place,
                found=root,
                expected=told.root,
            )
