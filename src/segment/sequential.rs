//! Sequential detection: whether gets read the records of a segment from the disk in ascending order.
//!
//! The store has told the kernel not to read ahead in segments, because the kernel guesses wrong under random reads.
//! This module detects sequential gets instead. It only looks at misses, the gets that wait for the I/O engine, since
//! they are the expensive ones. A miss that continues the previous miss, or the read-ahead window behind it, triggers
//! read-ahead of the next window. Each window then costs one wait, and gets that hit inside the window cost nothing
//! here.
//!
//! Two sequential readers of the same segment overwrite each other's state. Each of them then waits once more per
//! window.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a read-ahead window.
const WINDOW_BYTES: u32 = 1 << 20;
/// The largest gap between two gets that counts as sequential. Records of other keys and dead records may lie in it.
const MAX_GAP_BYTES: u64 = 16 << 10;

/// End of the last miss, or of the read-ahead window behind it.
#[derive(Debug, Default)]
pub(crate) struct SequentialDetector(AtomicU64);

impl SequentialDetector {
    /// Whether `offset` may lie in the read-ahead window, or continues the last miss.
    pub(crate) fn expects(&self, offset: u64) -> bool {
        let known_end = self.0.load(Ordering::Relaxed);
        known_end > 0 && offset <= known_end + MAX_GAP_BYTES && offset + u64::from(WINDOW_BYTES) >= known_end
    }

    /// Records a miss of `len` bytes at `offset`. Returns the number of bytes to read ahead from `offset`, if any.
    pub(crate) fn missed(&self, offset: u64, len: u64) -> Option<u32> {
        let (known_end, end) = (self.0.load(Ordering::Relaxed), offset + len);
        let window = u64::from(WINDOW_BYTES);
        if offset < known_end && end <= known_end && known_end - offset <= window {
            // The read-ahead that is in flight covers it.
            return None;
        }
        let is_sequential = known_end > 0 && known_end <= end && known_end + MAX_GAP_BYTES >= offset;
        let ahead = (is_sequential && len < window).then_some(WINDOW_BYTES);
        self.0.store(offset + ahead.map_or(len, u64::from), Ordering::Relaxed);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_that_continues_the_last_one_triggers_read_ahead() {
        let detector = SequentialDetector::default();
        assert_eq!(detector.missed(512, 4096), None, "the first miss");
        assert_eq!(detector.missed(512 + 4096, 4096), Some(WINDOW_BYTES));
        for step in 2..200 {
            assert_eq!(detector.missed(512 + step * 4096, 4096), None, "read-ahead is in flight");
        }
        // The first record that does not fit into the window.
        assert_eq!(detector.missed(512 + 257 * 4096 - 100, 4096), Some(WINDOW_BYTES));
    }

    #[test]
    fn the_window_and_its_continuation_are_expected() {
        let detector = SequentialDetector::default();
        assert!(!detector.expects(0) && !detector.expects(4096), "no miss yet");
        let base = 1 << 30;
        detector.missed(base, 4096);
        assert!(detector.expects(base + 4096) && detector.expects(base + 4096 + MAX_GAP_BYTES));
        assert!(!detector.expects(base + 4097 + MAX_GAP_BYTES));
        detector.missed(base + 4096, 4096);
        let end = base + 4096 + u64::from(WINDOW_BYTES);
        assert!(detector.expects(base + 4096) && detector.expects(end - 1) && detector.expects(end));
        assert!(!detector.expects(base + 4095) && !detector.expects(end + MAX_GAP_BYTES + 1));
    }

    #[test]
    fn small_gaps_are_sequential_and_jumps_are_not() {
        for (gap, expected) in [(0, Some(WINDOW_BYTES)), (MAX_GAP_BYTES, Some(WINDOW_BYTES)), (MAX_GAP_BYTES + 1, None)]
        {
            let detector = SequentialDetector::default();
            detector.missed(1 << 30, 100);
            assert_eq!(detector.missed((1 << 30) + 100 + gap, 100), expected, "a gap of {gap}");
        }
        let detector = SequentialDetector::default();
        let mut offset = 1;
        for _ in 0..1000 {
            offset = offset * 48_271 % 2_147_483_647;
            assert_eq!(detector.missed(offset, 4096), None, "random offsets");
        }
        assert_eq!(detector.missed(1 << 20, 8), None, "backwards");
        let long = 2 * u64::from(WINDOW_BYTES);
        assert_eq!(detector.missed(1 << 30, long), None);
        assert_eq!(detector.missed((1 << 30) + long, long), None, "longer than a window");
    }
}
