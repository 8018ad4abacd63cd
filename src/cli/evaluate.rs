//! `clipkeep evaluate`: strategies compared on extracted features, offline.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::domain::Anchors;
use crate::evaluation::{ClassOrder, Contender, FeatureSet, Protocol, Report, Tasks, draw};

/// Compare strategies by a class-incremental protocol on extracted features, through the code that serves.
///
/// The directory holds train_features.npy, train_labels.npy, test_features.npy, test_labels.npy and, for text anchors,
/// text_embeddings.npy. A strategy may carry options behind colons, such as linear:retention=random:ratio=0.2 or
/// linear:rehearsal=none, and `joint` to be given all classes at once.
///
/// Example: clipkeep evaluate --features DIR --tasks 10 --order 1993 --seeds 3 --strategies zero_shot,linear,gda,default
#[derive(Debug, Clone, Args)]
pub(super) struct Evaluate {
    /// The directory with the features.
    #[arg(long, value_name = "DIR")]
    features: PathBuf,
    /// Tasks that the classes are split into.
    #[arg(long, default_value_t = 10)]
    tasks: usize,
    /// Classes of a first task before those.
    #[arg(long, default_value_t = 0)]
    base: usize,
    /// Order of the classes: `given`, or a seed of NumPy's legacy permutation.
    #[arg(long, default_value = "1993")]
    order: ClassOrder,
    /// Orders to repeat it in: the seed and those after it. The table shows medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    seeds: u32,
    /// What stands for a class.
    #[arg(long, value_enum, default_value = "text")]
    anchors: AnchorChoice,
    /// The backbone's logit scale.
    #[arg(long, default_value_t = 100.0)]
    logit_scale: f64,
    /// What to compare.
    #[arg(long, value_delimiter = ',', default_value = "zero_shot,linear,gda,default")]
    strategies: Vec<Contender>,
    /// Write the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as comma-separated values.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw accuracy over tasks and every accuracy matrix, as SVG.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AnchorChoice {
    /// Embeddings of texts.
    Text,
    /// Means of the training examples.
    Examples,
    /// Half of each.
    Blend,
}

impl Evaluate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let anchors = match self.anchors {
            AnchorChoice::Text => Anchors::Text,
            AnchorChoice::Examples => Anchors::Examples,
            AnchorChoice::Blend => Anchors::Blend,
        };
        anyhow::ensure!(
            self.seeds == 1 || self.order != ClassOrder::Given,
            "the given order is one; repeat with a seed, such as --order 1993"
        );
        anyhow::ensure!(
            self.logit_scale.is_finite() && self.logit_scale > 0.0,
            "the logit scale must be above 0"
        );
        let data = FeatureSet::read(&self.features, anchors)?;
        let tasks = Tasks::split(data.classes(), self.tasks, self.base).map_err(anyhow::Error::msg)?;
        let contenders: Vec<Contender> = self
            .strategies
            .iter()
            .cloned()
            .map(|mut contender| {
                contender.config.anchors = anchors;
                contender
            })
            .collect();

        let bar = progress_bar(&contenders, &tasks, self.seeds)?;
        let mut runs = Vec::new();
        for contender in &contenders {
            let mut order = self.order;
            for _ in 0..self.seeds {
                bar.set_message(format!("{}, order {order}", contender.name));
                let protocol = Protocol {
                    order,
                    tasks: tasks.clone(),
                    scale: self.logit_scale,
                };
                let run = protocol.run(contender, &data, &mut || bar.inc(1));
                runs.push(run.with_context(|| contender.name.clone())?);
                order = order.next();
            }
        }
        bar.finish_and_clear();

        let report = Report::of(&runs);
        print!("{report}");
        if let Some(path) = &self.json {
            write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        if let Some(path) = &self.csv {
            write(path, &report.csv())?;
        }
        if let Some(directory) = &self.plots {
            for path in draw(&runs, directory)? {
                println!("drew {}", path.display());
            }
        }
        Ok(())
    }
}

fn progress_bar(contenders: &[Contender], tasks: &Tasks, seeds: u32) -> anyhow::Result<ProgressBar> {
    let steps = contenders.iter().map(|contender| {
        if contender.is_joint {
            1
        } else {
            tasks.count() as u64
        }
    });
    let bar = ProgressBar::new(steps.sum::<u64>() * u64::from(seeds));
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {eta} {msg}")?);
    Ok(bar)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
