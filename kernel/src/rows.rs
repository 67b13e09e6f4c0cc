//! Rows of the views, made ready for an engine by the thousand.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

/// Each value behind the CRC-32 (big-endian) of its key and itself; `None` stays `None`.
#[pyfunction]
pub fn encode_rows<'py>(
    py: Python<'py>,
    keys: &Bound<'py, PyList>,
    values: &Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyList>> {
    if keys.len() != values.len() {
        return Err(PyValueError::new_err("there are not as many keys as values"));
    }
    let out = PyList::empty(py);
    for (key, value) in keys.iter().zip(values.iter()) {
        if value.is_none() {
            out.append(value)?;
            continue;
        }
        let (key, value) = (key.cast::<PyBytes>()?.as_bytes(), value.cast::<PyBytes>()?.as_bytes());
        let mut sum = crc32fast::Hasher::new();
        sum.update(key);
        sum.update(value);
        let row = PyBytes::new_with(py, 4 + value.len(), |bytes| {
            bytes[..4].copy_from_slice(&sum.finalize().to_be_bytes());
            bytes[4..].copy_from_slice(value);
            Ok(())
        })?;
        out.append(row)?;
    }
    Ok(out)
}

/// The dictionary with `prefix` in front of every key; the values are the same objects.
#[pyfunction]
pub fn prefixed<'py>(
    py: Python<'py>,
    prefix: &Bound<'py, PyBytes>,
    changes: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    let prefix = prefix.as_bytes();
    let out = PyDict::new(py);
    for (key, value) in changes.iter() {
        let key = key.cast::<PyBytes>()?.as_bytes();
        let long = PyBytes::new_with(py, prefix.len() + key.len(), |bytes| {
            bytes[..prefix.len()].copy_from_slice(prefix);
            bytes[prefix.len()..].copy_from_slice(key);
            Ok(())
        })?;
        out.set_item(long, value)?;
    }
    Ok(out)
}
