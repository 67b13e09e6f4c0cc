//! SHA-256 by whole blocks, and the hash rules of a scheme.
//!
//! A leaf or inner hash is exactly two compressions: the lanes are padded once, and only 64 bytes of them change.
//! The compression function picks the processor's SHA instructions at run time.

use sha2::block_api::compress256;

pub type Hash = [u8; 32];

const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
const BLOCK: usize = 64;
/// Length of a lane: two blocks.
const LANE: usize = 2 * BLOCK;
/// What the padding takes: a one bit (a byte with it) and the length in bits.
const PADDING: usize = 9;
/// The longest prefix with which two hashes still fit into a lane.
pub const PREFIX_MAX: usize = LANE - PADDING - 2 * 32;

fn compress(state: &mut [u32; 8], bytes: &[u8]) {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    debug_assert!(rest.is_empty());
    compress256(state, blocks);
}

fn finish(state: &[u32; 8]) -> Hash {
    let mut out = [0; 32];
    for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    out
}

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> Hash {
    let mut state = INITIAL;
    let whole = data.len() / BLOCK * BLOCK;
    if whole > 0 {
        compress(&mut state, &data[..whole]);
    }
    let rest = &data[whole..];
    let mut tail = [0; LANE];
    tail[..rest.len()].copy_from_slice(rest);
    tail[rest.len()] = 0x80;
    let end = if rest.len() + PADDING <= BLOCK { BLOCK } else { LANE };
    tail[end - 8..end].copy_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    compress(&mut state, &tail[..end]);
    finish(&state)
}

/// A message of `prefix` and two hashes with its padding.
#[derive(Clone)]
struct Lane {
    bytes: [u8; LANE],
    at: usize,
}

impl Lane {
    fn new(prefix: &[u8]) -> Self {
        let mut bytes = [0; LANE];
        let at = prefix.len();
        assert!(at <= PREFIX_MAX);
        bytes[..at].copy_from_slice(prefix);
        bytes[at + 64] = 0x80;
        bytes[LANE - 8..].copy_from_slice(&((at as u64 + 64) * 8).to_be_bytes());
        Lane { bytes, at }
    }

    #[inline]
    fn digest(&mut self, first: &Hash, second: &Hash) -> Hash {
        let space = &mut self.bytes[self.at..self.at + 64];
        space[..32].copy_from_slice(first);
        space[32..].copy_from_slice(second);
        let mut state = INITIAL;
        compress(&mut state, &self.bytes);
        finish(&state)
    }
}

/// The hash rules of one scheme, with lanes to work in: every thread has its own clone.
#[derive(Clone)]
pub struct Hasher {
    leaf: Lane,
    inner: Lane,
    pub null: Hash,
}

impl Hasher {
    /// Both prefixes are at most `PREFIX_MAX` bytes.
    pub fn new(leaf_prefix: &[u8], inner_prefix: &[u8], null: Hash) -> Self {
        Hasher {
            leaf: Lane::new(leaf_prefix),
            inner: Lane::new(inner_prefix),
            null,
        }
    }

    #[inline]
    pub fn leaf(&mut self, key_hash: &Hash, value_hash: &Hash) -> Hash {
        self.leaf.digest(key_hash, value_hash)
    }

    #[inline]
    pub fn inner(&mut self, left: &Hash, right: &Hash) -> Hash {
        self.inner.digest(left, right)
    }

    /// The hash of a node that has `hash` on the side of `bit` and nothing on the other one.
    fn beside_null(&mut self, hash: &Hash, bit: bool) -> Hash {
        let null = self.null;
        if bit {
            self.inner(&null, hash)
        } else {
            self.inner(hash, &null)
        }
    }

    /// `node(leaves, depth)`: the leaves are in strict order of their key hash and share `depth` bits.
    pub fn node(&mut self, leaves: &[Leaf], depth: usize) -> Hash {
        let (first, last) = match leaves {
            [] => return self.null,
            [leaf] => return leaf.hash,
            [first, .., last] => (first, last),
        };
        let split = shared_bits(&first.key, &last.key);
        let mut hash = if let [left, right] = leaves {
            self.inner(&left.hash, &right.hash)
        } else {
            let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.key, split)));
            let left = self.node(left, split + 1);
            let right = self.node(right, split + 1);
            self.inner(&left, &right)
        };
        for above in (depth..split).rev() {
            hash = self.beside_null(&hash, bit(&first.key, above));
        }
        hash
    }
}

/// A leaf as the tree holds it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    pub key: Hash,
    pub hash: Hash,
}

pub const RECORD: usize = 64;

/// The leaf of a record of `RECORD` bytes.
pub fn leaf_of(record: &[u8; RECORD]) -> Leaf {
    let mut leaf = Leaf {
        key: [0; 32],
        hash: [0; 32],
    };
    leaf.key.copy_from_slice(&record[..32]);
    leaf.hash.copy_from_slice(&record[32..]);
    leaf
}

/// Bit `depth` of a path, the most significant bit of the first byte being number 0.
#[inline]
pub fn bit(path: &Hash, depth: usize) -> bool {
    path[depth >> 3] >> (7 - (depth & 7)) & 1 == 1
}

/// How many bits `a` and `b` begin with in common, 256 if they are equal.
pub fn shared_bits(a: &Hash, b: &Hash) -> usize {
    for (at, (x, y)) in a.iter().zip(b).enumerate() {
        if x != y {
            return at * 8 + (x ^ y).leading_zeros() as usize;
        }
    }
    256
}
