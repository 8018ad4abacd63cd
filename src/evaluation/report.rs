//! Runs side by side: medians over orders, as text, JSON and CSV.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::protocol::Run;

/// What all runs came to.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// A row a contender, in their order: medians over the class orders. Accuracies are fractions.
    pub rows: Vec<Row>,
    /// Every run by itself.
    pub runs: Vec<Single>,
    /// Images that could not be used, each with the reason.
    pub left_out: Vec<String>,
}

/// The figures of a contender.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    #[serde(flatten)]
    figures: Figures,
}

/// The figures of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Single {
    /// The contender's name.
    pub name: String,
    /// The order of classes.
    pub order: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Figures {
    average: f64,
    /// This and the next two where there are test rows for them.
    last: Option<f64>,
    forgetting: Option<f64>,
    backward_transfer: Option<f64>,
    /// Where the head knows a class by its words alone.
    forward_transfer: Option<f64>,
    seconds_per_task: f64,
    bytes: u64,
}

impl Figures {
    fn of(run: &Run) -> Self {
        Self {
            average: run.summary.average,
            last: run.summary.last,
            forgetting: run.summary.forgetting,
            backward_transfer: run.summary.backward_transfer,
            forward_transfer: run.forward_transfer,
            seconds_per_task: run.seconds_per_task,
            bytes: run.bytes,
        }
    }

    /// The median of each figure by itself.
    fn median(all: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(all.iter().map(figure).collect());
        let of_all =
            |figure: fn(&Self) -> Option<f64>| all.iter().map(figure).collect::<Option<_>>().map(median);
        Self {
            average: of(|f| f.average),
            last: of_all(|f| f.last),
            forgetting: of_all(|f| f.forgetting),
            backward_transfer: of_all(|f| f.backward_transfer),
            forward_transfer: of_all(|f| f.forward_transfer),
            seconds_per_task: of(|f| f.seconds_per_task),
            bytes: of(|f| f.bytes as f64) as u64,
        }
    }
}

/// The middle one of some values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

impl Report {
    /// From runs; those of one contender have one name. There must be at least one run.
    pub fn of(runs: &[Run]) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for run in runs {
            if rows.iter().any(|row| row.name == run.name) {
                continue;
            }
            let all: Vec<Figures> = runs
                .iter()
                .filter(|other| other.name == run.name)
                .map(Figures::of)
                .collect();
            rows.push(Row {
                name: run.name.clone(),
                figures: Figures::median(&all),
            });
        }
        let singles = runs.iter().map(|run| Single {
            name: run.name.clone(),
            order: run.order.to_string(),
            figures: Figures::of(run),
        });
        Self {
            rows,
            runs: singles.collect(),
            left_out: Vec::new(),
        }
    }

    /// The rows as comma-separated values with a header.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "name,average,last,forgetting,backward_transfer,forward_transfer,seconds_per_task,bytes\n",
        );
        for Row { name, figures: f } in &self.rows {
            let shares = [f.last, f.forgetting, f.backward_transfer, f.forward_transfer];
            let shares = shares.map(|share| share.map(|share| share.to_string()).unwrap_or_default());
            let _ = writeln!(
                text,
                "{name},{},{},{},{}",
                f.average,
                shares.join(","),
                f.seconds_per_task,
                f.bytes
            );
        }
        text
    }
}

/// Images that the table names of those that could not be used.
const SHOWN: usize = 10;

/// The table for a person: accuracies in percent.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.rows.iter().map(|row| row.name.chars().count());
        let width = names.max().unwrap_or(0).max("strategy".len());
        let head = [
            "average",
            "last",
            "forgetting",
            "backward",
            "forward",
            "s/task",
            "MB",
        ];
        write!(f, "{:width$}", "strategy")?;
        for column in head {
            write!(f, " {column:>10}")?;
        }
        writeln!(f)?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, figures: &Figures| {
            write!(f, "{name:width$}")?;
            for share in [
                Some(figures.average),
                figures.last,
                figures.forgetting,
                figures.backward_transfer,
                figures.forward_transfer,
            ] {
                match share {
                    Some(share) => write!(f, " {:>10.1}", 100.0 * share)?,
                    None => write!(f, " {:>10}", "-")?,
                }
            }
            let megabytes = figures.bytes as f64 / 1e6;
            writeln!(f, " {:>10.2} {megabytes:>10.1}", figures.seconds_per_task)
        };
        for row in &self.rows {
            line(f, &row.name, &row.figures)?;
        }
        if self.runs.len() > self.rows.len() {
            writeln!(f, "\nThose are medians. Order by order:")?;
            for run in &self.runs {
                line(f, &run.name, &run.figures)?;
            }
        }
        if !self.left_out.is_empty() {
            writeln!(f, "\n{} images could not be used:", self.left_out.len())?;
        }
        for image in self.left_out.iter().take(SHOWN) {
            writeln!(f, "{image}")?;
        }
        if self.left_out.len() > SHOWN {
            writeln!(f, "…")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AccuracyMatrix, Tally};
    use crate::evaluation::ClassOrder;

    fn run(name: &str, correct: [u32; 3]) -> Run {
        let tally = |correct| Tally { correct, total: 10 };
        let [first, kept, new] = correct.map(tally);
        let matrix = AccuracyMatrix::new(vec![vec![first], vec![kept, new]]).expect("a triangle");
        Run {
            name: name.to_owned(),
            order: ClassOrder::Seed(1),
            summary: matrix.summary().expect("a summary"),
            matrix,
            forward_transfer: Some(0.1),
            seconds_per_task: 0.5,
            bytes: 1000,
        }
    }

    #[test]
    fn a_row_is_the_median_of_its_runs() {
        let runs = [
            run("a", [9, 8, 7]),
            run("b", [5, 5, 5]),
            run("a", [9, 4, 3]),
            run("a", [9, 9, 9]),
        ];
        let mut report = Report::of(&runs);
        let names: Vec<&str> = report.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let figures = report.rows[0].figures;
        let close =
            |found: Option<f64>, expected: f64| found.is_some_and(|found| (found - expected).abs() < 1e-12);
        assert!(close(figures.last, 0.75) && close(figures.forgetting, 0.1));
        assert!(close(figures.backward_transfer, -0.1));
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["rows"][0]["name"], "a");
        assert_eq!(json["rows"][1]["last"], 0.5);
        assert_eq!(json["rows"][1]["forward_transfer"], 0.1);
        assert_eq!(json["runs"].as_array().map(Vec::len), Some(4));
        assert_eq!(report.csv().lines().count(), 3);
        report.left_out = (0..11).map(|n| format!("{n}.png: no image")).collect();
        let table = report.to_string();
        for said in [
            "Order by order",
            "11 images could not be used:",
            "9.png: no image",
        ] {
            assert!(table.contains(said), "{table}");
        }
        assert!(table.ends_with("…\n"), "{table}");
    }
}
