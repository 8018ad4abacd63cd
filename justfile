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

# The towers' portable and AVX2 code under valgrind.
memcheck:
    scripts/memcheck

# Write openapi.yaml anew from the handlers.
openapi:
    cargo build --quiet
    cargo run --quiet -- openapi > openapi.yaml

# Measure. The server sets the variable for itself.
bench *arguments:
    RAYON_NUM_THREADS=$(nproc) cargo bench {{ arguments }}

# Build for NVIDIA GPUs, on any machine: says what it needs.
build-cuda *arguments:
    scripts/build-cuda {{ arguments }}

# Accuracies of every strategy: the tables of MEASUREMENTS.md.
accuracy features images:
    python3 bench/accuracy.py {{ features }} {{ images }}

# Images a second through the image tower, against PyTorch, ONNX Runtime and OpenVINO.
bench-encode *arguments:
    python3 bench/encode.py {{ arguments }}

# Answers over HTTP, against LitServe and infinity, with PyTorch.
bench-http photos *arguments:
    python3 bench/serving.py {{ photos }} {{ arguments }}

# Decoding and preprocessing, against Pillow and torchvision.
bench-preprocess *photos:
    python3 bench/preprocess.py {{ photos }}

# Run the server.
run *arguments:
    cargo run --release -- {{ arguments }}

# Licences, advisories and sources of the dependencies.
deny *checks:
    scripts/deny {{ checks }}
