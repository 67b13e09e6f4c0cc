"""Which backups are kept, and what goes with the others.

Invariants:
    * The newest verified backup of a store always stays, and so does every backup that is newer than it. Where none is
      verified, none goes.
    * Where retention dropped bodies from a segment of the journal, one backup that has it whole always stays.
    * Nothing goes before what stays is durable. Manifests go first, durably; then the chunks that no manifest names. A
      run that was stopped leaves only chunks that the next one removes.
    * As long as a manifest cannot be read no chunk goes: it may be one of its chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from .._failpoints import hit
from ..config import Settings
from ..errors import BackupDamaged, BackupNotFound, InvalidInputError
from .manifest import Manifest, SegmentFile
from .pieces import Progress
from .repository import BackupRepository
from .target import CHUNKS

__all__ = ["KeepRules", "PruneReport", "prune_backups"]

_MICROSECONDS = 1_000_000
_DAY_SECONDS = 86_400
_COUNT_MAX = 1_000_000
_FORMATS = {"hourly": "%Y%m%d%H", "daily": "%Y%m%d", "weekly": "%G%V", "monthly": "%Y%m"}


class KeepRules(msgspec.Struct, frozen=True):
    """What is kept, of each store; a backup stays if any rule keeps it. Only verified backups count.

    ``last``: the newest so many. ``within_seconds``: those that are not older. ``hourly`` and so on: of each of the
    newest so many hours, days, weeks (ISO) and months, in UTC, that have one, the newest.
    """

    last: int = 10
    within_seconds: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @classmethod
    def of(cls, settings: Settings) -> KeepRules:
        """As the settings say."""
        return cls(
            last=settings.max_backups,
            within_seconds=settings.backup_keep_days * _DAY_SECONDS,
            hourly=settings.backup_keep_hourly,
            daily=settings.backup_keep_daily,
            weekly=settings.backup_keep_weekly,
            monthly=settings.backup_keep_monthly,
        )

    def __post_init__(self) -> None:
        for name in ("last", "hourly", "daily", "weekly", "monthly"):
            if not 0 <= getattr(self, name) <= _COUNT_MAX:
                raise InvalidInputError("the number of backups to keep is not allowed", rule=name)
        if self.within_seconds < 0:
            raise InvalidInputError("the age of backups to keep is not allowed", found=self.within_seconds)


class PruneReport(msgspec.Struct, frozen=True):
    """What went, or with ``dry_run`` what would. ``freed_bytes`` are those of the chunks."""

    dry_run: bool
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    unverified: tuple[str, ...]
    unreadable: tuple[str, ...]
    chunks_removed: int
    freed_bytes: int

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in msgspec.structs.asdict(self).items()
        }


def prune_backups(
    repository: BackupRepository,
    rules: KeepRules | None = None,
    *,
    keep: Iterable[str] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> PruneReport:
    """Backups that no rule keeps are gone, and the chunks that no backup names.

    Args:
        keep: names of backups that stay, whatever the rules say.
        dry_run: only say what would go; the lock is not taken.
        progress: called with (chunks looked at, 0); what it raises ends the run, the next one goes on.
    Raises:
        RepositoryLocked: somebody else is at work there; nothing was removed.
    """
    rules = rules or KeepRules()
    if dry_run:
        return _prune(repository, rules, frozenset(keep), now_us(), progress, dry_run=True)
    with repository.lock():
        return _prune(repository, rules, frozenset(keep), now_us(), progress, dry_run=False)


def _prune(
    repository: BackupRepository,
    rules: KeepRules,
    keep: frozenset[str],
    now_us: int,
    progress: Progress | None,
    *,
    dry_run: bool,
) -> PruneReport:
    forms: list[Manifest] = []
    verified: set[str] = set()
    unreadable: list[str] = []
    for name in repository.names():
        try:
            form, digest = repository.manifest_and_digest(name)
        except (BackupDamaged, BackupNotFound):
            unreadable.append(name)
            continue
        forms.append(form)
        if repository.verified_us(name, digest) is not None:
            verified.add(name)
    kept = _kept(forms, verified, rules, now_us) | keep
    going = [form.name for form in forms if form.name not in kept]
    if not dry_run:
        repository.keep_backups(form.name for form in forms if form.name in kept)
        repository.target.sweep()
        for name in going:
            hit("backup.prune.manifest")
            repository.drop_manifest(name)
        repository.target.flush()
    used = {ref.id for form in forms if form.name in kept for file in form.files() for ref in file.chunks}
    chunks = freed = 0
    if not unreadable:
        chunks, freed = _drop_chunks(repository, used, progress, dry_run=dry_run)
    return PruneReport(
        dry_run,
        tuple(form.name for form in forms if form.name in kept),
        tuple(going),
        tuple(form.name for form in forms if form.name not in verified),
        tuple(unreadable),
        chunks,
        freed,
    )


def _drop_chunks(
    repository: BackupRepository, used: set[str], progress: Progress | None, *, dry_run: bool
) -> tuple[int, int]:
    count = freed = 0
    target = repository.target
    for seen, (name, size) in enumerate(target.list(CHUNKS), 1):
        if name.rpartition("/")[2] not in used:
            count, freed = count + 1, freed + size
            if not dry_run:
                hit("backup.prune.chunk")
                target.delete(name)
        if progress is not None and seen % 256 == 0:
            progress(seen, 0)
    if not dry_run:
        target.flush()
    return count, freed


def _kept(forms: Sequence[Manifest], verified: set[str], rules: KeepRules, now_us: int) -> set[str]:
    """Names of the backups that stay."""
    kept: set[str] = set()
    for store in {form.store_id for form in forms}:
        own = sorted((form for form in forms if form.store_id == store), key=lambda form: form.name, reverse=True)
        good = [form for form in own if form.name in verified]
        if not good:
            kept.update(form.name for form in own)
            continue
        kept.update(form.name for form in own if form.name >= good[0].name)
        kept.update(form.name for form in good[: rules.last])
        oldest = now_us - rules.within_seconds * _MICROSECONDS
        if rules.within_seconds:
            kept.update(form.name for form in good if form.created_us >= oldest)
        for word, pattern in _FORMATS.items():
            kept.update(_newest_of_each(good, pattern, getattr(rules, word)))
        kept.update(_last_whole(own, kept, verified))
    return kept


def _last_whole(own: Sequence[Manifest], kept: set[str], verified: set[str]) -> set[str]:
    """The newest backups that have whole what those that are kept have without pruned parts.

    Of each such segment a verified one, if there is one, else one that was never verified. ``own`` is newest first.
    """
    wanted = {_which(file) for form in own if form.name in kept for file in form.segments if file.raw_length}
    found: set[str] = set()
    for known in (True, False):
        others = [form for form in own if (form.name in verified) == known]
        for form in sorted(others, key=lambda form: form.name not in kept):
            has = {_which(file) for file in form.segments if file.sealed and not file.raw_length} & wanted
            if has:
                found.add(form.name)
                wanted -= has
    return found


def _which(file: SegmentFile) -> tuple[int, int, str]:
    """The same for a segment and for what is left of it."""
    return file.number, file.segment_bytes, file.digest


def _newest_of_each(good: Iterable[Manifest], pattern: str, count: int) -> list[str]:
    """Of the newest ``count`` periods that have a backup, the newest of each; ``good`` is newest first."""
    periods: dict[str, str] = {}
    for form in good:
        moment = datetime.fromtimestamp(form.created_us // _MICROSECONDS, UTC)
        periods.setdefault(moment.strftime(pattern), form.name)
    return list(periods.values())[:count]
