//! `clipkeep bench preprocess`: from an image file to normalised pixels.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use crate::app;
use crate::config::BackboneArgs;

/// Time decoding, resizing and normalising of image files, on one thread.
///
/// Example: clipkeep bench preprocess --backbone random:vit-b-32 photo.jpg
#[derive(Debug, Clone, Args)]
pub(super) struct Preprocess {
    /// Images.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// For how long to measure each, in seconds; at least five times.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(flatten)]
    backbone: BackboneArgs,
}

#[derive(Debug, Serialize)]
struct Measured {
    file: PathBuf,
    /// The median.
    milliseconds: f64,
}

/// Fewest times that a file is processed.
const LEAST: usize = 5;

impl Preprocess {
    pub(super) fn backbone(&self) -> &BackboneArgs {
        &self.backbone
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let backbone = app::load_backbone(&self.backbone).await?;
        let limits = self.backbone.offline_engine().limits;
        for file in self.files {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let processor = backbone.image_processor();
            let (mut times, started) = (Vec::new(), Instant::now());
            while times.len() < LEAST || started.elapsed().as_secs_f64() < self.seconds {
                let before = Instant::now();
                processor
                    .process(&bytes, limits)
                    .with_context(|| file.display().to_string())?;
                times.push(before.elapsed());
            }
            times.sort_unstable();
            let median: Duration = times[times.len() / 2];
            let measured = Measured {
                file,
                milliseconds: 1e3 * median.as_secs_f64(),
            };
            println!("{}", serde_json::to_string(&measured)?);
        }
        Ok(())
    }
}
