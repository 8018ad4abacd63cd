//! Labelled examples on their way in: spooled to disk, listed, and read back one at a time.
//!
//! Nothing of a caller's archive is ever written under a name of the caller's. Listing an upload reads no image;
//! reading one is bounded by [`UploadLimits`], whatever the archive claims about its sizes.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use zip::ZipArchive;
use zip::result::ZipError;

use super::layout::{self, LayoutError};
use crate::domain::{Label, NewClass, Split};

/// Bounds on one upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Most examples.
    pub examples: usize,
    /// Most bytes of one image.
    pub image_bytes: u64,
    /// Most bytes of all images together, after decompression.
    pub total_bytes: u64,
}

/// Why an upload cannot become a task.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// An archive is damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// A path in an archive says no class, an unusable one, or leaves the archive.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// More examples than allowed.
    #[error("more than {0} examples")]
    TooManyExamples(usize),
    /// One image is larger than allowed.
    #[error("{name} is larger than {limit} bytes")]
    ImageTooLarge {
        /// The image.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// All images together are larger than allowed.
    #[error("the examples are larger than {0} bytes together")]
    TooLarge(u64),
    /// A class without a single example.
    #[error("class {0} has no examples")]
    EmptyClass(Label),
    /// A class that has held-out examples only.
    #[error("class {0} has no examples to learn from, only held-out ones")]
    NothingToLearn(Label),
    /// No class at all.
    #[error("the upload has no examples")]
    Empty,
    /// A description of a class that the upload has no examples for, or a second one.
    #[error("class {0} is described twice")]
    DescribedTwice(Label),
    /// The spool file failed.
    #[error("the upload could not be read back")]
    Io(#[from] io::Error),
}

/// The place in [`Upload::files`] of the file that images of their own are slices of.
const SPOOL: usize = 0;

enum Source {
    /// Bytes of a spool file: an image of its own, or a file in an uncompressed tar archive.
    Slice { file: usize, offset: u64, length: u64 },
    /// A file in a zip archive.
    Zip { archive: usize, index: usize },
}

/// One example that waits on disk.
pub struct Item {
    /// Its place in [`Upload::classes`].
    pub class: usize,
    /// The split the caller chose.
    pub split: Option<Split>,
    /// What the caller called it, for messages.
    pub name: String,
    source: Source,
}

/// The examples of one task, on disk.
pub struct Upload {
    limits: UploadLimits,
    files: Vec<BufReader<File>>,
    zips: Vec<ZipArchive<BufReader<File>>>,
    classes: Vec<NewClass>,
    items: Vec<Item>,
    bytes_read: u64,
}

impl Upload {
    /// An upload without examples. Images of their own will be slices of `spool`.
    pub fn new(limits: UploadLimits, spool: File) -> Self {
        Self {
            limits,
            files: vec![BufReader::new(spool)],
            zips: Vec::new(),
            classes: Vec::new(),
            items: Vec::new(),
            bytes_read: 0,
        }
    }

    /// Says which words stand for a class in prompts. The class still needs examples.
    ///
    /// # Errors
    /// [`UploadError::DescribedTwice`].
    pub fn describe(&mut self, class: NewClass) -> Result<(), UploadError> {
        if self.classes.iter().any(|known| known.label == class.label) {
            return Err(UploadError::DescribedTwice(class.label));
        }
        self.classes.push(class);
        Ok(())
    }

    /// Adds one image: `length` bytes of the spool file from `offset`.
    ///
    /// # Errors
    /// [`UploadError::TooManyExamples`].
    pub fn add_image(&mut self, label: Label, name: String, at: Range<u64>) -> Result<(), UploadError> {
        let source = Source::Slice {
            file: SPOOL,
            offset: at.start,
            length: at.end - at.start,
        };
        self.add(label, None, name, source)
    }

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
        match kind {
            ArchiveKind::Zip => self.add_zip(file, split),
            ArchiveKind::Tar => self.add_tar(file, split),
        }
    }

    fn add_zip(&mut self, file: File, split: Option<Split>) -> Result<(), UploadError> {
        let zip = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        let archive = self.zips.len();
        let mut entries = Vec::new();
        for index in 0..zip.len() {
            if let Some(name) = zip.name_for_index(index) {
                entries.push((
                    name.map_err(damaged)?.into_owned(),
                    Source::Zip { archive, index },
                ));
            }
        }
        self.zips.push(zip);
        self.add_entries(entries, split)
    }

    fn add_tar(&mut self, mut file: File, split: Option<Split>) -> Result<(), UploadError> {
        // Whoever wrote the file left its position at the end.
        file.rewind()?;
        let mut tar = tar::Archive::new(BufReader::new(file.try_clone()?));
        let slot = self.files.len();
        let mut entries = Vec::new();
        for entry in tar.entries_with_seek()? {
            let entry = entry.map_err(|e| UploadError::Damaged(e.to_string()))?;
            let kind = entry.header().entry_type();
            let mut name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if kind.is_dir() && !name.ends_with('/') {
                name.push('/');
            }
            // Links, devices and the like have no bytes of their own and are never followed.
            if kind.is_file() || kind.is_dir() {
                let source = Source::Slice {
                    file: slot,
                    offset: entry.raw_file_position(),
                    length: entry.size(),
                };
                entries.push((name, source));
            }
            if entries.len() > self.limits.examples.saturating_mul(2) + 1024 {
                return Err(UploadError::TooManyExamples(self.limits.examples));
            }
        }
        self.files.push(BufReader::new(file));
        self.add_entries(entries, split)
    }

    fn add_entries(
        &mut self,
        entries: Vec<(String, Source)>,
        split: Option<Split>,
    ) -> Result<(), UploadError> {
        let wrapper = layout::wrapper(entries.iter().map(|(name, _)| name.as_str()));
        for (name, source) in entries {
            match layout::place(&name, wrapper.as_deref())? {
                layout::Place::Ignored => {}
                layout::Place::Class { label } => {
                    self.class(label);
                }
                layout::Place::Example { label, split: own } => {
                    self.add(label, own.or(split), name, source)?;
                }
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        label: Label,
        split: Option<Split>,
        name: String,
        source: Source,
    ) -> Result<(), UploadError> {
        if self.items.len() >= self.limits.examples {
            return Err(UploadError::TooManyExamples(self.limits.examples));
        }
        let class = self.class(label);
        self.items.push(Item {
            class,
            split,
            name,
            source,
        });
        Ok(())
    }

    fn class(&mut self, label: Label) -> usize {
        match self.classes.iter().position(|class| class.label == label) {
            Some(known) => known,
            None => {
                self.classes.push(NewClass { label, prompt: None });
                self.classes.len() - 1
            }
        }
    }

    /// Starts over counting the bytes that were read, before reading everything again.
    pub fn rewind(&mut self) {
        self.bytes_read = 0;
    }

    /// The classes, in the order in which they first appeared.
    pub fn classes(&self) -> &[NewClass] {
        &self.classes
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Checks that every class has something to learn from.
    ///
    /// # Errors
    /// [`UploadError::Empty`], [`UploadError::EmptyClass`] or [`UploadError::NothingToLearn`].
    pub fn check(&self) -> Result<(), UploadError> {
        if self.classes.is_empty() {
            return Err(UploadError::Empty);
        }
        for (place, class) in self.classes.iter().enumerate() {
            let mut examples = self.items.iter().filter(|item| item.class == place).peekable();
            if examples.peek().is_none() {
                return Err(UploadError::EmptyClass(class.label.clone()));
            }
            if examples.all(|item| item.split == Some(Split::HeldOut)) {
                return Err(UploadError::NothingToLearn(class.label.clone()));
            }
        }
        Ok(())
    }

    /// Reads example `index`: what it is and its bytes. Blocks.
    ///
    /// # Errors
    /// When it is larger than allowed or its archive is damaged.
    pub fn read(&mut self, index: usize) -> Result<(&Item, Vec<u8>), UploadError> {
        let item = &self.items[index];
        let limit = self.limits.image_bytes;
        let mut bytes = Vec::new();
        match item.source {
            Source::Slice { file, offset, length } => {
                let file = &mut self.files[file];
                file.seek(SeekFrom::Start(offset))?;
                file.take(length.min(limit + 1)).read_to_end(&mut bytes)?;
            }
            Source::Zip { archive, index } => {
                let entry = self.zips[archive].by_index(index).map_err(damaged)?;
                // The archive's own word on the size is not trusted: decompression stops at the limit.
                entry
                    .take(limit + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|e| UploadError::Damaged(e.to_string()))?;
            }
        }
        if bytes.len() as u64 > limit {
            return Err(UploadError::ImageTooLarge {
                name: item.name.clone(),
                limit,
            });
        }
        self.bytes_read += bytes.len() as u64;
        if self.bytes_read > self.limits.total_bytes {
            return Err(UploadError::TooLarge(self.limits.total_bytes));
        }
        Ok((item, bytes))
    }
}

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

fn damaged(error: ZipError) -> UploadError {
    match error {
        ZipError::Io(error) => UploadError::Io(error),
        error => UploadError::Damaged(error.to_string()),
    }
}
