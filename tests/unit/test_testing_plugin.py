"""The pytest plugin: the documented example runs, a planted bug fails the test, and other runs pay nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def example() -> str:
    """The Python block of docs/TESTING.md that uses the fixture."""
    text = (ROOT / "docs" / "TESTING.md").read_text()
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "crash_explorer" in block]
    return str(found)


def run(directory: Path, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A run of pytest over the example, as a user has it: only the plugin is there."""
    (directory / "test_chain.py").write_text(before + example())
    command = [sys.executable, *before_pytest(), "-p", "no:cacheprovider", "-p", "holdfast.testing.plugin", "-q"]
    return subprocess.run([*command, *options, "."], cwd=directory, capture_output=True, text=True, timeout=120)


def before_pytest() -> list[str]:
    return ["-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import pytest; sys.exit(pytest.main())"]


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "--holdfast-images=400", "-s")
    assert done.returncode == 0, done.stdout
    assert "400 images" in done.stdout


BUG = """
from holdfast.store.store import Store
Store._durable = lambda self, writer, seq: writer.on_durable(writer.journal.appended_seq)  # before the sync
"""


@pytest.mark.slow
def test_a_planted_bug_is_found_saved_and_seen_again(tmp_path: Path) -> None:
    done = run(tmp_path, f"--basetemp={tmp_path / 'kept'}", before=BUG)
    assert done.returncode == 1, done.stdout
    assert "CrashFound: LOST at" in done.stdout
    (saved,) = (tmp_path / "kept").rglob("failure.json")
    assert list((saved.parent / "files").rglob("*.seg"))
    place = re.search(r"--holdfast-seed=0 (--holdfast-image=[0-9./]+)", done.stdout)
    assert place is not None
    again = run(tmp_path, "-s", "--holdfast-seed=0", place[1], before=BUG)
    assert again.returncode == 1
    assert "CrashFound: LOST at" in again.stdout
    good = run(tmp_path, place[1])
    assert good.returncode == 0, good.stdout


def test_a_run_without_the_fixture_imports_the_plugin_alone(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    loaded = {name for name in sys.modules if name.split('.')[0] == 'holdfast'}\n"
        "    assert loaded == {'holdfast', 'holdfast.testing', 'holdfast.testing.plugin'}\n"
        "    assert not {'msgspec', 'pydantic', 'rocksdict', 'zstandard', 'typer'} & set(sys.modules)\n"
    )
    command = [sys.executable, *before_pytest(), "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run(
        [*command, "-p", "holdfast.testing.plugin", "-q", "."], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_entry_point_has_the_name_under_which_pytest_knows_the_module() -> None:
    """So a ``pytest_plugins`` of the same name and the entry point are one plugin, not two."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert points == {"holdfast.testing.plugin": "holdfast.testing.plugin"}
