//! Hint files: made from a sealed segment as it is in the file, never from memory, and bound to it. (A compaction knows
//! its output to the byte and makes the hint as it goes.)

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Found, Scan, Segment, SegmentSet, hint_file_name, tmp_name};
use crate::format::{
    FOOTER_LEN, Footer, HintEntry, HintHeader, HintWriter, RecordHeader, RecordKind, SEGMENT_HEADER_LEN,
};
use crate::io::{Dir, File, Io, OpenMode, SyncKind, util};

/// A hint is written in pieces of this size, with a pause after each where somebody else may want the disk: as one write
/// of many megabytes it would stand before the commit task's next sync.
const PIECE_BYTES: usize = 256 << 10;
const PAUSE: Duration = Duration::from_millis(4);

/// Reads the sealed `segment` and writes its hint file; at leisure if there is a clock to pause by.
pub(crate) async fn write_hint(
    registry: &SegmentSet,
    segment: &Segment,
    store_id: [u8; 16],
    pauses: Option<&dyn Io>,
) -> io::Result<()> {
    let file = registry.open_apart(segment)?;
    let Some(hint) = build_hint(file, segment, store_id).await? else { return Ok(()) };
    write_hint_file(&*registry.dir, segment.id, &hint, pauses).await?;
    segment.set_hint_bytes(hint.len() as u64);
    Ok(())
}

/// Writes the hint file of segment `id`, durably; at leisure if there is a clock to pause by.
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

/// The hint of a segment; `None` if the segment is not whole, which is for a scan at the next open to say.
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
        debug_assert!(matches!(found.kind, RecordKind::Put | RecordKind::Tombstone), "only these count");
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
