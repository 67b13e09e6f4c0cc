//! A tree made of nothing but leaves, by slots: subtrees of all leaves whose first byte is the same.
//!
//! Leaves that come in order are built slot by slot while more of them arrive, so little beside the tree is held.

use crate::hash::{Hasher, Leaf};
use crate::threads;
use crate::tree::Child;
use crate::update::THREADED_MIN;

const SLOT_BITS: usize = 8;
/// Leaves that wait before slots are built of them.
const WAITING_MAX: usize = 1 << 17;

pub struct Builder<'a> {
    hasher: &'a Hasher,
    slots: Vec<Child>,
    waiting: Vec<Leaf>,
    ordered: bool,
}

/// A key hash came twice.
pub struct Twice;

impl<'a> Builder<'a> {
    pub fn new(hasher: &'a Hasher) -> Self {
        Builder {
            hasher,
            slots: vec![Child::empty(hasher); 1 << SLOT_BITS],
            waiting: Vec::new(),
            ordered: true,
        }
    }

    /// More leaves, in any order.
    pub fn take(&mut self, leaves: impl Iterator<Item = Leaf>) {
        for leaf in leaves {
            self.ordered &= self.waiting.last().is_none_or(|last| last.key < leaf.key);
            self.waiting.push(leaf);
        }
        if self.ordered && self.waiting.len() >= WAITING_MAX {
            self.settle();
        }
    }

    /// The slots that are complete, if the leaves come in order, are built. The last one waits, so that the next leaf
    /// finds what it must follow.
    fn settle(&mut self) {
        let Some(last) = self.waiting.last() else { return };
        let slot = last.key[0];
        let complete = self.waiting.partition_point(|leaf| leaf.key[0] < slot);
        self.build(complete);
        self.waiting.drain(..complete);
    }

    /// The tree of all leaves.
    pub fn tree(mut self) -> Result<Child, Twice> {
        if !self.ordered {
            for slot in &mut self.slots {
                slot.node.collect(&mut self.waiting);
                *slot = Child::empty(self.hasher);
            }
            self.waiting.sort_unstable_by_key(|leaf| leaf.key);
            if self.waiting.windows(2).any(|pair| pair[0].key == pair[1].key) {
                return Err(Twice);
            }
        }
        Ok(self.joined())
    }

    /// The tree of these leaves, which are in strict order.
    pub fn finish(mut self, leaves: Vec<Leaf>) -> Child {
        self.waiting = leaves;
        self.joined()
    }

    /// The slots of the first `count` of the waiting leaves, which are in strict order, are built.
    fn build(&mut self, count: usize) {
        let mut parts = Vec::new();
        let mut rest = &self.waiting[..count];
        while let Some(first) = rest.first() {
            let slot = first.key[0];
            let (part, others) = rest.split_at(rest.partition_point(|leaf| leaf.key[0] == slot));
            parts.push((slot, part));
            rest = others;
        }
        let threads = if count < THREADED_MIN { 1 } else { threads::count() };
        let start = || self.hasher.clone();
        let built = threads::run(threads, parts, start, |hasher, (slot, part)| {
            (slot, Child::build(hasher, part, SLOT_BITS))
        });
        for (slot, child) in built {
            self.slots[slot as usize] = child;
        }
    }

    fn joined(mut self) -> Child {
        self.build(self.waiting.len());
        drop(self.waiting);
        let mut hasher = self.hasher.clone();
        let mut level = self.slots;
        for depth in (0..SLOT_BITS).rev() {
            let mut pairs = level.into_iter();
            let mut above = Vec::with_capacity(1 << depth);
            while let (Some(left), Some(right)) = (pairs.next(), pairs.next()) {
                above.push(Child::join(&mut hasher, left, right));
            }
            level = above;
        }
        level.pop().expect("one node is left")
    }
}
