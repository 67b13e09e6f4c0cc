"""The store: open, draft, commit, add, reorg, finalize, close. The only floor that appends to the journal."""

from .factory import open_store
from .store import Store, StoreSnapshot

__all__ = ["Store", "StoreSnapshot", "open_store"]
