# The tasks of the project; `just` lists them.

_default:
    @just --list

# Formatting, lints, layering and names, and whether openapi.yaml is current.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo test --quiet --test tidy --test openapi

# Every test, PostgreSQL's included.
test *arguments:
    scripts/test {{ arguments }}

# Write openapi.yaml anew from the handlers.
openapi:
    cargo build --quiet
    cargo run --quiet -- openapi > openapi.yaml

# Measure. The server sets the variable for itself.
bench *arguments:
    RAYON_NUM_THREADS=$(nproc) cargo bench {{ arguments }}

# Run the server.
run *arguments:
    cargo run --release -- {{ arguments }}

# Licences, advisories and sources of the dependencies (needs cargo-deny).
deny:
    cargo deny check
