//! Folders of class folders, as parts of an upload: for whoever has the machine's own files at hand. Nobody may be led
//! here over the network.

use std::fs;
use std::path::Path;

use super::{Source, Upload, UploadError};
use crate::domain::Split;

/// How many levels down a folder is listed: one more than any layout has, so that what lies too deep is refused and links
/// that lead in a circle end.
const LEVELS: usize = 5;

impl Upload {
    /// Adds the class folders in a folder, which is laid out as an archive is; links are followed. Folders `train/` and
    /// `test/` above the classes choose the split; otherwise `split` says it for the whole folder. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, is laid out otherwise or has too many files.
    pub fn add_folder(&mut self, folder: &Path, split: Option<Split>) -> Result<(), UploadError> {
        let mut entries = Vec::new();
        self.list(folder, "", &mut entries)?;
        self.add_entries(&entries, split)
    }

    /// Lists a folder whose path in the upload is `prefix`, in the order of names.
    fn list(
        &mut self,
        folder: &Path,
        prefix: &str,
        entries: &mut Vec<(String, Source)>,
    ) -> Result<(), UploadError> {
        let mut paths = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>, UploadError>>()?;
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            if entries.len() >= self.limits.entries() {
                return Err(UploadError::TooManyExamples(self.limits.examples));
            }
            let kind = fs::metadata(&path)?;
            let source = Source::Path(self.paths.len());
            if kind.is_dir() {
                let inner = format!("{prefix}{name}/");
                entries.push((inner.clone(), source));
                if inner.matches('/').count() < LEVELS {
                    self.list(&path, &inner, entries)?;
                }
            } else if kind.is_file() {
                entries.push((format!("{prefix}{name}"), source));
                self.paths.push(path);
            }
        }
        Ok(())
    }
}
