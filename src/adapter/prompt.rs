//! Prompt tuning (arXiv 2310.20348, as CoOp, arXiv 2109.01134): context vectors before the names of all classes, learned
//! through the frozen text tower.
//!
//! ```text
//! T_c = E([start] V [name of c] [end]) / |…|,   logit_c = s · cos(f, T_c)
//! ```
//!
//! What serves is T alone; V is kept so that the next task goes on from it. The text tower is run a few classes at a time,
//! first for T, then, once the loss's slope by T is known, again with its intermediate results for the slope by V: memory
//! does not grow with the number of classes.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use super::embedding::{against, normalise};
use super::objective::Targets;
use super::towers::Prompts;
use super::trainable::{Gradient, Trainable, pulled_back};
use crate::domain::Initialisation;

/// Context vectors of a random start, and their standard deviation (CoOp, section 4.1).
const RANDOM_CONTEXT: (usize, f32) = (16, 0.02);

/// Classes that go through the text tower at a time.
const CHUNK: usize = 16;

/// Learned context and what it makes of the classes.
#[derive(Debug, Clone)]
pub struct Prompted {
    /// V, (k, w).
    pub(super) context: Tensor,
    /// T, unit rows (C, D).
    pub(super) rows: Tensor,
}

impl Prompted {
    /// Embeddings (n, D) to cosines (n, C).
    pub(super) fn cosines(&self, embeddings: &Tensor) -> Result<Tensor> {
        against(embeddings, &self.rows)
    }

    /// C and D.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        self.rows.dims2()
    }
}

/// Context vectors under training.
#[derive(Clone)]
pub(super) struct Context<'a> {
    /// V, (k, w).
    vectors: Tensor,
    prompts: &'a dyn Prompts,
}

impl<'a> Context<'a> {
    /// Goes on from `vectors`.
    pub(super) fn new(vectors: Tensor, prompts: &'a dyn Prompts) -> Self {
        Self { vectors, prompts }
    }

    /// Context that has learned nothing.
    pub(super) fn initial(
        initialisation: Initialisation,
        prompts: &'a dyn Prompts,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let template = prompts.template()?;
        let vectors = match initialisation {
            // A template without words before the name has nothing to start from.
            Initialisation::Identity if template.dim(0)? > 0 => template,
            Initialisation::Identity | Initialisation::Kaiming => {
                let (count, deviation) = RANDOM_CONTEXT;
                let width = template.dim(1)?;
                let normal = Normal::new(0.0, deviation).map_err(candle_core::Error::wrap)?;
                let values: Vec<f32> = normal.sample_iter(rng).take(count * width).collect();
                Tensor::from_vec(values, (count, width), template.device())?
            }
        };
        Ok(Self { vectors, prompts })
    }

    /// What it makes of all classes.
    pub(super) fn prompted(self) -> Result<Prompted> {
        Ok(Prompted {
            rows: self.rows()?,
            context: self.vectors,
        })
    }

    /// T, (C, D).
    fn rows(&self) -> Result<Tensor> {
        let chunks: Vec<Tensor> = self
            .chunks()
            .map(|chunk| normalise(&self.prompts.encode(&self.vectors, chunk)?))
            .collect::<Result<_>>()?;
        Tensor::cat(&chunks, 0)
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let classes = self.prompts.classes();
        (0..classes)
            .step_by(CHUNK)
            .map(move |start| start..(start + CHUNK).min(classes))
    }
}

impl Trainable for Context<'_> {
    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.vectors]
    }

    fn with(&self, mut parameters: Vec<Tensor>) -> Self {
        Self {
            vectors: parameters.pop().unwrap_or_else(|| self.vectors.clone()),
            prompts: self.prompts,
        }
    }

    /// Of embeddings x (n, D); the targets' anchors are none of its business, for it makes its own.
    fn gradient(&self, targets: &Targets<'_>, x: &Tensor, columns: &[u32]) -> Result<Gradient> {
        let rows = self.rows()?;
        let slope = Targets {
            anchors: &rows,
            ..*targets
        }
        .slope(x, columns)?;
        let by_rows = slope.by_anchors()?;
        let mut sum = Tensor::zeros(self.vectors.shape(), self.vectors.dtype(), self.vectors.device())?;
        for chunk in self.chunks() {
            let part = by_rows.narrow(0, chunk.start, chunk.len())?;
            let gradients = pulled_back(
                &[&self.vectors],
                |parameters| normalise(&self.prompts.encode(&parameters[0], chunk)?),
                |_| Ok(part),
            )?;
            for gradient in gradients {
                sum = (sum + gradient)?;
            }
        }
        Ok(Gradient {
            loss: slope.loss,
            parameters: vec![sum],
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A text tower of two products: of the context's mean, moved by what is each class's own.
    struct Toy {
        names: Tensor,
        tower: Tensor,
    }

    impl Toy {
        fn new(classes: usize) -> Result<Self> {
            Ok(Self {
                names: sines(0.3, classes, 6)?,
                tower: sines(0.7, 6, 4)?,
            })
        }
    }

    impl Prompts for Toy {
        fn classes(&self) -> usize {
            self.names.dims()[0]
        }

        fn template(&self) -> Result<Tensor> {
            sines(0.9, 3, 6)
        }

        fn encode(&self, context: &Tensor, classes: Range<usize>) -> Result<Tensor> {
            let names = self.names.narrow(0, classes.start, classes.len())?;
            names
                .broadcast_add(&context.mean_keepdim(0)?)?
                .tanh()?
                .matmul(&self.tower)
        }
    }

    fn sines(seed: f64, rows: usize, columns: usize) -> Result<Tensor> {
        let values = (0..rows * columns).map(|i| (i as f64 * 12.9898 + seed).sin());
        Tensor::from_iter(values, &Device::Cpu)?.reshape((rows, columns))
    }

    #[test]
    fn the_gradient_over_chunks_agrees_with_finite_differences() -> Result<()> {
        let toy = Toy::new(2 * CHUNK + 3)?;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let context = Context::initial(Initialisation::Identity, &toy, &mut rng)?;
        assert_eq!(
            context.vectors.to_vec2::<f64>()?,
            toy.template()?.to_vec2::<f64>()?,
            "it starts at the template"
        );
        let (x, none) = (sines(0.1, 4, 4)?, sines(0.0, 1, 4)?);
        let loss_at = |context: &Context<'_>| {
            let targets = Targets {
                anchors: &none,
                scale: 5.0,
                pairs: None,
            };
            context.gradient(&targets, &x, &[0, 34, 17, 16])
        };
        let exact = loss_at(&context)?.parameters[0].to_vec2::<f64>()?;
        let step = 1e-5;
        for (row, column) in [(0, 0), (1, 4), (2, 5)] {
            let moved = |offset: f64| {
                let mut values = context.vectors.to_vec2::<f64>()?;
                values[row][column] += offset;
                let vectors = Tensor::new(values, &Device::Cpu)?;
                loss_at(&context.with(vec![vectors])).map(|found| found.loss)
            };
            let slope = (moved(step)? - moved(-step)?) / (2.0 * step);
            assert!((slope - exact[row][column]).abs() < 1e-8);
        }
        let prompted = context.prompted()?;
        assert_eq!(prompted.dims()?, (2 * CHUNK + 3, 4));
        let lengths = prompted.rows.sqr()?.sum(1)?.to_vec1::<f64>()?;
        assert!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-12));
        Ok(())
    }

    #[test]
    fn a_random_start_is_sixteen_small_vectors() -> Result<()> {
        let toy = Toy::new(2)?;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let context = Context::initial(Initialisation::Kaiming, &toy, &mut rng)?;
        assert_eq!(context.vectors.dims(), [16, 6]);
        let variance = context.vectors.to_dtype(DType::F64)?.sqr()?.mean_all()?;
        let deviation = variance.to_scalar::<f64>()?.sqrt();
        assert!((deviation / 0.02 - 1.0).abs() < 0.2, "{deviation}");
        Ok(())
    }
}
