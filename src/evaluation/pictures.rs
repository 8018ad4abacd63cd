//! Labelled images where they lie: folders of class folders, and zip or tar archives of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use crate::domain::{Label, Split};
use crate::learner::{ArchiveKind, Item, Upload, UploadError, UploadLimits};

/// What is read as an upload is, at a user's own risk: few bounds, but a single image has the size of one that is served.
const LIMITS: UploadLimits = UploadLimits {
    examples: 4_000_000,
    image_bytes: 32 << 20,
    total_bytes: u64::MAX,
};

/// Why images cannot be evaluated on.
#[derive(Debug, thiserror::Error)]
pub enum PicturesError {
    /// A path cannot be opened.
    #[error("cannot open {}", .path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is no archive.
    #[error("{} is neither a folder nor a zip or uncompressed tar archive", .0.display())]
    Kind(PathBuf),
    /// A folder or archive cannot be read, or is laid out otherwise.
    #[error("cannot use the images in {}", .path.display())]
    Source {
        /// The folder or archive.
        path: PathBuf,
        /// Why.
        source: UploadError,
    },
    /// An image to learn from among those to be scored on, or the other way round.
    #[error("{} has {name} in a folder for the other part; give it with --images", .path.display())]
    OtherPart {
        /// The folder or archive.
        path: PathBuf,
        /// The image.
        name: String,
    },
    /// An image of which nobody said what it is for.
    #[error("{} has {name} in neither train/ nor test/; give it with --train or --test", .path.display())]
    NoPart {
        /// The folder or archive.
        path: PathBuf,
        /// The image.
        name: String,
    },
    /// A folder or archive without images.
    #[error("{} has no images in class folders", .0.display())]
    Empty(PathBuf),
    /// A class that is tested and never taught.
    #[error("class {0} has test images and none to learn from")]
    NothingToLearn(Label),
    /// A single class.
    #[error("one class alone, {0}, is nothing to tell apart")]
    OneClass(Label),
    /// Nothing to be scored on.
    #[error("there are no test images")]
    NoTest,
}

/// A folder or archive, and what its images are for.
#[derive(Debug, Clone)]
pub struct PictureSource {
    /// Where it is.
    pub path: PathBuf,
    /// The part that all of its images belong to; `None` where its folders `train/` and `test/` say it.
    pub part: Option<Split>,
}

/// Labelled images to learn from, and others to be scored on. None has been read yet.
pub struct Pictures {
    sources: Vec<(PathBuf, Upload)>,
    classes: Vec<Label>,
    listed: Vec<Picture>,
}

/// One image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    source: usize,
    index: usize,
    /// Its class's place.
    pub(super) class: u32,
    pub(super) part: Split,
}

impl Pictures {
    /// Lists what there is. Classes are numbered as they first appear among the images to learn from: source by source,
    /// and by name within one. Images come in the same order, whatever order an archive has them in.
    ///
    /// # Errors
    /// [`PicturesError`], which names the path or class.
    pub fn list(sources: &[PictureSource]) -> Result<Self, PicturesError> {
        let opened = sources
            .iter()
            .map(|source| Ok((source.path.clone(), open(source)?)));
        let opened: Vec<(PathBuf, Upload)> = opened.collect::<Result<_, PicturesError>>()?;
        let mut found = Vec::new();
        for (place, (source, (_, upload))) in sources.iter().zip(&opened).enumerate() {
            for (index, item) in upload.items().iter().enumerate() {
                let picture = Picture {
                    source: place,
                    index,
                    class: 0,
                    part: source.part_of(item)?,
                };
                found.push((&upload.classes()[item.class].label, &item.name, picture));
            }
        }
        found.sort_by_key(|(label, name, Picture { source, part, .. })| {
            (*part == Split::HeldOut, *source, *label, *name)
        });
        let mut classes: Vec<Label> = Vec::new();
        let mut places = HashMap::new();
        let mut pictures = Vec::with_capacity(found.len());
        for (label, _, picture) in found {
            let class = *places.entry(label).or_insert_with(|| {
                classes.push(label.clone());
                classes.len() as u32 - 1
            });
            pictures.push(Picture { class, ..picture });
        }
        let listed = Self {
            sources: opened,
            classes,
            listed: pictures,
        };
        listed.check()?;
        Ok(listed)
    }

    fn check(&self) -> Result<(), PicturesError> {
        let mut taught = vec![false; self.classes.len()];
        let of = |part| self.listed.iter().filter(move |picture| picture.part == part);
        of(Split::Train).for_each(|picture| taught[picture.class as usize] = true);
        if let Some(class) = taught.iter().position(|taught| !taught) {
            return Err(PicturesError::NothingToLearn(self.classes[class].clone()));
        }
        if let [class] = self.classes.as_slice() {
            return Err(PicturesError::OneClass(class.clone()));
        }
        match of(Split::HeldOut).next() {
            Some(_) => Ok(()),
            None => Err(PicturesError::NoTest),
        }
    }

    /// The classes, in order of first appearance.
    pub fn classes(&self) -> &[Label] {
        &self.classes
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Whether there are none; [`Self::list`] refuses that.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// The images in order.
    pub(super) fn all(&self) -> Vec<Picture> {
        self.listed.clone()
    }

    /// The bytes of an image, and what it is called in messages. Blocks.
    pub(super) fn read(&mut self, picture: Picture) -> Result<(String, Vec<u8>), PicturesError> {
        let (path, upload) = &mut self.sources[picture.source];
        match upload.read(picture.index) {
            Ok((item, bytes)) => Ok((format!("{} in {}", item.name, path.display()), bytes)),
            Err(source) => Err(PicturesError::Source {
                path: path.clone(),
                source,
            }),
        }
    }
}

impl PictureSource {
    /// The part of one of its images.
    fn part_of(&self, item: &Item) -> Result<Split, PicturesError> {
        let (path, name) = (self.path.clone(), item.name.clone());
        match (self.part, item.split) {
            (Some(given), Some(own)) if given != own => Err(PicturesError::OtherPart { path, name }),
            (given, own) => given.or(own).ok_or(PicturesError::NoPart { path, name }),
        }
    }
}

/// A folder or archive, listed.
fn open(source: &PictureSource) -> Result<Upload, PicturesError> {
    let path = &source.path;
    let cannot_open = |source| PicturesError::Open {
        path: path.clone(),
        source,
    };
    let mut file = File::open(path).map_err(cannot_open)?;
    // Nothing is spooled: every image stays where it is.
    let mut upload = Upload::new(LIMITS, file.try_clone().map_err(cannot_open)?);
    let listed = if file.metadata().map_err(cannot_open)?.is_dir() {
        upload.add_folder(path, None)
    } else {
        let mut head = Vec::with_capacity(ArchiveKind::HEAD);
        let mut start = (&mut file).take(ArchiveKind::HEAD as u64);
        start.read_to_end(&mut head).map_err(cannot_open)?;
        let kind = ArchiveKind::of(&head).ok_or_else(|| PicturesError::Kind(path.clone()))?;
        upload.add_archive(kind, file, None)
    };
    let unusable = |source| PicturesError::Source {
        path: path.clone(),
        source,
    };
    listed.map_err(unusable)?;
    let mut is_empty = vec![true; upload.classes().len()];
    upload
        .items()
        .iter()
        .for_each(|item| is_empty[item.class] = false);
    match is_empty.iter().position(|is_empty| *is_empty) {
        Some(class) => {
            let label = upload.classes()[class].label.clone();
            Err(unusable(UploadError::EmptyClass(label)))
        }
        None if upload.is_empty() => Err(PicturesError::Empty(path.clone())),
        None => Ok(upload),
    }
}
