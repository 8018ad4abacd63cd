//! `clipkeep bench encode`: images a second through the image tower.

use std::path::PathBuf;

use anyhow::Context as _;
use candle_core::{D, Device, Tensor};
use clap::Args;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::photographs::photographs;
use super::timing::{self, median, milliseconds};
use crate::app;
use crate::cli::output;
use crate::config::BackboneArgs;
use crate::domain::Reads;

/// Time the image tower on batches of pixels.
///
/// A published shape with made-up weights is as fast as the real model: --backbone random:vit-b-32, random:vit-b-16 or
/// random:vit-l-14. Prints the median and, last, everything as one JSON object; so for each size of batch.
///
/// Example: clipkeep bench encode --backbone random:vit-b-32 --batch 8 --threads 2
#[derive(Debug, Clone, Args)]
pub(super) struct Encode {
    /// Images in a batch; more than one number, to measure each.
    #[arg(long, num_args = 1.., default_value = "8", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,
    /// For how long to measure each, in seconds; up to five times as long for five batches.
    #[arg(long, default_value_t = 5.0, value_parser = timing::seconds)]
    seconds: f64,
    /// A published shape with made-up weights instead of a backbone: vit-b-32, vit-b-16 or vit-l-14.
    #[arg(long, conflicts_with = "backbone")]
    shape: Option<String>,
    /// Photographs to encode, or directories of them, and not noise; the first 256.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    images: Vec<PathBuf>,
    /// Pixels that lie on the device already, and not in the host's memory, where a server has them.
    #[arg(long)]
    resident: bool,
    /// Tell the smallest cosine of features with those that the same backbone has in f32 on the CPU, too: of those photographs,
    /// or of eight images of noise.
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
    batch: usize,
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

/// Batches before the first that counts: on a GPU the second is recorded.
const WARM_UP: usize = 3;
/// Images of noise.
const NOISE: usize = 8;
/// Photographs at most.
const PHOTOGRAPHS: usize = 256;

impl Encode {
    pub(super) fn backbone(&self) -> &BackboneArgs {
        &self.backbone
    }

    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        if let Some(shape) = &self.shape {
            self.backbone.backbone = Some(format!("random:{shape}").parse().map_err(anyhow::Error::msg)?);
        }
        let backbone = app::load_backbone(&self.backbone).await?;
        let side = backbone.image_size();
        // A few, over and over.
        let (processor, limits) = (backbone.image_processor(), self.backbone.offline_engine().limits);
        let few = self.pixels(side, |bytes| Ok(processor.process(bytes, limits)?))?;
        let few: Vec<&[u8]> = few.iter().map(Vec::as_slice).collect();
        let wanted = if self.cosine {
            let exact = app::load_backbone(&self.backbone.exact()).await?;
            Some(exact.encode_pixels(&few, Reads::Features, None)?.0)
        } else {
            None
        };
        let place = |batch: &[&[u8]]| -> anyhow::Result<Option<Tensor>> {
            let shape = (batch.len(), 3, side, side);
            let placed = self
                .resident
                .then(|| Tensor::from_vec(batch.concat(), shape, backbone.device()));
            Ok(placed.transpose()?)
        };
        // A device works on while its host goes on: what counts is when the features are here.
        let encode = |batch: &[&[u8]], placed: Option<&Tensor>| -> anyhow::Result<Tensor> {
            let features = match placed {
                Some(pixels) => backbone.encode_images(pixels)?,
                None => backbone.encode_pixels(batch, Reads::Features, None)?.0,
            };
            Ok(features.to_device(&Device::Cpu)?)
        };
        for images in self.batch.iter().map(|batch| *batch as usize) {
            let batch = |number| -> Vec<&[u8]> {
                let over_and_over = few.iter().copied().cycle();
                over_and_over.skip(number * images).take(images).collect()
            };
            let first = batch(0);
            let placed = place(&first)?;
            let times = timing::times(self.seconds, WARM_UP, || {
                encode(&first, placed.as_ref()).map(drop)
            })?;
            let found = |wanted: &Tensor| {
                let batches = (0..few.len().div_ceil(images)).map(batch);
                let features = batches.map(|batch| encode(&batch, place(&batch)?.as_ref()));
                let features: Vec<Tensor> = features.collect::<anyhow::Result<_>>()?;
                least_cosine(wanted, &Tensor::cat(&features, 0)?.narrow(0, 0, few.len())?)
            };
            let cosine = wanted.as_ref().map(found).transpose()?;
            let median = milliseconds(median(&times));
            let measured = Measured {
                backbone: backbone.name().to_owned(),
                instructions: backbone.instructions(),
                threads: self.backbone.threads(),
                batch: images,
                batches: times.len(),
                milliseconds: median,
                fastest_milliseconds: milliseconds(times[0]),
                slowest_milliseconds: milliseconds(times[times.len() - 1]),
                images_per_second: 1e3 * images as f64 / median,
                cosine,
            };
            if !self.json {
                output::line(format_args!(
                    "{}: {median:.2} ms for {images} images, {:.1} images a second ({}, {} threads)",
                    measured.backbone, measured.images_per_second, measured.instructions, measured.threads
                ))?;
            }
            output::line(serde_json::to_string(&measured)?)?;
        }
        Ok(())
    }

    /// Of the photographs, or of noise.
    fn pixels(
        &self,
        side: usize,
        process: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        if self.images.is_empty() {
            let len = 3 * side * side;
            let noise = noise(NOISE * len);
            return Ok(noise.chunks_exact(len).map(<[u8]>::to_vec).collect());
        }
        let most = self.batch.iter().max().map_or(0, |most| *most as usize);
        let most = if self.cosine {
            PHOTOGRAPHS
        } else {
            most.min(PHOTOGRAPHS)
        };
        let photographs = photographs(&self.images)?.into_iter().take(most);
        let pixels = photographs.map(|bytes| process(&bytes));
        pixels
            .collect::<anyhow::Result<_>>()
            .context("a file is no image")
    }
}

/// The smallest cosine of two rows with one number. What is no number is smaller than anything.
fn least_cosine(wanted: &Tensor, found: &Tensor) -> anyhow::Result<f64> {
    let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(D::Minus1);
    let lengths = (dot(wanted, wanted)?.sqrt()? * dot(found, found)?.sqrt()?)?;
    let cosines = (dot(wanted, found)? / lengths)?.to_vec1::<f32>()?;
    let least = cosines.into_iter().reduce(|least, cosine| {
        if least.is_nan() || least <= cosine {
            least
        } else {
            cosine
        }
    });
    Ok(f64::from(least.unwrap_or(f32::NAN)))
}

/// So many bytes: always the same.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    ChaCha8Rng::seed_from_u64(0).fill_bytes(&mut bytes);
    bytes
}
