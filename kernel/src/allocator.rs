//! The allocator of the kernel: nodes come and go by the hundred thousand, on threads that live as long as a batch.

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h.
const PURGE_DELAY: mi_option_t = 15;

/// Milliseconds. Less, and the pages of one batch are given back and cleared again for the next.
const PURGE_AFTER: i64 = 250;

/// What is freed goes back to the system soon: a large batch does not keep its memory.
#[allow(unsafe_code)]
pub fn tune() {
    // SAFETY: sets one number of the allocator, which reads it with atomic operations.
    unsafe { mi_option_set(PURGE_DELAY, PURGE_AFTER as _) }
}

/// What is freed goes back now: after a build, whose memory nothing needs again.
#[allow(unsafe_code)]
pub fn settle() {
    // SAFETY: no arguments but a flag; the allocator locks what it has to.
    unsafe { mi_collect(true) }
}
