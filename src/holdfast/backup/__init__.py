"""Backups of a store: made, listed, verified, restored, thinned out and copied (docs/BACKUP.md)."""

from .compared import BackupSource
from .copy import CopyReport, copy_backup
from .create import BackupReport, create_backup
from .keys import BackupKey
from .manifest import Manifest
from .objects import ObjectTarget
from .place import repository_place
from .prune import KeepRules, PruneReport, prune_backups
from .repository import BackupRepository, open_repository
from .restore import RestoreReport, restore_backup
from .runs import RunReport, ScheduledBackups
from .schedule import Schedule
from .scheduler import BackupScheduler
from .segments import SegmentSource, archive_of, fetch_segments, originals_of
from .target import DirectoryTarget, Target
from .verify import BackupCheck, verify_backup

__all__ = [
    "BackupCheck",
    "BackupKey",
    "BackupReport",
    "BackupRepository",
    "BackupScheduler",
    "BackupSource",
    "CopyReport",
    "DirectoryTarget",
    "KeepRules",
    "Manifest",
    "ObjectTarget",
    "PruneReport",
    "RestoreReport",
    "RunReport",
    "Schedule",
    "ScheduledBackups",
    "SegmentSource",
    "Target",
    "archive_of",
    "copy_backup",
    "create_backup",
    "fetch_segments",
    "open_repository",
    "originals_of",
    "prune_backups",
    "repository_place",
    "restore_backup",
    "verify_backup",
]
