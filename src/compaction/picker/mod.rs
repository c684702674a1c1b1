//! Which segments to compact: a pure function over what each of them holds, in bytes.
//!
//! - *When* is the **trigger**: the part of all sealed segments that is dead.
//! - *What* is the **threshold**: the part of one segment that rewriting it would free.
//! - *How much* is the **budget**: bytes of segments in one job.
//!
//! Dead bytes are not all free to go: a tombstone must stay while a segment that is not part of the same job may hold a
//! record that it hides, so its bytes count as dead, and as reclaimable only where it could be dropped.
//!
//! # Why it always comes to an end, and never does the same work twice
//!
//! A segment is picked for what it frees, at least the threshold; or because it is small, and then several become one;
//! or because its age holds tombstones back that are worth it. In the last case its successor is younger than every
//! one of them, and is not picked for their sake again. While the trigger holds and nothing is held back, the segment
//! with the largest dead part has at least the average part, which is the trigger or more; and the threshold is no
//! larger than the trigger.

use std::collections::BTreeSet;

use crate::format::{FOOTER_LEN, SEGMENT_HEADER_LEN};
use crate::options::Compaction;
use crate::seeded_bug::{self, SeededBug};

/// Bytes of a sealed segment without a record.
const EMPTY_SEGMENT_BYTES: u64 = (SEGMENT_HEADER_LEN + FOOTER_LEN) as u64;

/// So many small segments are worth being merged.
const SMALL_COUNT: usize = 8;

/// A segment is small below this part of a full one.
const SMALL_DIVISOR: u64 = 4;

/// With the budget asked for by name, what frees less than this part of a segment is left alone.
const FORCED_DIVISOR: u64 = 128;

/// A sealed, whole segment.
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
    /// All but the live records, and but what every segment needs.
    fn dead_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.live_bytes).saturating_sub(EMPTY_SEGMENT_BYTES)
    }

    /// What rewriting it frees if its tombstones go, or if they stay.
    fn reclaimable_bytes(&self, tombstones_go: bool) -> u64 {
        let kept = if tombstones_go { 0 } else { self.tombstone_bytes };
        self.dead_bytes().saturating_sub(kept)
    }

    fn is_small(&self, segment_bytes: u64) -> bool {
        self.total_bytes < segment_bytes / SMALL_DIVISOR
    }
}

/// When, what and how much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) trigger: f64,
    pub(crate) threshold: f64,
    pub(crate) budget_bytes: u64,
    pub(crate) segment_bytes: u64,
}

impl Policy {
    /// What `options` say, for segments of `segment_bytes`.
    pub(crate) fn new(options: &Compaction, segment_bytes: u64) -> Self {
        Self {
            trigger: options.trigger,
            threshold: options.threshold.min(options.trigger),
            budget_bytes: options.budget_bytes.unwrap_or(segment_bytes.saturating_mul(4)),
            segment_bytes,
        }
    }
}

/// One job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pick {
    /// No key points into these: they go unread.
    pub(crate) unread: Vec<u32>,
    /// The live records of these are written to new segments.
    pub(crate) rewrite: Vec<u32>,
}

impl Pick {
    pub(crate) fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.rewrite.is_empty()
    }
}

/// All segments of a store, as the picker sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) candidates: Vec<Candidate>,
    /// The smallest `first_seq` of all other segments: the one that is written, and damaged ones.
    pub(crate) others_first_seq: Option<u64>,
}

impl View {
    /// Below this, tombstones of the segments `inside` hide nothing that is not in one of them.
    pub(crate) fn tombstones_go_below(&self, inside: &[u32]) -> u64 {
        let outside = self.candidates.iter().filter(|candidate| !inside.contains(&candidate.id));
        outside.map(|candidate| candidate.first_seq).chain(self.others_first_seq).min().unwrap_or(u64::MAX)
    }

    fn tombstones_go(&self, candidate: &Candidate, inside: &[u32]) -> bool {
        candidate.tombstone_bytes == 0 || candidate.max_seq < self.tombstones_go_below(inside)
    }

    fn reclaimable_alone(&self, candidate: &Candidate) -> u64 {
        candidate.reclaimable_bytes(self.tombstones_go(candidate, &[candidate.id]))
    }

    /// Bytes that compaction of each segment by itself would free.
    pub(crate) fn reclaimable_bytes(&self) -> u64 {
        self.candidates.iter().map(|candidate| self.reclaimable_alone(candidate)).sum()
    }

    /// The part of the candidates that is dead.
    pub(crate) fn dead_part(&self) -> f64 {
        let total = self.candidates.iter().map(|candidate| candidate.total_bytes).sum();
        part(self.candidates.iter().map(Candidate::dead_bytes).sum(), total)
    }

    /// Segments without a live byte, of `named` ones or of all, whose tombstones hide nothing outside them: each relies
    /// on those before it to go as well.
    fn unread(&self, named: Option<&[u32]>) -> Vec<u32> {
        let is_meant = |candidate: &&Candidate| named.is_none_or(|named| named.contains(&candidate.id));
        let candidates = self.candidates.iter().filter(is_meant);
        let mut dead: Vec<&Candidate> = candidates.filter(|candidate| candidate.live_bytes == 0).collect();
        dead.sort_by_key(|candidate| (candidate.first_seq, candidate.id));
        let mut outside: BTreeSet<(u64, u32)> = self.candidates.iter().map(|it| (it.first_seq, it.id)).collect();
        let mut unread = Vec::new();
        for candidate in dead {
            let place = (candidate.first_seq, candidate.id);
            outside.remove(&place);
            let go_below =
                outside.first().map(|(first_seq, _)| *first_seq).into_iter().chain(self.others_first_seq).min();
            let tombstones_go =
                candidate.tombstone_bytes == 0 || go_below.is_none_or(|below| candidate.max_seq < below);
            if tombstones_go || seeded_bug::is(SeededBug::UnreadWithTombstones) {
                unread.push(candidate.id);
            } else {
                outside.insert(place);
            }
        }
        unread
    }

    fn without(&self, gone: &[u32]) -> Self {
        let kept = self.candidates.iter().filter(|candidate| !gone.contains(&candidate.id));
        Self { candidates: kept.copied().collect(), others_first_seq: self.others_first_seq }
    }
}

/// What is due now.
pub(crate) fn pick(view: &View, policy: &Policy) -> Pick {
    let unread = view.unread(None);
    let view = view.without(&unread);
    let mut rewrite = Vec::new();
    if view.dead_part() >= policy.trigger {
        rewrite = worth_it(&view, policy);
        if rewrite.is_empty() {
            rewrite = holding_back(&view, policy);
        }
    }
    if rewrite.is_empty() {
        rewrite = small(&view, policy);
    }
    Pick { unread, rewrite }
}

/// What is to be done with `named` segments, or with all of them: jobs, to be done in this order. What would free next to
/// nothing is left alone, unless it is named.
pub(crate) fn pick_forced(view: &View, named: Option<&[u32]>, policy: &Policy) -> Vec<Pick> {
    let unread = view.unread(named);
    let rest = view.without(&unread);
    let mut meant: Vec<&Candidate> = match named {
        Some(named) => rest.candidates.iter().filter(|candidate| named.contains(&candidate.id)).collect(),
        None => all_worth_rewriting(&rest, policy),
    };
    // Oldest first: then the tombstones of each job have nothing left to hide in the jobs behind it.
    meant.sort_by_key(|candidate| (candidate.first_seq, candidate.id));
    let mut picks = vec![Pick { unread, rewrite: Vec::new() }];
    let mut bytes = 0;
    for candidate in meant {
        if bytes > 0 && bytes + candidate.total_bytes > policy.budget_bytes {
            picks.push(Pick::default());
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

/// All that frees something, all small ones if there are several, and all whose age holds back tombstones that are worth it.
fn all_worth_rewriting<'a>(view: &'a View, policy: &Policy) -> Vec<&'a Candidate> {
    let small_count = view.candidates.iter().filter(|candidate| candidate.is_small(policy.segment_bytes)).count();
    let is_worth_it = |candidate: &Candidate| {
        candidate.reclaimable_bytes(true) > candidate.total_bytes / FORCED_DIVISOR
            || (small_count > 1 && candidate.is_small(policy.segment_bytes))
    };
    let (taken, rest): (Vec<&Candidate>, Vec<_>) = view.candidates.iter().partition(|candidate| is_worth_it(candidate));
    let tombstone_bytes: u64 = taken.iter().map(|candidate| candidate.tombstone_bytes).sum();
    let total_bytes: u64 = view.candidates.iter().map(|candidate| candidate.total_bytes).sum();
    let with_tombstones = taken.iter().filter(|candidate| candidate.tombstone_bytes > 0);
    let newest_tombstone = with_tombstones.map(|candidate| candidate.max_seq).max().unwrap_or(0);
    let holds_back = |candidate: &Candidate| {
        tombstone_bytes > total_bytes / FORCED_DIVISOR && candidate.first_seq <= newest_tombstone
    };
    let rest = rest.into_iter().filter(|candidate| holds_back(candidate));
    taken.iter().copied().chain(rest).collect()
}

/// The job that frees most with no more than `bytes` of new segments: for a full disk.
pub(crate) fn pick_lean(view: &View, bytes: u64) -> Pick {
    let unread = view.unread(None);
    if !unread.is_empty() {
        return Pick { unread, rewrite: Vec::new() };
    }
    let kept = |candidate: &Candidate| candidate.total_bytes.saturating_sub(view.reclaimable_alone(candidate));
    let fits = view.candidates.iter().filter(|candidate| kept(candidate) <= bytes);
    let best = fits.max_by_key(|candidate| view.reclaimable_alone(candidate));
    let rewrite = best.filter(|candidate| view.reclaimable_alone(candidate) > 0).map(|candidate| candidate.id);
    Pick { unread, rewrite: rewrite.into_iter().collect() }
}

/// The segments that free most for what they cost, until the dead part is well below the trigger again.
fn worth_it(view: &View, policy: &Policy) -> Vec<u32> {
    let mut ranked: Vec<(f64, &Candidate)> = view
        .candidates
        .iter()
        .map(|candidate| (part(view.reclaimable_alone(candidate), candidate.total_bytes), candidate))
        .filter(|(freed, _)| *freed >= policy.threshold)
        .collect();
    ranked.sort_by(|(a, one), (b, other)| b.total_cmp(a).then(one.id.cmp(&other.id)));
    let mut total: u64 = view.candidates.iter().map(|candidate| candidate.total_bytes).sum();
    let mut dead: u64 = view.candidates.iter().map(Candidate::dead_bytes).sum();
    let mut taken = Vec::new();
    let mut bytes = 0;
    for (_, candidate) in ranked {
        let is_enough = part(dead, total) < policy.trigger * 0.9;
        if !taken.is_empty() && (is_enough || bytes + candidate.total_bytes > policy.budget_bytes) {
            break;
        }
        let freed = view.reclaimable_alone(candidate);
        (total, dead) = (total.saturating_sub(freed), dead.saturating_sub(freed));
        bytes += candidate.total_bytes;
        taken.push(candidate.id);
    }
    taken
}

/// The oldest segments, where it is their age that keeps tombstones from going.
fn holding_back(view: &View, policy: &Policy) -> Vec<u32> {
    // What a segment holds back that is no candidate, no age of candidates mends.
    let others_first_seq = view.others_first_seq.unwrap_or(u64::MAX);
    let held_back = view
        .candidates
        .iter()
        .filter(|candidate| candidate.max_seq < others_first_seq && !view.tombstones_go(candidate, &[candidate.id]));
    let Some(newest_tombstone) = held_back.map(|candidate| candidate.max_seq).max() else { return Vec::new() };
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

/// Many small segments, to become one. Each is at most as large as those before it together, so that a segment that has
/// grown by merging is not written again for the sake of a few tiny ones.
fn small(view: &View, policy: &Policy) -> Vec<u32> {
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
fn part(of: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { of as f64 / total as f64 }
}

#[cfg(test)]
mod tests;
