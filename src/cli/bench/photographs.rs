//! Files that are measured with.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;

/// The files, and those in the directories, by name.
pub(super) fn photographs(paths: &[PathBuf]) -> anyhow::Result<Vec<Bytes>> {
    let read = |path: &Path| {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(Bytes::from(bytes))
    };
    let mut images = Vec::new();
    for path in paths {
        if !path.is_dir() {
            images.push(read(path)?);
            continue;
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>())
            .with_context(|| format!("cannot list {}", path.display()))?;
        files.retain(|file| file.is_file());
        files.sort();
        for file in files {
            images.push(read(&file)?);
        }
    }
    anyhow::ensure!(!images.is_empty(), "there is no photograph");
    Ok(images)
}
