"""What an adversarial review of the provable state found, so that it stays mended."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

from tests.unit.state_support import commit, open_state_store, writer_backend


def finishes(action: Callable[[], object]) -> None:
    """``action`` ends; a thread of its own hangs if it does not."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  # raised below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
    if failures:
        raise failures[0]


# -- what the garbage collector releases -----------------------------------------------------------------------------


def test_a_draft_that_is_collected_in_the_middle_of_a_commit_does_not_stop_it() -> None:
    """A draft in a cycle is released by the collector, which may run where the overlay's lock is held."""
    with open_state_store("memory:") as store:
        commit(store, 0, {b"key": b"value"})
        overlay = writer_backend(store).views._overlay

        def collect() -> None:
            draft = store.draft()
            assert draft.state.get(b"key") == b"value"
            cycle: list[object] = [draft]
            cycle.append(cycle)
            del draft, cycle
            with overlay.lock:
                gc.collect()

        gc.collect()
        finishes(collect)
        assert writer_backend(store).views.stats.pins == 0
        commit(store, 1, {b"key": b"other"})
        store.flush()
        assert store.state[b"key"] == b"other"


def test_a_reader_of_an_old_height_is_released_where_its_own_lock_is_held() -> None:
    with open_state_store("memory:", history="off") as store:
        commit(store, 0, {b"key": b"value"})
        old = store.state.at(0)
        commit(store, 1, {b"key": b"other"})
        (pin,) = writer_backend(store).views._pins._active
        store.flush()
        assert old[b"key"] == b"value"
        assert pin._frozen

        def release() -> None:
            with pin._lock:
                pin.release()

        finishes(release)
        assert writer_backend(store).views.stats.pins == 0
