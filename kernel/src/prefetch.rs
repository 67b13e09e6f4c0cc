//! Hints to the processor to fetch memory before it is read. They change nothing but the time.

const LINE: usize = 64;

#[inline]
#[allow(unsafe_code)]
fn line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: a prefetch reads nothing and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The counter `before` bytes in front of this content.
#[inline]
pub fn counter<T>(content: *const T, before: usize) {
    line(content.cast::<u8>().wrapping_sub(before));
}

/// The counter `before` bytes in front of this content, and all of the content.
#[inline]
pub fn all<T: ?Sized>(content: &T, before: usize) {
    let start = std::ptr::from_ref(content).cast::<u8>().wrapping_sub(before);
    let length = before + size_of_val(content);
    for at in (0..length).step_by(LINE) {
        line(start.wrapping_add(at));
    }
    line(start.wrapping_add(length - 1));
}
