//! What is asked of one version: paths, neighbours, leaves in order, subtrees.

use crate::hash::{bit, Hash, Hasher, Leaf};
use crate::tree::{Child, Node};

/// Where a path ends: the lone leaf there, if any, and the siblings, nearest first.
pub struct Path {
    pub leaf: Option<Leaf>,
    pub siblings: Vec<Hash>,
}

/// The node at `depth` on the way to the first of its leaves; `siblings` lead to the root, nearest first.
pub struct Subtree {
    pub prefix: Hash,
    pub depth: usize,
    pub leaves: usize,
    pub hash: Hash,
    pub siblings: Vec<Hash>,
}

fn halves(leaves: &[Leaf], depth: usize) -> (&[Leaf], &[Leaf]) {
    leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.key, depth)))
}

/// Where the path of `key` ends.
pub fn path(hasher: &mut Hasher, root: &Child, key: &Hash) -> Path {
    let mut siblings = Vec::new();
    let mut node = &root.node;
    let mut leaves: &[Leaf] = &[];
    let mut sides = None;
    while !matches!(node, Node::Empty) {
        match node {
            Node::Empty => {}
            Node::Bucket(bucket) => {
                leaves = &bucket.slice;
                sides = Some(&bucket.header.header);
                break;
            }
            Node::Inner(inner) => {
                let (own, other) = if bit(key, siblings.len()) {
                    (&inner.right, &inner.left)
                } else {
                    (&inner.left, &inner.right)
                };
                siblings.push(other.hash);
                node = &own.node;
            }
        }
    }
    while leaves.len() > 1 {
        let depth = siblings.len();
        let (left, right) = halves(leaves, depth);
        let turned = bit(key, depth);
        let (own, other) = if turned { (right, left) } else { (left, right) };
        siblings.push(match sides.take() {
            Some(sides) => sides[usize::from(!turned)],
            None => hasher.node(other, depth + 1),
        });
        leaves = own;
    }
    siblings.reverse();
    Path {
        leaf: leaves.first().copied(),
        siblings,
    }
}

fn outermost(mut node: &Node, last: bool) -> Option<Hash> {
    loop {
        match node {
            Node::Empty => return None,
            Node::Bucket(bucket) => {
                let leaf = if last {
                    bucket.slice.last()
                } else {
                    bucket.slice.first()
                };
                return leaf.map(|leaf| leaf.key);
            }
            Node::Inner(inner) => {
                let (near, far) = if last {
                    (&inner.right.node, &inner.left.node)
                } else {
                    (&inner.left.node, &inner.right.node)
                };
                node = if matches!(near, Node::Empty) { far } else { near };
            }
        }
    }
}

/// The key hashes next to `key` on both sides.
pub fn neighbours(root: &Node, key: &Hash) -> (Option<Hash>, Option<Hash>) {
    let (mut below, mut above) = (&Node::Empty, &Node::Empty);
    let mut node = root;
    let mut depth = 0;
    while let Node::Inner(inner) = node {
        let (left, right) = (&inner.left.node, &inner.right.node);
        let turned = bit(key, depth);
        node = if turned { right } else { left };
        match (turned, left, right) {
            (true, Node::Empty, _) | (false, _, Node::Empty) => {}
            (true, left, _) => below = left,
            (false, _, right) => above = right,
        }
        depth += 1;
    }
    let leaves: &[Leaf] = if let Node::Bucket(bucket) = node {
        &bucket.slice
    } else {
        &[]
    };
    let before = leaves.partition_point(|leaf| leaf.key < *key);
    let behind = leaves.partition_point(|leaf| leaf.key <= *key);
    let lower = before.checked_sub(1).map(|at| leaves[at].key);
    let upper = leaves.get(behind).map(|leaf| leaf.key);
    (
        lower.or_else(|| outermost(below, true)),
        upper.or_else(|| outermost(above, false)),
    )
}

/// At most `limit` leaves with a key hash of at least `start`, in order, behind those in `out`.
pub fn from(node: &Node, start: &Hash, limit: usize, out: &mut Vec<Leaf>) {
    scan(node, Some(start), 0, limit, out);
}

fn scan(node: &Node, start: Option<&Hash>, depth: usize, limit: usize, out: &mut Vec<Leaf>) {
    if out.len() >= limit {
        return;
    }
    match node {
        Node::Empty => {}
        Node::Bucket(bucket) => {
            let leaves = &bucket.slice;
            let first = start.map_or(0, |start| leaves.partition_point(|leaf| leaf.key < *start));
            let found = &leaves[first..];
            out.extend_from_slice(&found[..found.len().min(limit - out.len())]);
        }
        Node::Inner(inner) => {
            let (lower, upper) = match start {
                Some(start) if bit(start, depth) => (false, Some(start)),
                _ => (true, None),
            };
            if lower {
                scan(&inner.left.node, start, depth + 1, limit, out);
            }
            scan(&inner.right.node, upper, depth + 1, limit, out);
        }
    }
}

/// The topmost nodes with at most `most` leaves each, in order.
pub fn subtrees(hasher: &mut Hasher, root: &Child, most: usize) -> Vec<Subtree> {
    let mut walk = Walk {
        hasher,
        most,
        prefix: [0; 32],
        siblings: Vec::new(),
        found: Vec::new(),
    };
    walk.child(root);
    walk.found
}

struct Walk<'a> {
    hasher: &'a mut Hasher,
    most: usize,
    prefix: Hash,
    siblings: Vec<Hash>,
    found: Vec<Subtree>,
}

impl Walk<'_> {
    fn child(&mut self, child: &Child) {
        let count = child.node.leaves();
        match &child.node {
            Node::Empty => {}
            _ if count <= self.most => self.take(count, child.hash),
            Node::Bucket(bucket) => self.slice(&bucket.slice),
            Node::Inner(inner) => {
                self.down(false, inner.right.hash, |walk| walk.child(&inner.left));
                self.down(true, inner.left.hash, |walk| walk.child(&inner.right));
            }
        }
    }

    fn slice(&mut self, leaves: &[Leaf]) {
        let depth = self.siblings.len();
        if leaves.is_empty() {
            return;
        }
        if leaves.len() <= self.most {
            let hash = self.hasher.node(leaves, depth);
            return self.take(leaves.len(), hash);
        }
        let (left, right) = halves(leaves, depth);
        let hashes = (self.hasher.node(left, depth + 1), self.hasher.node(right, depth + 1));
        self.down(false, hashes.1, |walk| walk.slice(left));
        self.down(true, hashes.0, |walk| walk.slice(right));
    }

    fn down(&mut self, right: bool, sibling: Hash, go: impl FnOnce(&mut Self)) {
        let depth = self.siblings.len();
        let mask = 0x80 >> (depth & 7);
        self.siblings.push(sibling);
        if right {
            self.prefix[depth >> 3] |= mask;
        }
        go(self);
        self.prefix[depth >> 3] &= !mask;
        self.siblings.pop();
    }

    fn take(&mut self, leaves: usize, hash: Hash) {
        self.found.push(Subtree {
            prefix: self.prefix,
            depth: self.siblings.len(),
            leaves,
            hash,
            siblings: self.siblings.iter().rev().copied().collect(),
        });
    }
}
