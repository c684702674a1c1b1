//! Whether a segment's records are being got in the order in which they lie, from the disk.
//!
//! Readers have told the kernel not to read ahead, as it guesses wrong under random reads. Gets in order are noticed here
//! instead, by the only ones that are dear anyway: those that wait for the engine. One such get that begins where the
//! last one ended, or where what was read ahead for it ends, has the next stretch read ahead. So a stretch costs one wait,
//! and what is found in it costs nothing here.
//!
//! Two who go through one segment in order at the same time take the word from each other: each waits once more a stretch.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes read ahead at a time.
const STRETCH_BYTES: u32 = 1 << 20;
/// Records of others may lie between two that are got one after the other, and so may what has died.
const GAP_BYTES: u64 = 16 << 10;

/// Where the last get that waited ended, or what was read ahead for it.
#[derive(Debug, Default)]
pub(crate) struct InOrder(AtomicU64);

impl InOrder {
    /// Whether a get at `offset` may find what was read ahead, or goes on where the last one that waited ended.
    pub(crate) fn expects(&self, offset: u64) -> bool {
        let known_end = self.0.load(Ordering::Relaxed);
        known_end > 0 && offset <= known_end + GAP_BYTES && offset + u64::from(STRETCH_BYTES) >= known_end
    }

    /// A get of `len` bytes at `offset` has to wait: how many bytes from there on should be read ahead, if any.
    pub(crate) fn missed(&self, offset: u64, len: u64) -> Option<u32> {
        let (known_end, end) = (self.0.load(Ordering::Relaxed), offset + len);
        let stretch = u64::from(STRETCH_BYTES);
        if offset < known_end && end <= known_end && known_end - offset <= stretch {
            // On its way with what was read ahead.
            return None;
        }
        let goes_on = known_end > 0 && known_end <= end && known_end + GAP_BYTES >= offset;
        let ahead = (goes_on && len < stretch).then_some(STRETCH_BYTES);
        self.0.store(offset + ahead.map_or(len, u64::from), Ordering::Relaxed);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_where_the_last_one_ended_is_read_ahead_for() {
        let order = InOrder::default();
        assert_eq!(order.missed(512, 4096), None, "nobody was here before");
        assert_eq!(order.missed(512 + 4096, 4096), Some(STRETCH_BYTES));
        for step in 2..200 {
            assert_eq!(order.missed(512 + step * 4096, 4096), None, "it is on its way");
        }
        // The first record that is not in it as a whole.
        assert_eq!(order.missed(512 + 257 * 4096 - 100, 4096), Some(STRETCH_BYTES));
    }

    #[test]
    fn what_was_read_ahead_and_what_goes_on_is_expected() {
        let order = InOrder::default();
        assert!(!order.expects(0) && !order.expects(4096), "nobody was here before");
        let base = 1 << 30;
        order.missed(base, 4096);
        assert!(order.expects(base + 4096) && order.expects(base + 4096 + GAP_BYTES));
        assert!(!order.expects(base + 4097 + GAP_BYTES));
        order.missed(base + 4096, 4096);
        let end = base + 4096 + u64::from(STRETCH_BYTES);
        assert!(order.expects(base + 4096) && order.expects(end - 1) && order.expects(end));
        assert!(!order.expects(base + 4095) && !order.expects(end + GAP_BYTES + 1));
    }

    #[test]
    fn gaps_are_stepped_over_and_leaps_are_not() {
        for (gap, expected) in [(0, Some(STRETCH_BYTES)), (GAP_BYTES, Some(STRETCH_BYTES)), (GAP_BYTES + 1, None)] {
            let order = InOrder::default();
            order.missed(1 << 30, 100);
            assert_eq!(order.missed((1 << 30) + 100 + gap, 100), expected, "a gap of {gap}");
        }
        let order = InOrder::default();
        let mut offset = 1;
        for _ in 0..1000 {
            offset = offset * 48_271 % 2_147_483_647;
            assert_eq!(order.missed(offset, 4096), None, "at random");
        }
        assert_eq!(order.missed(1 << 20, 8), None, "back again");
        assert_eq!(order.missed(1 << 30, 2 * u64::from(STRETCH_BYTES)), None);
        assert_eq!(
            order.missed((1 << 30) + 2 * u64::from(STRETCH_BYTES), 2 * u64::from(STRETCH_BYTES)),
            None,
            "it is a stretch by itself"
        );
    }
}
