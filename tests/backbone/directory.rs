//! Where test data lies, and scratch copies of it.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clipkeep::clip::{Backbone, BackboneError, BackboneSource, Dtype};
use tempfile::TempDir;

/// A file or folder that `make_reference.py` wrote.
pub(crate) fn pinned(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/backbone/data")
        .join(name)
}

/// A copy of the pinned model `name`, to be damaged.
pub(crate) fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(pinned(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Third-party data beside the project: `CLIPKEEP_SHARED`, or `../shared`. `None`, said aloud, if `name` is not there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("CLIPKEEP_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "skipped: {} is not there; CLIPKEEP_SHARED names the folder of third-party data",
        path.display()
    );
    None
}

/// A directory that the environment names, or `None`, said aloud.
pub(crate) fn from_environment(variable: &str, what: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {variable} is not set; it names a directory with {what}");
    }
    path
}

/// Loads a directory on the CPU.
pub(crate) fn load(directory: &Path) -> Result<Backbone, BackboneError> {
    load_source(&BackboneSource::Directory(directory.to_owned()))
}

/// Loads any source on the CPU, in f32.
pub(crate) fn load_source(source: &BackboneSource) -> Result<Backbone, BackboneError> {
    load_in(source, Dtype::F32)
}

/// Loads any source on the CPU.
pub(crate) fn load_in(source: &BackboneSource, dtype: Dtype) -> Result<Backbone, BackboneError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Backbone::load(source, &Device::Cpu, dtype))
}
