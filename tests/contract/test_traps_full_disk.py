"""A write that the system refuses is a typed error, poisons the engine, and loses nothing that was synced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
from holdfast.engine.api import Batch
from holdfast.engine.open import open_engine
from holdfast.errors import DeviceError, OutOfSpace, PoisonedError
name, path = sys.argv[1], Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
engine = open_engine(name, path, create=True)
engine.apply(Batch({b"%04d" % i: b"first" for i in range(500)}), sync=True)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, hard))
try:
    for number in range(50):
        rows = {b"%04d" % i: os.urandom(200) for i in range(500)}
        engine.apply(Batch({**rows, b"big%d" % number: os.urandom(30_000)}), sync=number % 5 == 4)
    sys.exit("no write failed")
except (OutOfSpace, DeviceError) as error:
    print(type(error).__name__, error)
try:
    engine.apply(Batch({b"x": b"y"}), sync=True)
    sys.exit("a write after a failed write")
except PoisonedError:
    pass
try:
    engine.get(b"0000")
    sys.exit("a read after a failed write")
except PoisonedError:
    pass
engine.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
engine = open_engine(name, path, create=False)
rows = dict(engine.scan(limit=2000).rows)
bigs = sorted(int(key[3:]) for key in rows if key.startswith(b"big"))
assert bigs == list(range(len(bigs))), bigs
assert len(rows) == 500 + len(bigs), len(rows)
engine.apply(Batch({b"after": b"1"}), sync=True)
engine.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rocksdb", "lmdb", "sqlite"])
def test_a_refused_write(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _PROGRAM, name, str(tmp_path / "engine")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
