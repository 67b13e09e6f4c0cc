//! A batch of changes makes the next version: disjoint subtrees are rebuilt by several threads, then the top is joined.

use crate::build::Builder;
use crate::hash::{bit, sha256, Hash, Hasher, Leaf};
use crate::threads;
use crate::tree::{Child, Node, Sides, BUCKET_MAX};

/// Fewer changes than these are not worth a thread.
pub const THREADED_MIN: usize = 256;
/// Subtrees below this depth are never split among threads.
const SPLIT_DEPTH: usize = 6;
/// Keys and values that a thread hashes at a time.
const HASHED_AT_ONCE: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The key had this value, or is removed and was absent.
    Nothing,
    Inserted,
    Updated,
    Removed,
}

/// A leaf to put (`hash` is its hash) or to remove, and what became of it.
#[derive(Clone, Copy)]
pub struct Change {
    pub key: Hash,
    pub hash: Hash,
    pub remove: bool,
    pub outcome: Outcome,
    /// The caller's number of the change.
    pub number: u32,
}

impl Change {
    pub fn put(key: Hash, hash: Hash, number: u32) -> Self {
        Change {
            key,
            hash,
            remove: false,
            outcome: Outcome::Nothing,
            number,
        }
    }

    pub fn remove(key: Hash, number: u32) -> Self {
        Change {
            remove: true,
            ..Change::put(key, [0; 32], number)
        }
    }
}

/// What a thread works with.
struct Worker {
    hasher: Hasher,
    leaves: Vec<Leaf>,
}

/// Changes whose way down the tree is fetched at a time.
const FETCHED_AT_ONCE: usize = 64;

/// The processor has fetched the ways of these changes down from the node: the nodes on them, and the counters of those
/// beside them, which will be shared. All ways go down level by level, so the waiting for memory overlaps.
#[inline(never)] // its array has no place in the frames of `apply`, which may be 256
fn fetch(node: &Node, changes: &[Change], mut depth: usize) {
    let mut ways = [(node, 0); FETCHED_AT_ONCE];
    let mut count = changes.len().min(FETCHED_AT_ONCE);
    for (number, way) in ways.iter_mut().enumerate() {
        way.1 = number;
    }
    while count > 0 {
        let mut kept = 0;
        for at in 0..count {
            let (node, change) = ways[at];
            let Node::Inner(inner) = node else { continue };
            let (own, other) = if bit(&changes[change].key, depth) {
                (&inner.right.node, &inner.left.node)
            } else {
                (&inner.left.node, &inner.right.node)
            };
            own.prefetch_all();
            other.prefetch();
            ways[kept] = (own, change);
            kept += 1;
        }
        count = kept;
        depth += 1;
    }
}

impl Worker {
    fn new(hasher: &Hasher) -> Self {
        Worker {
            hasher: hasher.clone(),
            leaves: Vec::new(),
        }
    }

    /// The node with the changes applied, or `None` if they change nothing. `fetched`: see `fetch`.
    fn apply(&mut self, node: &Node, changes: &mut [Change], depth: usize, fetched: bool) -> Option<Child> {
        if changes.is_empty() {
            return None;
        }
        let inner = match node {
            Node::Empty => return self.splice(&[], None, changes, depth),
            Node::Bucket(bucket) => return self.splice(&bucket.slice, Some(&bucket.header.header), changes, depth),
            Node::Inner(inner) => inner,
        };
        let fetches = !fetched && changes.len() <= FETCHED_AT_ONCE;
        if fetches {
            fetch(node, changes, depth);
        }
        let fetched = fetched || fetches;
        let (lower, upper) = halves(changes, depth);
        let left = self.apply(&inner.left.node, lower, depth + 1, fetched);
        let right = self.apply(&inner.right.node, upper, depth + 1, fetched);
        rejoin(&mut self.hasher, &inner.left, &inner.right, left, right)
    }

    /// The node of the old leaves, whose sides have these hashes, with the changes merged in.
    fn splice(&mut self, old: &[Leaf], sides: Option<&Sides>, changes: &mut [Change], depth: usize) -> Option<Child> {
        self.leaves.clear();
        if !merge_leaves(old, changes, &mut self.leaves) {
            return None;
        }
        let (leaves, hasher) = (&self.leaves[..], &mut self.hasher);
        let known = sides.filter(|_| old.len() > 1 && (2..=BUCKET_MAX).contains(&leaves.len()));
        let Some(known) = known else {
            return Some(Child::build(hasher, leaves, depth));
        };
        let mut sides = *known;
        let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.key, depth)));
        let (lower, upper) = halves(changes, depth);
        for (number, (side, changes)) in [(left, lower), (right, upper)].into_iter().enumerate() {
            if changes.iter().any(|change| change.outcome != Outcome::Nothing) {
                sides[number] = hasher.node(side, depth + 1);
            }
        }
        Some(Child::bucket(hasher, leaves, sides))
    }
}

/// The old leaves with the changes merged in stand in `out`; false if they are what they were.
fn merge_leaves(old: &[Leaf], changes: &mut [Change], out: &mut Vec<Leaf>) -> bool {
    let mut dirty = false;
    let mut at = 0;
    for change in changes {
        while at < old.len() && old[at].key < change.key {
            out.push(old[at]);
            at += 1;
        }
        let present = old.get(at).filter(|leaf| leaf.key == change.key);
        change.outcome = match (present, change.remove) {
            (None, true) => Outcome::Nothing,
            (None, false) => Outcome::Inserted,
            (Some(_), true) => Outcome::Removed,
            (Some(leaf), false) if leaf.hash == change.hash => Outcome::Nothing,
            (Some(_), false) => Outcome::Updated,
        };
        dirty |= change.outcome != Outcome::Nothing;
        at += usize::from(present.is_some());
        if !change.remove {
            out.push(Leaf {
                key: change.key,
                hash: change.hash,
            });
        }
    }
    out.extend_from_slice(&old[at..]);
    dirty
}

fn halves(changes: &mut [Change], depth: usize) -> (&mut [Change], &mut [Change]) {
    let middle = changes.partition_point(|change| !bit(&change.key, depth));
    changes.split_at_mut(middle)
}

fn rejoin(
    hasher: &mut Hasher,
    old_left: &Child,
    old_right: &Child,
    left: Option<Child>,
    right: Option<Child>,
) -> Option<Child> {
    if left.is_none() && right.is_none() {
        return None;
    }
    let left = left.unwrap_or_else(|| old_left.clone());
    let right = right.unwrap_or_else(|| old_right.clone());
    Some(Child::join(hasher, left, right))
}

/// A subtree, its changes, and its depth.
type Task<'a> = (&'a Node, &'a mut [Change], usize);

/// The subtrees that have changes, from the left to the right.
fn plan<'a>(node: &'a Node, changes: &'a mut [Change], depth: usize, tasks: &mut Vec<Task<'a>>) {
    if changes.is_empty() {
        return;
    }
    match node {
        Node::Inner(inner) if depth < SPLIT_DEPTH => {
            let (lower, upper) = halves(changes, depth);
            plan(&inner.left.node, lower, depth + 1, tasks);
            plan(&inner.right.node, upper, depth + 1, tasks);
        }
        _ => tasks.push((node, changes, depth)),
    }
}

/// The node whose subtrees, as planned from the same changes, became `done`.
fn merge(
    hasher: &mut Hasher,
    node: &Node,
    changes: &mut [Change],
    depth: usize,
    done: &mut impl Iterator<Item = Option<Child>>,
) -> Option<Child> {
    if changes.is_empty() {
        return None;
    }
    match node {
        Node::Inner(inner) if depth < SPLIT_DEPTH => {
            let (lower, upper) = halves(changes, depth);
            let left = merge(hasher, &inner.left.node, lower, depth + 1, done);
            let right = merge(hasher, &inner.right.node, upper, depth + 1, done);
            rejoin(hasher, &inner.left, &inner.right, left, right)
        }
        _ => done.next().expect("as many results as tasks"),
    }
}

/// The version with the changes applied, which are in strict order of their key; each gets its outcome.
pub fn apply(hasher: &Hasher, root: &Child, changes: &mut [Change]) -> Child {
    // The system is asked for its processors only where it matters: that takes longer than a small update.
    let threads = if changes.len() < THREADED_MIN {
        1
    } else {
        threads::count()
    };
    let new = if threads == 1 {
        Worker::new(hasher).apply(&root.node, changes, 0, false)
    } else if !matches!(root.node, Node::Inner(_)) {
        let (mut old, mut leaves) = (Vec::new(), Vec::with_capacity(BUCKET_MAX + changes.len()));
        root.node.collect(&mut old);
        merge_leaves(&old, changes, &mut leaves).then(|| Builder::new(hasher).finish(leaves))
    } else {
        let mut tasks = Vec::with_capacity(1 << SPLIT_DEPTH);
        plan(&root.node, changes, 0, &mut tasks);
        let start = || Worker::new(hasher);
        let done = threads::run(threads, tasks, start, |worker, (node, part, depth)| {
            worker.apply(node, part, depth, false)
        });
        merge(&mut hasher.clone(), &root.node, changes, 0, &mut done.into_iter())
    };
    new.unwrap_or_else(|| root.clone())
}

/// `node(leaves, depth)`, see `Hasher::node`, by several threads if there are many leaves.
pub fn node_hash(hasher: &Hasher, leaves: &[Leaf], depth: usize) -> Hash {
    if leaves.len() < THREADED_MIN {
        return hasher.clone().node(leaves, depth);
    }
    let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(&leaf.key, depth)));
    let start = || hasher.clone();
    let sides = threads::run(threads::count(), vec![left, right], start, |hasher, side| {
        hasher.node(side, depth + 1)
    });
    hasher.clone().inner(&sides[0], &sides[1])
}

/// A key and its new value, `None` to remove it.
pub type Row<'a> = (&'a [u8], Option<&'a [u8]>);

/// The changes of these rows, hashed by several threads, in order of the key hash.
pub fn hashed(hasher: &Hasher, rows: &[Row]) -> Vec<Change> {
    let mut changes = vec![Change::remove([0; 32], 0); rows.len()];
    let tasks = changes.chunks_mut(HASHED_AT_ONCE).zip(rows.chunks(HASHED_AT_ONCE));
    let tasks: Vec<_> = tasks.enumerate().collect();
    let threads = if rows.len() < THREADED_MIN { 1 } else { threads::count() };
    let start = || hasher.clone();
    threads::run(threads, tasks, start, |hasher, (chunk, (changes, rows))| {
        let numbers = (chunk * HASHED_AT_ONCE) as u32..;
        for ((change, (key, value)), number) in changes.iter_mut().zip(rows).zip(numbers) {
            let key = sha256(key);
            *change = match value {
                Some(value) => Change::put(key, hasher.leaf(&key, &sha256(value)), number),
                None => Change::remove(key, number),
            };
        }
    });
    sorted(changes)
}

/// The changes in order of the key hash; those of one key hash stay neighbours.
pub fn sorted(changes: Vec<Change>) -> Vec<Change> {
    let numbers = 0u32..;
    let mut order: Vec<(u64, u32)> = changes
        .iter()
        .zip(numbers)
        .map(|(change, at)| (head(&change.key), at))
        .collect();
    order.sort_unstable_by(|a, b| {
        let tie = || changes[a.1 as usize].key.cmp(&changes[b.1 as usize].key);
        a.0.cmp(&b.0).then_with(tie)
    });
    order.into_iter().map(|(_, at)| changes[at as usize]).collect()
}

/// The first 64 bits of a path as a number.
fn head(path: &Hash) -> u64 {
    u64::from_be_bytes(*path.first_chunk().expect("a path has 32 bytes"))
}
