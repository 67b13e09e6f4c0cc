"""Where a mapping of keys to values is asked for, anything else is refused by name, and nothing is written."""

from __future__ import annotations

from typing import Any

import pytest

import holdfast
from holdfast.errors import InvalidInputError


@pytest.mark.parametrize("wrong", [[(b"key", b"value")], [], 5, b"key", None])
def test_what_is_no_mapping_is_refused(wrong: Any) -> None:
    with holdfast.open("memory:") as store:
        draft = store.draft()
        with pytest.raises(InvalidInputError, match="mapping of keys to values"):
            draft.state.update(wrong)
        draft.state.update({b"kept": b"1"})
        root = store.commit(draft, hash=b"\x01" * 32, header=b"header").state_root
        assert root is not None
        assert list(store.state.scan()) == [(b"kept", b"1")]
        proof = store.state.prove_many([b"key"])
        with pytest.raises(InvalidInputError, match="mapping of keys to values"):
            holdfast.verify_many(proof.data, root, wrong)
