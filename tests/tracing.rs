//! The events of the feature `tracing`, as a subscriber receives them: their levels, their fields, and that they
//! contain no keys or values.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check is a failed test")]

use std::fmt::{Debug, Write};
use std::fs;
use std::sync::{Arc, Mutex};

use pollster::block_on;
use ringcask::testing::io::uring::UringIo;
use ringcask::testing::sim::{Fault, FaultKind, OpClass, SimBackend, SimConfig};
use ringcask::{Engine, ErrorKind, Store};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Stores every event of the library as one line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "ringcask"
    }

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                write!(self.0, " {field}={value:?}").unwrap();
            }
        }
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Lines {
    /// The events since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[track_caller]
fn assert_logged(lines: &[String], parts: &[&str]) {
    assert!(lines.iter().any(|line| parts.iter().all(|part| line.contains(part))), "no {parts:?} among {lines:#?}");
}

#[test]
fn a_subscriber_gets_the_events_for_operators() {
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let open = || Store::builder(&path).engine(Engine::Threads).segment_bytes(4 << 10).open();
    let store = block_on(open()).unwrap();
    for index in 0..20 {
        block_on(store.put(format!("secret-key-{index}"), [b'S'; 400])).unwrap();
    }
    block_on(store.close()).unwrap();
    drop(store);
    let rotations = lines.take();
    assert!(rotations.len() > 2 && rotations.iter().all(|line| line.starts_with("DEBUG")), "{rotations:#?}");
    assert_logged(&rotations, &["DEBUG message=segment sealed", "segment=1", "bytes="]);

    fs::write(path.join("MANIFEST.tmp"), "half").unwrap();
    fs::write(path.join("notes\n"), "somebody's").unwrap();
    drop(block_on(open()).unwrap());
    let found = lines.take();
    assert_logged(&found, &["WARN message=leftover file removed", "MANIFEST.tmp"]);
    assert_logged(&found, &["WARN message=foreign file in the directory ignored", "file=notes\\n"]);

    fs::write(path.join("MANIFEST"), "damaged").unwrap();
    assert_eq!(block_on(open()).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_logged(&lines.take(), &["WARN message=open refused; the directory is damaged", "MANIFEST"]);
    let all = [rotations, found].concat().concat();
    assert!(!all.contains("secret-key") && !all.contains("SSSS"), "events must not contain keys or values: {all}");

    a_poisoned_store_reports_the_cause(&lines);
    a_fallback_reports_the_cause(&lines);
}

fn a_poisoned_store_reports_the_cause(lines: &Lines) {
    let backend = SimBackend::new(SimConfig { seed: 7, ..SimConfig::default() });
    let store = backend.run_until(Store::builder("/store").backend(Arc::new(backend.clone())).open()).unwrap();
    backend.run_until(store.put("k", "v")).unwrap();
    lines.take();
    backend.inject(Fault::once(OpClass::Sync, backend.op_count(OpClass::Sync), FaultKind::EIO));
    assert_eq!(backend.run_until(store.put("k", "w")).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_logged(&lines.take(), &["WARN message=store poisoned", "error=the store stopped writing: sync"]);
    backend.shutdown();
}

/// Only runs where rings are refused: otherwise there is no fallback.
fn a_fallback_reports_the_cause(lines: &Lines) {
    let Err(refusal) = UringIo::new(8) else { return println!("SKIPPED: io_uring is available here") };
    let dir = tempfile::tempdir().unwrap();
    drop(block_on(Store::open(dir.path().join("store"))).unwrap());
    assert_logged(
        &lines.take(),
        &["WARN message=io_uring unavailable; falling back to blocking threads", &refusal.to_string()],
    );
}
