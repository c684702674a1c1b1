//! An allocator that counts the bytes in use by the whole test binary.
#![allow(unsafe_code, reason = "an allocator is unsafe to implement; this one forwards every call to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static BYTES: AtomicI64 = AtomicI64::new(0);

/// Bytes in use now.
pub fn bytes_in_use() -> i64 {
    BYTES.load(Ordering::Relaxed)
}

fn count(bytes: usize, sign: i64) {
    BYTES.fetch_add(sign * bytes as i64, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged, which keeps the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's layout, as it was given.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's block, which the system's allocator handed out with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's layout, as it was given.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(new_size, 1);
        // SAFETY: the caller's block, layout and size, as they were given.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}
