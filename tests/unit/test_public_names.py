"""What ``import holdfast`` gives: every public name, from one place, loaded when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import holdfast
from holdfast.doctor.door import open_attended


def test_every_public_name_is_there() -> None:
    for name in holdfast.__all__:
        assert getattr(holdfast, name) is not None
    assert holdfast.open is open_attended
    assert set(holdfast.__all__) <= set(dir(holdfast))


def test_a_module_is_an_attribute_and_an_unknown_name_is_an_error() -> None:
    assert holdfast.errors.HoldfastError.code == "holdfast"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        holdfast.nothing_like_it  # noqa: B018


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, holdfast; print([name for name in ('pydantic', 'rocksdict', 'msgspec') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
