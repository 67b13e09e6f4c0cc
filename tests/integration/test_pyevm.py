"""``HoldfastDB`` under py-evm: its own test suites, batches as frames, real chains, kills, and eth-tester."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rlp
from eth.db import get_db_backend
from eth.db.atomic import AtomicDB
from eth.tools.db.atomic import AtomicDatabaseBatchAPITestSuite
from eth.tools.db.base import DatabaseAPITestSuite
from eth_tester import EthereumTester, PyEVMBackend
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from holdfast import Store
from holdfast.chains.evm.database import HoldfastDB
from holdfast.errors import (
    ClosedError,
    InvalidInputError,
    LimitExceeded,
    NotFoundError,
    PoisonedError,
    StoreLocked,
)
from holdfast.recovery import verify_store
from holdfast.store.backend import WriterBackend
from tests.cli.cli_tools import ROOT, child_environment
from tests.unit.store_support import chain_of, open_quick, quick

sys.path.insert(0, str(ROOT / "examples"))
import pyevm_chain  # type: ignore[import-not-found,unused-ignore]

BACKEND = "holdfast.chains.evm.database.HoldfastDB"
CONTRACT = keccak(rlp.encode([pyevm_chain.OWNER, 0]))[12:]
"""Address of the first contract that the owner makes."""
AGENT = Path(__file__).with_name("pyevm_agent.py")


def frames(store: Store) -> int:
    """How many frames the journal has."""
    backend = store._backend
    assert isinstance(backend, WriterBackend)
    return backend.opened.journal.appended_seq


@pytest.fixture(scope="module", params=["memory", "sqlite", "rocksdb"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    url = "memory:" if request.param == "memory" else f"{request.param}:{tmp_path_factory.mktemp('shared')}"
    with open_quick(url) as store:
        yield store


@pytest.fixture
def database(request: pytest.FixtureRequest, shared: Store) -> HoldfastDB:
    """A database with nothing in it, in a space of its own."""
    database = HoldfastDB(store=shared, space=request.node.name[-64:])
    assert list(shared.documents(request.node.name[-64:]).scan()) == []
    return database


@pytest.fixture
def plain() -> Iterator[HoldfastDB]:
    with HoldfastDB("memory:", settings=quick()) as opened:
        yield opened


# -- py-evm's own suites --------------------------------------------------------------------------------------------


class TestDatabaseAPI(DatabaseAPITestSuite):
    """Everything py-evm asks of a database."""

    @pytest.fixture
    def db(self, database: HoldfastDB) -> HoldfastDB:
        return database


class TestAtomicBatchAPI(AtomicDatabaseBatchAPITestSuite):
    """Everything py-evm asks of atomic batches."""

    @pytest.fixture
    def atomic_db(self, database: HoldfastDB) -> HoldfastDB:
        return database


class TestBatchAsDatabase(DatabaseAPITestSuite):
    """A batch is a database too."""

    @pytest.fixture
    def db(self, plain: HoldfastDB) -> Iterator[object]:
        with plain.atomic_batch() as batch:
            yield batch


# -- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_frame(plain: HoldfastDB) -> None:
    plain[b"old"] = b"1"
    before = frames(plain.store)
    with plain.atomic_batch() as batch:
        for number in range(100):
            batch[b"%d" % number] = b"x" * number
        del batch[b"old"]
        batch[b"back"] = b"1"
        del batch[b"back"]
        assert frames(plain.store) == before
        assert b"5" not in plain
    assert frames(plain.store) == before + 1
    assert plain[b"0"] == b""
    assert plain[b"99"] == b"x" * 99
    assert b"old" not in plain
    with plain.atomic_batch():
        assert plain.get(b"99") is not None
    assert frames(plain.store) == before + 1


def test_a_write_without_a_batch_is_a_frame(plain: HoldfastDB) -> None:
    before = frames(plain.store)
    plain[b"a"] = b"1"
    plain.set(b"b", b"2")
    del plain[b"a"]
    plain.delete(b"b")
    assert frames(plain.store) == before + 4
    plain.delete(b"never there")
    assert frames(plain.store) == before + 4


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_is_raised_in_a_batch_discards_it(plain: HoldfastDB, error: type[BaseException]) -> None:
    plain[b"a"] = b"1"
    before = frames(plain.store)
    batches = []

    def fail() -> None:
        with plain.atomic_batch() as batch:
            batches.append(batch)
            batch[b"a"] = b"2"
            batch[b"b"] = b"2"
            raise error

    with pytest.raises(error):
        fail()
    (batch,) = batches
    assert (plain[b"a"], plain.get(b"b"), frames(plain.store)) == (b"1", None, before)
    with pytest.raises(ValidationError):
        batch[b"b"]


def test_batches_inside_one_another_are_separate(plain: HoldfastDB) -> None:
    with plain.atomic_batch() as outer:
        outer[b"a"] = b"outer"
        with plain.atomic_batch() as inner:
            assert b"a" not in inner
            inner[b"a"] = b"inner"
            inner[b"b"] = b"inner"
        assert plain[b"a"] == b"inner"
        assert outer[b"a"] == b"outer"
        assert outer[b"b"] == b"inner"
    assert plain[b"a"] == b"outer"


def test_it_does_what_py_evms_own_database_does(plain: HoldfastDB) -> None:
    """The same random calls on ``AtomicDB`` and here give the same answers and the same kinds of errors."""
    rng, reference = random.Random(4), AtomicDB()
    keys = [b"%d" % number for number in range(8)]

    def both(one: Any, other: Any) -> None:
        what, key, value = (
            rng.choice(("get", "set", "del", "has", "delete", "read")),
            rng.choice(keys),
            rng.randbytes(2),
        )
        answers: list[object] = []
        for side in (one, other):
            try:
                if what == "set":
                    side[key] = value
                    answers.append(None)
                elif what == "del":
                    del side[key]
                    answers.append(None)
                elif what == "has":
                    answers.append(key in side)
                elif what == "delete":
                    answers.append(side.delete(key))
                else:
                    answers.append(side.get(key) if what == "get" else side[key])
            except KeyError:
                answers.append(KeyError)
        assert answers[0] == answers[1], (what, key)

    for _ in range(150):
        if rng.random() < 0.4:
            fails = rng.random() < 0.3
            try:
                with plain.atomic_batch() as batch, reference.atomic_batch() as expected:
                    for _ in range(rng.randrange(8)):
                        both(batch, expected)
                        if rng.random() < 0.2:
                            both(plain, reference)
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        both(plain, reference)
        assert [plain.get(key) for key in keys] == [reference.get(key) for key in keys]


def test_subclasses_of_bytes_are_taken_and_others_are_not(plain: HoldfastDB) -> None:
    class Hash(bytes):
        """As ``HexBytes``."""

    plain[Hash(b"key")] = Hash(b"value")
    assert type(plain[b"key"]) is bytes
    assert Hash(b"key") in plain
    with plain.atomic_batch() as batch:
        batch[Hash(b"more")] = bytearray(b"x")  # type: ignore[assignment]
        assert batch[Hash(b"more")] == b"x"
        with pytest.raises(InvalidInputError):
            batch["text"] = b""  # type: ignore[index]
        with pytest.raises(InvalidInputError):
            batch[b"a"] = 7  # type: ignore[assignment]
    for bad in ("text", 7, None):
        with pytest.raises(InvalidInputError):
            plain[bad]  # type: ignore[index]
    with pytest.raises(InvalidInputError):
        plain[b""] = b"no empty key"
    with pytest.raises(NotFoundError):
        plain[b"nothing"]


def test_a_batch_that_cannot_be_written_changes_nothing(plain: HoldfastDB, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def write(puts: dict[bytes, bytes]) -> None:
        with plain.atomic_batch() as batch:
            batches.append(batch)
            for key, value in puts.items():
                batch[key] = value

    with pytest.raises(LimitExceeded):
        write({b"a": b"1", b"k" * 401: b"2"})
    assert plain.get(b"a") is None
    with pytest.raises(ValidationError):
        batches[0][b"a"]

    def broken(*_args: object) -> None:
        raise PoisonedError("an earlier write failed")

    monkeypatch.setattr(plain._documents, "_write", broken)
    with pytest.raises(PoisonedError):
        write({b"a": b"1"})
    assert plain.get(b"a") is None
    with pytest.raises(ValidationError):
        batches[1][b"a"]


# -- making one -----------------------------------------------------------------------------------------------------


def test_py_evm_finds_it_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAIN_DB_BACKEND_CLASS", BACKEND)
    named = get_db_backend(db_path=tmp_path / "named")
    assert isinstance(named, HoldfastDB)
    with named:
        named[b"a"] = b"1"
        assert named.path == tmp_path / "named"
        assert repr(named) == f"HoldfastDB({str(tmp_path / 'named')!r}, space='evm')"
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path / "named"))
    found = get_db_backend()
    assert isinstance(found, HoldfastDB)
    with found:
        assert found[b"a"] == b"1"
        with pytest.raises(StoreLocked):
            get_db_backend()
    monkeypatch.delenv("HOLDFAST_DATA_DIR")
    with pytest.raises(InvalidInputError) as caught:
        get_db_backend()
    assert "HOLDFAST_DATA_DIR" in str(caught.value.remedy)


def test_a_store_that_is_open_is_shared_and_stays_open() -> None:
    with open_quick("memory:") as store:
        store.add_many(chain_of(None, 2))
        with HoldfastDB(store=store) as one, HoldfastDB(store=store, space="other") as other:
            one[b"a"] = b"1"
            other[b"a"] = b"2"
        assert store.documents("evm").get(b"a") == b"1"
        assert store.document_spaces() == ["evm", "other"]
        for more in ({"db_path": "memory:"}, {"settings": quick()}):
            with pytest.raises(InvalidInputError):
                HoldfastDB(store=store, **more)


def test_a_bad_space_leaves_no_store_open(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        HoldfastDB(tmp_path, space="")
    with HoldfastDB(tmp_path, settings=quick()) as database:
        database.close()
        database.close()
        with pytest.raises(ClosedError):
            database[b"a"]


@pytest.mark.slow
def test_without_py_evm_the_error_names_the_extra() -> None:
    program = (
        "import sys\nsys.modules['eth'] = sys.modules['eth.abc'] = None\n"
        "import holdfast.chains.evm\n"  # the rest of the room does not need it
        "try:\n    import holdfast.chains.evm.database\nexcept ImportError as error:\n    print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env=child_environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'holdfast[pyevm]'" in answer.stdout


# -- chains ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_chain_goes_on_where_it_ended(tmp_path: Path) -> None:
    with HoldfastDB(tmp_path, settings=quick()) as database:
        chain = pyevm_chain.open_chain(database)
        contract = pyevm_chain.deploy(chain)
        block, _ = pyevm_chain.mine(chain, contract)
    with HoldfastDB(tmp_path, settings=quick()) as database:
        chain = pyevm_chain.open_chain(database)
        assert chain.get_canonical_head() == block.header
        assert chain.get_canonical_block_by_number(2) == block
        assert pyevm_chain.counter(chain, contract) == 1
        assert chain.get_vm().state.get_code(contract) == pyevm_chain.RUNTIME
        again, _ = pyevm_chain.mine(chain, contract)
        assert (again.number, pyevm_chain.counter(chain, contract)) == (3, 2)
        assert chain.get_vm(at_header=block.header).state.get_storage(contract, 0) == 1
    report = verify_store(tmp_path, level="views")
    assert report.ok, report.problems


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "pyevm_chain.py")]
    for directory, start in (([], 0), ([str(tmp_path)], 0), ([str(tmp_path)], 6)):
        answer = subprocess.run(
            command + directory, env=child_environment(), capture_output=True, text=True, timeout=120
        )
        assert answer.returncode == 0, answer.stderr
        lines = answer.stdout.splitlines()
        assert lines[0] == f"opened at block {start}"
        assert lines[1].startswith(f"mined up to block {start + 4} ")
        assert lines[2] == lines[1].replace("mined up to", "opened at")
        assert lines[3] == f"mined up to block {start + 6}, the counter is 5"


def check_chain(url: str, said: list[str], *, more: int) -> None:
    """The chain holds exactly what was said, or up to ``more`` blocks after it, whole; and it goes on."""
    with HoldfastDB(url, settings=quick()) as database:
        chain = pyevm_chain.open_chain(database)
        head = chain.get_canonical_head()
        for line in said:
            height, block_hash, counter = line.split()
            header = chain.get_canonical_block_header_by_number(int(height))
            assert header.hash.hex() == block_hash
            assert chain.get_vm(at_header=header).state.get_storage(CONTRACT, 0) == int(counter)
        last = int(said[-1].split()[0]) if said else 0
        assert last <= head.block_number <= last + more + (0 if said else 1)
        if head.block_number == 0:
            assert pyevm_chain.deploy(chain) == CONTRACT
        before = pyevm_chain.counter(chain, CONTRACT)
        assert before == max(head.block_number - 1, 0)
        block, _ = pyevm_chain.mine(chain, CONTRACT)
        assert block.number == max(head.block_number, 1) + 1
        assert pyevm_chain.counter(chain, CONTRACT) == before + 1


@pytest.mark.slow
def test_a_kill_between_two_blocks_loses_none_that_returned(tmp_path: Path) -> None:
    for wanted in (1, 3):
        place = tmp_path / str(wanted)
        with subprocess.Popen(
            [sys.executable, str(AGENT), "mine", str(place), str(wanted)],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(wanted)]
            child.kill()
        assert all(said)
        check_chain(str(place), said, more=0)


@pytest.mark.slow
def test_a_kill_while_it_mines_leaves_a_whole_chain(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(AGENT), "mine", str(tmp_path), "1000"],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(20)]
        child.kill()
        said += [line for line in child.stdout.readlines() if line.endswith("\n")]
    check_chain(str(tmp_path), said, more=1)


@pytest.mark.slow
def test_killed_behind_every_frame_the_chain_is_whole(tmp_path: Path) -> None:
    steps = 20
    subprocess.run(
        [sys.executable, str(AGENT), "die", str(tmp_path), str(steps)],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )
    heads = []
    for step in range(1, steps + 1):
        said = (tmp_path / f"{step}.said").read_text().splitlines()
        check_chain(f"sqlite:{tmp_path / str(step)}", said, more=1)
        heads.append(len(said))
    assert heads[0] == 0
    assert heads[-1] >= 2
    assert heads == sorted(heads)


# -- eth-tester -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eth_tester_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAIN_DB_BACKEND_CLASS", BACKEND)
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path))
    fees = {"gas": 100_000, "max_fee_per_gas": 10**10, "max_priority_fee_per_gas": 10**9}

    tester = EthereumTester(PyEVMBackend())
    first, second = tester.get_accounts()[:2]
    balance = tester.get_balance(second)
    paid = tester.send_transaction({"from": first, "to": second, "value": 12345, **fees})
    made = tester.send_transaction({"from": first, "data": "0x" + pyevm_chain.DEPLOY.hex(), **fees})
    contract = tester.get_transaction_receipt(made)["contract_address"]
    tester.send_transaction({"from": first, "to": contract, **fees})
    snapshot = tester.take_snapshot()
    tester.mine_blocks(2)
    tester.revert_to_snapshot(snapshot)
    latest = tester.get_block_by_number("latest")
    assert latest["number"] == 3
    with pytest.raises(StoreLocked):  # it would open the directory a second time; a new chain needs a new directory
        tester.reset_to_genesis()
    tester.backend.chain.chaindb.db.close()

    tester = EthereumTester(PyEVMBackend())
    assert tester.get_block_by_number("latest")["hash"] == latest["hash"]
    assert tester.get_balance(second) == balance + 12345
    assert tester.get_transaction_receipt(paid)["block_number"] == 1
    assert int(tester.get_storage_at(contract, "0x0"), 16) == 1
    tester.send_transaction({"from": first, "to": contract, **fees})
    assert tester.get_block_by_number("latest")["number"] == 4
    assert int(tester.get_storage_at(contract, "0x0"), 16) == 2
    tester.backend.chain.chaindb.db.close()
    report = verify_store(tmp_path, level="views")
    assert report.ok, report.problems
