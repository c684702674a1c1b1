//! Derives what the store was doing at a crash from its disk operations.

use ringcask::testing::format::{FOOTER_LEN, RECORD_HEADER_LEN, RecordKind, SEGMENT_HEADER_LEN};
use ringcask::testing::sim::{Journal, Step, StepKind};

use crate::support::history_model::History;

/// The kinds of work that a crash can interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Writing a group of single writes.
    Append,
    /// Writing a group that contains a batch.
    Batch,
    /// Starting a segment.
    Rotate,
    /// Truncating a tail, or writing a footer.
    Seal,
    Hint,
    Manifest,
    /// Any step of an open. Counted in addition to another phase.
    Recovery,
    /// Writing an output of a compaction.
    Copy,
    /// Unlinking segments.
    Unlink,
    /// Any step of a clean close. Counted in addition to another phase.
    Close,
}

impl Phase {
    pub const ALL: [Self; 10] = [
        Self::Append,
        Self::Batch,
        Self::Rotate,
        Self::Seal,
        Self::Hint,
        Self::Manifest,
        Self::Recovery,
        Self::Copy,
        Self::Unlink,
        Self::Close,
    ];
}

/// Number of states in each phase.
pub type Counts = [u64; Phase::ALL.len()];

/// The phases of all crash points of a run.
pub struct Phases {
    /// The phase of the step before each crash point.
    steps: Vec<Option<Phase>>,
    recoveries: Vec<(usize, usize)>,
    closes: Vec<(usize, usize)>,
}

impl Phases {
    pub fn of(journal: &Journal, history: &History) -> Self {
        let steps = journal.steps();
        let outputs: Vec<usize> = steps.iter().filter(|step| is_copy(step)).filter_map(|step| step.inode).collect();
        let (mut phases, mut last, mut group) = (vec![None], None, None);
        for step in &steps {
            if let Some(phase) = phase_of(step, &outputs, &mut group) {
                last = Some(phase);
            }
            phases.push(last);
        }
        // A recovery without an end lasts until the end of the journal.
        let mut recoveries = history.recoveries.clone();
        if recoveries.is_empty() {
            recoveries.push((0, journal.len()));
        }
        Self { steps: phases, recoveries, closes: history.closes.clone() }
    }

    /// Counts `states` crash states after `step` steps.
    pub fn count(&self, step: usize, states: u64, counts: &mut Counts) {
        let is_in = |spans: &[(usize, usize)]| spans.iter().any(|(first, last)| *first < step && step < *last);
        let beside = [(Phase::Recovery, is_in(&self.recoveries)), (Phase::Close, is_in(&self.closes))];
        let beside = beside.into_iter().filter_map(|(phase, is_on)| is_on.then_some(phase));
        for phase in self.steps.get(step).copied().flatten().into_iter().chain(beside) {
            counts[phase as usize] += states;
        }
    }
}

fn is_segment(step: &Step) -> bool {
    step.name.as_deref().is_some_and(|name| name.ends_with(".seg"))
}

/// Whether the step writes a record the way a compaction does: without a watermark in front of it.
fn is_copy(step: &Step) -> bool {
    let first = step.data.get(8).copied().and_then(RecordKind::from_tag);
    is_segment(step)
        && step.offset == SEGMENT_HEADER_LEN as u64
        && matches!(first, Some(RecordKind::Put | RecordKind::Tombstone))
}

/// The phase of `step`, or `None` if it continues the previous phase. `group` is the phase of the last append.
fn phase_of(step: &Step, outputs: &[usize], group: &mut Option<Phase>) -> Option<Phase> {
    let name = step.name.as_deref()?;
    if name.starts_with("MANIFEST") {
        return Some(Phase::Manifest);
    }
    if name.contains(".hint") {
        return (step.kind != StepKind::Unlink).then_some(Phase::Hint);
    }
    if !is_segment(step) {
        return None;
    }
    let is_output = step.inode.is_some_and(|inode| outputs.contains(&inode));
    let phase = match step.kind {
        StepKind::Unlink => Phase::Unlink,
        _ if is_output => Phase::Copy,
        StepKind::Create => Phase::Rotate,
        StepKind::Truncate => Phase::Seal,
        StepKind::Write if step.offset == 0 => {
            *group = Some(Phase::Rotate);
            Phase::Rotate
        }
        StepKind::Write => {
            let phase = kind_of_group(&step.data);
            *group = Some(phase);
            phase
        }
        _ => group.unwrap_or(Phase::Append),
    };
    Some(phase)
}

/// The phase of appended data: a footer, a group with a batch, or a group without one.
fn kind_of_group(mut data: &[u8]) -> Phase {
    let footer = RecordKind::Footer.tag();
    if data.len() == FOOTER_LEN && data.get(8) == Some(&footer) {
        return Phase::Seal;
    }
    while let Some(header) = data.first_chunk::<RECORD_HEADER_LEN>() {
        if RecordKind::from_tag(header[8]) == Some(RecordKind::Batch) {
            return Phase::Batch;
        }
        let key_len = usize::from(u16::from_le_bytes([header[10], header[11]]));
        let value_len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        data = data.get((RECORD_HEADER_LEN + key_len + value_len).next_multiple_of(8)..).unwrap_or_default();
    }
    Phase::Append
}
