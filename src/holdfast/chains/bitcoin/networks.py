"""The networks whose block files are understood, and what is fixed for ever in each of them.

Invariants:
    * ``magic`` is the four bytes before each block in a ``blk*.dat`` file and on the wire.
    * ``proof_of_work`` is false where the hash function of the proof of work is not SHA-256d (Litecoin: scrypt). Links
      and Merkle roots of such a network are checked, the work itself is not.

Source: ``src/kernel/chainparams.cpp`` of Bitcoin Core and ``src/chainparams.cpp`` of Litecoin Core.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidInputError

__all__ = ["NETWORKS", "Network", "network", "networks_of_magic"]

_COINBASE = (
    "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff4d04ffff001d0104455468652054696d6573"
    "2030332f4a616e2f32303039204368616e63656c6c6f72206f6e206272696e6b206f66207365636f6e64206261696c6f757420666f722062616e"
    "6b73ffffffff0100f2052a01000000434104678afdb0fe5548271967f1a67130b7105cd6a828e03909a67962e0ea1f61deb649f6bc3f4cef38c4"
    "f35504e51ec112de5c384df7ba0b8d578a4c702b6bf11d5fac00000000"
)
_ROOT = "3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a"


def _genesis(time: int, bits: int, nonce: int) -> bytes:
    """Bitcoin's first block: its networks differ only in time, bits and nonce."""
    fields = time.to_bytes(4, "little") + bits.to_bytes(4, "little") + nonce.to_bytes(4, "little")
    return b"\x01\0\0\0" + bytes(32) + bytes.fromhex(_ROOT) + fields + b"\x01" + bytes.fromhex(_COINBASE)


@dataclass(frozen=True, slots=True)
class Network:
    """The constants of one network. ``genesis`` is the raw first block, empty if it is taken from the files."""

    name: str
    magic: bytes
    pow_limit: int
    genesis: bytes = b""
    genesis_hash: bytes = b""
    proof_of_work: bool = True
    retargets: bool = False
    """True if ``bits`` follows Bitcoin's rule of 2016 blocks without exception, so that it can be checked."""

    @property
    def note(self) -> str:
        """What is not checked on this network, as one sentence; empty if the proof of work is checked."""
        if self.proof_of_work:
            return ""
        return f"{self.name} uses scrypt: links and Merkle roots are checked, the proof of work is not"


def _hash(display: str) -> bytes:
    return bytes.fromhex(display)[::-1]


_MAIN_LIMIT = 0xFFFF << 208
_REGTEST_LIMIT = 0x7FFFFF << 232
_LITECOIN_LIMIT = 0x0FFFFF << 216

NETWORKS: dict[str, Network] = {
    item.name: item
    for item in (
        Network(
            "main",
            bytes.fromhex("f9beb4d9"),
            _MAIN_LIMIT,
            _genesis(1231006505, 0x1D00FFFF, 2083236893),
            _hash("000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"),
            retargets=True,
        ),
        Network(
            "testnet",
            bytes.fromhex("0b110907"),
            _MAIN_LIMIT,
            _genesis(1296688602, 0x1D00FFFF, 414098458),
            _hash("000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943"),
        ),
        Network(
            "signet",
            bytes.fromhex("0a03cf40"),
            0x0377AE << 216,
            _genesis(1598918400, 0x1E0377AE, 52613770),
            _hash("00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6"),
        ),
        Network(
            "regtest",
            bytes.fromhex("fabfb5da"),
            _REGTEST_LIMIT,
            _genesis(1296688602, 0x207FFFFF, 2),
            _hash("0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"),
        ),
        Network(
            "litecoin",
            bytes.fromhex("fbc0b6db"),
            _LITECOIN_LIMIT,
            genesis_hash=_hash("12a765e31ffd4059bada1e25190f6e98c99d9714d334efa41a195a7e7e04bfe2"),
            proof_of_work=False,
        ),
        Network(
            "litecoin-testnet",
            bytes.fromhex("fdd2c8f1"),
            _LITECOIN_LIMIT,
            genesis_hash=_hash("4966625a4b2851d9fdee139e56211a0d88575f59ed816ff5e6a63deb4e3e29a0"),
            proof_of_work=False,
        ),
        Network(
            "litecoin-regtest",
            bytes.fromhex("fabfb5da"),
            _REGTEST_LIMIT,
            genesis_hash=_hash("530827f38f93b43ed12af0b3ad25a288dc02ed74d6d7857862df51fc56c416f9"),
            proof_of_work=False,
        ),
    )
}


def network(name: str) -> Network:
    """The network called ``name``. Raises ``InvalidInputError`` that lists the names."""
    found = NETWORKS.get(name)
    if found is None:
        raise InvalidInputError("this network is not known", found=name, expected=", ".join(sorted(NETWORKS)))
    return found


def networks_of_magic(magic: bytes) -> tuple[Network, ...]:
    """Every network whose files carry ``magic``: none, one, or two (both regtests share it)."""
    return tuple(item for item in NETWORKS.values() if item.magic == magic)
