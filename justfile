# The front door: `just` lists what there is.

_list:
    @just --list --unsorted

# The whole pipeline in one process, then DuckDB's line to look into the lake
dev *ARGS:
    cargo run --locked --release -- dev {{ARGS}}

# Every test; real parts are fetched the first time
test *ARGS:
    cargo test --locked {{ARGS}}

# The fault matrix: rows by id, --short or --release, --sabotage
chaos *ARGS:
    cargo run --locked --example chaos -- {{ARGS}}

# What CI says about style, without the tests
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items
    shellcheck --external-sources .ci/run tests/parts/*.sh

# All of it, as CI does
ci:
    bash .ci/run
