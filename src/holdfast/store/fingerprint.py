"""Which copy of a store this is: a fingerprint of the place it is used in (32 bytes).

A restored or copied store has another LOCK file, so it gets another fingerprint and may not sign until a fence lifts
it. A disk snapshot that is rolled back keeps all of it and cannot be noticed locally; docs/ARCHITECTURE.md says so.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .._fs import translate_os_error
from ..errors import HoldfastError

__all__ = ["NOWHERE", "fingerprint"]

NOWHERE = bytes(32)
"""The fingerprint of no place: a store that begins with it is fenced when it is opened."""


def fingerprint(root: Path | None, store_id: bytes) -> bytes:
    """SHA-256 over the inodes of LOCK and journal/, the file system's id and, where there is one, the machine's id."""
    digest = hashlib.sha256(b"holdfast incarnation 1" + store_id)
    if root is None:
        return digest.digest()
    try:
        for name in ("LOCK", "journal"):
            digest.update(os.stat(root / name).st_ino.to_bytes(8, "big"))
        digest.update((os.statvfs(root).f_fsid & (2**64 - 1)).to_bytes(8, "big"))
    except OSError as error:
        raise HoldfastError(f"the store's directory cannot be examined: {error}", path=root) from error
    machine = Path("/etc/machine-id")
    try:
        if machine.exists():
            digest.update(machine.read_bytes()[:64])
    except OSError as error:  # without it this would be another place
        raise translate_os_error(error, machine) from error
    return digest.digest()
