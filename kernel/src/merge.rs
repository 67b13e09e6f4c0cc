//! The rows of many layers in key order: what each key had before a layer, and the newest of each.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::rows::checked;

const FEW: usize = 24;
/// Keys that are looked at before others may have the interpreter: less than a millisecond.
const HELD_AT_ONCE: usize = 1 << 14;

/// One key in one layer. `newest`: no later layer has the key; `oldest`: no earlier one.
struct Row {
    key: Py<PyBytes>,
    value: Option<Py<PyBytes>>,
    layer: u32,
    oldest: bool,
    newest: bool,
    before: Option<Py<PyBytes>>,
}

struct Layer {
    undo: bool,
    rows: Vec<u32>,
}

/// A key that is being sorted: eight of its bytes, all of them, and where it is.
type Item<'a> = (u64, &'a [u8], u32);

#[pyclass]
#[derive(Default)]
pub struct RowMerge {
    rows: Vec<Row>,
    layers: Vec<Layer>,
    sorted: bool,
    unknown_at: usize,
    asked: Vec<u32>,
    batch_at: usize,
}

#[pymethods]
impl RowMerge {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The rows of one more layer, above all that were added; its number.
    fn add(&mut self, rows: &Bound<PyDict>, undo: bool) -> PyResult<usize> {
        if self.sorted || self.rows.len() + rows.len() > u32::MAX as usize {
            return Err(PyValueError::new_err("no more rows can be added"));
        }
        let layer = self.layers.len();
        let before = self.rows.len();
        let added = self.add_rows(rows, layer as u32);
        if added.is_err() {
            self.rows.truncate(before);
        }
        added?;
        self.layers.push(Layer { undo, rows: Vec::new() });
        Ok(layer)
    }

    /// Nothing more is added; how many keys there are. The interpreter lock is released for most of it.
    fn sort(&mut self, py: Python) -> PyResult<usize> {
        if self.sorted {
            return Err(PyValueError::new_err("the rows are sorted already"));
        }
        let mut items: Vec<Item> = Vec::with_capacity(self.rows.len());
        for (number, row) in self.rows.iter().enumerate() {
            if number % HELD_AT_ONCE == HELD_AT_ONCE - 1 {
                py.detach(|| {}); // whoever waits for the interpreter gets it here
            }
            items.push((0, row.key.as_bytes(py), number as u32));
        }
        let (order, same) = py.detach(|| {
            let mut items = items;
            sort(&mut items, 0);
            let order: Vec<u32> = items.iter().map(|item| item.2).collect();
            let same: Vec<bool> = items.windows(2).map(|pair| pair[0].1 == pair[1].1).collect();
            (order, same)
        });
        Ok(py.detach(|| self.arrange(&order, &same)))
    }

    /// The next keys, in order, that an undo asks for and no earlier layer has; none: that was all.
    fn unknown<'py>(&mut self, py: Python<'py>, rows_max: usize) -> PyResult<Bound<'py, PyList>> {
        self.check()?;
        self.asked.clear();
        while self.asked.len() < rows_max && self.unknown_at < self.rows.len() {
            let row = &self.rows[self.unknown_at];
            if row.oldest && self.layers[row.layer as usize].undo {
                self.asked.push(self.unknown_at as u32);
            }
            self.unknown_at += 1;
        }
        PyList::new(
            py,
            self.asked.iter().map(|number| self.rows[*number as usize].key.bind(py)),
        )
    }

    /// What the keys that `unknown` gave last had before everything.
    fn known(&mut self, values: &Bound<PyList>) -> PyResult<()> {
        if values.len() != self.asked.len() {
            return Err(PyValueError::new_err("there are not as many values as were asked for"));
        }
        let mut before = Vec::with_capacity(values.len());
        for value in values.iter() {
            before.push(bytes_or_none(value)?);
        }
        for (number, value) in self.asked.drain(..).zip(before) {
            self.rows[number as usize].before = value;
        }
        Ok(())
    }

    /// What the keys of a layer had before it, in key order.
    fn undo<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyDict>> {
        self.check()?;
        let layer = self.layers.get(number).filter(|layer| layer.undo);
        let layer = layer.ok_or_else(|| PyValueError::new_err("no undo of this layer was asked for"))?;
        if self.unknown_at < self.rows.len() || !self.asked.is_empty() {
            return Err(PyValueError::new_err(
                "what the keys had before everything is not known yet",
            ));
        }
        let out = PyDict::new(py);
        for number in &layer.rows {
            let row = &self.rows[*number as usize];
            let before = if row.oldest {
                &row.before
            } else {
                &self.rows[*number as usize - 1].value
            };
            out.set_item(&row.key, before.as_ref())?;
        }
        Ok(out)
    }

    /// The next keys in order with their newest rows, as the engine holds them; none: that was all.
    ///
    /// At most so many rows; no more are taken once keys and values have so many bytes.
    fn batch<'py>(&mut self, py: Python<'py>, rows_max: usize, bytes_max: usize) -> PyResult<Bound<'py, PyDict>> {
        self.check()?;
        let out = PyDict::new(py);
        let (mut count, mut size) = (0, 0);
        while count < rows_max && size < bytes_max && self.batch_at < self.rows.len() {
            let row = &self.rows[self.batch_at];
            self.batch_at += 1;
            if !row.newest {
                continue;
            }
            count += 1;
            let key = row.key.bind(py);
            size += key.as_bytes().len();
            match &row.value {
                None => out.set_item(key, py.None())?,
                Some(value) => {
                    let value = value.as_bytes(py);
                    size += value.len();
                    out.set_item(key, checked(py, key.as_bytes(), value)?)?;
                }
            }
        }
        Ok(out)
    }

    /// All keys in order, each once.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.check()?;
        let out = PyList::empty(py);
        for row in self.rows.iter().filter(|row| row.newest) {
            out.append(&row.key)?;
        }
        Ok(out)
    }
}

impl RowMerge {
    fn add_rows(&mut self, rows: &Bound<PyDict>, layer: u32) -> PyResult<()> {
        self.rows.reserve(rows.len());
        for (key, value) in rows.iter() {
            self.rows.push(Row {
                value: bytes_or_none(value)?,
                key: key.cast_into::<PyBytes>()?.unbind(),
                layer,
                oldest: true,
                newest: true,
                before: None,
            });
        }
        Ok(())
    }

    /// The rows stand in this order; `same`: whether a key is that of the row behind it. How many keys there are.
    fn arrange(&mut self, order: &[u32], same: &[bool]) -> usize {
        let mut held: Vec<Option<Row>> = std::mem::take(&mut self.rows).into_iter().map(Some).collect();
        self.rows = order
            .iter()
            .filter_map(|number| held[*number as usize].take())
            .collect();
        let mut keys = self.rows.len();
        for (number, same) in same.iter().enumerate() {
            if *same {
                self.rows[number].newest = false;
                self.rows[number + 1].oldest = false;
                keys -= 1;
            }
        }
        for (number, row) in self.rows.iter().enumerate() {
            self.layers[row.layer as usize].rows.push(number as u32);
        }
        self.sorted = true;
        keys
    }

    fn check(&self) -> PyResult<()> {
        if self.sorted {
            Ok(())
        } else {
            Err(PyValueError::new_err("the rows are not sorted yet"))
        }
    }
}

fn bytes_or_none(value: Bound<PyAny>) -> PyResult<Option<Py<PyBytes>>> {
    if value.is_none() {
        return Ok(None);
    }
    Ok(Some(value.cast_into::<PyBytes>()?.unbind()))
}

/// `items` by key, then by place. All keys are the same up to `depth`.
fn sort(items: &mut [Item], depth: usize) {
    if items.len() <= FEW {
        items.sort_unstable_by(|one, two| one.1[depth..].cmp(&two.1[depth..]).then(one.2.cmp(&two.2)));
        return;
    }
    let first = items[0].1;
    let mut depth_same = first.len();
    for item in items.iter() {
        let most = depth_same.min(item.1.len());
        let differs = (depth..most).find(|at| item.1[*at] != first[*at]);
        depth_same = differs.unwrap_or(most);
    }
    let depth = depth_same;
    for item in items.iter_mut() {
        item.0 = eight(&item.1[depth..]);
    }
    items.sort_unstable_by_key(|item| (item.0, item.2));
    let mut rest = items;
    while let Some(head) = rest.first() {
        let chunk = head.0;
        let count = rest.iter().take_while(|item| item.0 == chunk).count();
        let (group, others) = rest.split_at_mut(count);
        if group.len() > 1 {
            if group.iter().all(|item| item.1.len() >= depth + 8) {
                sort(group, depth + 8);
            } else {
                group.sort_unstable_by(|one, two| one.1[depth..].cmp(&two.1[depth..]).then(one.2.cmp(&two.2)));
            }
        }
        rest = others;
    }
}

/// The first eight bytes as a number; zeros follow what is shorter.
fn eight(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => key
            .iter()
            .enumerate()
            .fold(0, |sum, (at, byte)| sum | u64::from(*byte) << (56 - 8 * at)),
    }
}
