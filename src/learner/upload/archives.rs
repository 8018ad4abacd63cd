//! Archives of class folders, as parts of an upload.

use std::fs::File;
use std::io::BufReader;

use super::{Source, Upload, UploadError, tarred, zipped};
use crate::domain::Split;
use crate::learner::layout::{self, Place};

/// Most archives in one upload: each keeps a file open and its directory in memory.
const ARCHIVES: usize = 8;

/// A kind of archive that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// PKZIP.
    Zip,
    /// POSIX ustar or GNU tar, uncompressed.
    Tar,
}

impl ArchiveKind {
    /// Bytes from the start of a file that show its kind.
    pub const HEAD: usize = 512;

    /// The kind of archive that begins with `head`, if any.
    pub fn of(head: &[u8]) -> Option<Self> {
        let zip = head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06");
        let tar = head.get(257..262) == Some(b"ustar");
        match (zip, tar) {
            (true, _) => Some(Self::Zip),
            (_, true) => Some(Self::Tar),
            _ => None,
        }
    }
}

impl Upload {
    /// Adds the class folders of an archive, which has a file of its own. Folders `train/` and `test/` above the
    /// classes choose the split; otherwise `split` says it for the whole archive. Blocks.
    ///
    /// # Errors
    /// When it is damaged, laid out otherwise or too large.
    pub fn add_archive(
        &mut self,
        kind: ArchiveKind,
        file: File,
        split: Option<Split>,
    ) -> Result<(), UploadError> {
        if self.archives == ARCHIVES {
            return Err(UploadError::TooManyArchives(ARCHIVES));
        }
        self.archives += 1;
        let entries = match kind {
            ArchiveKind::Zip => self.open_zip(file)?,
            ArchiveKind::Tar => self.open_tar(file)?,
        };
        self.add_entries(&entries, split)
    }

    fn open_zip(&mut self, file: File) -> Result<Vec<(String, Source)>, UploadError> {
        let zip = zipped::open(file, self.limits)?;
        let archive = self.zips.len();
        let entry = |index| {
            let path = zip.name_for_index(index)?;
            Some(path.map(|path| (path.into_owned(), Source::Zip { archive, index })))
        };
        let entries = (0..zip.len()).filter_map(entry).collect::<Result<_, _>>()?;
        self.zips.push(zip);
        Ok(entries)
    }

    fn open_tar(&mut self, file: File) -> Result<Vec<(String, Source)>, UploadError> {
        let slot = self.files.len();
        let entries = tarred::list(&file, self.limits)?;
        self.files.push(BufReader::new(file));
        let sourced = |entry: tarred::Entry| {
            let source = Source::Slice {
                file: slot,
                offset: entry.offset,
                length: entry.length,
            };
            (entry.path, source)
        };
        Ok(entries.into_iter().map(sourced).collect())
    }

    pub(super) fn add_entries(
        &mut self,
        entries: &[(String, Source)],
        split: Option<Split>,
    ) -> Result<(), UploadError> {
        let wrapper = layout::wrapper(entries.iter().map(|(name, _)| name.as_str()));
        for (name, source) in entries {
            match layout::place(name, wrapper.as_deref())? {
                Place::Ignored => {}
                Place::Class { label } => {
                    self.class(&label)?;
                }
                Place::Example { label, split: own } => {
                    self.add(&label, own.or(split), name, *source)?;
                }
            }
        }
        Ok(())
    }
}
