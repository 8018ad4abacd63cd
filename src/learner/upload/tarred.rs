//! Lists tar archives. The reader below keeps long names and extended headers in memory, so how much is read for
//! each entry is bounded.

use std::fs::File;
use std::io::{BufReader, Seek as _};

use super::metered::{Budget, Metered};
use super::{UploadError, UploadLimits};

/// Most bytes of an entry apart from its content: its header and those that extend it.
const HEADER_BYTES: u64 = 64 << 10;

/// A file or folder in the archive.
pub(super) struct Entry {
    /// Its path; a folder's ends with `/`.
    pub(super) path: String,
    /// Where its content begins in the archive.
    pub(super) offset: u64,
    /// How many bytes it claims to have.
    pub(super) length: u64,
}

/// The files and folders of an archive.
///
/// # Errors
/// When it is damaged or has more to say about its files than `limits` allow.
pub(super) fn list(file: &File, limits: UploadLimits) -> Result<Vec<Entry>, UploadError> {
    let mut file = file.try_clone()?;
    // Whoever wrote the file left its position at the end.
    file.rewind()?;
    let budget = Budget::new(HEADER_BYTES);
    let mut tar = tar::Archive::new(Metered::new(BufReader::new(file), &budget));
    let mut entries = Vec::new();
    let mut seen = 0;
    for entry in tar.entries_with_seek()? {
        let entry = entry.map_err(|error| {
            if budget.is_spent() {
                UploadError::HeadersTooLarge(HEADER_BYTES)
            } else {
                UploadError::Damaged(error.to_string())
            }
        })?;
        seen += 1;
        if seen > limits.entries() {
            return Err(UploadError::TooManyExamples(limits.examples));
        }
        // Links, devices and the like have no bytes of their own and are never followed.
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_dir() {
            let mut path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if kind.is_dir() && !path.ends_with('/') {
                path.push('/');
            }
            entries.push(Entry {
                path,
                offset: entry.raw_file_position(),
                length: entry.size(),
            });
        }
        budget.set(HEADER_BYTES);
    }
    Ok(entries)
}
