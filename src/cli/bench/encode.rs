//! `clipkeep bench encode`: images a second through the image tower.

use candle_core::{Device, Tensor};
use clap::Args;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use serde::Serialize;

use super::timing::{self, median, milliseconds};
use crate::app;
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
        let side = backbone.image_size();
        let values: Vec<f32> = StandardNormal
            .sample_iter(ChaCha8Rng::seed_from_u64(0))
            .take(self.batch as usize * 3 * side * side)
            .collect();
        let pixels = Tensor::from_vec(values, (self.batch as usize, 3, side, side), &Device::Cpu)?;
        let times = timing::times(self.seconds, WARM_UP, || {
            let features = backbone.encode_images(&pixels)?;
            // A device works on while its host goes on.
            Ok(features.device().synchronize()?)
        })?;
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
        };
        if !self.json {
            println!(
                "{}: {median:.1} ms for {} images, {:.1} images a second ({}, {} threads)",
                measured.backbone,
                self.batch,
                measured.images_per_second,
                measured.instructions,
                measured.threads
            );
        }
        println!("{}", serde_json::to_string(&measured)?);
        Ok(())
    }
}
