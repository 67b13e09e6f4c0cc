//! Blocks of updates of the crate `jmt` over a map in memory, timed. Arguments: keys, updates in a block, stride.
//!
//! Answers "ready ROOT" once all keys are there; then for each line of input, which is a number of blocks, the seconds
//! of each block and the root after the last one. What a block writes is the same as in `bench/state_data.py`, so the
//! roots can be compared. The clock runs while keys are hashed, the tree is updated and its nodes are put into the map.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use jmt::storage::{LeafNode, Node, NodeKey, TreeReader, TreeUpdateBatch};
use jmt::{KeyHash, OwnedValue, Sha256Jmt, Version};
use sha2::Sha256;

const POOL: u64 = 20_011;
const TURN: u64 = 7_919;
const LOAD: u64 = 10_000;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Nodes and newest values. The crate's errors are made of strings here.
#[derive(Default)]
struct Memory {
    nodes: HashMap<NodeKey, Node>,
    values: HashMap<KeyHash, OwnedValue>,
}

impl Memory {
    fn put(&mut self, batch: TreeUpdateBatch) -> Vec<NodeKey> {
        for (key, node) in batch.node_batch.nodes() {
            self.nodes.insert(key.clone(), node.clone());
        }
        for ((_, key), value) in batch.node_batch.values() {
            match value {
                Some(value) => self.values.insert(*key, value.clone()),
                None => self.values.remove(key),
            };
        }
        batch.stale_node_index_batch.into_iter().map(|stale| stale.node_key).collect()
    }
}

impl TreeReader for Memory {
    fn get_node_option(&self, key: &NodeKey) -> anyhow::Result<Option<Node>> {
        Ok(self.nodes.get(key).cloned())
    }

    fn get_value_option(&self, _: Version, key: KeyHash) -> anyhow::Result<Option<OwnedValue>> {
        Ok(self.values.get(&key).cloned())
    }

    fn get_rightmost_leaf(&self) -> anyhow::Result<Option<(NodeKey, LeafNode)>> {
        Ok(None)
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("contract-address-20b:{number:031}").into_bytes()
}

fn value(number: u64) -> Vec<u8> {
    format!("{number:032}").into_bytes()
}

struct Run {
    memory: Memory,
    version: Version,
    root: [u8; 32],
}

impl Run {
    /// The seconds that a block with these writes took. Nodes that nobody needs any more are dropped off the clock.
    fn block(&mut self, writes: Vec<(Vec<u8>, Vec<u8>)>) -> Result<f64, Error> {
        let begun = Instant::now();
        let hashed = writes.into_iter().map(|(key, value)| (KeyHash::with::<Sha256>(&key), value)).collect();
        let (roots, batch) =
            Sha256Jmt::new(&self.memory).batch_put_value_sets(vec![hashed], None, self.version)?;
        let stale = self.memory.put(batch);
        let spent = begun.elapsed().as_secs_f64();
        for key in stale {
            self.memory.nodes.remove(&key);
        }
        self.version += 1;
        self.root = roots[0].0;
        Ok(spent)
    }
}

fn main() -> Result<(), Error> {
    let numbers = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<Vec<u64>, _>>()?;
    let [keys, per_block, stride] = numbers[..] else {
        return Err("expected: keys, updates in a block, stride".into());
    };
    let mut run = Run { memory: Memory::default(), version: 0, root: [0; 32] };
    for first in (0..keys).step_by(LOAD as usize) {
        run.block((first..keys.min(first + LOAD)).map(|number| (key(number), value(number))).collect())?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "ready {}", hex::encode(run.root))?;
    out.flush()?;
    let mut block = 0;
    for line in io::stdin().lock().lines() {
        let count: u64 = line?.trim().parse()?;
        let mut times = Vec::new();
        for _ in 0..count {
            let writes = (0..per_block)
                .map(|at| {
                    let number = (block * per_block + at) * stride % keys;
                    (key(number), value((block * TURN + at) % POOL))
                })
                .collect();
            times.push(format!("{:.9}", run.block(writes)?));
            block += 1;
        }
        writeln!(out, "{} {}", times.join(","), hex::encode(run.root))?;
        out.flush()?;
    }
    Ok(())
}
