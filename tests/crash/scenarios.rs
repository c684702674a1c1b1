//! Crash scenarios that random seeds do not produce.

use std::sync::Arc;

use ringcask::testing::sim::{Fault, FaultKind, OpClass, Rng, SimBackend, SimConfig};
use ringcask::{Compaction, Durability, Store};

use crate::support::crash::explore::recover;
use crate::support::crash::workload::{Op, Run, Setup, Workload};
use crate::support::history_model::{Crash, NEVER, State};

/// Cuts the power at every step of an open that seals a segment after a failed sync. That sync left the last bytes of a
/// group in memory only. Returns the number of images.
///
/// The bytes are the zeros that pad a record. They read as zeros after the failed sync, but the file's length on the
/// disk did not include them, so a crash could leave anything there.
pub fn seal_behind_a_failed_sync(seed: u64) -> Result<usize, String> {
    let config = SimConfig { seed, sector_bytes: 512, ..SimConfig::default() };
    let backend = SimBackend::new(config.clone());
    let open = async |backend: &SimBackend| {
        let builder = Store::builder("/db").backend(Arc::new(backend.clone()));
        builder.open().await.map_err(|error| format!("seed {seed}, the open: {error:?}"))
    };
    let began = backend.run_until(async {
        let store = open(&backend).await?;
        let error_text = |error: ringcask::Error| format!("{error:?}");
        // 56 bytes of watermark, 40 of header, a key of 1 and a value of 26: 5 bytes of padding.
        let put = store.put("k", [7; 26]).durability(Durability::Buffered);
        put.await.map_err(error_text)?;
        // Earlier writes wrote the segment's header and two MANIFESTs.
        backend.inject(Fault::once(OpClass::Write, backend.op_count(OpClass::Write), FaultKind::Short(123)));
        backend.inject(Fault::once(OpClass::Sync, backend.op_count(OpClass::Sync), FaultKind::SyncPartial));
        if store.sync().await.is_ok() {
            return Err("the sync did not fail".to_owned());
        }
        let _ = store.close().await;
        let began = backend.step();
        open(&backend).await?.close().await.map_err(error_text)?;
        Ok(began)
    });
    let journal = backend.take_journal();
    backend.shutdown();
    let mut images = 0;
    for step in began?..=journal.len() {
        for image in journal.crash_images(step, 32, &mut Rng::new(seed ^ step as u64)) {
            images += 1;
            let backend = SimBackend::from_image(image, SimConfig { journal: false, ..config.clone() });
            let opened = backend.run_until(open(&backend));
            backend.shutdown();
            opened.map_err(|error| format!("after step {step}: {error}"))?;
        }
    }
    Ok(images)
}

/// Compacts values larger than 1 MiB, which are copied in pieces, and crashes at some of the steps. Returns the number
/// of crashes.
pub fn compact_large_values(seed: u64) -> Result<usize, String> {
    let mut rng = Rng::new(seed);
    let mut setup = Setup::random(&mut rng);
    (setup.segment_bytes, setup.sim.interrupt_percent) = (4 << 20, 0);
    (setup.is_automatic, setup.compaction) = (false, Compaction::new().automatic(false));
    let value = |key: u8, len: usize| vec![key.wrapping_mul(31) ^ u8::try_from(seed % 251).unwrap(); len];
    let mut len = |_| {
        let more = if rng.percent(50) { 400 } else { 2 << 20 };
        (1 << 20) - 200 + rng.below(more)
    };
    let lens: Vec<usize> = (0..5).map(&mut len).collect();
    let holds = async |store: &Store| {
        for (key, len) in (0_u8..).zip(&lens) {
            let found = store.get([key]).await.map_err(|error| format!("{error:?}"))?;
            let expected = (key % 2 == 0).then(|| value(key, *len));
            if found.as_deref() != expected.as_deref() {
                return Err(format!("key {key} has {:?} bytes, expected {len}", found.map(|found| found.len())));
            }
        }
        Ok(())
    };
    let backend = SimBackend::new(setup.sim.clone());
    let ran = backend.run_until(async {
        let error_text = |error: ringcask::Error| format!("{error:?}");
        let store = setup.builder(&backend).open().await.map_err(error_text)?;
        for (key, len) in (0_u8..).zip(&lens) {
            store.put([key], value(key, *len)).await.map_err(error_text)?;
        }
        for key in [1, 3] {
            store.delete([key]).await.map_err(error_text)?;
        }
        let began = backend.step();
        store.compact().await.map_err(error_text)?;
        holds(&store).await?;
        // A compaction of everything skips segments without dead bytes. A job that names them copies them.
        let all = store.stats().segments.into_iter().map(|segment| segment.id);
        let report = store.compact().segments(all).await.map_err(error_text)?;
        holds(&store).await?;
        if report.records_copied != 3 {
            return Err(format!("{report:?}"));
        }
        Ok(began)
    });
    let journal = backend.take_journal();
    backend.shutdown();
    let began = ran?;
    let mut steps: Vec<usize> = (0..8).map(|_| began + rng.below(journal.len() - began + 1)).collect();
    steps.sort_unstable();
    let mut walk = journal.replay();
    for step in &steps {
        walk.advance_to(*step);
        let number = rng.below(usize::try_from(walk.crash_point().image_count()).unwrap()) as u64;
        let image = walk.crash_point().image(number, rng.next_u64());
        let config = SimConfig { seed: rng.next_u64(), journal: false, ..setup.sim.clone() };
        let backend = SimBackend::from_image(image, config);
        let checked = backend.run_until(async {
            let store = setup.builder(&backend).open().await.map_err(|error| format!("{error:?}"))?;
            holds(&store).await
        });
        backend.shutdown();
        checked.map_err(|error| format!("seed {seed}, a crash after step {step}, image {number}: {error}"))?;
    }
    Ok(steps.len())
}

/// Results of the runs on lying disks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    /// Images that a crash left.
    pub images: u64,
    /// The images in which the open or a read reported damage.
    pub detected: u64,
    /// The images in which the last writes were lost without an error.
    pub silent: u64,
}

/// From some point on the disk reports every sync as done but does nothing. Then the power is cut.
///
/// No store survives that: acknowledged data was never on the disk. But either the store detects the loss, or the state
/// is one that an earlier crash would have left. The store must not accept a state with a hole.
pub fn trust_a_lying_disk(seed: u64, lies: &mut Lies) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x11e5);
    let mut workload = Workload::from_seed(seed);
    workload.ops.retain(|op| !matches!(op, Op::Reopen | Op::Fail { .. } | Op::Space(_)));
    let (setup, mut numbers) = (workload.setup.clone(), 0);
    let backend = SimBackend::new(SimConfig { journal: false, ..setup.sim.clone() });
    backend.inject(Fault::sticky(OpClass::Sync, rng.below(20) as u64, FaultKind::SyncLie));
    let mut run = Run::new(&backend, &setup, true, &mut numbers);
    let ran = backend.run_until(async {
        let store = setup.builder(&backend).open().await.map_err(|error| format!("{error:?}"))?;
        run.opened(State::default(), 0);
        run.run(store, &workload.ops).await
    });
    run.settle();
    let mut generation = run.history.generations.pop().unwrap_or_default();
    let (step, kept) = (backend.step() + 1, generation.clone());
    for write in &mut generation.writes {
        (write.durable, write.written) = (NEVER, NEVER);
    }
    let images = backend.crash_images(8, &mut rng);
    backend.shutdown();
    drop(ran?);
    for image in images {
        lies.images += 1;
        match recover(image, &setup, rng.next_u64(), false) {
            Err(error) if error.contains("Corrupt") => lies.detected += 1,
            Err(error) => return Err(format!("seed {seed}: {error}")),
            Ok(recovered) => {
                let checked = generation.check(step, Crash::Power, &recovered.state);
                checked.map_err(|error| format!("seed {seed}, the state has a hole: {error}"))?;
                lies.silent += u64::from(kept.check(step, Crash::Power, &recovered.state).is_err());
            }
        }
    }
    Ok(())
}
