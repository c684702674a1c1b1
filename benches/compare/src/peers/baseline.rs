//! A minimal log store with the same write path as ringcask: one task appends all queued puts, syncs once for all of
//! them, and answers. Records have a checksum, reads verify it, and the index is a `DashMap`. It has no segments, no
//! recovery and no compaction.
//!
//! There are two versions. One runs on `tokio-uring`, in its own thread because that library's files cannot leave
//! theirs. The other runs on `tokio::fs`, whose calls go to tokio's blocking pool.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use dashmap::DashMap;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{Awaited, Failure};

/// Bytes before the key: checksum, key length, value length.
const HEADER_LEN: usize = 12;

/// Maximum number of bytes that one write takes from the queue.
const GROUP_BYTES: usize = 1 << 20;

/// The offset and the length of a record.
type Location = (u64, usize);
type Index = DashMap<Vec<u8>, Location>;
type Answer<T> = oneshot::Sender<io::Result<T>>;

struct Put {
    key: Vec<u8>,
    value: Vec<u8>,
    durable: bool,
    answer: Answer<()>,
}

/// A key, the location of its record, and the caller to answer.
type Placed = (Vec<u8>, Location, Answer<()>);

/// Records that are written together, with their callers.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    places: Vec<Placed>,
    durable: bool,
}

impl Group {
    /// Takes all puts that wait in `queue`, at least one.
    async fn collect(queue: &mut mpsc::UnboundedReceiver<Put>, end: u64) -> Option<Self> {
        let mut group = Self::default();
        group.add(queue.recv().await?, end);
        while group.bytes.len() < GROUP_BYTES {
            let Ok(put) = queue.try_recv() else { break };
            group.add(put, end);
        }
        Some(group)
    }

    fn add(&mut self, put: Put, end: u64) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&(put.key.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&(put.value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&put.key);
        self.bytes.extend_from_slice(&put.value);
        let crc = crc32fast::hash(&self.bytes[at + 4..]);
        self.bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        self.places.push((put.key, (end + at as u64, self.bytes.len() - at), put.answer));
        self.durable |= put.durable;
    }

    fn answer(self, result: &io::Result<()>, index: &Index) {
        for (key, place, answer) in self.places {
            let told = match result {
                Ok(()) => {
                    index.insert(key, place);
                    Ok(())
                }
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            let _ = answer.send(told);
        }
    }
}

/// The value of a record, if the record is intact.
fn value_of(record: &[u8], key: &[u8]) -> Result<Vec<u8>, Failure> {
    let start = HEADER_LEN + key.len();
    let is_whole = record.len() >= start
        && record[..4] == crc32fast::hash(&record[4..]).to_le_bytes()
        && record[HEADER_LEN..start] == *key;
    if is_whole { Ok(record[start..].to_vec()) } else { Err("a damaged record".into()) }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path.join("log"))
}

/// Hands a put to the writing task and waits for the answer.
async fn put(queue: &mpsc::UnboundedSender<Put>, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
    let (answer, answered) = oneshot::channel();
    let put = Put { key: key.to_vec(), value: value.to_vec(), durable, answer };
    queue.send(put).map_err(|_| "the log is closed")?;
    Ok(answered.await??)
}

/// The log on `tokio::fs`.
pub struct TokioFs {
    queue: mpsc::UnboundedSender<Put>,
    index: Arc<Index>,
    file: Arc<File>,
}

impl TokioFs {
    pub async fn create(path: &Path) -> Result<Self, Failure> {
        let file = create(path)?;
        let (queue, mut waiting) = mpsc::unbounded_channel();
        let index = Arc::new(Index::new());
        let (mut log, filled) = (tokio::fs::File::from_std(file.try_clone()?), Arc::clone(&index));
        tokio::spawn(async move {
            let mut end = 0;
            while let Some(group) = Group::collect(&mut waiting, end).await {
                let mut result = log.write_all(&group.bytes).await;
                if result.is_ok() {
                    // `write_all` returns when the data is in a buffer of the `File`.
                    result = log.flush().await;
                }
                if group.durable && result.is_ok() {
                    result = log.sync_data().await;
                }
                end += group.bytes.len() as u64;
                group.answer(&result, &filled);
            }
        });
        Ok(Self { queue, index, file: Arc::new(file) })
    }
}

impl Awaited for TokioFs {
    type Value = Vec<u8>;

    async fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        put(&self.queue, key, value, durable).await
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let Some((offset, len)) = self.index.get(key).map(|place| *place) else { return Ok(None) };
        let file = Arc::clone(&self.file);
        // `tokio::fs` works the same way, but has no positioned read.
        let read = move || {
            let mut record = vec![0; len];
            file.read_exact_at(&mut record, offset).map(|()| record)
        };
        value_of(&tokio::task::spawn_blocking(read).await??, key).map(Some)
    }

    async fn close(&self) -> Result<(), Failure> {
        Ok(self.file.sync_all()?)
    }
}

enum Request {
    Put(Put),
    Read { offset: u64, len: usize, answer: Answer<Vec<u8>> },
    Close,
}

/// The log on `tokio-uring`.
pub struct TokioUring {
    requests: mpsc::UnboundedSender<Request>,
    index: Arc<Index>,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl TokioUring {
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let file = create(path)?;
        let (requests, waiting) = mpsc::unbounded_channel();
        let index = Arc::new(Index::new());
        let filled = Arc::clone(&index);
        let thread = std::thread::spawn(move || tokio_uring::start(serve(file, waiting, filled)));
        Ok(Self { requests, index, thread: Mutex::new(Some(thread)) })
    }
}

/// Starts a task for each read, and hands puts to the writing task.
async fn serve(file: File, mut requests: mpsc::UnboundedReceiver<Request>, index: Arc<Index>) -> io::Result<()> {
    let file = Rc::new(tokio_uring::fs::File::from_std(file));
    let (queue, waiting) = mpsc::unbounded_channel();
    let writing = tokio_uring::spawn(write(Rc::clone(&file), waiting, index));
    while let Some(request) = requests.recv().await {
        match request {
            Request::Put(put) => {
                let _ = queue.send(put);
            }
            Request::Read { offset, len, answer } => {
                let file = Rc::clone(&file);
                tokio_uring::spawn(async move {
                    let (read, record) = file.read_exact_at(vec![0; len], offset).await;
                    let _ = answer.send(read.map(|()| record));
                });
            }
            Request::Close => break,
        }
    }
    drop(queue);
    writing.await?;
    file.sync_all().await
}

async fn write(file: Rc<tokio_uring::fs::File>, mut waiting: mpsc::UnboundedReceiver<Put>, index: Arc<Index>) {
    let mut end = 0;
    while let Some(mut group) = Group::collect(&mut waiting, end).await {
        let (mut result, bytes) = file.write_all_at(std::mem::take(&mut group.bytes), end).await;
        if group.durable && result.is_ok() {
            result = file.sync_data().await;
        }
        end += bytes.len() as u64;
        group.answer(&result, &index);
    }
}

impl Awaited for TokioUring {
    type Value = Vec<u8>;

    async fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        let (answer, answered) = oneshot::channel();
        let put = Put { key: key.to_vec(), value: value.to_vec(), durable, answer };
        self.requests.send(Request::Put(put)).map_err(|_| "the log is closed")?;
        Ok(answered.await??)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let Some((offset, len)) = self.index.get(key).map(|place| *place) else { return Ok(None) };
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Read { offset, len, answer }).map_err(|_| "the log is closed")?;
        value_of(&answered.await??, key).map(Some)
    }

    async fn close(&self) -> Result<(), Failure> {
        self.requests.send(Request::Close).map_err(|_| "the log is closed")?;
        let thread = self.thread.lock().await.take().ok_or("closed twice")?;
        Ok(thread.join().map_err(|_| "the log's thread panicked")??)
    }
}
