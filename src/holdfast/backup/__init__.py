"""Backups of a store: made, listed, verified, restored, thinned out and copied (docs/BACKUP.md)."""

from .create import BackupReport, create_backup
from .keys import BackupKey
from .manifest import Manifest
from .repository import BackupRepository, open_repository
from .restore import RestoreReport, restore_backup
from .segments import SegmentSource, fetch_segments
from .target import DirectoryTarget, Target
from .verify import BackupCheck, verify_backup

__all__ = [
    "BackupCheck",
    "BackupKey",
    "BackupReport",
    "BackupRepository",
    "DirectoryTarget",
    "Manifest",
    "RestoreReport",
    "SegmentSource",
    "Target",
    "create_backup",
    "fetch_segments",
    "open_repository",
    "restore_backup",
    "verify_backup",
]
