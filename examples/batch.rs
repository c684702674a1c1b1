//! Writes several keys as one batch: all of its operations apply, or none does, even after a crash.
//!
//! `cargo run --example batch`

use ringcask::{Batch, ErrorKind, Result, Store};

/// The balances of both accounts.
async fn balances(store: &Store) -> Result<[String; 2]> {
    let values = store.multi_get(["account:a", "account:b"]).await?;
    let text = |index: usize| String::from_utf8_lossy(values[index].as_deref().unwrap_or_default()).into_owned();
    Ok([text(0), text(1)])
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    pollster::block_on(async {
        let store = Store::open(directory.path().join("store")).await?;
        let mut accounts = Batch::new();
        accounts.put("account:a", "100").put("account:b", "100").put("transfer:1", "a to b: 10");
        store.write(accounts).await?;
        println!("before the transfer: {:?}", balances(&store).await?);

        // Completes the transfer and removes it from the list of open transfers.
        let mut transfer = Batch::new();
        transfer.put("account:a", "90").put("account:b", "110").delete("transfer:1");
        store.write(transfer).await?;
        println!("after the transfer:  {:?}", balances(&store).await?);
        assert_eq!(balances(&store).await?, ["90", "110"]);
        assert_eq!(store.get("transfer:1").await?, None);

        // One invalid operation, here an empty key, and the store refuses the whole batch.
        let mut invalid = Batch::new();
        invalid.put("account:a", "0").put("", "200");
        if let Err(error) = store.write(invalid).await {
            println!("refused: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(balances(&store).await?, ["90", "110"]);

        store.close().await
    })?;
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
