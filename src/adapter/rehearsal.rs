//! Old classes take part in a fit as pseudo-embeddings drawn from their statistics.

use candle_core::{Device, Result, Tensor};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};

use super::statistics::ClassStatistics;

/// Deals pseudo-embeddings of old classes. Every class comes once before any comes again, in a new order each time.
///
/// What a draw costs in memory is its rows: components are read where they lie, shared with the statistics, and never
/// gathered row by row.
pub(super) struct Rehearsal {
    /// μ, (C, D).
    means: Tensor,
    /// A of each class, (r, D).
    components: Vec<Tensor>,
    /// σ, (C, 1).
    deviations: Tensor,
    deck: Vec<u32>,
}

impl Rehearsal {
    /// Over old classes in column order; there must be at least one.
    pub(super) fn new(classes: &[ClassStatistics]) -> Result<Self> {
        let means: Vec<&Tensor> = classes.iter().map(|class| &class.mean).collect();
        let means = Tensor::stack(&means, 0)?;
        let deviations: Vec<f32> = classes.iter().map(|class| class.residual.sqrt() as f32).collect();
        Ok(Self {
            deviations: Tensor::from_vec(deviations, (classes.len(), 1), means.device())?,
            components: classes.iter().map(|class| class.components.clone()).collect(),
            means,
            deck: Vec::new(),
        })
    }

    /// `count` pseudo-embeddings (count, D), μ + Aᵀ z₁ + σ z₂ with standard normal z, and their columns, in order.
    pub(super) fn draw(&mut self, count: usize, rng: &mut impl Rng) -> Result<(Tensor, Vec<u32>)> {
        let (classes, dim) = self.means.dims2()?;
        let mut columns: Vec<u32> = (0..count).map(|_| self.deal(classes, rng)).collect();
        // A class's rows stand together, so that they are one product with its components.
        columns.sort_unstable();
        let index = Tensor::new(columns.as_slice(), self.means.device())?;
        let chosen = |of: &Tensor| of.index_select(&index, 0);
        let within = self.within(&columns, rng)?;
        let beyond = normals(count * dim, rng, self.means.device())?.reshape((count, dim))?;
        let beyond = beyond.broadcast_mul(&chosen(&self.deviations)?)?;
        Ok((((chosen(&self.means)? + within)? + beyond)?, columns))
    }

    /// Aᵀ z₁ for each of the sorted `columns`, (count, D).
    fn within(&self, columns: &[u32], rng: &mut impl Rng) -> Result<Tensor> {
        let dim = self.means.dim(1)?;
        let groups: Vec<(usize, &Tensor)> = columns
            .chunk_by(|a, b| a == b)
            .map(|rows| (rows.len(), &self.components[rows[0] as usize]))
            .collect();
        let needed = groups
            .iter()
            .map(|(rows, components)| rows * components.dims()[0]);
        let all = normals(needed.sum(), rng, self.means.device())?;
        let mut start = 0;
        let mut products = Vec::with_capacity(groups.len());
        for (rows, components) in groups {
            let rank = components.dim(0)?;
            products.push(match rank {
                // A class known by one example.
                0 => Tensor::zeros((rows, dim), all.dtype(), all.device())?,
                _ => all
                    .narrow(0, start, rows * rank)?
                    .reshape((rows, rank))?
                    .matmul(components)?,
            });
            start += rows * rank;
        }
        Tensor::cat(&products, 0)
    }

    fn deal(&mut self, classes: usize, rng: &mut impl Rng) -> u32 {
        if self.deck.is_empty() {
            self.deck = (0..classes as u32).collect();
            self.deck.shuffle(rng);
        }
        self.deck.pop().unwrap_or_default()
    }
}

fn normals(count: usize, rng: &mut impl Rng, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = StandardNormal.sample_iter(rng).take(count).collect();
    Tensor::from_vec(values, count, device)
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::DType;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Rows around a mean, wider in some directions than in others, with lengths that must not matter.
    pub(in crate::adapter) fn features(count: usize, dim: usize) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let noise = normals(count * dim, &mut rng, &Device::Cpu)
            .and_then(|n| n.reshape((count, dim)))
            .expect("noise");
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
        let (drawn, columns) = Rehearsal::new(&classes)
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
        let mut rehearsal = Rehearsal::new(&classes).expect("stacked");
        let dealt: Vec<u32> = (0..4)
            .flat_map(|_| rehearsal.draw(5, &mut rng).expect("drawn").1)
            .collect();
        for round in dealt.chunks(5) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
    }
    /// Gathered row by row, the components alone would be 8 GiB.
    #[test]
    fn a_draw_costs_its_rows_whatever_the_rank() {
        let (rank, dim, count) = (512, 256, 16_384);
        let class = ClassStatistics {
            count: 1000,
            mean: Tensor::zeros(dim, DType::F32, &Device::Cpu).expect("a mean"),
            components: Tensor::ones((rank, dim), DType::F32, &Device::Cpu).expect("components"),
            residual: 0.0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (drawn, columns) = Rehearsal::new(&[class])
            .and_then(|mut rehearsal| rehearsal.draw(count, &mut rng))
            .expect("drawn");
        assert_eq!((drawn.dims(), columns), (&[count, dim][..], vec![0; count]));
    }
}
