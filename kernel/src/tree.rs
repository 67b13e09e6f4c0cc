//! The versions of the tree: immutable nodes that versions share, and how they are read.
//!
//! Invariants:
//!   * A subtree of at most `BUCKET_MAX` leaves is a bucket (or empty), a larger one an inner node. So the layout is a
//!     function of the leaves, and a lone leaf is always found in a bucket: an inner hash is never floated up.
//!   * A bucket's leaves are in strict order of their key hash. Of the hashes below it, those of its two sides are kept,
//!     so that a change hashes one side anew.
//!   * The hash of a node stands beside the reference to it, so that a path can be rebuilt without touching siblings.
//!   * Depth is at most 256, and so is every recursion.

use triomphe::{Arc, ThinArc};

use crate::hash::{bit, Hash, Hasher, Leaf};
use crate::prefetch;

/// Most leaves of a bucket: more save memory, fewer save hashes.
pub const BUCKET_MAX: usize = 16;

/// What stands in front of an inner node (a counter) and of a bucket's leaves (a counter, the sides and their number).
const INNER_HEADER: usize = size_of::<usize>();
const BUCKET_HEADER: usize = 2 * size_of::<usize>() + size_of::<Sides>();
/// Mean of what the allocator adds to a bucket, whose length is one of few.
const BUCKET_SLACK: usize = 96;

/// The hashes of the two nodes below a bucket; without meaning if it has only one leaf.
pub type Sides = [Hash; 2];

#[derive(Clone)]
pub enum Node {
    Empty,
    Bucket(ThinArc<Sides, Leaf>),
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
    /// The processor begins to fetch what this node is read or shared by.
    #[inline]
    pub fn prefetch(&self) {
        match self {
            Node::Empty => {}
            Node::Bucket(bucket) => prefetch::counter(bucket.slice.as_ptr(), BUCKET_HEADER),
            Node::Inner(inner) => prefetch::counter(Arc::as_ptr(inner), INNER_HEADER),
        }
    }

    /// As `prefetch`, and all that stands in the node.
    #[inline]
    pub fn prefetch_all(&self) {
        match self {
            Node::Empty => {}
            Node::Bucket(bucket) => prefetch::all(&bucket.slice, BUCKET_HEADER),
            Node::Inner(inner) => prefetch::all(&**inner, INNER_HEADER),
        }
    }

    /// The node is freed as far as nobody else has it: level by level, so that what comes next is fetched meanwhile.
    pub fn free(self) {
        let mut level = vec![self];
        while !level.is_empty() {
            let mut below = Vec::new();
            for node in level {
                let Node::Inner(inner) = node else { continue };
                if let Ok(inner) = Arc::try_unwrap(inner) {
                    for child in [inner.left.node, inner.right.node] {
                        child.prefetch();
                        below.push(child);
                    }
                }
            }
            level = below;
        }
    }

    pub fn leaves(&self) -> usize {
        match self {
            Node::Empty => 0,
            Node::Bucket(bucket) => bucket.slice.len(),
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
        let bucket = INNER_HEADER + size_of::<Inner>() + BUCKET_HEADER + BUCKET_SLACK;
        self.buckets() as usize * bucket + self.leaves() * size_of::<Leaf>()
    }

    /// All leaves, in order, behind those in `out`.
    pub fn collect(&self, out: &mut Vec<Leaf>) {
        match self {
            Node::Empty => {}
            Node::Bucket(bucket) => out.extend_from_slice(&bucket.slice),
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
        if leaves.len() == 1 {
            return Child::bucket(hasher, leaves, [hasher.null; 2]);
        }
        let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.key, depth)));
        if leaves.len() <= BUCKET_MAX {
            let sides = [hasher.node(left, depth + 1), hasher.node(right, depth + 1)];
            return Child::bucket(hasher, leaves, sides);
        }
        let left = Child::build(hasher, left, depth + 1);
        let right = Child::build(hasher, right, depth + 1);
        Child::join(hasher, left, right)
    }

    /// The bucket of these leaves, at least one and at most `BUCKET_MAX`.
    pub fn bucket(hasher: &mut Hasher, leaves: &[Leaf], sides: Sides) -> Self {
        let hash = match leaves {
            [leaf] => leaf.hash,
            _ => hasher.inner(&sides[0], &sides[1]),
        };
        Child {
            hash,
            node: Node::Bucket(ThinArc::from_header_and_slice(sides, leaves)),
        }
    }

    /// The node over `left` and `right`.
    pub fn join(hasher: &mut Hasher, left: Child, right: Child) -> Self {
        let total = left.node.leaves() + right.node.leaves();
        if total <= BUCKET_MAX {
            let mut leaves = Vec::with_capacity(total);
            left.node.collect(&mut leaves);
            right.node.collect(&mut leaves);
            return match leaves.len() {
                0 => Child::empty(hasher),
                _ => Child::bucket(hasher, &leaves, [left.hash, right.hash]),
            };
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
