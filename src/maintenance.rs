//! The maintenance task: what sealed segments need, on a thread of its own, so that no writer ever waits for it.
//!
//! It writes hint files. A hint is made from the sealed segment as it is in the file, never from memory, and is bound
//! to it; if writing one fails, the next open reads the segment instead, and nobody is told.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use crate::format::{
    FOOTER_LEN, Footer, HintEntry, HintHeader, HintWriter, RecordHeader, RecordKind, SEGMENT_HEADER_LEN,
};
use crate::io::{File, OpenMode, SyncKind, util};
use crate::segment::{Found, Registry, Reserve, Scan, Segment, hint_file_name, tmp_name};

/// Segments that wait for their hints, and the word to stop.
#[derive(Default)]
pub(crate) struct Maintenance {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    sealed: VecDeque<Arc<Segment>>,
    stop: bool,
}

impl Maintenance {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a segment that was sealed.
    pub(crate) fn push(&self, segment: Arc<Segment>) {
        self.lock().sealed.push_back(segment);
        self.waker.wake();
    }

    /// Ends the task when the queue is empty.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.waker.wake();
    }

    /// The next segment, or `None` when there will be no more.
    async fn next(&self) -> Option<Arc<Segment>> {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            let mut state = self.lock();
            match state.sealed.pop_front() {
                Some(segment) => Poll::Ready(Some(segment)),
                None if state.stop => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The task.
    pub(crate) async fn run(&self, registry: &Registry, reserve: &Reserve, store_id: [u8; 16]) {
        while let Some(segment) = self.next().await {
            if !reserve.is_held() {
                // On a full disk a hint would take what deletes live on.
                continue;
            }
            // Derived data: without it the next open is slower, and says in its report that it scanned.
            let _ = write_hint(registry, &segment, store_id).await;
        }
    }
}

/// Reads the sealed `segment` and writes its hint file.
async fn write_hint(registry: &Registry, segment: &Segment, store_id: [u8; 16]) -> io::Result<()> {
    let file = registry.file(segment)?;
    let Some(hint) = build_hint(file, segment, store_id).await? else { return Ok(()) };
    let name = hint_file_name(segment.id);
    let tmp = tmp_name(&name);
    let dir = &registry.dir;
    match dir.unlink(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = async {
        let file = dir.open(&tmp, OpenMode::CreateNew)?;
        util::write_all(&*file, vec![Bytes::from(hint)], 0).await?;
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
