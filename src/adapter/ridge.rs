//! Ridge regression on random features, in closed form (RanPAC, arXiv 2307.02251; ACIL, NeurIPS 2022).
//!
//! ```text
//! φ(x) = min(max(0, R x), 8),   R (M, D) of standard normal numbers,   score_c = w_c · φ(x),   W = (G + λ I)⁻¹ S
//! ```
//!
//! In the sums G and S, φ is rounded to whole steps: see [`RandomFeatures`].
//! W is that of learning all tasks at once, whatever their order. R is drawn for a model's first task and kept with its
//! versions. Where the configuration does not give λ, it is chosen anew for every version by a sample of all examples if
//! these are kept, and otherwise once, by the first task's.

use candle_core::{DType, Device, Result, Tensor};
use clipkeep_towers::RandomFeatures;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::embedding::against;
use super::gram::{Gram, Solution};
use super::host::read;

/// The regression of all classes.
#[derive(Debug, Clone)]
pub struct Ridge {
    /// R, (M, D).
    pub(super) projection: Tensor,
    /// W, (C, M).
    pub(super) weight: Tensor,
    /// λ.
    pub(super) lambda: f64,
}

impl Ridge {
    /// R for embeddings of `dim` values.
    pub(super) fn draw(size: usize, dim: usize, rng: &mut impl Rng, device: &Device) -> Result<Tensor> {
        let values: Vec<f32> = StandardNormal.sample_iter(rng).take(size * dim).collect();
        Tensor::from_vec(values, (size, dim), device)
    }

    /// The regression of what `gram` knows, and its solution.
    pub(super) fn of(gram: &Gram, projection: Tensor, lambda: f64) -> Result<(Self, Solution)> {
        let solution = gram.solve(lambda)?;
        let weight = solution.weights(projection.device())?.to_dtype(DType::F32)?;
        let ridge = Self {
            projection,
            weight,
            lambda,
        };
        Ok((ridge, solution))
    }

    /// λ.
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// R, (M, D).
    pub fn projection(&self) -> &Tensor {
        &self.projection
    }

    /// W, (C, M).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Embeddings (n, D) to scores (n, C), which are no logits yet.
    pub(super) fn scores(&self, embeddings: &Tensor) -> Result<Tensor> {
        against(&random_features(embeddings, &self.projection)?, &self.weight)
    }

    /// C and D.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        let (columns, size) = self.weight.dims2()?;
        let (rows, dim) = self.projection.dims2()?;
        if rows != size {
            candle_core::bail!("weights for {size} random features and {rows} features");
        }
        Ok((columns, dim))
    }
}

/// φ of embeddings (n, D), as (n, M).
pub(super) fn random_features(embeddings: &Tensor, projection: &Tensor) -> Result<Tensor> {
    against(embeddings, projection)?.clamp(0.0, f64::from(RandomFeatures::MOST))
}

/// φ of embeddings (n, D) such as sums hold it, as (n, M) on the CPU.
pub(super) fn whole_features(embeddings: &Tensor, projection: &Tensor) -> Result<Tensor> {
    let features = whole(projection)?;
    let rows = embeddings.to_device(&Device::Cpu)?.contiguous()?;
    let values = read(&rows, |rows| Ok(features.of(rows)))?;
    Tensor::from_vec(values, (rows.dim(0)?, features.size()), &Device::Cpu)
}

/// What a regression needs to know of classes, from the embeddings (n, D) of each.
pub(super) fn gram(classes: &[Tensor], projection: &Tensor) -> Result<Gram> {
    Gram::of(classes, &whole(projection)?)
}

/// R as it makes φ in whole steps.
fn whole(projection: &Tensor) -> Result<RandomFeatures> {
    let dim = projection.dim(1)?;
    let projection = projection.to_device(&Device::Cpu)?.contiguous()?;
    read(&projection, |values| Ok(RandomFeatures::new(values, dim)))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;
    use crate::adapter::gram::best_lambda;
    use crate::adapter::gram::tests::plain;
    use crate::adapter::rehearsal::tests::features;

    const SIZE: usize = 40;
    const LAMBDA: f64 = 0.3;

    fn projection() -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        Ridge::draw(SIZE, 8, &mut rng, &Device::Cpu).expect("drawn")
    }

    /// φ of three classes of 5, 30 and 1 examples.
    fn classes() -> Vec<Tensor> {
        let rows = normalise(&features(36, 8)).expect("normalised");
        [(0, 5), (5, 30), (35, 1)]
            .map(|(start, count)| {
                let rows = rows.narrow(0, start, count).expect("rows");
                random_features(&rows, &projection()).expect("features")
            })
            .to_vec()
    }

    fn weights(grams: &[Gram]) -> Vec<Vec<f64>> {
        let mut sum = grams[0].clone();
        for next in &grams[1..] {
            sum.merge(next).expect("merged");
        }
        let solution = sum.solve(LAMBDA).expect("solved");
        let weights = solution.weights(&Device::Cpu).expect("weights");
        weights.to_vec2().expect("rows")
    }

    fn furthest(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
        let pairs = a.iter().flatten().zip(b.iter().flatten());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn weights_solve_the_regularised_normal_equations() -> Result<()> {
        let classes = classes();
        let weights = weights(&[plain(&classes)?]);
        let all = Tensor::cat(&classes, 0)?.to_dtype(DType::F64)?;
        let gram = (all.t()?.matmul(&all)? + (Tensor::eye(SIZE, DType::F64, &Device::Cpu)? * LAMBDA)?)?;
        for (weight, rows) in weights.into_iter().zip(&classes) {
            let weight = Tensor::from_vec(weight, (SIZE, 1), &Device::Cpu)?;
            let sum = rows.to_dtype(DType::F64)?.sum(0)?.unsqueeze(1)?;
            let apart = (gram.matmul(&weight)? - sum)?.abs()?.max_all()?;
            assert!(apart.to_scalar::<f64>()? < 1e-9);
        }
        Ok(())
    }

    #[test]
    fn any_order_of_tasks_gives_the_same_weights() -> Result<()> {
        let rows = normalise(&features(36, 8))?;
        let classes = [(0, 5), (5, 30), (35, 1)].map(|(start, count)| rows.narrow(0, start, count));
        let classes: Vec<Tensor> = classes.into_iter().collect::<Result<_>>()?;
        let projection = projection();
        let tasks = classes.chunks(1).map(|class| gram(class, &projection));
        let tasks: Vec<Gram> = tasks.collect::<Result<_>>()?;
        let joint = weights(&[gram(&classes, &projection)?]);
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let found = weights(&order.map(|task| tasks[task].clone()));
            let expected: Vec<Vec<f64>> = order.iter().map(|task| joint[*task].clone()).collect();
            assert!(furthest(&found, &expected) < 1e-9, "{order:?}");
        }
        Ok(())
    }

    #[test]
    fn leaving_out_in_closed_form_is_leaving_out() -> Result<()> {
        let classes = classes();
        let solution = plain(&classes)?.solve(LAMBDA)?;
        let closed = solution.left_out(&classes[0], &[0; 5])?;
        for left in 0..5_u32 {
            let kept: Vec<u32> = (0..5).filter(|row| *row != left).collect();
            let rest = classes[0].index_select(&Tensor::new(kept, &Device::Cpu)?, 0)?;
            let without = plain(&[rest, classes[1].clone(), classes[2].clone()])?.solve(LAMBDA)?;
            let row = classes[0].narrow(0, left as usize, 1)?.to_dtype(DType::F64)?;
            let scores = row
                .matmul(&without.weights(&Device::Cpu)?.t()?)?
                .to_vec2::<f64>()?;
            for (found, expected) in closed[left as usize * 3..].iter().zip(&scores[0]) {
                assert!((found - expected).abs() < 1e-8, "{found} and {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn lambda_grows_with_noise() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let noise = Ridge::draw(60, 8, &mut rng, &Device::Cpu)?;
        let columns: Vec<u32> = (0..60).map(|row| row % 2).collect();
        let sides: Vec<f32> = columns.iter().map(|c| if *c == 0 { 3.0 } else { -3.0 }).collect();
        let apart = noise.broadcast_add(&Tensor::from_vec(sides, (60, 1), &Device::Cpu)?)?;
        let chosen = |rows: &Tensor| {
            let features = random_features(&normalise(rows)?, &projection())?;
            best_lambda(&features, &columns)
        };
        let (clear, blurred) = (chosen(&apart)?, chosen(&noise)?);
        assert!(clear < blurred, "{clear} and {blurred}");
        Ok(())
    }
}
