[private]
default:
    @{{ just_executable() }} --list --unsorted

# Fast checks without root: formatting, lints, unit tests, some integration tests.
quick:
    cargo fmt --all --check
    cargo clippy --locked --all-targets --all-features -- -D warnings
    cargo test --locked --features __testing --lib
    cargo test --locked --features __testing --test it -- api:: durability::
    cargo test --locked --features __testing --test layers --test policy

# All tests and every fault stage at a small scale: six minutes after the build.
test:
    ./prove

# Everything a change must pass, with larger floors; some stages need root.
ci:
    .ci/run

# One benchmark of benches/, with its arguments: `just bench open`.
bench name="micro" *args:
    cargo bench --locked --bench {{ name }} -- {{ args }}

# The load generator, with its arguments: `just load --writers 64`.
load *args:
    cargo run --locked --release --example high_load_writer -- {{ args }}

# The API documentation, for all public features.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --features tracing,serde --open
