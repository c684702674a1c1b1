//! The result of loading one segment, from its hint or by a scan.

use super::checked::CheckedSegment;
use super::live_bytes::LiveByteCounter;
use crate::segment::{Facts, Stop};

/// One segment whose keys are in the keydir.
pub(super) struct LoadedSegment {
    pub(super) segment: CheckedSegment,
    pub(super) facts: Facts,
    /// Bytes of the hint file, if the keys came from it.
    pub(super) hint_bytes: Option<u64>,
    pub(super) records_scanned: u64,
    /// Damaged ranges: where the scan stopped, and the length in bytes.
    pub(super) damage: Vec<(Stop, u64)>,
    /// Damage to the segment as a whole.
    pub(super) damage_reason: Option<&'static str>,
    pub(super) live_bytes: LiveByteCounter,
}

impl LoadedSegment {
    /// A segment whose keys came from its hint file.
    pub(super) fn from_hint(
        segment: CheckedSegment,
        facts: Facts,
        hint_bytes: u64,
        live_bytes: LiveByteCounter,
    ) -> Self {
        let (hint_bytes, records_scanned, damage, damage_reason) = (Some(hint_bytes), 0, Vec::new(), None);
        Self { segment, facts, hint_bytes, records_scanned, damage, damage_reason, live_bytes }
    }
}
