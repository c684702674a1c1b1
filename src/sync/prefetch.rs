//! Prefetching a cache line before it is needed.
//!
//! A get from memory misses the CPU cache five times. Most of these reads give the address of the next one, so the
//! misses wait for each other, and they make up most of the get's time. Some addresses are known earlier and can be
//! prefetched:
//!
//! - the keydir's table lines, from the key's hash;
//! - a record in the block cache, from the number of its frame, before the frame is read;
//! - everything of the next items, where many records are published or many tasks woken in a row.
#![allow(unsafe_code)]

/// Prefetches the cache line of `address`. Any address is allowed, valid or not.
#[inline]
pub(crate) fn prefetch<T>(address: *const T) {
    // SAFETY: the instruction has no effect that the program can observe, and never faults, whatever the address. It
    // neither owns nor borrows memory. Shown by `any_address_may_be_prefetched`.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_may_be_prefetched() {
        let local = 1_u64;
        for address in [&raw const local, std::ptr::null(), std::ptr::without_provenance(usize::MAX)] {
            prefetch(address);
        }
        assert_eq!(local, 1);
    }
}
