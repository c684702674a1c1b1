//! Reacts to an error by its kind, and to a failed write by its outcome.
//!
//! `cargo run --example errors`

use ringcask::{Error, ErrorKind, Outcome, Store};

/// What a service does about a failed operation.
fn reaction(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::TooLarge => "reject the request",
        ErrorKind::NoSpace => "retry when there is space",
        ErrorKind::Locked => "another handle uses the directory: stop",
        ErrorKind::Closed => "the service is shutting down",
        ErrorKind::Corrupt => "alert: the message says which file is damaged",
        // For example `Poisoned`, after the disk failed a write or a sync.
        _ => match error.outcome() {
            Outcome::NotApplied => "report a failure, reopen the store",
            _ => "reopen the store, then read the key: the write may have been applied",
        },
    }
}

/// Prints the error and the reaction. Returns the kind for the assertions.
fn report(error: &Error) -> ErrorKind {
    println!("{:?}: {error}\n    {}", error.kind(), reaction(error));
    error.kind()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    pollster::block_on(async {
        let path = directory.path().join("store");
        let store = Store::builder(&path).max_value_bytes(1024).open().await?;

        let empty_key = store.put("", "value").await.map_err(|error| report(&error));
        assert_eq!(empty_key, Err(ErrorKind::InvalidInput));

        let large_value = store.put("key", vec![0; 2000]).await.map_err(|error| report(&error));
        assert_eq!(large_value, Err(ErrorKind::TooLarge));

        let second_handle = Store::open(&path).await.map(drop).map_err(|error| report(&error));
        assert_eq!(second_handle, Err(ErrorKind::Locked));

        store.close().await?;
        let error = store.put("key", "value").await.map(drop).err();
        assert_eq!(error.as_ref().map(report), Some(ErrorKind::Closed));
        // A write that was not applied never appears later. It is safe to send it again.
        assert_eq!(error.map(|error| error.outcome()), Some(Outcome::NotApplied));
        Ok::<(), Error>(())
    })?;
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
