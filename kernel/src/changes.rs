//! The bytes of a `changes` part (docs/FORMAT.md, section 5.2.5).

use crate::update::Row;

/// Limits of `holdfast.limits`: the length of a key and of a value.
pub const KEY_BYTES_MAX: usize = 400;
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

const INSERTED: u32 = 1 << 31;

/// The part of these rows. `inserted`: the keys among them that were absent; both in any order.
pub fn encode(mut rows: Vec<Row>, mut inserted: Vec<&[u8]>) -> Result<Vec<u8>, String> {
    rows.sort_unstable_by_key(|row| row.0);
    inserted.sort_unstable();
    inserted.dedup();
    let content: usize = rows
        .iter()
        .map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len))
        .sum();
    let mut out = Vec::with_capacity(4 + rows.len() * 6 + content);
    let count = u32::try_from(rows.len()).map_err(|_| "there are 2^32 changes or more".to_string())?;
    out.extend_from_slice(&count.to_be_bytes());
    let mut marks = inserted.into_iter().peekable();
    for (key, value) in rows {
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(format!("a key has 1 to {KEY_BYTES_MAX} bytes, not {}", key.len()));
        }
        out.extend_from_slice(&(key.len() as u16).to_be_bytes());
        out.extend_from_slice(key);
        let Some(value) = value else {
            out.extend_from_slice(&[0; 4]);
            continue;
        };
        if !(1..=VALUE_BYTES_MAX).contains(&value.len()) {
            return Err(format!("a value has 1 to {VALUE_BYTES_MAX} bytes, not {}", value.len()));
        }
        let mark = if marks.next_if_eq(&key).is_some() { INSERTED } else { 0 };
        out.extend_from_slice(&(value.len() as u32 | mark).to_be_bytes());
        out.extend_from_slice(value);
    }
    match marks.next() {
        Some(_) => Err("an inserted key is not among the keys that get a value".to_string()),
        None => Ok(out),
    }
}

/// A change as it stands in a part.
pub struct Change<'a> {
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
    pub inserted: bool,
}

/// The changes in these bytes, which are what `encode` gives and nothing else.
pub fn decode(data: &[u8]) -> Result<Vec<Change<'_>>, String> {
    let (count, mut rest) = data.split_first_chunk().ok_or("the count of the changes is cut off")?;
    let count = u32::from_be_bytes(*count) as usize;
    // Every change takes 7 bytes or more: a count that is not true costs no memory.
    let mut found: Vec<Change> = Vec::with_capacity(count.min(rest.len() / 7));
    for _ in 0..count {
        let at = data.len() - rest.len();
        let cut = || format!("the changes are cut off at byte {at}");
        let (length, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let length = u16::from_be_bytes(*length) as usize;
        if !(1..=KEY_BYTES_MAX).contains(&length) {
            return Err(format!(
                "a key has 1 to {KEY_BYTES_MAX} bytes, not {length} (at byte {at})"
            ));
        }
        let (key, after) = after.split_at_checked(length).ok_or_else(cut)?;
        if found.last().is_some_and(|last| key <= last.key) {
            return Err(format!("the keys are not strictly ascending at byte {at}"));
        }
        let (word, after) = after.split_first_chunk().ok_or_else(cut)?;
        let word = u32::from_be_bytes(*word);
        let (inserted, length) = (word & INSERTED != 0, (word & !INSERTED) as usize);
        if length > VALUE_BYTES_MAX {
            return Err(format!("a value above {VALUE_BYTES_MAX} bytes at byte {at}"));
        }
        if inserted && length == 0 {
            return Err(format!("a removed key is marked as inserted at byte {at}"));
        }
        let (value, after) = after.split_at_checked(length).ok_or_else(cut)?;
        rest = after;
        found.push(Change {
            key,
            value: (length > 0).then_some(value),
            inserted,
        });
    }
    if rest.is_empty() {
        Ok(found)
    } else {
        Err(format!("{} bytes follow the last change", rest.len()))
    }
}
