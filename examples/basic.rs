//! Open, put, get, delete, close: the whole of it, on the smallest of executors.

use ringcask::Store;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?; // any directory of yours; this one is removed at the end
    pollster::block_on(async {
        let store = Store::open(dir.path().join("store")).await?;
        store.put("user:1", "Ada").await?; // on stable storage when this returns
        assert_eq!(store.get("user:1").await?.as_deref(), Some(&b"Ada"[..]));
        assert!(store.delete("user:1").await?); // true: there was one
        assert_eq!(store.get("user:1").await?, None);
        store.close().await
    })?;
    println!("put, got and deleted one key");
    Ok(())
}
