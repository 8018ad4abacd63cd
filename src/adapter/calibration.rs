//! How much scores count as logits: weights under which examples that were not learned from are predicted best.
//!
//! ```text
//! weights ≥ 0 that minimise  − Σ_rows Σ_c target_c log softmax(Σ_k weight_k · score_k)_c
//! ```
//!
//! With one score this is temperature scaling (Guo et al. 2017); the loss is convex, so Newton's method finds the minimum.
//! Targets are smoothed by as much as one example in n + 1 being of any class: where all examples are right already, no
//! weight would be large enough otherwise (Platt 1999).

use rayon::prelude::*;

/// What several ways of scoring say about some examples.
pub(super) struct Scores<'a> {
    /// Each way's scores, (n, C) row by row.
    pub(super) terms: Vec<Vec<f64>>,
    /// The right columns (n).
    pub(super) columns: &'a [u32],
    /// C.
    pub(super) width: usize,
}

const STEPS: usize = 50;

/// Rows whose loss is summed at a time.
const PART: usize = 32;

impl Scores<'_> {
    /// The best weight of each term; `None` where there is nothing to choose by.
    pub(super) fn weights(&self) -> Option<Vec<f64>> {
        if self.columns.is_empty() || self.width < 2 {
            return None;
        }
        let all: Vec<usize> = (0..self.terms.len()).collect();
        let mut weights = self.minimum(&all);
        // At most two terms: one that is better left out leaves the other alone.
        if let Some(out) = weights.iter().position(|weight| *weight < 0.0) {
            let rest: Vec<usize> = all.into_iter().filter(|term| *term != out).collect();
            weights = self.minimum(&rest);
        }
        weights
            .iter()
            .all(|weight| weight.is_finite() && *weight >= 0.0)
            .then_some(weights)
            .filter(|weights| weights.iter().any(|weight| *weight > 0.0))
    }

    /// The minimum over the weights of some terms, without a sign; the others are zero.
    fn minimum(&self, free: &[usize]) -> Vec<f64> {
        let mut weights = vec![0.0; self.terms.len()];
        let mut current = self.slope(&weights);
        for _ in 0..STEPS {
            let step = newton(&current, free);
            let mut length = 1.0;
            let better = loop {
                let mut tried = weights.clone();
                for (term, step) in free.iter().zip(&step) {
                    tried[*term] -= length * step;
                }
                let found = self.slope(&tried);
                if found.loss < current.loss {
                    break Some((tried, found));
                }
                length /= 2.0;
                if length < 1e-6 {
                    break None;
                }
            };
            let Some((tried, found)) = better else { break };
            let gained = current.loss - found.loss;
            (weights, current) = (tried, found);
            if gained < 1e-9 {
                break;
            }
        }
        weights
    }

    /// The mean loss at some weights, with its first and second derivatives. Parts are added in order, however many threads
    /// make them.
    fn slope(&self, weights: &[f64]) -> Slope {
        let parts: Vec<Slope> = self
            .columns
            .par_chunks(PART)
            .enumerate()
            .map(|(part, columns)| self.slope_of(weights, part * PART, columns))
            .collect();
        let mut all = Slope::zero(self.terms.len());
        for part in &parts {
            all.add(part);
        }
        all
    }

    /// What the rows from `first` on, whose right columns are `columns`, add to it.
    fn slope_of(&self, weights: &[f64], first: usize, columns: &[u32]) -> Slope {
        let count = self.columns.len() as f64;
        let smoothing = 1.0 / (count + 1.0);
        let mut slope = Slope::zero(self.terms.len());
        let (mut logits, mut weighted) = (vec![0.0; self.width], vec![0.0; self.width]);
        for (row, own) in (first..).zip(columns) {
            let scores = |term: usize| &self.terms[term][row * self.width..(row + 1) * self.width];
            let terms = 0..self.terms.len();
            logits.fill(0.0);
            for (term, weight) in terms.clone().zip(weights) {
                let pairs = logits.iter_mut().zip(scores(term));
                pairs.for_each(|(logit, score)| *logit += score * weight);
            }
            let own = *own as usize;
            let target = |values: &[f64]| {
                let mean = sum(values, values, |value, _| value) / self.width as f64;
                (1.0 - smoothing) * values[own] + smoothing * mean
            };
            let aim = target(&logits);
            let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let chances = &mut logits;
            for chance in chances.iter_mut() {
                *chance = (*chance - highest).exp();
            }
            let all = sum(chances, chances, |chance, _| chance);
            slope.loss += (highest + all.ln() - aim) / count;

            let mean = |scores: &[f64]| sum(scores, chances, |score, chance| score * chance) / all;
            let means: Vec<f64> = terms.clone().map(|term| mean(scores(term))).collect();
            for k in terms {
                slope.first[k] += (means[k] - target(scores(k))) / count;
                let triples = weighted.iter_mut().zip(scores(k)).zip(chances.iter());
                triples.for_each(|((product, score), chance)| *product = score * chance);
                for l in 0..=k {
                    let product = sum(&weighted, scores(l), |a, b| a * b) / all;
                    let second = (product - means[k] * means[l]) / count;
                    slope.second[k][l] += second;
                    if l < k {
                        slope.second[l][k] += second;
                    }
                }
            }
        }
        slope
    }
}

/// Σ of `f` over the values of two slices of one length. In eight sums, which vectors hold.
fn sum(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        // By index: of three zipped iterators the compiler makes no vectors.
        for lane in 0..8 {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let rest = rest_a.iter().zip(rest_b).map(|(a, b)| f(*a, *b));
    sums.into_iter().chain(rest).sum()
}

struct Slope {
    loss: f64,
    first: Vec<f64>,
    second: Vec<Vec<f64>>,
}

impl Slope {
    fn zero(terms: usize) -> Self {
        Self {
            loss: 0.0,
            first: vec![0.0; terms],
            second: vec![vec![0.0; terms]; terms],
        }
    }

    fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        let firsts = self.first.iter_mut().zip(&other.first);
        let seconds = self
            .second
            .iter_mut()
            .flatten()
            .zip(other.second.iter().flatten());
        firsts.chain(seconds).for_each(|(sum, value)| *sum += value);
    }
}

/// The step that Newton's method takes against the slope, in the `free` directions: one or two.
fn newton(slope: &Slope, free: &[usize]) -> Vec<f64> {
    // Keeps a direction in which nothing changes from being divided by.
    let second = |k: usize, l: usize| {
        let value = slope.second[free[k]][free[l]];
        if k == l { value + 1e-12 } else { value }
    };
    let first = |k: usize| slope.first[free[k]];
    match free.len() {
        2 => {
            let determinant = second(0, 0) * second(1, 1) - second(0, 1) * second(1, 0);
            vec![
                (second(1, 1) * first(0) - second(0, 1) * first(1)) / determinant,
                (second(0, 0) * first(1) - second(1, 0) * first(0)) / determinant,
            ]
        }
        _ => (0..free.len()).map(|k| first(k) / second(k, k)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of n rows over three classes: `strength` for the right one, with noise that repeats.
    fn noisy(count: usize, strength: f64, seed: f64) -> Vec<f64> {
        (0..count * 3)
            .map(|i| {
                let own = if i % 3 == (i / 3) % 3 { strength } else { 0.0 };
                own + (i as f64 * 12.9898 + seed).sin()
            })
            .collect()
    }

    fn columns(count: u32) -> Vec<u32> {
        (0..count).map(|row| row % 3).collect()
    }

    #[test]
    fn sums_leave_nothing_out() {
        let values: Vec<f64> = (0..21).map(f64::from).collect();
        assert!((sum(&values, &values, |a, b| a + b) - 420.0).abs() < 1e-12);
    }

    #[test]
    fn a_temperature_leaves_no_slope_and_scales_back() {
        let columns = columns(300);
        let scores = |factor: f64| Scores {
            terms: vec![noisy(300, 0.7, 0.1).iter().map(|s| s * factor).collect()],
            columns: &columns,
            width: 3,
        };
        let weights = scores(1.0).weights().expect("a weight");
        let slope = scores(1.0).slope(&weights);
        assert!(slope.first[0].abs() < 1e-4 && weights[0] > 0.0);
        let tenfold = scores(10.0).weights().expect("a weight");
        assert!((weights[0] - 10.0 * tenfold[0]).abs() < 1e-3 * weights[0]);
    }

    #[test]
    fn slopes_agree_with_finite_differences() {
        let columns = columns(30);
        let scores = Scores {
            terms: vec![noisy(30, 0.7, 0.1), noisy(30, 0.3, 4.0)],
            columns: &columns,
            width: 3,
        };
        let at = |a: f64, b: f64| scores.slope(&[a, b]);
        let (here, step) = (at(0.8, 0.3), 1e-5);
        let first = (at(0.8 + step, 0.3).loss - at(0.8 - step, 0.3).loss) / (2.0 * step);
        assert!((first - here.first[0]).abs() < 1e-8);
        let second = (at(0.8, 0.3 + step).first[0] - at(0.8, 0.3 - step).first[0]) / (2.0 * step);
        assert!((second - here.second[0][1]).abs() < 1e-8);
    }

    #[test]
    fn what_misleads_is_left_out_and_what_is_always_right_stays_finite() {
        let columns = columns(90);
        let misleading = noisy(90, -2.0, 0.5);
        let perfect: Vec<f64> = noisy(90, 9.0, 0.1);
        let scores = Scores {
            terms: vec![perfect, misleading],
            columns: &columns,
            width: 3,
        };
        let weights = scores.weights().expect("weights");
        assert!(weights[0] > 0.1 && weights[0] < 100.0, "{weights:?}");
        assert!(weights[1] >= 0.0);
        let alone = Scores {
            terms: vec![noisy(90, -2.0, 0.5)],
            columns: &columns,
            width: 3,
        };
        assert_eq!(alone.weights(), None, "a score that misleads has no weight");
    }
}
