"""A file beside the store that cannot be written is named with what the file system said, and no part of it stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_tools import done, holdfast
from tests.cli.state_store import StateStore

_REAL = Path.open
REASONS = [
    (errno.ENOSPC, "out_of_space", 5),
    (errno.EDQUOT, "out_of_space", 5),
    (errno.EFBIG, "out_of_space", 5),
    (errno.EROFS, "read_only", 8),
    (errno.EACCES, "read_only", 8),
    (errno.EPERM, "read_only", 8),
    (errno.EIO, "device", 6),
    (errno.ENAMETOOLONG, "invalid_input", 2),
    (errno.ENOENT, "invalid_input", 2),
]


class Failing:
    """A file whose first write fails."""

    def __init__(self, file: Any, number: int) -> None:
        self._file = file
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        self._file.write(bytes(data)[:10])
        raise OSError(self._number, os.strerror(self._number))


def words_of(kind: str, file: Path, state: Path, pow_store: Path) -> list[str | Path]:
    if kind == "prove":
        return ["prove", "acc/1", "-o", file, "-d", state, "--json"]
    if kind == "plot":
        return ["state", "growth", "--plot", file, "-d", state, "--json"]
    return ["export", "-o", file, "-d", pow_store, "--json"]


@pytest.mark.parametrize("kind", ["prove", "plot", "export"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("number", "code", "exit_code"), REASONS)
def test_a_file_that_cannot_be_written(
    kind: str,
    late: bool,
    number: int,
    code: str,
    exit_code: int,
    one_state_made: StateStore,
    pow_store_made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "plot":
        pytest.importorskip("matplotlib")
    file = tmp_path / "out.svg"
    words = words_of(kind, file, one_state_made.path, pow_store_made)

    def refusing(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if path != file:
            return _REAL(path, mode, *rest, **named)
        if not late:
            raise OSError(number, os.strerror(number), str(path))
        return Failing(_REAL(path, mode, *rest, **named), number)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refusing)
        answer = holdfast(*words)
    assert (answer.code, answer.error["code"]) == (exit_code, code)
    assert kind == "plot" or answer.out == ""  # the table of the plot is right without it
    assert str(file) in str(answer.error["context"])
    assert list(tmp_path.iterdir()) == []
    done(*words)
    before = file.read_bytes()
    again = holdfast(*words)
    assert (again.code, again.error["code"]) == (2, "invalid_input")
    assert file.read_bytes() == before


def test_a_directory_that_is_not_there(one_state_made: StateStore, pow_store_made: Path, tmp_path: Path) -> None:
    for kind in ("prove", "export"):
        answer = holdfast(*words_of(kind, tmp_path / "no" / "out", one_state_made.path, pow_store_made))
        assert (answer.code, answer.error["code"]) == (2, "invalid_input")
        assert "make it first" in str(answer.error["remedy"])
