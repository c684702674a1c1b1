//! Asking for a cache line before it is needed.
//!
//! A get from memory misses the processor's cache five times, and most times what it finds says where to look next, so that
//! the misses wait for each other: most of the get's time. But where the keydir's first two are is known at once, from the
//! hash; where a record lies in the block cache, with the number of its frame, before the frame is looked at, or by a guess
//! before the keydir's entry is. Whoever publishes or wakes many has the misses of some of them together.
#![allow(unsafe_code)]

/// Has the processor bring the line of `address`, which may be any.
#[inline]
pub(crate) fn prefetch<T>(address: *const T) {
    // SAFETY: the instruction reads nothing that the program could see and never faults, whatever the address: no memory
    // is owned or borrowed by it, now or later.
    // Shown by `any_address_may_be_asked_for`.
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
    fn any_address_may_be_asked_for() {
        let local = 1_u64;
        for address in [&raw const local, std::ptr::null(), std::ptr::without_provenance(usize::MAX)] {
            prefetch(address);
        }
        assert_eq!(local, 1);
    }
}
