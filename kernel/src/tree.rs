//! The versions of the tree: immutable nodes that versions share, and how they are read.
//!
//! Invariants:
//!   * A subtree of at most `BUCKET_MAX` leaves is a bucket (or empty), a larger one an inner node. So the layout is a
//!     function of the leaves, and a lone leaf is always found in a bucket: an inner hash is never floated up.
//!   * A bucket's leaves are in strict order of their key hash. No hash below a bucket is kept.
//!   * The hash of a node stands beside the reference to it, so that a path can be rebuilt without touching siblings.
//!   * Depth is at most 256, and so is every recursion.

use std::sync::Arc;

use crate::hash::{bit, Hash, Hasher, Leaf};

/// Most leaves of a bucket: more save memory, fewer save hashes.
pub const BUCKET_MAX: usize = 12;

/// Memory of an inner node and of a bucket without its leaves, with the allocator's share.
const INNER_BYTES: usize = 144;
const BUCKET_BYTES: usize = 24;

#[derive(Clone)]
pub enum Node {
    Empty,
    Bucket(Arc<[Leaf]>),
    Inner(Arc<Inner>),
}

/// A node with its hash.
#[derive(Clone)]
pub struct Child {
    pub hash: Hash,
    pub node: Node,
}

pub struct Inner {
    /// Leaves below.
    pub leaves: u32,
    /// Buckets below.
    pub buckets: u32,
    pub left: Child,
    pub right: Child,
}

impl Node {
    pub fn leaves(&self) -> usize {
        match self {
            Node::Empty => 0,
            Node::Bucket(leaves) => leaves.len(),
            Node::Inner(inner) => inner.leaves as usize,
        }
    }

    fn buckets(&self) -> u32 {
        match self {
            Node::Empty => 0,
            Node::Bucket(_) => 1,
            Node::Inner(inner) => inner.buckets,
        }
    }

    /// Estimate of the memory below and with this node: an inner node for each bucket, which holds but for long
    /// chains of shared bits.
    pub fn size_bytes(&self) -> usize {
        self.buckets() as usize * (INNER_BYTES + BUCKET_BYTES) + self.leaves() * size_of::<Leaf>()
    }

    /// All leaves, in order, behind those in `out`.
    pub fn collect(&self, out: &mut Vec<Leaf>) {
        match self {
            Node::Empty => {}
            Node::Bucket(leaves) => out.extend_from_slice(leaves),
            Node::Inner(inner) => {
                inner.left.node.collect(out);
                inner.right.node.collect(out);
            }
        }
    }
}

impl Child {
    pub fn empty(hasher: &Hasher) -> Self {
        Child {
            hash: hasher.null,
            node: Node::Empty,
        }
    }

    /// The node of these leaves, which are in strict order and share `depth` bits.
    pub fn build(hasher: &mut Hasher, leaves: &[Leaf], depth: usize) -> Self {
        if leaves.is_empty() {
            return Child::empty(hasher);
        }
        if leaves.len() <= BUCKET_MAX {
            return Child {
                hash: hasher.node(leaves, depth),
                node: Node::Bucket(Arc::from(leaves)),
            };
        }
        let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.key, depth)));
        let left = Child::build(hasher, left, depth + 1);
        let right = Child::build(hasher, right, depth + 1);
        Child::join(hasher, left, right, depth)
    }

    /// The node over `left` and `right` at `depth`.
    pub fn join(hasher: &mut Hasher, left: Child, right: Child, depth: usize) -> Self {
        let total = left.node.leaves() + right.node.leaves();
        if total <= BUCKET_MAX {
            let mut leaves = Vec::with_capacity(total);
            left.node.collect(&mut leaves);
            right.node.collect(&mut leaves);
            return Child::build(hasher, &leaves, depth);
        }
        Child {
            hash: hasher.inner(&left.hash, &right.hash),
            node: Node::Inner(Arc::new(Inner {
                leaves: u32::try_from(total).expect("a tree holds fewer than 2^32 leaves"),
                buckets: left.node.buckets() + right.node.buckets(),
                left,
                right,
            })),
        }
    }
}
