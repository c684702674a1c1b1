//! What a store was doing when it crashed, derived from its disk operations.

use ringcask::testing::format::{FOOTER_LEN, RECORD_HEADER_LEN, RecordKind, SEGMENT_HEADER_LEN};
use ringcask::testing::sim::{Journal, Step, StepKind};

use crate::support::history_model::History;

/// The kinds of work a crash can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A group of single writes.
    Append,
    /// A group with a batch in it.
    Batch,
    /// A segment is started.
    Rotate,
    /// A tail is cut, or a footer written.
    Seal,
    Hint,
    Manifest,
    /// Any step while the store is opened; counted beside another phase.
    Recovery,
    /// An output of a compaction is written.
    Copy,
    /// Segments are unlinked.
    Unlink,
    /// Any step while the store is closed in good order; counted beside another phase.
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

/// Numbers of states, by phase.
pub type Counts = [u64; Phase::ALL.len()];

/// The phases of each crash point of a run.
pub struct Phases {
    /// What the step before each crash point belonged to.
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
        // An opening that did not come to its end is one to the end.
        let mut recoveries = history.recoveries.clone();
        if recoveries.is_empty() {
            recoveries.push((0, journal.len()));
        }
        Self { steps: phases, recoveries, closes: history.closes.clone() }
    }

    /// Counts `states` states of a crash after `step` steps.
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

/// Whether the step writes a record as a compaction does: without a watermark in front of it.
fn is_copy(step: &Step) -> bool {
    let first = step.data.get(8).copied().and_then(RecordKind::from_tag);
    is_segment(step)
        && step.offset == SEGMENT_HEADER_LEN as u64
        && matches!(first, Some(RecordKind::Put | RecordKind::Tombstone))
}

/// What `step` belongs to, unless it belongs to what went before; `group` is what was last appended.
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

/// A footer, a group with a batch, or one without.
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
