//! `clipkeep bench preprocess`: from an image file to what the image tower takes.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::timing::{self, median, milliseconds};
use crate::app;
use crate::cli::output;
use crate::config::BackboneArgs;
use crate::domain::Digest;

/// Time decoding, resizing and cropping of image files, on one thread.
///
/// Example: clipkeep bench preprocess --backbone random:vit-b-32 photo.jpg
#[derive(Debug, Clone, Args)]
pub(super) struct Preprocess {
    /// Images.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// For how long to measure each, in seconds; up to five times as long for five times.
    #[arg(long, default_value_t = 1.0, value_parser = timing::seconds)]
    seconds: f64,
    #[command(flatten)]
    backbone: BackboneArgs,
}

#[derive(Debug, Serialize)]
struct Measured {
    file: PathBuf,
    /// The median.
    milliseconds: f64,
    /// Of the pixels as bytes, (channel, height, width).
    digest: Digest,
}

impl Preprocess {
    pub(super) fn backbone(&self) -> &BackboneArgs {
        &self.backbone
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let backbone = app::load_backbone(&self.backbone).await?;
        let processor = backbone.image_processor();
        let limits = self.backbone.offline_engine().limits;
        for file in self.files {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let times = timing::times(self.seconds, 0, || {
                let processed = processor.process(&bytes, limits);
                processed.map(drop).with_context(|| file.display().to_string())
            })?;
            let measured = Measured {
                milliseconds: milliseconds(median(&times)),
                digest: Digest::of(&processor.process(&bytes, limits)?),
                file,
            };
            output::line(serde_json::to_string(&measured)?)?;
        }
        Ok(())
    }
}
