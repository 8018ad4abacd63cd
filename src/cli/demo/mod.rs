//! `clipkeep demo`: the whole story against a running server, on pictures it draws itself.

mod client;
mod pictures;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::output;
use client::Client;
use pictures::Pattern;

/// The tasks in the order of teaching.
const TASKS: [(&str, [Pattern; 2]); 3] = [
    ("lines", [Pattern::Stripes, Pattern::Rings]),
    ("spots", [Pattern::Dots, Pattern::Checkerboard]),
    ("fields", [Pattern::Gradient, Pattern::Grain]),
];

/// Play the whole story against a running server, on generated pictures: classify, learn three tasks, read the
/// accuracy of every task after every version, roll back and forward again.
///
/// Example: clipkeep demo --server http://127.0.0.1:8080
#[derive(Debug, Clone, Args)]
pub(super) struct Demo {
    /// The server to play against.
    #[arg(long, env = "CLIPKEEP_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Pictures a class.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=500))]
    pictures: u32,
    /// Seed of the pictures.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

impl Demo {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = Client::new(&self.server)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let model = format!("demo-{}", Timestamp::now().as_second());
        client
            .create_model(&model)
            .await
            .with_context(|| format!("is a server running at {}?", self.server))?;
        output::line(format_args!(
            "Model {model}: it has learned nothing yet, so it chooses among labels given with the picture.\n"
        ))?;

        let labels: Vec<&str> = TASKS
            .iter()
            .flat_map(|(_, classes)| classes.map(Pattern::label))
            .collect();
        let probes: Vec<(Pattern, Vec<u8>)> = TASKS
            .iter()
            .flat_map(|(_, classes)| *classes)
            .map(|pattern| Ok((pattern, pattern.draw(&mut rng)?)))
            .collect::<anyhow::Result<_>>()?;
        for (pattern, picture) in &probes {
            let answer = client
                .classify(&model, picture, &[("labels", labels.join(","))])
                .await?;
            output::line(format_args!(
                "  a picture of {:<13} looks like {}",
                pattern.label(),
                best(&answer)
            ))?;
        }

        for (number, (task, classes)) in TASKS.iter().enumerate() {
            output::line(format_args!(
                "\nTeaching task {task}: {} pictures each of {}.",
                self.pictures,
                classes.map(Pattern::label).join(" and ")
            ))?;
            let mut examples = Vec::new();
            for pattern in classes {
                for _ in 0..self.pictures {
                    examples.push((pattern.label(), pattern.draw(&mut rng)?));
                }
            }
            let job = client.teach(&model, task, examples).await?;
            let job = follow(&client, &job).await?;
            anyhow::ensure!(
                job["state"] == "succeeded",
                "the job did not succeed: {}",
                job["error"]
            );
            output::line(format_args!("  learned as version {}", number + 1))?;
        }

        output::line(format_args!("\nNow it knows {} classes:", labels.len()))?;
        let mut known = Vec::new();
        for (pattern, picture) in &probes {
            let answer = client.classify(&model, picture, &[]).await?;
            output::line(format_args!(
                "  a picture of {:<13} is {}",
                pattern.label(),
                best(&answer)
            ))?;
            known.push(answer["predictions"][0]["classes"].clone());
        }
        output::text(format_args!("\n{}", matrix(&client.accuracy(&model).await?)))?;

        output::line("\nRolling back to version 1, which knows only the first task:")?;
        client.rollback(&model, 1, "to see how it was").await?;
        for (pattern, picture) in &probes {
            let answer = client.classify(&model, picture, &[]).await?;
            output::line(format_args!(
                "  a picture of {:<13} is {}",
                pattern.label(),
                best(&answer)
            ))?;
        }
        let newest = TASKS.len() as u32;
        client.rollback(&model, newest, "and forward again").await?;
        for ((_, picture), before) in probes.iter().zip(&known) {
            let answer = client.classify(&model, picture, &[]).await?;
            anyhow::ensure!(
                answer["predictions"][0]["classes"] == *before,
                "version {newest} answers otherwise than before"
            );
        }
        output::line(format_args!(
            "\nForward again: version {newest} answers every picture exactly as before."
        ))?;
        Ok(())
    }
}

/// Shows a job's progress until it ends; returns it as it ended.
async fn follow(client: &Client, id: &str) -> anyhow::Result<Value> {
    let bar = ProgressBar::new(1000);
    bar.set_style(ProgressStyle::with_template("  {bar:32} {percent:>3} % {msg}")?);
    loop {
        let job = client.job(id).await?;
        let done = job["progress"].as_f64().unwrap_or(0.0);
        bar.set_position((done * 1000.0) as u64);
        bar.set_message(job["phase"].as_str().unwrap_or("queued").to_owned());
        if !matches!(job["state"].as_str(), Some("queued" | "running")) {
            bar.finish_and_clear();
            return Ok(job);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The most probable class of an answer, in words.
fn best(answer: &Value) -> String {
    let class = &answer["predictions"][0]["classes"][0];
    let probability = class["probability"].as_f64().unwrap_or(0.0);
    format!(
        "{} ({:.0} %)",
        class["label"].as_str().unwrap_or("nothing"),
        probability * 100.0
    )
}

/// The accuracy matrix as a table: a row a version, a column a task.
fn matrix(accuracy: &Value) -> String {
    let percent = |value: &Value| {
        value
            .as_f64()
            .map_or_else(|| "·".to_owned(), |v| format!("{:.0} %", v * 100.0))
    };
    let list = |name: &str| accuracy[name].as_array().cloned().unwrap_or_default();
    let tasks = list("tasks");
    let mut table = String::from("Accuracy on held-out pictures, among all classes known then:\n  version ");
    for task in &tasks {
        let _ = write!(table, "{:>10}", task.as_str().unwrap_or_default());
    }
    let _ = writeln!(table, "{:>10}{:>12}", "overall", "zero-shot");
    let rows = list("matrix")
        .into_iter()
        .zip(list("versions"))
        .zip(list("overall"))
        .zip(list("zero_shot"));
    for (((row, version), overall), zero_shot) in rows {
        let _ = write!(table, "  {version:>7} ");
        for cell in row.as_array().into_iter().flatten() {
            let _ = write!(table, "{:>10}", percent(cell));
        }
        let _ = writeln!(table, "{:>10}{:>12}", percent(&overall), percent(&zero_shot));
    }
    let figures =
        ["average", "last", "forgetting"].map(|name| format!("{name} {}", percent(&accuracy[name])));
    let _ = writeln!(table, "  {}", figures.join(", "));
    table
}
