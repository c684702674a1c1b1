//! The picker: which segments to compact. A pure function over the byte counts of each segment.
//!
//! - The **trigger** says *when*: at which dead fraction of all sealed segments.
//! - The **threshold** says *what*: which fraction of a segment a rewrite must free.
//! - The **budget** says *how much*: how many bytes of segments one job takes.
//!
//! Not all dead bytes can be freed. A tombstone must stay while a segment outside the job may hold a record that it
//! hides, so its bytes count as dead, but as reclaimable only where it can be dropped.
//!
//! # Why compaction ends and does not repeat work
//!
//! A segment is picked for one of three reasons:
//!
//! - A rewrite frees at least the threshold.
//! - It is small, and several small segments become one.
//! - It is so old that tombstones must stay because of it, and those are worth removing. The segment that replaces it
//!   is younger than all of these tombstones, and is not picked for them again.
//!
//! While the dead fraction is at the trigger and no tombstone is kept, the segment with the largest dead fraction has
//! at least the average, which is the trigger or more. The threshold is no larger than the trigger, so that segment is
//! picked.

use std::collections::BTreeSet;

use crate::format::{FOOTER_LEN, SEGMENT_HEADER_LEN};
use crate::options::Compaction;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::SegmentSet;

/// Bytes of a sealed segment without records.
const EMPTY_SEGMENT_BYTES: u64 = (SEGMENT_HEADER_LEN + FOOTER_LEN) as u64;

/// Merge small segments when there are this many.
const SMALL_COUNT: usize = 8;

/// A segment is small if it has less than this part of the bytes of a full one.
const SMALL_DIVISOR: u64 = 4;

/// A requested compaction of all segments skips a segment if a rewrite frees less than this part of it.
const REQUESTED_DIVISOR: u64 = 128;

/// A sealed, undamaged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) total_bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) tombstone_bytes: u64,
    /// No tombstone with a smaller sequence number hides a record of this segment.
    pub(crate) first_seq: u64,
    /// No record in it has a larger sequence number.
    pub(crate) max_seq: u64,
}

impl Candidate {
    /// All bytes except the live records, the segment header and the footer.
    fn dead_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.live_bytes).saturating_sub(EMPTY_SEGMENT_BYTES)
    }

    /// Bytes that a rewrite frees, with or without those of the tombstones.
    fn reclaimable_bytes(&self, tombstones_removable: bool) -> u64 {
        let kept = if tombstones_removable { 0 } else { self.tombstone_bytes };
        self.dead_bytes().saturating_sub(kept)
    }

    fn is_small(&self, segment_bytes: u64) -> bool {
        self.total_bytes < segment_bytes / SMALL_DIVISOR
    }
}

/// The trigger, the threshold and the budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) trigger: f64,
    pub(crate) threshold: f64,
    pub(crate) budget_bytes: u64,
    pub(crate) segment_bytes: u64,
}

impl Policy {
    /// The policy that `options` ask for, with segments of `segment_bytes`.
    pub(crate) fn new(options: &Compaction, segment_bytes: u64) -> Self {
        Self {
            trigger: options.trigger,
            threshold: options.threshold.min(options.trigger),
            budget_bytes: options.budget_bytes.unwrap_or(segment_bytes.saturating_mul(4)),
            segment_bytes,
        }
    }
}

/// The segments of one job, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PickedSegments {
    /// Segments that hold nothing to keep. They are removed unread.
    pub(crate) unread: Vec<u32>,
    /// Segments whose live records are copied to new segments.
    pub(crate) rewrite: Vec<u32>,
}

impl PickedSegments {
    pub(crate) fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.rewrite.is_empty()
    }
}

/// All segments of a store, as the picker sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentsView {
    pub(crate) candidates: Vec<Candidate>,
    /// The smallest `first_seq` of all other segments: the active one and damaged ones.
    pub(crate) others_first_seq: Option<u64>,
}

/// The segments of a store as the picker sees them.
pub(crate) fn view(segments: &SegmentSet) -> SegmentsView {
    let mut view = SegmentsView::default();
    for segment in segments.all() {
        match segment.facts().filter(|_| segment.is_sealed()) {
            Some(facts) => view.candidates.push(Candidate {
                id: segment.id,
                total_bytes: segment.written_end(),
                live_bytes: segment.live_bytes(),
                tombstone_bytes: facts.tombstone_bytes,
                first_seq: segment.first_seq,
                max_seq: facts.max_seq,
            }),
            None => {
                let first_seq = view.others_first_seq.unwrap_or(u64::MAX).min(segment.first_seq);
                view.others_first_seq = Some(first_seq);
            }
        }
    }
    view
}

impl SegmentsView {
    /// In a job of the segments `inside`, tombstones with smaller sequence numbers hide nothing outside the job.
    pub(crate) fn tombstones_removable_below(&self, inside: &[u32]) -> u64 {
        let outside = self.candidates.iter().filter(|candidate| !inside.contains(&candidate.id));
        outside.map(|candidate| candidate.first_seq).chain(self.others_first_seq).min().unwrap_or(u64::MAX)
    }

    fn are_tombstones_removable(&self, candidate: &Candidate, inside: &[u32]) -> bool {
        candidate.tombstone_bytes == 0 || candidate.max_seq < self.tombstones_removable_below(inside)
    }

    /// Bytes that a job of this segment alone frees.
    fn reclaimable_bytes_alone(&self, candidate: &Candidate) -> u64 {
        candidate.reclaimable_bytes(self.are_tombstones_removable(candidate, &[candidate.id]))
    }

    /// Bytes that jobs of one segment each would free.
    pub(crate) fn reclaimable_bytes(&self) -> u64 {
        self.candidates.iter().map(|candidate| self.reclaimable_bytes_alone(candidate)).sum()
    }

    /// The dead fraction of the candidates.
    pub(crate) fn dead_fraction(&self) -> f64 {
        let total = self.candidates.iter().map(|candidate| candidate.total_bytes).sum();
        fraction(self.candidates.iter().map(Candidate::dead_bytes).sum(), total)
    }

    /// Segments without a live byte whose tombstones hide nothing outside them, among the `named` ones or all. Each
    /// relies on the removal of those before it.
    fn unread(&self, named: Option<&[u32]>) -> Vec<u32> {
        let is_considered = |candidate: &&Candidate| named.is_none_or(|named| named.contains(&candidate.id));
        let candidates = self.candidates.iter().filter(is_considered);
        let mut dead: Vec<&Candidate> = candidates.filter(|candidate| candidate.live_bytes == 0).collect();
        dead.sort_by_key(|candidate| (candidate.first_seq, candidate.id));
        let mut outside: BTreeSet<(u64, u32)> = self.candidates.iter().map(|it| (it.first_seq, it.id)).collect();
        let mut unread = Vec::new();
        for candidate in dead {
            let place = (candidate.first_seq, candidate.id);
            outside.remove(&place);
            let removable_below =
                outside.first().map(|(first_seq, _)| *first_seq).into_iter().chain(self.others_first_seq).min();
            let removable =
                candidate.tombstone_bytes == 0 || removable_below.is_none_or(|below| candidate.max_seq < below);
            if removable || seeded_bug::is(SeededBug::UnreadWithTombstones) {
                unread.push(candidate.id);
            } else {
                outside.insert(place);
            }
        }
        unread
    }

    fn without(&self, removed: &[u32]) -> Self {
        let kept = self.candidates.iter().filter(|candidate| !removed.contains(&candidate.id));
        Self { candidates: kept.copied().collect(), others_first_seq: self.others_first_seq }
    }
}

/// The job that is due now; empty if none is.
pub(crate) fn pick(view: &SegmentsView, policy: &Policy) -> PickedSegments {
    let unread = view.unread(None);
    let view = view.without(&unread);
    let mut rewrite = Vec::new();
    if view.dead_fraction() >= policy.trigger {
        rewrite = most_reclaimable(&view, policy);
        if rewrite.is_empty() {
            rewrite = oldest_that_keep_tombstones(&view, policy);
        }
    }
    if rewrite.is_empty() {
        rewrite = small_segments(&view, policy);
    }
    PickedSegments { unread, rewrite }
}

/// The jobs, in their order, for a caller's request to compact the `named` segments, or all. Segments of which a
/// rewrite frees almost nothing are skipped unless they are named.
pub(crate) fn pick_requested(view: &SegmentsView, named: Option<&[u32]>, policy: &Policy) -> Vec<PickedSegments> {
    let unread = view.unread(named);
    let rest = view.without(&unread);
    let mut chosen: Vec<&Candidate> = match named {
        Some(named) => rest.candidates.iter().filter(|candidate| named.contains(&candidate.id)).collect(),
        None => all_worth_rewriting(&rest, policy),
    };
    // Oldest first: then the tombstones of each job hide nothing in the inputs of later jobs.
    chosen.sort_by_key(|candidate| (candidate.first_seq, candidate.id));
    let mut picks = vec![PickedSegments { unread, rewrite: Vec::new() }];
    let mut bytes = 0;
    for candidate in chosen {
        if bytes > 0 && bytes + candidate.total_bytes > policy.budget_bytes {
            picks.push(PickedSegments::default());
            bytes = 0;
        }
        bytes += candidate.total_bytes;
        if let Some(last) = picks.last_mut() {
            last.rewrite.push(candidate.id);
        }
    }
    picks.retain(|pick| !pick.is_empty());
    picks
}

/// All segments of which a rewrite frees something, all small ones if there are several, and all so old that tombstones
/// must stay because of them, if those are worth removing.
fn all_worth_rewriting<'a>(view: &'a SegmentsView, policy: &Policy) -> Vec<&'a Candidate> {
    let small_count = view.candidates.iter().filter(|candidate| candidate.is_small(policy.segment_bytes)).count();
    let is_worth_it = |candidate: &Candidate| {
        candidate.reclaimable_bytes(true) > candidate.total_bytes / REQUESTED_DIVISOR
            || (small_count > 1 && candidate.is_small(policy.segment_bytes))
    };
    let (taken, rest): (Vec<&Candidate>, Vec<_>) = view.candidates.iter().partition(|candidate| is_worth_it(candidate));
    let tombstone_bytes: u64 = taken.iter().map(|candidate| candidate.tombstone_bytes).sum();
    let total_bytes: u64 = view.candidates.iter().map(|candidate| candidate.total_bytes).sum();
    let with_tombstones = taken.iter().filter(|candidate| candidate.tombstone_bytes > 0);
    let newest_tombstone = with_tombstones.map(|candidate| candidate.max_seq).max().unwrap_or(0);
    let keeps_tombstones = |candidate: &Candidate| {
        tombstone_bytes > total_bytes / REQUESTED_DIVISOR && candidate.first_seq <= newest_tombstone
    };
    let rest = rest.into_iter().filter(|candidate| keeps_tombstones(candidate));
    taken.iter().copied().chain(rest).collect()
}

/// The job that frees most and writes no more than `bytes` of new segments, for a full disk.
pub(crate) fn pick_within(view: &SegmentsView, bytes: u64) -> PickedSegments {
    let unread = view.unread(None);
    if !unread.is_empty() {
        return PickedSegments { unread, rewrite: Vec::new() };
    }
    let kept = |candidate: &Candidate| candidate.total_bytes.saturating_sub(view.reclaimable_bytes_alone(candidate));
    let fits = view.candidates.iter().filter(|candidate| kept(candidate) <= bytes);
    let best = fits.max_by_key(|candidate| view.reclaimable_bytes_alone(candidate));
    let rewrite = best.filter(|candidate| view.reclaimable_bytes_alone(candidate) > 0).map(|candidate| candidate.id);
    PickedSegments { unread, rewrite: rewrite.into_iter().collect() }
}

/// The segments with the largest reclaimable fraction, until the dead fraction is well below the trigger again.
fn most_reclaimable(view: &SegmentsView, policy: &Policy) -> Vec<u32> {
    let mut ranked: Vec<(f64, &Candidate)> = view
        .candidates
        .iter()
        .map(|candidate| (fraction(view.reclaimable_bytes_alone(candidate), candidate.total_bytes), candidate))
        .filter(|(freed, _)| *freed >= policy.threshold)
        .collect();
    ranked.sort_by(|(a, one), (b, other)| b.total_cmp(a).then(one.id.cmp(&other.id)));
    let mut total: u64 = view.candidates.iter().map(|candidate| candidate.total_bytes).sum();
    let mut dead: u64 = view.candidates.iter().map(Candidate::dead_bytes).sum();
    let mut taken = Vec::new();
    let mut bytes = 0;
    for (_, candidate) in ranked {
        let is_enough = fraction(dead, total) < policy.trigger * 0.9;
        if !taken.is_empty() && (is_enough || bytes + candidate.total_bytes > policy.budget_bytes) {
            break;
        }
        let freed = view.reclaimable_bytes_alone(candidate);
        (total, dead) = (total.saturating_sub(freed), dead.saturating_sub(freed));
        bytes += candidate.total_bytes;
        taken.push(candidate.id);
    }
    taken
}

/// The oldest segments, if tombstones must stay because of their age.
fn oldest_that_keep_tombstones(view: &SegmentsView, policy: &Policy) -> Vec<u32> {
    // Rewriting candidates does not help tombstones that another segment keeps.
    let others_first_seq = view.others_first_seq.unwrap_or(u64::MAX);
    let kept = view.candidates.iter().filter(|candidate| {
        candidate.max_seq < others_first_seq && !view.are_tombstones_removable(candidate, &[candidate.id])
    });
    let Some(newest_tombstone) = kept.map(|candidate| candidate.max_seq).max() else { return Vec::new() };
    let mut oldest: Vec<&Candidate> =
        view.candidates.iter().filter(|candidate| candidate.first_seq <= newest_tombstone).collect();
    oldest.sort_by_key(|candidate| (candidate.first_seq, candidate.id));
    within_budget(oldest.into_iter(), policy.budget_bytes)
}

fn within_budget<'a>(candidates: impl Iterator<Item = &'a Candidate>, budget_bytes: u64) -> Vec<u32> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for candidate in candidates {
        if !taken.is_empty() && bytes + candidate.total_bytes > budget_bytes {
            break;
        }
        bytes += candidate.total_bytes;
        taken.push(candidate.id);
    }
    taken
}

/// Small segments to merge into one. Each is at most as large as all smaller ones together, so that a segment that has
/// grown by merging is not written again to add a few tiny ones.
fn small_segments(view: &SegmentsView, policy: &Policy) -> Vec<u32> {
    let mut small: Vec<&Candidate> =
        view.candidates.iter().filter(|candidate| candidate.is_small(policy.segment_bytes)).collect();
    small.sort_by_key(|candidate| (candidate.total_bytes, candidate.id));
    let mut taken = Vec::new();
    let mut bytes = 0;
    for candidate in small {
        let is_too_large = taken.len() >= SMALL_COUNT / 2 && candidate.total_bytes > bytes;
        if is_too_large || bytes + candidate.total_bytes > policy.segment_bytes.min(policy.budget_bytes) {
            break;
        }
        bytes += candidate.total_bytes;
        taken.push(candidate.id);
    }
    if taken.len() < SMALL_COUNT { Vec::new() } else { taken }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of byte counts, for comparing")]
fn fraction(of: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { of as f64 / total as f64 }
}

#[cfg(test)]
mod tests;
