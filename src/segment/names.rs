//! The names of the store's files. All names are made here; none comes from the contents of a file.

/// Locked while the store is open. Contains the PID of the last process that locked it, as text for error messages.
/// Nothing relies on the contents.
pub(crate) const LOCK_FILE: &str = "LOCK";
/// The list of live segments.
pub(crate) const MANIFEST_FILE: &str = "MANIFEST";
/// An empty file with preallocated space, which deletes and compaction use on a full disk.
pub(crate) const RESERVE_FILE: &str = "RESERVE";
/// Suffix of hint files.
pub(crate) const HINT_SUFFIX: &str = ".hint";
const SEGMENT_SUFFIX: &str = ".seg";
/// Suffix of a segment's name for a copy of the bytes that a salvage has cut off its end.
const CUT_SUFFIX: &str = ".cut";
const TMP_SUFFIX: &str = ".tmp";
const ID_DIGITS: usize = 20;

/// The meaning of a file name in the store's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileName {
    Lock,
    Manifest,
    Reserve,
    Segment(u64),
    Hint(u64),
    /// Kept for manual inspection. The store neither reads nor removes it.
    Cut,
    /// A temporary file that the store was writing when it stopped.
    Leftover,
    /// Not a file of the store.
    Foreign,
}

impl FileName {
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            LOCK_FILE => return Self::Lock,
            MANIFEST_FILE => return Self::Manifest,
            RESERVE_FILE => return Self::Reserve,
            _ => {}
        }
        if let Some(stem) = name.strip_suffix(TMP_SUFFIX) {
            return match Self::parse(stem) {
                Self::Manifest | Self::Hint(_) | Self::Cut => Self::Leftover,
                _ => Self::Foreign,
            };
        }
        if let Some(id) = name.strip_suffix(SEGMENT_SUFFIX).and_then(parse_id) {
            return Self::Segment(id);
        }
        if let Some(stem) = name.strip_suffix(CUT_SUFFIX) {
            return match Self::parse(stem) {
                Self::Segment(_) => Self::Cut,
                _ => Self::Foreign,
            };
        }
        name.strip_suffix(HINT_SUFFIX).and_then(parse_id).map_or(Self::Foreign, Self::Hint)
    }
}

/// Accepts exactly twenty digits. `3.seg` and `0…3 (copy).seg` are foreign files.
fn parse_id(digits: &str) -> Option<u64> {
    let canonical = digits.len() == ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    canonical.then(|| digits.parse().ok()).flatten()
}

pub(crate) fn segment_file_name(id: u32) -> String {
    format!("{id:020}{SEGMENT_SUFFIX}")
}

pub(crate) fn hint_file_name(id: u32) -> String {
    format!("{id:020}{HINT_SUFFIX}")
}

pub(crate) fn cut_file_name(id: u32) -> String {
    format!("{}{CUT_SUFFIX}", segment_file_name(id))
}

/// The name of the temporary file that is renamed to `name`.
pub(crate) fn tmp_name(name: &str) -> String {
    format!("{name}{TMP_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_names_belong_to_the_store() {
        for (name, expected) in [
            ("LOCK", FileName::Lock),
            ("MANIFEST", FileName::Manifest),
            ("MANIFEST.tmp", FileName::Leftover),
            ("RESERVE", FileName::Reserve),
            ("RESERVE.tmp", FileName::Foreign),
            ("00000000000000000007.seg", FileName::Segment(7)),
            ("00000000000000000007.hint", FileName::Hint(7)),
            ("00000000000000000007.hint.tmp", FileName::Leftover),
            ("00000000000000000007.seg.cut", FileName::Cut),
            ("00000000000000000007.seg.cut.tmp", FileName::Leftover),
            ("00000000000000000007.hint.cut", FileName::Foreign),
            ("MANIFEST.cut", FileName::Foreign),
            ("7.seg", FileName::Foreign),
            ("00000000000000000007 (copy).seg", FileName::Foreign),
            ("._00000000000000000007.seg", FileName::Foreign),
            ("+0000000000000000007.seg", FileName::Foreign),
            ("99999999999999999999.seg", FileName::Foreign),
            (".DS_Store", FileName::Foreign),
            ("lost+found", FileName::Foreign),
            ("notes.tmp", FileName::Foreign),
        ] {
            assert_eq!(FileName::parse(name), expected, "{name}");
        }
        assert_eq!(FileName::parse(&segment_file_name(u32::MAX)), FileName::Segment(u64::from(u32::MAX)));
        assert_eq!(FileName::parse(&cut_file_name(3)), FileName::Cut);
        assert_eq!(FileName::parse(&tmp_name(&hint_file_name(3))), FileName::Leftover);
    }
}
