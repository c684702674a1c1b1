//! Reads that return wrong data: a flipped bit, or the bytes of another place.
//!
//! Such a read must be an error, or return the right value when repeated. No wrong data may be kept. The requirement
//! for an open is weaker: no later group confirms the last one before a crash, so a flipped bit in it looks like a torn
//! tail.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringcask::testing::sim::{Fault, FaultKind, OpClass, SimBackend, SimConfig};
use ringcask::{ErrorKind, Store};

use super::failed_operations::{Scenario, Totals};
use super::workload::Run;
use crate::support::history_model::{COMMON_KEYS, identify, key_name};
use crate::support::panics::{no_panics, panic_text};

/// Runs the scenario of `seed` with each of its reads going wrong in turn. Returns the number of runs and the number of
/// detected wrong reads.
pub fn misread_everything(seed: u64) -> (u64, u64, Result<(), String>) {
    let (mut runs, mut noticed) = (0, 0);
    let result = misread_each(seed, &mut runs, &mut noticed);
    (runs, noticed, result)
}

fn misread_each(seed: u64, runs: &mut u64, noticed: &mut u64) -> Result<(), String> {
    let scenario = Scenario::from_seed(seed).map_err(|error| format!("scenario {seed}: {error}"))?;
    for class in [OpClass::Read, OpClass::ReadNowait] {
        let context = |error| format!("scenario {seed} without a fault: {error}");
        let (reads, _) = misread(&scenario, class, None, noticed).map_err(context)?;
        for nth in 0..reads {
            for kind in [FaultKind::BitFlip, FaultKind::Misdirected] {
                for sticky in [false, true] {
                    let fault = Fault { class, nth, kind, sticky };
                    let (_, met) = misread(&scenario, class, Some(fault), noticed)
                        .map_err(|error| format!("scenario {seed}, {fault:?}: {error}"))?;
                    *runs += u64::from(met > 0);
                }
            }
        }
    }
    Ok(())
}

/// Runs with `fault`. Returns the number of operations of `class`, and how many of them went wrong.
fn misread(scenario: &Scenario, class: OpClass, fault: Option<Fault>, noticed: &mut u64) -> Result<(u64, u64), String> {
    let config = SimConfig { journal: false, ..scenario.setup.sim.clone() };
    let backend = SimBackend::from_image(scenario.image.clone(), config);
    let ran = catch_unwind(AssertUnwindSafe(|| misread_in(&backend, scenario, fault, noticed)));
    let panics = no_panics(&backend);
    let counts = (backend.op_count(class), backend.fault_count());
    backend.shutdown();
    ran.unwrap_or_else(|panic| Err(panic_text(&*panic)))?;
    panics.map(|()| counts)
}

fn misread_in(
    backend: &SimBackend,
    scenario: &Scenario,
    fault: Option<Fault>,
    noticed: &mut u64,
) -> Result<(), String> {
    if let Some(fault) = fault {
        backend.inject(fault);
    }
    let mut numbers = scenario.numbers;
    let mut run = Run::new(backend, &scenario.setup, fault.is_some(), &mut numbers);
    let opened = backend.run_until(async {
        let store = match scenario.setup.builder(backend).open().await {
            Ok(store) => store,
            // A read at another place may also reach the end of the file early.
            Err(error) if fault.is_some() && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                *noticed += 1;
                return Ok(false);
            }
            Err(error) => return Err(format!("opening: {error:?}")),
        };
        let is_doubtful = backend.fault_count() > 0;
        run.opened(scenario.base, scenario.highest_version);
        if is_doubtful {
            // The open may have lost the tail, so the contents are unknown, but every value must be one that was
            // written.
            *noticed += read_twice(backend, &store).await?;
            return Ok(false);
        }
        let store = run.run(store, &scenario.ops).await?;
        if backend.fault_count() == 0 || fault.is_some_and(|fault| fault.sticky) {
            *noticed += read_twice(backend, &store).await?;
        }
        backend.heal();
        let _ = store.close().await;
        Ok::<_, String>(true)
    })?;
    backend.heal();
    if opened {
        run.settle();
        let generation = run.history.generations.last().ok_or("no generation")?.clone();
        scenario.aftermath(backend, &generation, &mut Totals::default())?;
    }
    Ok(())
}

/// Reads every key twice, first with the fault and then without. The first read must fail or return the same as the
/// second. Returns the number of errors.
async fn read_twice(backend: &SimBackend, store: &Store) -> Result<u64, String> {
    // Operations that no caller waits for any more may still be in flight.
    store.sync().await.map_err(|error| format!("a sync: {error:?}"))?;
    let mut first = Vec::new();
    for key in 0..COMMON_KEYS {
        first.push(store.get(key_name(key)).await);
    }
    backend.heal();
    let mut errors = 0;
    for (key, first) in first.into_iter().enumerate() {
        let second = store.get(key_name(key)).await;
        let context = |error| format!("key {key} without the fault: {error:?}");
        let second = match second {
            // The open may have kept a misread location. The key then returns an error until the next open.
            Err(error) if error.kind() == ErrorKind::Corrupt && first.is_err() => None,
            second => second.map_err(context)?,
        };
        if let Some(bytes) = &second {
            identify(key, bytes)?;
        }
        match first {
            Ok(found) if found == second => {}
            Ok(found) => return Err(format!("key {key} was read as {found:?}, then as {second:?}")),
            Err(error) if error.kind() == ErrorKind::Corrupt => errors += 1,
            Err(error) => return Err(format!("key {key}: {error:?}")),
        }
    }
    Ok(errors)
}
