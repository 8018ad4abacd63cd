//! Old classes take part in a fit as rows drawn from what is kept of them: pseudo-rows from a class's Gaussian, or its
//! exemplars where it keeps any.
//!
//! Normal numbers are dear: most are drawn once, into a table, of which every pseudo-row takes those from some place on
//! (Salimans et al. 2017, arXiv 1703.03864, section 2). Rows of tokens, of which it would hold few, are drawn number by number.

use candle_core::{DType, Device, Result, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::host::read;
use super::statistics::ClassStatistics;

/// Numbers of the table.
const NOISE: usize = 1 << 20;

/// Rows that it must hold to be of use.
const ROWS: usize = 1 << 10;

/// How many of them are drawn from one seed.
const SEEDED: usize = 1 << 14;

/// Deals rows of old classes. Every class comes once before any comes again, in a new order each time.
///
/// Rows are made in the host's memory, where one costs less than handing it to a device, and go to the device together.
/// What a draw costs in memory is its rows: components and exemplars are read where they lie, shared with the statistics
/// where these lie in the host's memory too.
pub(super) struct Rehearsal {
    classes: Vec<Source>,
    dim: usize,
    device: Device,
    deck: Vec<u32>,
    /// Standard normal numbers, where there are pseudo-rows to be made of them.
    noise: Option<Vec<f32>>,
}

/// What rows of a class come from, in the host's memory, in f32.
enum Source {
    /// Some of its own rows, (k, D).
    Exemplars(Tensor),
    Gaussian {
        /// μ, (D).
        mean: Tensor,
        /// A, (r, D).
        components: Tensor,
        /// σ.
        deviation: f32,
    },
}

impl Rehearsal {
    /// Over old classes in column order; there must be at least one.
    pub(super) fn new(classes: &[ClassStatistics], rng: &mut impl Rng) -> Result<Self> {
        let Some(first) = classes.first() else {
            candle_core::bail!("a rehearsal of no classes");
        };
        let dim = first.mean.dim(0)?;
        let sources = classes.iter().map(|class| Source::of(class, dim));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let is_drawn = |source: &Source| matches!(source, Source::Gaussian { .. });
        let is_of_use = dim * ROWS <= NOISE && sources.iter().any(is_drawn);
        let noise = is_of_use.then(|| normal_numbers(NOISE, rng));
        Ok(Self {
            dim,
            device: first.mean.device().clone(),
            classes: sources,
            deck: Vec::new(),
            noise,
        })
    }

    /// `count` rows (count, D) and their columns, in order.
    pub(super) fn draw(&mut self, count: usize, rng: &mut impl Rng) -> Result<(Tensor, Vec<u32>)> {
        let classes = self.classes.len();
        let mut columns: Vec<u32> = (0..count).map(|_| self.deal(classes, rng)).collect();
        // A class's rows stand together: it is read once for all of them.
        columns.sort_unstable();
        let mut rows = vec![0.0; count * self.dim];
        let mut rest = rows.as_mut_slice();
        for of_class in columns.chunk_by(|a, b| a == b) {
            let (drawn, next) = rest.split_at_mut(of_class.len() * self.dim);
            let class = &self.classes[of_class[0] as usize];
            class.draw(drawn, self.dim, self.noise.as_deref(), rng)?;
            rest = next;
        }
        Ok((Tensor::from_vec(rows, (count, self.dim), &self.device)?, columns))
    }

    fn deal(&mut self, classes: usize, rng: &mut impl Rng) -> u32 {
        if self.deck.is_empty() {
            self.deck = (0..classes as u32).collect();
            self.deck.shuffle(rng);
        }
        self.deck.pop().unwrap_or_default()
    }
}

impl Source {
    /// # Errors
    /// When the class's rows have not `dim` values, or are not in f32.
    fn of(class: &ClassStatistics, dim: usize) -> Result<Self> {
        let here = |tensor: &Tensor| {
            if tensor.dtype() != DType::F32 || tensor.dims().last() != Some(&dim) {
                candle_core::bail!("classes whose rows are of different widths or types");
            }
            tensor.to_device(&Device::Cpu)?.contiguous()
        };
        Ok(match &class.exemplars {
            Some(exemplars) => Self::Exemplars(here(exemplars)?),
            None => Self::Gaussian {
                mean: here(&class.mean)?,
                components: here(&class.components)?,
                deviation: class.residual.sqrt() as f32,
            },
        })
    }

    /// Fills rows of D values: each one of the exemplars, or μ + Aᵀ z₁ + σ z₂ with standard normal z, z₂ a part of `noise`
    /// if there is any.
    fn draw(&self, rows: &mut [f32], dim: usize, noise: Option<&[f32]>, rng: &mut impl Rng) -> Result<()> {
        match self {
            Self::Exemplars(exemplars) => read(exemplars, |exemplars: &[f32]| {
                let kept = (exemplars.len() / dim) as u32;
                for row in rows.chunks_exact_mut(dim) {
                    let chosen = rng.random_range(0..kept) as usize;
                    row.copy_from_slice(&exemplars[chosen * dim..][..dim]);
                }
                Ok(())
            }),
            Self::Gaussian {
                mean,
                components,
                deviation,
            } => {
                read(mean, |mean: &[f32]| {
                    for row in rows.chunks_exact_mut(dim) {
                        match noise {
                            Some(noise) => {
                                let place = rng.random_range(0..=noise.len() - dim);
                                row.copy_from_slice(&noise[place..place + dim]);
                            }
                            None => row.fill_with(|| StandardNormal.sample(rng)),
                        }
                        let values = row.iter_mut().zip(mean);
                        values.for_each(|(value, mean)| *value = *value * deviation + mean);
                    }
                    Ok(())
                })?;
                read(components, |components: &[f32]| {
                    for row in rows.chunks_exact_mut(dim) {
                        for component in components.chunks_exact(dim) {
                            let along: f32 = StandardNormal.sample(rng);
                            let pairs = row.iter_mut().zip(component);
                            pairs.for_each(|(value, component)| *value += along * component);
                        }
                    }
                    Ok(())
                })
            }
        }
    }
}

/// So many standard normal numbers.
fn normal_numbers(count: usize, rng: &mut impl Rng) -> Vec<f32> {
    let seeds: Vec<u64> = (0..count.div_ceil(SEEDED)).map(|_| rng.random()).collect();
    let mut numbers = vec![0.0; count];
    let parts = numbers.par_chunks_mut(SEEDED).zip(seeds);
    parts.for_each(|(part, seed)| {
        let numbers = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
        part.iter_mut()
            .zip(numbers)
            .for_each(|(place, number)| *place = number);
    });
    numbers
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rows around a mean, wider in some directions than in others, with lengths that must not matter.
    pub(in crate::adapter) fn features(count: usize, dim: usize) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let noise: Vec<f32> = StandardNormal.sample_iter(&mut rng).take(count * dim).collect();
        let noise = Tensor::from_vec(noise, (count, dim), &Device::Cpu).expect("noise");
        let widths: Vec<f32> = (0..dim).map(|i| 1.0 / (1 + i) as f32).collect();
        let centre: Vec<f32> = (0..dim).map(|i| (i as f32).sin()).collect();
        let row = |values: Vec<f32>| Tensor::from_vec(values, (1, dim), &Device::Cpu).expect("a row");
        let noise = noise.broadcast_mul(&row(widths)).expect("scaled");
        (noise.broadcast_add(&row(centre)).expect("moved") * 10.0).expect("scaled")
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Mean and covariance (division by n − 1) of rows, in the plainest way.
    pub(in crate::adapter) fn moments(rows: &Tensor) -> (Vec<f64>, Vec<Vec<f64>>) {
        let columns = rows
            .to_dtype(DType::F64)
            .and_then(|r| r.t())
            .and_then(|r| r.to_vec2::<f64>())
            .expect("rows");
        let n = columns[0].len() as f64;
        let mean: Vec<f64> = columns
            .iter()
            .map(|column| column.iter().sum::<f64>() / n)
            .collect();
        let centred: Vec<Vec<f64>> = columns
            .iter()
            .zip(&mean)
            .map(|(column, mean)| column.iter().map(|v| v - mean).collect())
            .collect();
        let covariance = centred
            .iter()
            .map(|a| centred.iter().map(|b| dot(a, b) / (n - 1.0)).collect())
            .collect();
        (mean, covariance)
    }

    /// AᵀA + σ² I.
    pub(in crate::adapter) fn documented(statistics: &ClassStatistics) -> Vec<Vec<f64>> {
        let rows = statistics
            .components
            .to_dtype(DType::F64)
            .and_then(|a| a.to_vec2::<f64>())
            .expect("rows");
        let dim = statistics.mean.dims()[0];
        let entry = |i: usize, j: usize| {
            let within: f64 = rows.iter().map(|row| row[i] * row[j]).sum();
            within + if i == j { statistics.residual } else { 0.0 }
        };
        (0..dim)
            .map(|i| (0..dim).map(|j| entry(i, j)).collect())
            .collect()
    }

    #[test]
    fn draws_converge_to_the_documented_covariance() {
        let classes = [(4, 32), (40, 3), (1, 3)]
            .map(|(count, rank)| ClassStatistics::estimate(&features(count, 10), rank).expect("estimated"));
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let (drawn, columns) = Rehearsal::new(&classes, &mut rng)
            .and_then(|mut r| r.draw(60_000, &mut rng))
            .expect("drawn");
        for (column, class) in (0_u32..).zip(&classes) {
            let rows: Vec<u32> = (0_u32..)
                .zip(&columns)
                .filter(|(_, c)| **c == column)
                .map(|(row, _)| row)
                .collect();
            assert_eq!(rows.len(), 20_000, "every class as often as the others");
            let index = Tensor::new(rows, &Device::Cpu).expect("an index");
            let (mean, covariance) = moments(&drawn.index_select(&index, 0).expect("rows"));
            let expected = documented(class);
            let widest = expected
                .iter()
                .enumerate()
                .map(|(i, row)| row[i])
                .fold(0.0, f64::max);
            // The standard error of an entry is at most widest · √(2 / n) = widest / 100.
            let pairs = covariance.iter().flatten().zip(expected.iter().flatten());
            assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 0.05 * widest);
            let centre: Vec<f32> = class.mean.to_vec1().expect("values");
            let apart = centre
                .iter()
                .zip(&mean)
                .map(|(a, b)| (f64::from(*a) - b).abs())
                .fold(0.0, f64::max);
            assert!(apart < 5.0 * (widest / 20_000.0).sqrt());
        }
    }

    #[test]
    fn every_class_comes_before_any_comes_again() {
        let classes: Vec<_> = (1..6)
            .map(|n| ClassStatistics::estimate(&features(n, 4), 4).expect("estimated"))
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut rehearsal = Rehearsal::new(&classes, &mut rng).expect("stacked");
        let dealt: Vec<u32> = (0..4)
            .flat_map(|_| rehearsal.draw(5, &mut rng).expect("drawn").1)
            .collect();
        for round in dealt.chunks(5) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn exemplars_are_drawn_as_they_are() {
        let mut class = ClassStatistics::estimate(&features(9, 4), 4).expect("estimated");
        let kept = features(3, 4);
        class.exemplars = Some(kept.clone());
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (drawn, _) = Rehearsal::new(&[class], &mut rng)
            .and_then(|mut rehearsal| rehearsal.draw(40, &mut rng))
            .expect("drawn");
        let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().expect("rows");
        let (drawn, kept) = (rows(&drawn), rows(&kept));
        assert!(drawn.iter().all(|row| kept.contains(row)));
        assert!(
            kept.iter().all(|row| drawn.contains(row)),
            "each of the three comes"
        );
    }
}
