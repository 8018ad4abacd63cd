//! Why an upload cannot become a task.

use std::io;

use zip::result::ZipError;

use crate::domain::Label;
use crate::learner::layout::LayoutError;

/// Why an upload cannot become a task.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// An archive is damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// A path in an archive says no class, an unusable one, or leaves the archive.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// More examples than allowed, or an archive with far more entries than that.
    #[error("more than {0} examples")]
    TooManyExamples(usize),
    /// More classes than there may be examples.
    #[error("more than {0} classes")]
    TooManyClasses(usize),
    /// More archives than allowed.
    #[error("more than {0} archives")]
    TooManyArchives(usize),
    /// What an archive says about its files, apart from their content, is larger than allowed.
    #[error("the archive's headers are larger than the {0} bytes that its examples may need")]
    HeadersTooLarge(u64),
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
    /// A second description of a class.
    #[error("class {0} is described twice")]
    DescribedTwice(Label),
    /// The spool file failed.
    #[error("the upload could not be read back")]
    Io(#[source] io::Error),
}

impl From<io::Error> for UploadError {
    /// A place that the spool file does not have is one that the archive made up.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

impl From<ZipError> for UploadError {
    fn from(error: ZipError) -> Self {
        match error {
            ZipError::Io(error) => error.into(),
            error => Self::Damaged(error.to_string()),
        }
    }
}
