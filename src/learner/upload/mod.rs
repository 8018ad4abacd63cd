//! Labelled examples on their way in: spooled to disk, listed, and read back one at a time.
//!
//! Nothing of a caller's archive is ever written under a name of the caller's. Listing an upload reads no image;
//! reading one is bounded by [`UploadLimits`], whatever the archive claims about its sizes.

mod archives;
mod error;
mod folders;
mod metered;
mod tarred;
mod zipped;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

use super::layout;
use crate::domain::{Label, NewClass, Split};

pub use archives::ArchiveKind;
pub use error::UploadError;
use zipped::Zip;

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

impl UploadLimits {
    /// Most entries of an archive: besides examples there may be folders and what operating systems leave.
    fn entries(self) -> usize {
        self.examples.saturating_mul(2).saturating_add(1024)
    }
}

/// The place in [`Upload::files`] of the file that images of their own are slices of.
const SPOOL: usize = 0;

#[derive(Clone, Copy)]
enum Source {
    /// Bytes of a spool file: an image of its own, or a file in an uncompressed tar archive.
    Slice { file: usize, offset: u64, length: u64 },
    /// A file of its own, by its place in [`Upload::paths`].
    Path(usize),
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
    zips: Vec<Zip>,
    archives: usize,
    paths: Vec<PathBuf>,
    classes: Vec<NewClass>,
    /// The place of each label in `classes`.
    places: HashMap<Label, usize>,
    /// Of each class whether it was described.
    described: Vec<bool>,
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
            archives: 0,
            paths: Vec::new(),
            classes: Vec::new(),
            places: HashMap::new(),
            described: Vec::new(),
            items: Vec::new(),
            bytes_read: 0,
        }
    }

    /// Says which words stand for a class in prompts. The class still needs examples.
    ///
    /// # Errors
    /// [`UploadError::DescribedTwice`] or [`UploadError::TooManyClasses`].
    pub fn describe(&mut self, class: NewClass) -> Result<(), UploadError> {
        let place = self.class(&class.label)?;
        if std::mem::replace(&mut self.described[place], true) {
            return Err(UploadError::DescribedTwice(class.label));
        }
        self.classes[place].prompt = class.prompt;
        Ok(())
    }

    /// Adds one image: `length` bytes of the spool file from `offset`.
    ///
    /// # Errors
    /// [`UploadError::TooManyExamples`] or [`UploadError::TooManyClasses`].
    pub fn add_image(&mut self, label: &Label, name: &str, at: Range<u64>) -> Result<(), UploadError> {
        let source = Source::Slice {
            file: SPOOL,
            offset: at.start,
            length: at.end - at.start,
        };
        self.add(label, None, name, source)
    }

    fn add(
        &mut self,
        label: &Label,
        split: Option<Split>,
        name: &str,
        source: Source,
    ) -> Result<(), UploadError> {
        if self.items.len() >= self.limits.examples {
            return Err(UploadError::TooManyExamples(self.limits.examples));
        }
        let class = self.class(label)?;
        self.items.push(Item {
            class,
            split,
            name: layout::shown(name),
            source,
        });
        Ok(())
    }

    /// The place of a class. Each needs an example, so there are no more classes than there may be examples.
    fn class(&mut self, label: &Label) -> Result<usize, UploadError> {
        if let Some(&known) = self.places.get(label) {
            return Ok(known);
        }
        if self.classes.len() >= self.limits.examples {
            return Err(UploadError::TooManyClasses(self.limits.examples));
        }
        let place = self.classes.len();
        self.places.insert(label.clone(), place);
        self.described.push(false);
        self.classes.push(NewClass {
            label: label.clone(),
            prompt: None,
        });
        Ok(place)
    }

    /// Starts over counting the bytes that were read, before reading everything again.
    pub fn rewind(&mut self) {
        self.bytes_read = 0;
    }

    /// The classes, in the order in which they first appeared.
    pub fn classes(&self) -> &[NewClass] {
        &self.classes
    }

    /// The examples, in the order in which they were added.
    pub fn items(&self) -> &[Item] {
        &self.items
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
        let (mut has_any, mut has_train) = (vec![false; self.classes.len()], vec![false; self.classes.len()]);
        for item in &self.items {
            has_any[item.class] = true;
            has_train[item.class] |= item.split != Some(Split::HeldOut);
        }
        let first_without = |has: &[bool]| {
            let place = has.iter().position(|has| !has)?;
            Some(self.classes[place].label.clone())
        };
        match (first_without(&has_any), first_without(&has_train)) {
            (Some(class), _) => Err(UploadError::EmptyClass(class)),
            (None, Some(class)) => Err(UploadError::NothingToLearn(class)),
            (None, None) => Ok(()),
        }
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
                let wanted = length.min(limit + 1);
                if (file.take(wanted).read_to_end(&mut bytes)? as u64) < wanted {
                    return Err(UploadError::Damaged(format!("{} is cut off", item.name)));
                }
            }
            Source::Path(place) => {
                let file = File::open(&self.paths[place])?;
                file.take(limit + 1).read_to_end(&mut bytes)?;
            }
            Source::Zip { archive, index } => {
                let entry = self.zips[archive].by_index(index)?;
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
