//! What protocols run on: rows of labelled images, and what stands for their classes.
//!
//! Rows are kept as they came: of images as the float16 that a job saves, at half the memory. A fit has its own rows widened.

use std::io;
use std::path::PathBuf;

use candle_core::{Device, Tensor};

use crate::adapter::Readout;
use crate::domain::Reads;

/// Why features cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} holds {found}, expected {expected}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// Files that do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// Rows to learn from, others to be scored on, and what stands for each class.
#[derive(Debug, Clone)]
pub struct Data {
    pub(super) train: Rows,
    pub(super) test: Rows,
    /// Unit rows (C, D), on the device that fits.
    pub(super) anchors: Tensor,
    /// What cosines are multiplied with: the backbone's logit scale.
    pub(super) scale: f64,
    /// The end of the image tower, where there is a backbone.
    pub(super) readout: Option<Readout>,
}

/// Rows with their classes, in the machine's own memory.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// Features (n, D).
    pub(super) features: Tensor,
    /// Tokens (n, t · w), where somebody reads them.
    pub(super) tokens: Option<Tensor>,
    /// Each row's class.
    pub(super) labels: Vec<u32>,
}

impl Data {
    /// C.
    pub fn classes(&self) -> usize {
        self.anchors.dims()[0]
    }

    /// Where fits run.
    pub(super) fn device(&self) -> &Device {
        self.anchors.device()
    }

    /// Checks that there is something to tell apart, to learn every class from, and to be scored on.
    pub(super) fn check(&self) -> Result<(), DataError> {
        let classes = self.classes();
        if classes < 2 {
            return Err(DataError::Mismatch(
                "one class alone is nothing to tell apart".to_owned(),
            ));
        }
        if self.test.labels.is_empty() {
            return Err(DataError::Mismatch("there are no test rows".to_owned()));
        }
        if let Some(class) = self.test.labels.iter().find(|class| **class as usize >= classes) {
            return Err(DataError::Mismatch(format!(
                "class {class} has test rows and no training row"
            )));
        }
        match self.train.absent(classes) {
            Some(class) => Err(DataError::Mismatch(format!("class {class} has no training row"))),
            None => Ok(()),
        }
    }
}

impl Rows {
    /// What a strategy reads of the images; `None` where that was not kept.
    pub(super) fn of(&self, reads: Reads) -> Option<&Tensor> {
        match reads {
            Reads::Features => Some(&self.features),
            Reads::Tokens => self.tokens.as_ref(),
        }
    }

    /// The first of `classes` classes that has no row.
    pub(super) fn absent(&self, classes: usize) -> Option<usize> {
        let mut seen = vec![false; classes];
        self.labels.iter().for_each(|label| seen[*label as usize] = true);
        seen.iter().position(|seen| !seen)
    }
}
