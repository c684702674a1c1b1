//! Opens a store, puts, gets and deletes one key, and closes the store.
//!
//! `cargo run --example basic`

use ringcask::Store;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?; // use a permanent directory instead; this one is removed at the end
    pollster::block_on(async {
        let store = Store::open(directory.path().join("store")).await?;

        store.put("user:1", "Ada").await?; // on stable storage when it resolves
        let value = store.get("user:1").await?;
        println!("user:1 = {value:?}");
        assert_eq!(value.as_deref(), Some(&b"Ada"[..]));

        let existed = store.delete("user:1").await?;
        println!("deleted user:1: {existed}");
        assert!(existed);
        assert_eq!(store.get("user:1").await?, None);

        store.close().await
    })?;
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
