//! Accuracy over tasks and versions: pure arithmetic on counts.
//!
//! `a[l][j]` is the accuracy of the version after task `l` on task `j`'s held-out images, among all classes seen
//! after `l`. Definitions: average incremental accuracy from Rebuffi et al. 2017 (iCaRL), backward transfer from
//! Lopez-Paz & Ranzato 2017 (GEM), as is forward transfer, forgetting from Chaudhry et al. 2018.

use serde::{Deserialize, Serialize};

/// Right answers out of all asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Right answers.
    pub correct: u32,
    /// Images asked about.
    pub total: u32,
}

impl Tally {
    /// Share of right answers; `None` when nothing was asked.
    pub fn accuracy(self) -> Option<f64> {
        (self.total > 0).then(|| f64::from(self.correct) / f64::from(self.total))
    }

    /// The 95 % Wilson score interval of [`Self::accuracy`] (Wilson 1927).
    pub fn interval(self) -> Option<[f64; 2]> {
        const Z: f64 = 1.959_963_984_540_054;
        let p = self.accuracy()?;
        let n = f64::from(self.total);
        let z2 = Z * Z;
        let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        Some([(centre - half).max(0.0), (centre + half).min(1.0)])
    }
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            correct: self.correct + other.correct,
            total: self.total + other.total,
        }
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), std::ops::Add::add)
    }
}

/// The tallies of versions, each made on top of the one before, on the tasks that the newest knows. A row holds the first
/// tasks in the order of learning, as many as its version knew of them: a triangle where every version learned one, and
/// a staircase where a version brought none that is still known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccuracyMatrix {
    rows: Vec<Vec<Tally>>,
}

/// The figures that continual learning is reported in, as fractions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Mean over versions of the accuracy on all tasks up to then.
    pub average: f64,
    /// The newest version's accuracy on all tasks. `None` where nothing of them was held out.
    pub last: Option<f64>,
    /// Mean over earlier tasks of the best accuracy before the newest version less the newest one's. 0 where no task was known
    /// before, `None` where none of those has held-out images.
    pub forgetting: Option<f64>,
    /// Mean over earlier tasks of the newest accuracy less the one right after learning. 0 and `None` likewise.
    pub backward_transfer: Option<f64>,
}

impl AccuracyMatrix {
    /// From rows, each as long as the one before or longer by one. `None` if one is not.
    pub fn new(rows: Vec<Vec<Tally>>) -> Option<Self> {
        let mut before = 0;
        let is_step = |row: &Vec<Tally>| {
            let step = row.len().checked_sub(std::mem::replace(&mut before, row.len()));
            matches!(step, Some(0 | 1))
        };
        rows.iter().all(is_step).then_some(Self { rows })
    }

    /// The rows, oldest version first.
    pub fn rows(&self) -> &[Vec<Tally>] {
        &self.rows
    }

    /// Row `l` over all its tasks, sample-weighted: `A_l`.
    pub fn overall(&self) -> impl Iterator<Item = Tally> + '_ {
        self.rows.iter().map(|row| row.iter().copied().sum())
    }

    /// Task `j` as the first version that knew it does on it.
    pub fn at_learning(&self, j: usize) -> Option<Tally> {
        self.rows.iter().find_map(|row| row.get(j)).copied()
    }

    /// Whether only the newest version knows task `j`.
    pub fn is_newest(&self, j: usize) -> bool {
        let mut newest_first = self.rows.iter().rev();
        let mut knows = || newest_first.next().is_some_and(|row| row.len() > j);
        knows() && !knows()
    }

    /// How much of its best accuracy task `j` has lost by the newest version; `None` for the newest task and where
    /// nothing was held out.
    pub fn forgetting_of(&self, j: usize) -> Option<f64> {
        let (newest, earlier) = self.rows.split_last()?;
        let best = earlier
            .iter()
            .filter_map(|row| row.get(j)?.accuracy())
            .reduce(f64::max)?;
        Some(best - newest.get(j)?.accuracy()?)
    }

    fn backward_transfer_of(&self, j: usize) -> Option<f64> {
        let (newest, earlier) = self.rows.split_last()?;
        let at_learning = earlier.iter().find_map(|row| row.get(j))?.accuracy()?;
        Some(newest.get(j)?.accuracy()? - at_learning)
    }

    /// The summary figures; `None` before the first version with held-out images. Means leave out tasks and versions
    /// without held-out images.
    pub fn summary(&self) -> Option<Summary> {
        let tasks = 0..self.rows.last().map_or(0, Vec::len);
        let has_earlier = tasks.clone().any(|j| !self.is_newest(j));
        let over_tasks = |of: &dyn Fn(usize) -> Option<f64>| {
            if has_earlier {
                mean(tasks.clone().filter_map(of))
            } else {
                Some(0.0)
            }
        };
        Some(Summary {
            average: mean(self.overall().filter_map(Tally::accuracy))?,
            last: self.overall().last().and_then(Tally::accuracy),
            forgetting: over_tasks(&|j| self.forgetting_of(j)),
            backward_transfer: over_tasks(&|j| self.backward_transfer_of(j)),
        })
    }
}

/// What earlier tasks did for later ones before those were learned: the mean of `ahead` less `bare`, task by task.
///
/// Of every task after the first, `ahead` is the tally of the version before it and `bare` that of the bare backbone, both
/// among all classes seen after the task; a CLIP can score classes that it knows by name alone. It is the forward transfer
/// of Lopez-Paz & Ranzato 2017 (GEM) with the bare backbone in the place of their random initialisation. `None` without a
/// task that both were asked about.
pub fn forward_transfer(ahead: &[Tally], bare: &[Tally]) -> Option<f64> {
    let gained = ahead
        .iter()
        .zip(bare)
        .filter_map(|(ahead, bare)| Some(ahead.accuracy()? - bare.accuracy()?));
    mean(gained)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: impl Into<Option<f64>>, expected: f64) -> bool {
        found.into().is_some_and(|found| (found - expected).abs() < 1e-12)
    }

    fn tally(correct: u32) -> Tally {
        Tally { correct, total: 100 }
    }

    #[test]
    fn summary_of_a_hand_computed_matrix() {
        let matrix = AccuracyMatrix::new(vec![
            vec![tally(90)],
            vec![tally(80), tally(95)],
            vec![tally(85), tally(70), tally(60)],
        ])
        .expect("triangular");
        let summary = matrix.summary().expect("held-out images exist");
        assert!(
            close(summary.average, (0.9 + 0.875 + 215.0 / 300.0) / 3.0),
            "{summary:?}"
        );
        assert!(close(summary.last, 215.0 / 300.0));
        assert!(
            close(summary.forgetting, f64::midpoint(0.05, 0.25)),
            "best before is 0.90 and 0.95"
        );
        assert!(close(summary.backward_transfer, f64::midpoint(-0.05, -0.25)));
        assert_eq!(matrix.forgetting_of(2), None);
    }

    #[test]
    fn figures_are_those_of_public_implementations() {
        // What tests/learning_core/make_metrics_reference.py prints with continuum 1.2.7 (average, last) and avalanche-lib
        // 0.6.0 (the others). Tasks differ in size: continuum weighs images equally, as the average here does.
        let sizes = [20, 40, 10, 30];
        let tallies = |right: &[u32]| -> Vec<Tally> {
            let of_size = |(&correct, total)| Tally { correct, total };
            right.iter().zip(sizes).map(of_size).collect()
        };
        let rows = [&[19][..], &[17, 36], &[18, 30, 7], &[14, 33, 6, 27]].map(tallies);
        let matrix = AccuracyMatrix::new(rows.to_vec()).expect("triangular");
        let found = matrix.summary().expect("held-out images exist");
        // Of every task after the first, by the version before it and by the bare backbone.
        let later = |right: [u32; 3]| tallies(&[0, right[0], right[1], right[2]])[1..].to_vec();
        let forward = forward_transfer(&later([22, 5, 12]), &later([20, 6, 9])).expect("asked");
        for (found, expected) in [
            (Some(found.average), 0.8547619047619047),
            (found.last, 0.8),
            (found.forgetting, 0.1416666666666667),
            (found.backward_transfer, -0.1416666666666667),
            (Some(forward), 0.0166666666666667),
        ] {
            assert!(close(found, expected), "{found:?} and {expected}");
        }
        assert_eq!(forward_transfer(&[], &[]), None);
    }

    #[test]
    fn forgetting_is_from_the_best_and_transfer_from_the_first() {
        let rows = vec![
            vec![tally(50)],
            vec![tally(90), tally(60)],
            vec![tally(70), tally(60), tally(80)],
        ];
        let matrix = AccuracyMatrix::new(rows).expect("triangular");
        let found = matrix.summary().expect("held-out images exist");
        assert!(close(found.forgetting, 0.1), "90 to 70, and nothing");
        assert!(close(found.backward_transfer, 0.1), "50 to 70, and nothing");
    }

    #[test]
    fn wilson_interval_of_known_counts() {
        // R: prop.test(81, 263, correct = FALSE) gives 0.2553 to 0.3662 (Newcombe 1998, table I: 81/263).
        let [low, high] = Tally {
            correct: 81,
            total: 263,
        }
        .interval()
        .expect("asked");
        assert!(
            (low - 0.2553).abs() < 1e-4 && (high - 0.3662).abs() < 1e-4,
            "{low} {high}"
        );
        let [low, high] = Tally { correct: 5, total: 5 }.interval().expect("asked");
        assert!(low > 0.5 && (high - 1.0).abs() < 1e-12);
        assert_eq!(Tally::default().interval(), None);
    }

    #[test]
    fn what_was_not_measured_has_no_figure() {
        let summary = |rows| AccuracyMatrix::new(rows).expect("a staircase").summary();
        let nothing = Tally::default();
        let one = summary(vec![vec![tally(90)]]).expect("one task");
        assert_eq!((one.forgetting, one.backward_transfer), (Some(0.0), Some(0.0)));
        // Another one was learned after it, and unlearned.
        let again = summary(vec![vec![tally(90)], vec![tally(70)]]).expect("one task, twice");
        assert!(close(again.forgetting, 0.2) && close(again.backward_transfer, -0.2));
        // The first task came without held-out images.
        let later = summary(vec![vec![nothing], vec![nothing, tally(80)]]).expect("the second task's");
        assert!(close(later.average, 0.8) && close(later.last, 0.8));
        assert_eq!((later.forgetting, later.backward_transfer), (None, None));
        // Nothing was held out of the second, and the first was unlearned.
        let earlier = summary(vec![vec![tally(90)], vec![nothing]]).expect("the first version's");
        assert!(close(earlier.average, 0.9) && earlier.last.is_none());
    }

    #[test]
    fn rows_grow_step_by_step() {
        assert_eq!(AccuracyMatrix::new(vec![vec![tally(1), tally(2)]]), None);
        assert_eq!(AccuracyMatrix::new(vec![vec![tally(1)], vec![]]), None);
        assert_eq!(AccuracyMatrix::default().summary(), None);
    }

    #[test]
    fn a_task_is_compared_with_the_first_version_that_knew_it() {
        // Three tasks were learned, then the second was unlearned.
        let matrix = AccuracyMatrix::new(vec![
            vec![tally(90)],
            vec![tally(80)],
            vec![tally(70), tally(60)],
            vec![tally(75), tally(65)],
        ])
        .expect("a staircase");
        assert_eq!(matrix.at_learning(1), Some(tally(60)));
        assert_eq!(matrix.at_learning(2), None);
        assert!(!matrix.is_newest(1) && !matrix.is_newest(2));
        let summary = matrix.summary().expect("held-out images exist");
        assert!(close(summary.last, 0.7) && close(summary.average, (0.9 + 0.8 + 0.65 + 0.7) / 4.0));
        assert!(
            close(summary.forgetting, f64::midpoint(0.15, -0.05)),
            "{summary:?}"
        );
        assert!(close(summary.backward_transfer, f64::midpoint(-0.15, 0.05)));
    }
}
