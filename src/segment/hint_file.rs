//! Writes hint files. A hint file is built from the sealed segment as it is on disk, never from memory, and is bound to
//! the exact contents of the segment. (A compaction knows every byte of its output and builds the hint as it writes.)

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::names::{hint_file_name, tmp_name};
use super::scan::{Found, Scan};
use super::set::SegmentSet;
use super::state::Segment;
use crate::format::{
    FOOTER_LEN, Footer, HintEntry, HintHeader, HintWriter, RecordHeader, RecordKind, SEGMENT_HEADER_LEN,
};
use crate::io::{Dir, File, Io, OpenMode, SyncKind, util};

/// Hint files are written in pieces of this size, with a pause after each piece. A single write of many megabytes would
/// delay the commit task's next sync.
const PIECE_BYTES: usize = 256 << 10;
const PAUSE: Duration = Duration::from_millis(4);

/// Reads the sealed `segment` and writes its hint file. Pauses between the pieces if there is a clock.
pub(crate) async fn write_hint(
    segments: &SegmentSet,
    segment: &Segment,
    store_id: [u8; 16],
    pauses: Option<&dyn Io>,
) -> io::Result<()> {
    let file = segments.open_apart(segment)?;
    let Some(hint) = build_hint(file, segment, store_id).await? else { return Ok(()) };
    write_hint_file(&*segments.dir, segment.id, &hint, pauses).await?;
    segment.set_hint_bytes(hint.len() as u64);
    Ok(())
}

/// Writes the hint file of segment `id` durably. Pauses between the pieces if there is a clock.
pub(crate) async fn write_hint_file(dir: &dyn Dir, id: u32, hint: &[u8], pauses: Option<&dyn Io>) -> io::Result<()> {
    let name = hint_file_name(id);
    let tmp = tmp_name(&name);
    match dir.unlink(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = async {
        let file = dir.open(&tmp, OpenMode::CreateNew)?;
        let mut offset = 0;
        for piece in hint.chunks(PIECE_BYTES) {
            util::write_all(&*file, vec![Bytes::copy_from_slice(piece)], offset).await?;
            file.start_writeback(offset, piece.len() as u64);
            offset += piece.len() as u64;
            if let Some(io) = pauses.filter(|_| offset < hint.len() as u64) {
                io.sleep(PAUSE).await;
            }
        }
        file.sync(SyncKind::Data).await?;
        dir.rename(&tmp, &name)?;
        dir.sync()
    };
    let result = written.await;
    if result.is_err() {
        let _ = dir.unlink(&tmp);
    }
    result
}

/// Builds the hint of a segment. Returns `None` for a damaged segment; a scan at the next open reports the damage.
async fn build_hint(file: Arc<dyn File>, segment: &Segment, store_id: [u8; 16]) -> io::Result<Option<Vec<u8>>> {
    let len = file.len()?;
    let Some(data_len) = len.checked_sub(FOOTER_LEN as u64) else { return Ok(None) };
    let tail = util::read_exact(&*file, data_len, FOOTER_LEN).await?;
    let decoded: Result<(Footer, RecordHeader), _> = Footer::decode_at_end(&tail, &segment.binding, len);
    let Ok((footer, _)) = decoded else { return Ok(None) };
    let header = util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await?;
    let mut hint = HintWriter::new(&HintHeader {
        store_id,
        segment_id: u64::from(segment.id),
        salt: segment.salt,
        data_len: footer.data_len,
        file_crc: footer.file_crc,
        entry_count: 0,
    });
    let mut scan = Scan::new(file, segment.binding, &header, footer.data_len);
    let push = |found: Found<'_>| {
        debug_assert!(matches!(found.kind, RecordKind::Put | RecordKind::Tombstone), "a scan yields keys only");
        hint.push(HintEntry {
            key: found.key,
            kind: found.kind,
            seq: found.seq,
            offset: found.offset,
            value_len: found.value_len,
            expires_at_ms: found.expires_at_ms,
            namespace: found.namespace,
            compression: found.compression,
        });
    };
    let stop = scan.run(true, push).await?;
    let is_whole = stop.is_none() && scan.extent().file_crc() == footer.file_crc;
    Ok(is_whole.then(|| hint.finish()))
}
