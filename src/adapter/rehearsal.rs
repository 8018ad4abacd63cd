//! Old classes take part in a fit as rows drawn from what is kept of them: pseudo-rows from a class's Gaussian, or its
//! exemplars where it keeps any.

use candle_core::{Device, Result, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt as _};
use rand_distr::{Distribution, StandardNormal};

use super::statistics::ClassStatistics;

/// Deals rows of old classes. Every class comes once before any comes again, in a new order each time.
///
/// What a draw costs in memory is its rows: components and exemplars are read where they lie, shared with the statistics,
/// and never gathered row by row.
pub(super) struct Rehearsal {
    classes: Vec<ClassStatistics>,
    deck: Vec<u32>,
}

impl Rehearsal {
    /// Over old classes in column order; there must be at least one.
    pub(super) fn new(classes: &[ClassStatistics]) -> Result<Self> {
        if classes.is_empty() {
            candle_core::bail!("a rehearsal of no classes");
        }
        Ok(Self {
            classes: classes.to_vec(),
            deck: Vec::new(),
        })
    }

    /// `count` rows (count, D) and their columns, in order.
    pub(super) fn draw(&mut self, count: usize, rng: &mut impl Rng) -> Result<(Tensor, Vec<u32>)> {
        let classes = self.classes.len();
        let mut columns: Vec<u32> = (0..count).map(|_| self.deal(classes, rng)).collect();
        // A class's rows stand together, so that they are one product with its components.
        columns.sort_unstable();
        let drawn: Vec<Tensor> = columns
            .chunk_by(|a, b| a == b)
            .map(|rows| rows_of(&self.classes[rows[0] as usize], rows.len(), rng))
            .collect::<Result<_>>()?;
        Ok((Tensor::cat(&drawn, 0)?, columns))
    }

    fn deal(&mut self, classes: usize, rng: &mut impl Rng) -> u32 {
        if self.deck.is_empty() {
            self.deck = (0..classes as u32).collect();
            self.deck.shuffle(rng);
        }
        self.deck.pop().unwrap_or_default()
    }
}

/// `count` rows of one class (count, D): any of its exemplars, or μ + Aᵀ z₁ + σ z₂ with standard normal z.
fn rows_of(class: &ClassStatistics, count: usize, rng: &mut impl Rng) -> Result<Tensor> {
    if let Some(exemplars) = &class.exemplars {
        let kept = exemplars.dim(0)? as u32;
        let chosen: Vec<u32> = (0..count).map(|_| rng.random_range(0..kept)).collect();
        return exemplars.index_select(&Tensor::new(chosen, exemplars.device())?, 0);
    }
    let (rank, dim) = class.components.dims2()?;
    let device = class.mean.device();
    let beyond = normals(count * dim, rng, device)?.reshape((count, dim))?;
    let rows = (beyond * class.residual.sqrt())?.broadcast_add(&class.mean)?;
    match rank {
        // A class known by one example.
        0 => Ok(rows),
        _ => {
            rows + normals(count * rank, rng, device)?
                .reshape((count, rank))?
                .matmul(&class.components)?
        }
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

    #[test]
    fn exemplars_are_drawn_as_they_are() {
        let mut class = ClassStatistics::estimate(&features(9, 4), 4).expect("estimated");
        let kept = features(3, 4);
        class.exemplars = Some(kept.clone());
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (drawn, _) = Rehearsal::new(&[class])
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

    /// Gathered row by row, the components alone would be 8 GiB.
    #[test]
    fn a_draw_costs_its_rows_whatever_the_rank() {
        let (rank, dim, count) = (512, 256, 16_384);
        let class = ClassStatistics {
            count: 1000,
            mean: Tensor::zeros(dim, DType::F32, &Device::Cpu).expect("a mean"),
            components: Tensor::ones((rank, dim), DType::F32, &Device::Cpu).expect("components"),
            residual: 0.0,
            exemplars: None,
            rows: None,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (drawn, columns) = Rehearsal::new(&[class])
            .and_then(|mut rehearsal| rehearsal.draw(count, &mut rng))
            .expect("drawn");
        assert_eq!((drawn.dims(), columns), (&[count, dim][..], vec![0; count]));
    }
}
