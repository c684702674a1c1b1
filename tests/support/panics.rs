//! Reports panics of a run and of the tasks of its simulated backend as errors.

use std::any::Any;

use ringcask::testing::sim::SimBackend;

pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without a message"))
}

pub fn no_panics(backend: &SimBackend) -> Result<(), String> {
    let panics = backend.panics();
    if panics.is_empty() { Ok(()) } else { Err(format!("panics: {panics:?}")) }
}
