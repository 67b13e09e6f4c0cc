"""``HoldfastDB``: the database of a py-evm chain, kept as documents of a store (needs the extra ``pyevm``).

    CHAIN_DB_BACKEND_CLASS=holdfast.chains.evm.database.HoldfastDB     eth.db.get_db_backend() makes one

Invariants:
    * An ``atomic_batch`` that ends without an exception is one durable frame of the journal; one that raises leaves
      nothing behind, and neither does a process that dies in it.
    * A write outside of a batch is a frame of its own, with a sync of its own.
    * A missing key is a ``KeyError`` (``NotFoundError``), as py-evm expects; no other failure looks like one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from ..._keys import StoreKey
from ...config import ENVIRONMENT_PREFIX, Settings
from ...doctor.door import open_attended
from ...errors import InvalidInputError, NotFoundError
from ...store.documents import Documents
from ...store.store import Store

try:
    from eth.abc import AtomicWriteBatchAPI
    from eth.db.backends.base import BaseAtomicDB, BaseDB
    from eth_utils.exceptions import ValidationError
except ImportError as exc:  # pragma: no cover - depends on the installation
    raise ImportError("HoldfastDB needs py-evm: install it with  pip install 'holdfast[pyevm]'") from exc

__all__ = ["SPACE_DEFAULT", "HoldfastDB"]

SPACE_DEFAULT = "evm"
_DIRECTORY_VARIABLE = f"{ENVIRONMENT_PREFIX}DATA_DIR"


def _plain(data: bytes, what: str) -> bytes:
    """``data`` as nothing but ``bytes``: py-evm also hands over subclasses of it."""
    if type(data) is bytes:
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise InvalidInputError(f"a {what} is bytes", found=type(data).__name__)


def _missing(key: bytes) -> NotFoundError:
    return NotFoundError("the database has no such key", key=key, remedy="ask with 'in' where a key may be absent")


class HoldfastDB(BaseAtomicDB):
    """A py-evm database in one space of documents of a store. Any thread may use it."""

    def __init__(
        self,
        db_path: str | os.PathLike[str] | None = None,
        *,
        store: Store | None = None,
        space: str = SPACE_DEFAULT,
        settings: Settings | None = None,
        key: bytes | StoreKey | None = None,
    ) -> None:
        """The database at ``db_path``, made if nothing is there, or in a ``store`` that is open.

        Args:
            db_path: directory or URL as for ``holdfast.open``; without it and without ``store`` the directory that
                the environment variable ``HOLDFAST_DATA_DIR`` names, for ``eth.db.get_db_backend()``.
            store: keep the database here; it stays the caller's to close.
            space: name of the space of documents.
            settings, key: of the store that is opened for ``db_path``, as for ``holdfast.open``.
        Raises:
            InvalidInputError: neither or both of ``db_path`` and ``store`` were given.
            StoreLocked: the store is open already, here or in another process.
        """
        if store is not None and (db_path is not None or settings is not None or key is not None):
            raise InvalidInputError("a database is in a directory or in an open store, not in both")
        self._owned: Store | None = None
        if store is None:
            if db_path is None:
                db_path = os.environ.get(_DIRECTORY_VARIABLE) or None
            if db_path is None:
                raise InvalidInputError(
                    "the database has no directory",
                    remedy=f"give 'db_path' or 'store', or set {_DIRECTORY_VARIABLE}",
                )
            store = self._owned = open_attended(db_path, settings=settings, key=key)
        self.store = store
        """The store under the database."""
        try:
            self._documents = store.documents(space)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        path = self.store.path
        return f"HoldfastDB({str(path) if path is not None else self.store.url!r}, space={self._documents.name!r})"

    @property
    def path(self) -> Path | None:
        """Directory of the store, ``None`` in memory."""
        return self.store.path

    # -- reading --------------------------------------------------------------------------------------------------

    def __getitem__(self, key: bytes) -> bytes:
        value = self._documents.get(_plain(key, "key"))
        if value is None:
            raise _missing(key)
        return value

    def _exists(self, key: bytes) -> bool:
        return _plain(key, "key") in self._documents

    # -- writing --------------------------------------------------------------------------------------------------

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Durable on return, with a frame and a sync of its own: slow. Use ``atomic_batch`` for more than one key."""
        self._documents.put(_plain(key, "key"), _plain(value, "value"))

    def __delitem__(self, key: bytes) -> None:
        """As ``__setitem__``. Raises ``KeyError`` if the key is not there."""
        key = _plain(key, "key")
        if key not in self._documents:
            raise _missing(key)
        self._documents.delete(key)

    @contextmanager
    def atomic_batch(self) -> Iterator[AtomicWriteBatchAPI]:
        """A view of the database that collects writes: all of them are durable when the ``with`` ends, or none.

        Reads of the batch see its own writes over whatever the database holds now. Batches may overlap; the one that
        ends last wins. An exception, also an interrupt, discards the batch. A batch cannot be used after its ``with``.
        """
        batch = _Batch(self._documents)
        try:
            yield batch
            batch.commit()
        finally:
            batch.end()

    # -- ending ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The store that was opened for ``db_path`` is closed; one that was given stays open. Twice is harmless."""
        owned, self._owned = self._owned, None
        if owned is not None:
            owned.close()

    def __enter__(self) -> HoldfastDB:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Batch(BaseDB, AtomicWriteBatchAPI):
    """Writes that wait for the end of an ``atomic_batch``; ``None`` stands for a deleted key."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._changes: dict[bytes, bytes | None] | None = {}

    def _open(self) -> dict[bytes, bytes | None]:
        if self._changes is None:
            raise ValidationError("a batch cannot be used after its context has ended")
        return self._changes

    def _get(self, key: bytes) -> bytes | None:
        changes = self._open()
        key = _plain(key, "key")
        return changes[key] if key in changes else self._documents.get(key)

    def __getitem__(self, key: bytes) -> bytes:
        value = self._get(key)
        if value is None:
            raise _missing(key)
        return value

    def _exists(self, key: bytes) -> bool:
        return self._get(key) is not None

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._open()[_plain(key, "key")] = _plain(value, "value")

    def __delitem__(self, key: bytes) -> None:
        if self._get(key) is None:
            raise _missing(key)
        self._open()[_plain(key, "key")] = None

    def commit(self) -> None:
        """Everything collected is durable, in one frame."""
        changes = self._open()
        self._documents.write(
            {key: value for key, value in changes.items() if value is not None},
            [key for key, value in changes.items() if value is None],
        )

    def end(self) -> None:
        """Every later use raises ``ValidationError``."""
        self._changes = None
