//! `clipkeep evaluate`: strategies compared on labelled images or extracted features, offline.

mod images;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{ArgGroup, Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::config::BackboneArgs;
use crate::domain::{Anchors, Reads, Strategy};
use crate::evaluation::{ClassOrder, Contender, Data, Protocol, Report, Run, Tasks, draw};

/// Compare strategies by a class-incremental protocol, through the code that serves: on images with the backbone, or on
/// features that were extracted before.
///
/// Images lie in class folders, or in zip or tar archives of them: those to learn from under --train, those to be scored on
/// under --test, or both under --images in folders train/ and test/. Classes are numbered in order of their first
/// appearance: path by path as given, and by name within one. An image that cannot be used is left out and reported.
///
/// The directory of --features holds train_features.npy, train_labels.npy, test_features.npy, test_labels.npy and, for text
/// anchors, text_embeddings.npy. The strategies self_attention and prompt need images.
///
/// A strategy may carry options behind colons, such as linear:retention=random:ratio=0.2 or linear:rehearsal=none, and
/// `joint` to be given all classes at once.
///
/// Example: clipkeep evaluate --images pets.zip --tasks 4 --strategies zero_shot,linear,default
///
/// Example: clipkeep evaluate --features DIR --tasks 10 --order 1993 --seeds 3 --strategies zero_shot,linear,gda,default
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("data").required(true)))]
pub(super) struct Evaluate {
    /// Images to learn from and to be scored on, in folders train/ and test/.
    #[arg(long, value_name = "PATH", num_args = 1.., group = "data")]
    images: Vec<PathBuf>,
    /// Images to learn from.
    #[arg(long, value_name = "PATH", num_args = 1.., group = "data", requires = "test")]
    train: Vec<PathBuf>,
    /// Images to be scored on.
    #[arg(long, value_name = "PATH", num_args = 1.., requires = "train")]
    test: Vec<PathBuf>,
    /// A directory with features.
    #[arg(long, value_name = "DIR", group = "data")]
    features: Option<PathBuf>,
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
    /// The logit scale of the backbone that made the features: 100 unless given. Images have that of theirs.
    #[arg(long, conflicts_with_all = ["images", "train", "test"])]
    logit_scale: Option<f64>,
    /// Prompt templates for images, each with {} where the class's words go: "a good photo of a {}." unless given.
    #[arg(long = "template", value_name = "TEXT", conflicts_with = "features")]
    templates: Vec<String>,
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
    /// The backbone that images are encoded with.
    #[command(flatten, next_help_heading = "Backbone, for images")]
    backbone: BackboneArgs,
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

/// What the protocols run on.
struct Prepared {
    data: Data,
    /// One an order.
    protocols: Vec<Protocol>,
    /// Images that could not be used.
    left_out: Vec<String>,
}

impl Evaluate {
    pub(super) fn backbone(&self) -> &BackboneArgs {
        &self.backbone
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.seeds == 1 || self.order != ClassOrder::Given,
            "the given order is one; repeat with a seed, such as --order 1993"
        );
        let contenders = self.contenders()?;
        let Prepared {
            data,
            protocols,
            left_out,
        } = match &self.features {
            Some(directory) => self.on_features(directory, &contenders)?,
            None => self.on_images(&contenders).await?,
        };
        let runs = compare(&contenders, &protocols, &data)?;
        let mut report = Report::of(&runs);
        report.left_out = left_out;
        output::text(&report)?;
        if let Some(path) = &self.json {
            write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        if let Some(path) = &self.csv {
            write(path, &report.csv())?;
        }
        if let Some(directory) = &self.plots {
            for path in draw(&runs, directory)? {
                output::line(format_args!("drew {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn anchors(&self) -> Anchors {
        match self.anchors {
            AnchorChoice::Text => Anchors::Text,
            AnchorChoice::Examples => Anchors::Examples,
            AnchorChoice::Blend => Anchors::Blend,
        }
    }

    /// What to compare, told what stands for classes.
    fn contenders(&self) -> anyhow::Result<Vec<Contender>> {
        let told = |contender: &Contender| {
            let mut contender = contender.clone();
            contender.config.anchors = self.anchors();
            if !self.templates.is_empty() {
                contender.config.templates.clone_from(&self.templates);
            }
            contender
                .config
                .validate()
                .with_context(|| contender.name.clone())?;
            Ok(contender)
        };
        self.strategies.iter().map(told).collect()
    }

    /// The tasks of so many classes.
    fn split(&self, classes: usize) -> anyhow::Result<Tasks> {
        Tasks::split(classes, self.tasks, self.base).map_err(anyhow::Error::msg)
    }

    fn orders(&self) -> impl Iterator<Item = ClassOrder> {
        std::iter::successors(Some(self.order), |order| Some(order.next())).take(self.seeds as usize)
    }

    fn on_features(&self, directory: &Path, contenders: &[Contender]) -> anyhow::Result<Prepared> {
        let needs_backbone = |contender: &&Contender| {
            let strategy = contender.config.strategy;
            strategy.reads() == Reads::Tokens || strategy == Strategy::Prompt
        };
        if let Some(contender) = contenders.iter().find(needs_backbone) {
            anyhow::bail!(
                "{} needs the backbone and cannot be evaluated on features; give it images, with --images or with \
                 --train and --test",
                contender.name
            );
        }
        let scale = self.logit_scale.unwrap_or(100.0);
        anyhow::ensure!(
            scale.is_finite() && scale > 0.0,
            "the logit scale must be above 0"
        );
        let data = Data::read(directory, self.anchors(), scale)?;
        let tasks = self.split(data.classes())?;
        let protocol = |order| Protocol {
            order,
            tasks: tasks.clone(),
            prompts: None,
        };
        Ok(Prepared {
            protocols: self.orders().map(protocol).collect(),
            data,
            left_out: Vec::new(),
        })
    }
}

/// Takes every contender through every protocol.
fn compare(contenders: &[Contender], protocols: &[Protocol], data: &Data) -> anyhow::Result<Vec<Run>> {
    let steps = contenders.iter().flat_map(|contender| {
        let tasks = |protocol: &Protocol| {
            if contender.is_joint {
                1
            } else {
                protocol.tasks.count() as u64
            }
        };
        protocols.iter().map(tasks)
    });
    let bar = progress_bar(steps.sum())?;
    let mut runs = Vec::new();
    for contender in contenders {
        for protocol in protocols {
            bar.set_message(format!("{}, order {}", contender.name, protocol.order));
            let run = protocol.run(contender, data, &mut || bar.inc(1));
            runs.push(run.with_context(|| contender.name.clone())?);
        }
    }
    bar.finish_and_clear();
    Ok(runs)
}

fn progress_bar(steps: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(steps);
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {eta} {msg}")?);
    Ok(bar)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
