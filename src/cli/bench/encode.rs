//! `clipkeep bench encode`: images a second through the image tower.

use std::path::PathBuf;

use anyhow::Context as _;
use candle_core::{D, Device, Tensor};
use clap::Args;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use serde::Serialize;

use super::photographs::photographs;
use super::timing::{self, median, milliseconds};
use crate::app;
use crate::cli::output;
use crate::config::BackboneArgs;

/// Time the image tower on batches of pixels.
///
/// A published shape with made-up weights is as fast as the real model: --backbone random:vit-b-32, random:vit-b-16 or
/// random:vit-l-14. Prints the median and, last, everything as one JSON object.
///
/// Example: clipkeep bench encode --backbone random:vit-b-32 --batch 8 --threads 2
#[derive(Debug, Clone, Args)]
pub(super) struct Encode {
    /// Images in a batch.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// For how long to measure, in seconds; at least five batches.
    #[arg(long, default_value_t = 5.0, value_parser = timing::seconds)]
    seconds: f64,
    /// A published shape with made-up weights instead of a backbone: vit-b-32, vit-b-16 or vit-l-14.
    #[arg(long, conflicts_with = "backbone")]
    shape: Option<String>,
    /// Photographs to encode, or directories of them, and not noise.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    images: Vec<PathBuf>,
    /// Tell the smallest cosine of the features with those that the same backbone has in f32 on the CPU, too.
    #[arg(long)]
    cosine: bool,
    /// Print the JSON object alone.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backbone: BackboneArgs,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    backbone: String,
    instructions: String,
    threads: usize,
    batch: u32,
    /// Batches that were timed.
    batches: usize,
    /// Median and extremes of a batch, in milliseconds.
    milliseconds: f64,
    fastest_milliseconds: f64,
    slowest_milliseconds: f64,
    /// By the median.
    images_per_second: f64,
    /// The smallest of an image's features and those in f32 on the CPU, if it was asked for.
    cosine: Option<f64>,
}

/// Batches before the first that counts.
const WARM_UP: usize = 2;

impl Encode {
    pub(super) fn backbone(&self) -> &BackboneArgs {
        &self.backbone
    }

    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        if let Some(shape) = &self.shape {
            self.backbone.backbone = Some(format!("random:{shape}").parse().map_err(anyhow::Error::msg)?);
        }
        let backbone = app::load_backbone(&self.backbone).await?;
        let (batch, side) = (self.batch as usize, backbone.image_size());
        let pixels = if self.images.is_empty() {
            let noise = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(0));
            noise.take(batch * 3 * side * side).collect()
        } else {
            let processor = backbone.image_processor();
            let limits = self.backbone.offline_engine().limits;
            let images = photographs(&self.images)?.into_iter().cycle().take(batch);
            let pixels = images.map(|bytes| processor.process(&bytes, limits));
            let pixels: Vec<Vec<f32>> = pixels.collect::<Result<_, _>>().context("a file is no image")?;
            pixels.concat()
        };
        let pixels = Tensor::from_vec(pixels, (batch, 3, side, side), &Device::Cpu)?;
        let times = timing::times(self.seconds, WARM_UP, || {
            let features = backbone.encode_images(&pixels)?;
            // A device works on while its host goes on.
            Ok(features.device().synchronize()?)
        })?;
        let cosine = if self.cosine {
            let exact = app::load_backbone(&self.backbone.exact()).await?;
            let found = backbone.encode_images(&pixels)?.to_device(&Device::Cpu)?;
            Some(least_cosine(&exact.encode_images(&pixels)?, &found)?)
        } else {
            None
        };
        let median = milliseconds(median(&times));
        let measured = Measured {
            backbone: backbone.name().to_owned(),
            instructions: backbone.instructions(),
            threads: self.backbone.threads(),
            batch: self.batch,
            batches: times.len(),
            milliseconds: median,
            fastest_milliseconds: milliseconds(times[0]),
            slowest_milliseconds: milliseconds(times[times.len() - 1]),
            images_per_second: 1e3 * f64::from(self.batch) / median,
            cosine,
        };
        if !self.json {
            output::line(format_args!(
                "{}: {median:.1} ms for {} images, {:.1} images a second ({}, {} threads)",
                measured.backbone,
                self.batch,
                measured.images_per_second,
                measured.instructions,
                measured.threads
            ))?;
        }
        output::line(serde_json::to_string(&measured)?)?;
        Ok(())
    }
}

/// The smallest cosine of two rows with one number.
fn least_cosine(wanted: &Tensor, found: &Tensor) -> anyhow::Result<f64> {
    let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(D::Minus1);
    let lengths = (dot(wanted, wanted)?.sqrt()? * dot(found, found)?.sqrt()?)?;
    let cosines = (dot(wanted, found)? / lengths)?.to_vec1::<f32>()?;
    let least = cosines
        .into_iter()
        .reduce(|least, cosine| if cosine >= least { least } else { cosine });
    Ok(f64::from(least.unwrap_or(f32::NAN)))
}
