//! The native kernel of Holdfast. Python sees it through `holdfast._kernel`, which asks for this very version.
//!
//! Invariants:
//!   * Long work runs with the interpreter lock released, on bytes objects that are held meanwhile.
//!   * No unsafe code of our own; a panic becomes a Python exception, and nothing half-made can be seen.

#![deny(unsafe_code)]

mod allocator;
mod build;
mod changes;
mod hash;
mod merge;
mod prefetch;
mod read;
mod rows;
mod threads;
mod tree;
mod update;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use build::{Builder, Twice};
use hash::{leaf_of, sha256, shared_bits, Hash, Hasher, Leaf, PREFIX_MAX, RECORD};
use tree::{Child, Node};
use update::{Change, Outcome};

/// Records that `build` takes in at a time.
const TAKEN_AT_ONCE: usize = 1 << 16;
/// Versions with at least as many leaves are freed with the interpreter lock released.
const FREED_DETACHED_MIN: usize = 4096;
/// Rows hashed at a time by a thread.
const ROWS_AT_ONCE: usize = 512;

type Found<'py> = Bound<'py, PyBytes>;
type Pair<'py> = Bound<'py, PyTuple>;

/// The constants of a tree.
#[pyclass(frozen, module = "holdfast_kernel")]
struct Scheme {
    hasher: Hasher,
}

/// One immutable version of a tree.
#[pyclass(frozen, module = "holdfast_kernel")]
struct Tree {
    hasher: Hasher,
    root: Child,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let node = std::mem::replace(&mut self.root.node, Node::Empty);
        if matches!(&node, Node::Inner(inner) if inner.leaves as usize >= FREED_DETACHED_MIN && inner.is_unique()) {
            Python::attach(|py| py.detach(|| node.free()));
        }
    }
}

fn bytes_of<'a>(object: &'a Bound<'_, PyAny>, what: &str) -> PyResult<&'a [u8]> {
    match object.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.as_bytes()),
        Err(_) => Err(PyTypeError::new_err(format!(
            "a {what} is bytes, not {}",
            object.get_type()
        ))),
    }
}

fn filled<'a>(object: &'a Bound<'_, PyAny>, what: &str) -> PyResult<&'a [u8]> {
    match bytes_of(object, what)? {
        [] => Err(PyValueError::new_err("neither a key nor a value may be empty")),
        bytes => Ok(bytes),
    }
}

fn hash_of(bytes: &[u8]) -> PyResult<Hash> {
    let wrong = || PyValueError::new_err(format!("a key hash has 32 bytes, not {}", bytes.len()));
    bytes.try_into().map_err(|_| wrong())
}

fn leaves_of(records: &[u8]) -> PyResult<&[[u8; RECORD]]> {
    match records.as_chunks::<RECORD>() {
        (records, []) => Ok(records),
        _ => Err(PyValueError::new_err(format!(
            "records of {RECORD} bytes are wanted whole"
        ))),
    }
}

fn records_of(leaves: &[Leaf]) -> Vec<u8> {
    let mut out = Vec::with_capacity(leaves.len() * RECORD);
    for leaf in leaves {
        out.extend_from_slice(&leaf.key);
        out.extend_from_slice(&leaf.hash);
    }
    out
}

fn twice() -> PyErr {
    PyValueError::new_err("a key hash comes twice")
}

/// The keys and values of a dictionary, held: nobody's change to the dictionary matters any more.
type Held<'py> = Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>;

fn held<'py>(changes: &Bound<'py, PyDict>) -> Held<'py> {
    changes.iter().collect()
}

#[pymethods]
impl Scheme {
    #[new]
    fn new(leaf_prefix: &[u8], inner_prefix: &[u8], null: &[u8]) -> PyResult<Self> {
        if leaf_prefix.len().max(inner_prefix.len()) > PREFIX_MAX {
            return Err(PyValueError::new_err(format!(
                "a prefix has at most {PREFIX_MAX} bytes"
            )));
        }
        let hasher = Hasher::new(leaf_prefix, inner_prefix, hash_of(null)?);
        Ok(Scheme { hasher })
    }

    fn empty(&self) -> Tree {
        self.tree(Child::empty(&self.hasher))
    }

    /// The tree of the records in the byte strings of an iterable.
    fn build(&self, py: Python<'_>, records: &Bound<'_, PyAny>) -> PyResult<Tree> {
        let mut builder = Builder::new(&self.hasher);
        for part in records.try_iter()? {
            let part = part?;
            for records in leaves_of(bytes_of(&part, "part")?)?.chunks(TAKEN_AT_ONCE) {
                py.detach(|| builder.take(records.iter().map(leaf_of)));
            }
        }
        let root = py.detach(|| {
            let root = builder.tree();
            allocator::settle();
            root
        });
        let root = root.map_err(|Twice| twice())?;
        Ok(self.tree(root))
    }

    /// The records of a sequence of (key, value).
    fn hash_rows<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let rows: Vec<Pair> = rows
            .try_iter()?
            .map(|row| {
                let row = row?.cast_into::<PyTuple>()?;
                match row.len() {
                    2 => Ok(row),
                    length => Err(PyValueError::new_err(format!(
                        "a row is a key and a value, not {length} things"
                    ))),
                }
            })
            .collect::<PyResult<_>>()?;
        let held: Held = rows
            .iter()
            .map(|row| Ok((row.get_item(0)?, row.get_item(1)?)))
            .collect::<PyResult<_>>()?;
        let rows: Vec<(&[u8], &[u8])> = held
            .iter()
            .map(|(key, value)| Ok((filled(key, "key")?, filled(value, "value")?)))
            .collect::<PyResult<_>>()?;
        PyBytes::new_with(py, rows.len() * RECORD, |out| {
            py.detach(|| {
                let tasks = rows.chunks(ROWS_AT_ONCE).zip(out.chunks_mut(ROWS_AT_ONCE * RECORD));
                let start = || self.hasher.clone();
                threads::run(threads::count(), tasks.collect(), start, |hasher, (rows, out)| {
                    for ((key, value), record) in rows.iter().zip(out.as_chunks_mut::<RECORD>().0) {
                        let key = sha256(key);
                        record[..32].copy_from_slice(&key);
                        record[32..].copy_from_slice(&hasher.leaf(&key, &sha256(value)));
                    }
                });
            });
            Ok(())
        })
    }

    /// `node(records, depth)`.
    fn node_hash<'py>(&self, py: Python<'py>, records: &[u8], depth: i64) -> PyResult<Bound<'py, PyBytes>> {
        let records = leaves_of(records)?;
        let depth = match usize::try_from(depth) {
            Ok(depth) if depth <= 256 => depth,
            _ => return Err(PyValueError::new_err("a depth of 0 to 256 is wanted")),
        };
        let hash = py.detach(|| {
            let leaves: Vec<Leaf> = records.iter().map(leaf_of).collect();
            if leaves.windows(2).any(|pair| pair[0].key >= pair[1].key) {
                return Err(PyValueError::new_err("the records are not in strict order"));
            }
            match (leaves.first(), leaves.last()) {
                (Some(first), Some(last)) if shared_bits(&first.key, &last.key) < depth => {
                    Err(PyValueError::new_err(format!("the records do not share {depth} bits")))
                }
                _ => Ok(update::node_hash(&self.hasher, &leaves, depth)),
            }
        })?;
        Ok(PyBytes::new(py, &hash))
    }
}

impl Scheme {
    fn tree(&self, root: Child) -> Tree {
        Tree {
            hasher: self.hasher.clone(),
            root,
        }
    }
}

#[pymethods]
impl Tree {
    #[getter]
    fn root<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.root.hash)
    }

    #[getter]
    fn count(&self) -> usize {
        self.root.node.leaves()
    }

    /// The next version, and lists of the inserted and the removed as (key hash, key).
    fn update<'py>(
        &self,
        py: Python<'py>,
        changes: &Bound<'py, PyDict>,
    ) -> PyResult<(Tree, Bound<'py, PyList>, Bound<'py, PyList>)> {
        let held = held(changes);
        let rows: Vec<update::Row> = held
            .iter()
            .map(|(key, value)| {
                let value = if value.is_none() {
                    None
                } else {
                    Some(filled(value, "value")?)
                };
                Ok((filled(key, "key")?, value))
            })
            .collect::<PyResult<_>>()?;
        let (root, done) = py.detach(|| {
            let mut changes = update::hashed(&self.hasher, &rows);
            let root = update::apply(&self.hasher, &self.root, &mut changes);
            (root, changes)
        });
        let (inserted, removed) = (PyList::empty(py), PyList::empty(py));
        for change in done {
            let list = match change.outcome {
                Outcome::Inserted => &inserted,
                Outcome::Removed => &removed,
                Outcome::Nothing | Outcome::Updated => continue,
            };
            list.append((PyBytes::new(py, &change.key), &held[change.number as usize].0))?;
        }
        Ok((self.next(root), inserted, removed))
    }

    /// The version with these records put and these key hashes removed.
    fn update_records(&self, py: Python<'_>, records: &[u8], removed: &[u8]) -> PyResult<Tree> {
        let records = leaves_of(records)?;
        let (removed, rest) = removed.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(PyValueError::new_err("key hashes of 32 bytes are wanted whole"));
        }
        let root = py.detach(|| {
            let puts = records
                .iter()
                .map(leaf_of)
                .map(|leaf| Change::put(leaf.key, leaf.hash, 0));
            let removes = removed.iter().map(|key| Change::remove(*key, 0));
            let mut changes = update::sorted(puts.chain(removes).collect());
            if changes.windows(2).any(|pair| pair[0].key == pair[1].key) {
                return Err(twice());
            }
            Ok(update::apply(&self.hasher, &self.root, &mut changes))
        })?;
        Ok(self.next(root))
    }

    /// The leaf where the path ends, as (key hash, leaf hash) or `None`, and the siblings, nearest first.
    fn path<'py>(&self, py: Python<'py>, key_hash: &[u8]) -> PyResult<(Option<Pair<'py>>, Vec<Bound<'py, PyBytes>>)> {
        let path = read::path(&mut self.hasher.clone(), &self.root, &hash_of(key_hash)?);
        let leaf = path
            .leaf
            .map(|leaf| PyTuple::new(py, [PyBytes::new(py, &leaf.key), PyBytes::new(py, &leaf.hash)]));
        Ok((leaf.transpose()?, hashes(py, &path.siblings)))
    }

    fn neighbours<'py>(&self, py: Python<'py>, key_hash: &[u8]) -> PyResult<(Option<Found<'py>>, Option<Found<'py>>)> {
        let (below, above) = read::neighbours(&self.root.node, &hash_of(key_hash)?);
        let wrap = |hash: Option<Hash>| hash.map(|hash| PyBytes::new(py, &hash));
        Ok((wrap(below), wrap(above)))
    }

    fn records<'py>(&self, py: Python<'py>, start: &[u8], limit: i64) -> PyResult<Bound<'py, PyBytes>> {
        let start = hash_of(start)?;
        let limit = usize::try_from(limit).map_err(|_| PyValueError::new_err("a limit is not negative"))?;
        let records = py.detach(|| {
            let mut leaves = Vec::new();
            read::from(&self.root.node, &start, limit, &mut leaves);
            records_of(&leaves)
        });
        Ok(PyBytes::new(py, &records))
    }

    /// The topmost nodes of at most `leaves_max` leaves as (prefix, depth, leaves, hash, siblings).
    fn subtrees<'py>(&self, py: Python<'py>, leaves_max: i64) -> PyResult<Bound<'py, PyList>> {
        let most = match usize::try_from(leaves_max) {
            Ok(most) if most > 0 => most,
            _ => return Err(PyValueError::new_err("a subtree has at least one leaf")),
        };
        let found = py.detach(|| read::subtrees(&mut self.hasher.clone(), &self.root, most));
        let out = PyList::empty(py);
        for subtree in found {
            let (prefix, hash) = (PyBytes::new(py, &subtree.prefix), PyBytes::new(py, &subtree.hash));
            out.append((
                prefix,
                subtree.depth,
                subtree.leaves,
                hash,
                hashes(py, &subtree.siblings),
            ))?;
        }
        Ok(out)
    }

    fn size_bytes(&self) -> usize {
        self.root.node.size_bytes()
    }
}

impl Tree {
    fn next(&self, root: Child) -> Tree {
        Tree {
            hasher: self.hasher.clone(),
            root,
        }
    }
}

fn hashes<'py>(py: Python<'py>, hashes: &[Hash]) -> Vec<Bound<'py, PyBytes>> {
    hashes.iter().map(|hash| PyBytes::new(py, hash)).collect()
}

/// The bytes of a `changes` part.
#[pyfunction]
fn encode_changes<'py>(
    py: Python<'py>,
    changes: &Bound<'py, PyDict>,
    inserted: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let held = held(changes);
    let rows: Vec<update::Row> = held
        .iter()
        .map(|(key, value)| {
            let value = if value.is_none() {
                None
            } else {
                Some(bytes_of(value, "value")?)
            };
            Ok((bytes_of(key, "key")?, value))
        })
        .collect::<PyResult<_>>()?;
    let inserted: Vec<Bound<PyAny>> = inserted.try_iter()?.collect::<PyResult<_>>()?;
    let inserted = inserted
        .iter()
        .map(|key| bytes_of(key, "key"))
        .collect::<PyResult<_>>()?;
    let data = py
        .detach(|| changes::encode(rows, inserted))
        .map_err(PyValueError::new_err)?;
    Ok(PyBytes::new(py, &data))
}

/// The changes in these bytes, and the inserted keys.
#[pyfunction]
fn decode_changes<'py>(py: Python<'py>, data: &[u8]) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyList>)> {
    let (changes, inserted) = (PyDict::new(py), PyList::empty(py));
    for change in changes::decode(data).map_err(PyValueError::new_err)? {
        let key = PyBytes::new(py, change.key);
        changes.set_item(&key, change.value.map(|value| PyBytes::new(py, value)))?;
        if change.inserted {
            inserted.append(key)?;
        }
    }
    Ok((changes, inserted))
}

/// Batches use this many threads from now on; 0 is the default.
#[pyfunction]
fn set_threads(threads: usize) {
    threads::set_count(threads);
}

#[pymodule]
fn holdfast_kernel(module: &Bound<'_, PyModule>) -> PyResult<()> {
    allocator::tune();
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add("BUCKET_MAX", tree::BUCKET_MAX)?;
    module.add("KEY_BYTES_MAX", changes::KEY_BYTES_MAX)?;
    module.add("VALUE_BYTES_MAX", changes::VALUE_BYTES_MAX)?;
    module.add("THREADS_MAX", threads::THREADS_MAX)?;
    module.add_class::<Scheme>()?;
    module.add_class::<Tree>()?;
    module.add_class::<merge::RowMerge>()?;
    module.add_function(wrap_pyfunction!(encode_changes, module)?)?;
    module.add_function(wrap_pyfunction!(decode_changes, module)?)?;
    module.add_function(wrap_pyfunction!(set_threads, module)?)?;
    module.add_function(wrap_pyfunction!(rows::decode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(rows::undo_parts, module)?)?;
    module.add_function(wrap_pyfunction!(rows::history_rows, module)?)?;
    module.add_function(wrap_pyfunction!(rows::publish_rows, module)?)?;
    Ok(())
}
