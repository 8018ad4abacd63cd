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

# Measure. The server sets the variables for itself.
bench *arguments:
    RAYON_NUM_THREADS=$(nproc) CANDLE_NUM_THREADS=1 cargo bench {{ arguments }}

# Build for NVIDIA GPUs, on any machine: says what it needs.
build-cuda *arguments:
    scripts/build-cuda {{ arguments }}

# Accuracies of every strategy: the tables of MEASUREMENTS.md.
accuracy features images:
    python3 bench/accuracy.py {{ features }} {{ images }}

# Images a second through the image tower, against PyTorch, ONNX Runtime and OpenVINO; in bf16 unless told otherwise.
bench-encode *arguments:
    python3 bench/encode.py --dtype bf16 {{ arguments }}

# What the processor can do at most: operations a second of each instruction for products.
peak *arguments:
    cargo bench --quiet --package clipkeep-towers --bench peak -- {{ arguments }}

# Where the time of an image tower goes on the CPU: `just profile vit-b-32 bf16 12`. Needs perf.
profile shape dtype batch *arguments:
    python3 bench/shares.py {{ shape }} {{ dtype }} {{ batch }} {{ arguments }}

# Everything that is measured on a GPU, in a quarter of an hour.
bench-gpu photos *arguments:
    python3 bench/gpu.py {{ photos }} {{ arguments }}

# Answers over HTTP, against LitServe and infinity, with PyTorch, and against what encoding and decoding allow; in bf16.
bench-http photos *arguments:
    python3 bench/serving.py {{ photos }} --dtype bf16 {{ arguments }}

# Latencies at half of the load while a task is learned, and the job's slowdown.
bench-learning photos *arguments:
    python3 bench/learning.py {{ photos }} {{ arguments }}

# Time to be ready and memory, with a ViT-B/32 on disk.
bench-footprint photos *arguments:
    python3 bench/footprint.py {{ photos }} {{ arguments }}

# What answers cost against batch, clients, classes, models and labels never seen before.
bench-work photos *arguments:
    python3 bench/work.py {{ photos }} {{ arguments }}

# What a job costs in time, memory and storage.
bench-jobs *arguments:
    python3 bench/jobs.py {{ arguments }}

# Decoding and preprocessing, against Pillow and torchvision.
bench-preprocess *photos:
    python3 bench/preprocess.py {{ photos }}

# How long builds take.
bench-build *arguments:
    python3 bench/build.py {{ arguments }}

# Run the server.
run *arguments:
    cargo run --release -- {{ arguments }}

# Licences, advisories and sources of the dependencies.
deny *checks:
    scripts/deny {{ checks }}
