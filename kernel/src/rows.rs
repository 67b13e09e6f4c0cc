//! Rows of the views, made ready for an engine by the thousand.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

/// `value` behind the CRC-32 (big-endian) of its key and itself.
pub fn checked<'py>(py: Python<'py>, key: &[u8], value: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key);
    sum.update(value);
    PyBytes::new_with(py, 4 + value.len(), |bytes| {
        bytes[..4].copy_from_slice(&sum.finalize().to_be_bytes());
        bytes[4..].copy_from_slice(value);
        Ok(())
    })
}

/// The values of stored rows, each behind the CRC-32 of its key and itself; `None` stays `None`.
///
/// A row that does not fit is a `ValueError` whose argument is its number.
#[pyfunction]
pub fn decode_rows<'py>(
    py: Python<'py>,
    keys: &Bound<'py, PyList>,
    stored: &Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyList>> {
    if keys.len() != stored.len() {
        return Err(PyValueError::new_err("there are not as many keys as rows"));
    }
    let out = PyList::empty(py);
    for (number, (key, row)) in keys.iter().zip(stored.iter()).enumerate() {
        if row.is_none() {
            out.append(row)?;
            continue;
        }
        let (key, row) = (key.cast::<PyBytes>()?.as_bytes(), row.cast::<PyBytes>()?.as_bytes());
        let (sum, value) = row.split_at(row.len().min(4));
        let mut found = crc32fast::Hasher::new();
        found.update(key);
        found.update(value);
        if sum != found.finalize().to_be_bytes() {
            return Err(PyValueError::new_err(number));
        }
        out.append(PyBytes::new(py, value))?;
    }
    Ok(out)
}

/// The parts of a block's undo (docs/FORMAT.md, section 7.3) without their heads: how many rows, and their bytes.
#[pyfunction]
pub fn undo_parts<'py>(
    py: Python<'py>,
    rows: &Bound<'py, PyDict>,
    part_bytes_max: usize,
) -> PyResult<Vec<(usize, Bound<'py, PyBytes>)>> {
    let held: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)> = rows.iter().collect();
    let mut sorted: Vec<(&[u8], Option<&[u8]>)> = Vec::with_capacity(held.len());
    for (key, value) in &held {
        let value = if value.is_none() {
            None
        } else {
            Some(value.cast::<PyBytes>()?.as_bytes())
        };
        sorted.push((key.cast::<PyBytes>()?.as_bytes(), value));
    }
    sorted.sort_unstable_by_key(|row| row.0);
    let mut parts = Vec::new();
    let mut body: Vec<u8> = Vec::new();
    let mut count = 0;
    for (key, value) in sorted {
        if body.len() >= part_bytes_max {
            parts.push((count, PyBytes::new(py, &body)));
            body.clear();
            count = 0;
        }
        let length = u16::try_from(key.len()).map_err(|_| PyValueError::new_err("a key is too long"))?;
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(key);
        match value {
            None => body.push(0),
            Some(value) => {
                let length = u32::try_from(value.len()).map_err(|_| PyValueError::new_err("a value is too long"))?;
                body.push(1);
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(value);
            }
        }
        count += 1;
    }
    parts.push((count, PyBytes::new(py, &body)));
    Ok(parts)
}

/// The history rows (docs/FORMAT.md, section 7.13) of a block: what its undo says of the keys that begin with `prefix`.
#[pyfunction]
pub fn history_rows<'py>(
    py: Python<'py>,
    undo: &Bound<'py, PyDict>,
    prefix: &[u8],
    head: &[u8],
    height: u64,
    into: &Bound<'py, PyDict>,
) -> PyResult<()> {
    const GROUP: usize = 16;
    let mut row_key: Vec<u8> = Vec::with_capacity(512);
    for (key, value) in undo.iter() {
        let Some(key) = key.cast::<PyBytes>()?.as_bytes().strip_prefix(prefix) else {
            continue;
        };
        if key.is_empty() {
            return Err(PyValueError::new_err("a key of the history is empty"));
        }
        row_key.clear();
        row_key.extend_from_slice(head);
        let mut groups = key.chunks(GROUP).peekable();
        while let Some(group) = groups.next() {
            row_key.extend_from_slice(group);
            if groups.peek().is_some() {
                row_key.push(0xff);
            } else {
                row_key.resize(row_key.len() + GROUP - group.len(), 0);
                row_key.push(group.len() as u8);
            }
        }
        row_key.extend_from_slice(&height.to_be_bytes());
        let old = if value.is_none() {
            PyBytes::new(py, &[0])
        } else {
            let value = value.cast::<PyBytes>()?.as_bytes();
            PyBytes::new_with(py, 1 + value.len(), |bytes| {
                bytes[0] = 1;
                bytes[1..].copy_from_slice(value);
                Ok(())
            })?
        };
        into.set_item(PyBytes::new(py, &row_key), old)?;
    }
    Ok(())
}

/// `nodes[key]` becomes (`version`, value, what it was) for each of `rows`; the answer is the length of keys and values.
#[pyfunction]
pub fn publish_rows<'py>(
    py: Python<'py>,
    nodes: &Bound<'py, PyDict>,
    rows: &Bound<'py, PyDict>,
    version: &Bound<'py, PyAny>,
) -> PyResult<usize> {
    let mut size = 0;
    let none = py.None().into_bound(py);
    for (key, value) in rows.iter() {
        size += key.cast::<PyBytes>()?.as_bytes().len();
        if !value.is_none() {
            size += value.cast::<PyBytes>()?.as_bytes().len();
        }
        let older = nodes.get_item(&key)?.unwrap_or_else(|| none.clone());
        nodes.set_item(&key, PyTuple::new(py, [version, &value, &older])?)?;
    }
    Ok(size)
}
