//! Chooses for each write what it waits for: memory, the kernel, or stable storage.
//!
//! `cargo run --example durability`

use std::time::Instant;

use ringcask::{Durability, Store};

const PUTS: u32 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    pollster::block_on(async {
        // The store's default level. Each write below has its own.
        let store = Store::builder(directory.path().join("store")).durability(Durability::Synced).open().await?;

        for level in [Durability::Buffered, Durability::Written, Durability::Synced] {
            let started = Instant::now();
            for number in 0..PUTS {
                store.put(format!("{level}:{number}"), "value").durability(level).await?;
            }
            println!("{PUTS} puts, {level}: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
        }

        // A `Buffered` write returns at once. Its version tells later whether it has become durable.
        let version = store.put("hits", "17").durability(Durability::Buffered).await?;
        println!("durable when the buffered put resolves: {}", store.durable_version() >= version);
        store.wait_durable(version).await?;
        println!("durable after wait_durable: {}", store.durable_version() >= version);
        assert!(store.durable_version() >= version);

        // A `Synced` write is durable when it resolves.
        let version = store.put("order", "paid").await?;
        assert!(store.durable_version() >= version);

        store.close().await
    })?;
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
