//! The rules, as data.

/// Which module may import which, from the top of the house to its foundation: a row names only rows below it, so
/// that no two modules need each other.
pub(crate) const IMPORTS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &["app", "telemetry", "config", "evaluation", "metrics", "domain"],
    ),
    (
        "app",
        &[
            "config", "http", "learner", "registry", "engine", "store", "adapter", "clip", "metrics",
            "domain",
        ],
    ),
    ("telemetry", &["config"]),
    (
        "config",
        &["http", "learner", "engine", "store", "clip", "domain"],
    ),
    (
        "http",
        &[
            "learner", "registry", "engine", "store", "blocking", "metrics", "domain",
        ],
    ),
    ("evaluation", &["learner", "engine", "adapter", "domain"]),
    (
        "learner",
        &[
            "registry", "engine", "store", "adapter", "blocking", "metrics", "domain",
        ],
    ),
    ("registry", &["store", "adapter", "blocking", "metrics", "domain"]),
    ("engine", &["adapter", "clip", "metrics", "domain"]),
    ("store", &["blocking", "domain"]),
    ("adapter", &["domain"]),
    ("clip", &["domain"]),
    ("blocking", &[]),
    ("metrics", &["domain"]),
    ("domain", &[]),
];

/// Modules that may have unsafe code, each with the reason.
pub(crate) const UNSAFE: &[(&str, &str)] = &[
    (
        "crates/towers/src/x86.rs",
        "instructions of the processor that have no safe form",
    ),
    (
        "crates/towers/src/tiles.rs",
        "instructions for tiles, which Rust has not",
    ),
    (
        "crates/towers/src/tests/tiles.rs",
        "carries those out where the processor cannot",
    ),
    (
        "crates/towers/benches/peak/x86.rs",
        "single instructions in loops are written out",
    ),
    (
        "crates/towers/src/prefetch.rs",
        "the instruction that fetches has no safe form",
    ),
    (
        "crates/towers/src/cuda/products.rs",
        "calls of cuBLASLt, a C library",
    ),
    (
        "crates/towers/src/cuda/kernels.rs",
        "kernels are launched with pointers",
    ),
    (
        "crates/towers/src/cuda/staging.rs",
        "page-locked memory has no safe form",
    ),
    (
        "crates/towers/src/cuda/mod.rs",
        "a recorded graph is used by whatever thread has the mutex",
    ),
];

/// Single items that a module may import besides, each with the reason: module, item, reason.
pub(crate) const IMPORT_EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "cli",
        "http::openapi",
        "`clipkeep openapi` prints the interface's description",
    ),
    (
        "http",
        "adapter::Head",
        "a request names the head that the engine applies to its rows",
    ),
    (
        "http",
        "clip::ImageError",
        "the problem document says why an image was refused",
    ),
    (
        "learner",
        "clip::ImageError",
        "a submission is refused with the reason for its image",
    ),
];

/// Most lines of a file, its tests aside.
pub(crate) const MOST_LINES: usize = 400;

/// Longer files, each with the reason.
pub(crate) const LONG_FILES: &[(&str, &str)] = &[];

/// Names that say nothing about what a module is for.
pub(crate) const BANNED_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

/// Where text is searched: folders and files of the project that are there.
pub(crate) const TEXT: &[&str] = &[
    ".ci",
    ".config",
    ".github",
    "bench",
    "benches",
    "crates",
    "docker",
    "docs",
    "migrations",
    "scripts",
    "src",
    "tests",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.toml",
    "MEASUREMENTS.md",
    "README.md",
    "deny.toml",
    "justfile",
    "openapi.yaml",
];

/// What no text contains: paths of one machine, and notes to oneself. Put together here so that this file passes.
pub(crate) const BANNED_TEXT: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
];
