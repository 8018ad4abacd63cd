//! Pictures of runs, as SVG: accuracy after each task, and the accuracy matrix of each run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::protocol::Run;
use crate::domain::Tally;

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The directory cannot be made.
    #[error("cannot create {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// The picture cannot be drawn or written.
    #[error("cannot draw {}: {cause}", .path.display())]
    Drawing {
        /// The picture.
        path: PathBuf,
        /// What the drawing library says.
        cause: String,
    },
}

const SIZE: (u32, u32) = (900, 560);
/// The palette has this many colours that are told apart.
const COLOURS: usize = 9;

/// Draws `accuracy.svg`, a line a run, and a heat map of the matrix of every run, into a directory.
///
/// # Errors
/// [`PlotError`].
pub fn draw(runs: &[Run], directory: &Path) -> Result<Vec<PathBuf>, PlotError> {
    fs::create_dir_all(directory).map_err(|error| PlotError::Directory(directory.to_owned(), error))?;
    let mut drawn = vec![directory.join("accuracy.svg")];
    finish(&drawn[0], lines(runs, &drawn[0]))?;
    for run in runs {
        let name: String = format!("matrix-{}-{}.svg", run.name, run.order)
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let path = directory.join(name);
        finish(&path, heat_map(run, &path))?;
        drawn.push(path);
    }
    Ok(drawn)
}

fn finish(path: &Path, drawn: Result<(), Box<dyn std::error::Error>>) -> Result<(), PlotError> {
    drawn.map_err(|cause| PlotError::Drawing {
        path: path.to_owned(),
        cause: cause.to_string(),
    })
}

fn lines(runs: &[Run], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let tasks = runs.iter().map(|run| run.matrix.rows().len()).max().unwrap_or(1);
    let accuracies = |run: &Run| -> Vec<(usize, f64)> {
        let overall = run.matrix.overall().map(Tally::accuracy);
        (1..)
            .zip(overall)
            .filter_map(|(task, share)| Some((task, 100.0 * share?)))
            .collect()
    };
    let lowest = runs.iter().flat_map(accuracies).map(|point| point.1);
    let lowest = (lowest.fold(100.0, f64::min) / 10.0).floor() * 10.0;
    let mut chart = ChartBuilder::on(&root)
        .caption("Accuracy on all tasks so far", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(1..tasks.max(2), lowest..100.0)?;
    chart
        .configure_mesh()
        .x_desc("tasks learned")
        .y_desc("accuracy in %")
        .x_labels(tasks.min(20))
        .light_line_style(WHITE)
        .draw()?;
    let mut names: Vec<&str> = Vec::new();
    for run in runs {
        let known = names.iter().position(|name| *name == run.name);
        let colour = Palette99::pick(known.unwrap_or(names.len()) % COLOURS).stroke_width(2);
        let points = accuracies(run);
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        let series = chart.draw_series(LineSeries::new(points, colour))?;
        if known.is_none() {
            series
                .label(run.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
            names.push(&run.name);
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

fn heat_map(run: &Run, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let rows = run.matrix.rows();
    let size = rows.len();
    let root = SVGBackend::new(path, (SIZE.1 + 80, SIZE.1)).into_drawing_area();
    root.fill(&WHITE)?;
    // Labels stand where a cell begins; the last edge begins none.
    let number = |task: &usize| {
        if *task < size {
            (task + 1).to_string()
        } else {
            String::new()
        }
    };
    let title = format!("{}, order {}: accuracy in %", run.name, run.order);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d(0..size, size..0)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("on task")
        .y_desc("after task")
        .x_labels(size.min(20))
        .y_labels(size.min(20))
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .draw()?;
    let cells = rows.iter().enumerate().flat_map(|(l, row)| {
        row.iter()
            .enumerate()
            .filter_map(move |(j, tally)| Some((l, j, tally.accuracy()?)))
    });
    for (l, j, share) in cells {
        let shade = HSLColor(0.58, 0.6, 1.0 - 0.65 * share).filled();
        chart.draw_series([Rectangle::new([(j, l), (j + 1, l + 1)], shade)])?;
        if size <= 20 {
            let ink = if share > 0.6 { WHITE } else { BLACK };
            let style = ("sans-serif", 13).into_font().color(&ink);
            let text = format!("{:.0}", 100.0 * share);
            let inset = EmptyElement::at((j, l)) + Text::new(text, (6, 8), style);
            chart.draw_series([inset])?;
        }
    }
    root.present()?;
    Ok(())
}
