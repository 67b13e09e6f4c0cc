"""Each engine of the package keeps the engine contract."""

from pathlib import Path
from typing import ClassVar

from holdfast._seal import RowCipher
from holdfast.engine.api import Engine
from holdfast.engine.memory import MemoryEngine
from holdfast.engine.open import open_engine
from holdfast.engine.sealed import SealedEngine
from holdfast.testing.engine_contract import EngineContract


class TestMemory(EngineContract):
    def make_engine(self, path: Path) -> Engine:
        return MemoryEngine()


class TestRocksDb(EngineContract):
    factory: ClassVar[str | None] = "holdfast.engine.rocksdb:RocksDbEngine"

    def make_engine(self, path: Path) -> Engine:
        return open_engine("rocksdb", path, create=True)


class TestLmdb(EngineContract):
    factory: ClassVar[str | None] = "holdfast.engine.lmdb:LmdbEngine"

    def make_engine(self, path: Path) -> Engine:
        return open_engine("lmdb", path, create=True)


class TestSqlite(EngineContract):
    factory: ClassVar[str | None] = "holdfast.engine.sqlite:SqliteEngine"

    def make_engine(self, path: Path) -> Engine:
        return open_engine("sqlite", path, create=True)


class TestSealed(EngineContract):
    """Values are encrypted; all else is as the engine below has it."""

    def make_engine(self, path: Path) -> Engine:
        return SealedEngine(open_engine("sqlite", path, create=True), RowCipher(bytes(32)))
