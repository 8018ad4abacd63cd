//! The picture of a measurement: which share of the answers took how long.

use std::path::Path;

use plotters::prelude::*;

use crate::cli::bench::timing::quantile;

/// In pixels.
const SIZE: (u32, u32) = (900, 520);
/// Points of the curve before the slowest answer: 1 − 10^(−x) for so many x.
const POINTS: u32 = 200;

/// Draws latencies in milliseconds, sorted, by percentile as an SVG. The horizontal axis counts nines: half of it is what is
/// seldom, which is what matters.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw(path: &Path, latencies: &[f64], caption: &str) -> anyhow::Result<()> {
    drawn(path, latencies, caption)
        .map_err(|error| anyhow::anyhow!("cannot draw {}: {error}", path.display()))
}

fn drawn(path: &Path, latencies: &[f64], caption: &str) -> Result<(), Box<dyn std::error::Error>> {
    let Some(slowest) = latencies.last() else {
        return Ok(());
    };
    let nines = (latencies.len() as f64).log10().max(1.0);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 16))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..nines, 0.0..slowest * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("share of the answers, in %")
        .y_desc("at most so many milliseconds")
        .x_labels(nines.ceil() as usize + 1)
        .x_label_formatter(&|nines| percentile(*nines))
        .draw()?;
    let points = (0..POINTS).map(|point| {
        let x = nines * f64::from(point) / f64::from(POINTS);
        (x, at(latencies, x))
    });
    let points = points.chain([(nines, *slowest)]);
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
    root.present()?;
    Ok(())
}

/// The latency that all but a share of 10^(−`nines`) do not exceed.
fn at(latencies: &[f64], nines: f64) -> f64 {
    quantile(latencies, 1.0 - 10_f64.powf(-nines))
}

/// A label: 0, 90, 99, 99.9.
fn percentile(nines: f64) -> String {
    let digits = (nines - 2.0).ceil().max(0.0) as usize;
    format!("{:.digits$}", 100.0 * (1.0 - 10_f64.powf(-nines)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_named_and_found_by_their_nines() {
        let labels: Vec<String> = [0.0, 1.0, 2.0, 3.0].map(percentile).to_vec();
        assert_eq!(labels, ["0", "90", "99", "99.9"]);
        let latencies: Vec<f64> = (1..=1000).map(f64::from).collect();
        for (nines, wanted) in [(0.0, 1.0), (1.0, 900.0), (2.0, 990.0), (3.0, 999.0)] {
            assert!((at(&latencies, nines) - wanted).abs() < 1e-9, "{nines}");
        }
    }
}
