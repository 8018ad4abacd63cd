//! Made-up features that there is something to learn from, and fits on them.

use std::ops::{ControlFlow, Range};

use candle_core::{Device, Tensor};
use clipkeep::adapter::embedding::normalise;
use clipkeep::adapter::{Base, FitInput, FitProgress, Fitted, Linear, Towers, fit};
use clipkeep::domain::{Initialisation, ModelConfig, Strategy, VersionNumber};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub(crate) const DIM: usize = 64;
pub(crate) const PER_CLASS: usize = 6;

/// Classes whose features lie around a turned version of their anchors: there is something to learn.
pub(crate) struct World {
    pub(crate) anchors: Tensor,
    pub(crate) features: Tensor,
    pub(crate) unseen: Tensor,
    pub(crate) labels: Vec<u32>,
}

impl World {
    pub(crate) fn new(classes: usize) -> Self {
        let noise = |seed, rows: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let values = Linear::initial(Initialisation::Kaiming, rows.max(DIM), &mut rng, &Device::Cpu);
            values
                .and_then(|l| l.weight.narrow(0, 0, rows)?.narrow(1, 0, DIM)?.contiguous())
                .expect("noise")
        };
        let anchors = normalise(&noise(1, classes)).expect("normalised");
        let labels: Vec<u32> = (0..classes * PER_CLASS)
            .map(|row| (row / PER_CLASS) as u32)
            .collect();
        let turn = ((noise(2, DIM) * 3.0).expect("scaled")
            + Tensor::eye(DIM, anchors.dtype(), &Device::Cpu).expect("eye"))
        .expect("a turn");
        let index = Tensor::new(labels.clone(), &Device::Cpu).expect("an index");
        let centres = anchors
            .matmul(&turn)
            .and_then(|t| t.index_select(&index, 0))
            .expect("centres");
        let around = |seed| {
            let moved = (&centres + noise(seed, labels.len())).expect("moved");
            (moved * 10.0).expect("scaled")
        };
        Self {
            features: around(3),
            unseen: around(4),
            anchors,
            labels,
        }
    }

    /// As many further features of the first `columns` classes, which no fit has seen.
    pub(crate) fn unseen(&self, columns: usize) -> (Tensor, Vec<u32>) {
        let rows = columns * PER_CLASS;
        let features = self.unseen.narrow(0, 0, rows).expect("rows");
        (features, self.labels[..rows].to_vec())
    }

    /// Anchors of the first `columns` classes.
    pub(crate) fn anchors(&self, columns: usize) -> Tensor {
        self.anchors.narrow(0, 0, columns).expect("anchors")
    }

    /// Features and labels of the classes `from..to`.
    pub(crate) fn rows(&self, from: usize, to: usize) -> (Tensor, &[u32]) {
        let (start, end) = (from * PER_CLASS, to * PER_CLASS);
        (
            self.features.narrow(0, start, end - start).expect("rows"),
            &self.labels[start..end],
        )
    }

    pub(crate) fn first(&self, columns: usize, config: &ModelConfig) -> Fitted {
        self.learned(None, 0..columns, config)
    }

    /// The classes that `base` does not know, learned on top of it.
    pub(crate) fn second(&self, base: &Fitted, version: u32, config: &ModelConfig) -> Fitted {
        let new = base.head.columns()..self.anchors.dims()[0];
        let base = Base {
            version: VersionNumber(version),
            head: &base.head,
            statistics: &base.statistics,
        };
        self.learned(Some(base), new, config)
    }

    fn learned(&self, base: Option<Base<'_>>, new: Range<usize>, config: &ModelConfig) -> Fitted {
        let (features, labels) = self.rows(new.start, new.end);
        let anchors = self.anchors(new.end);
        let input = FitInput {
            base,
            anchors: &anchors,
            features: &features,
            labels,
            scale: 20.0,
            towers: Towers::default(),
            config,
        };
        fit(&input, &mut carry_on).expect("fitted")
    }
}

pub(crate) fn carry_on(_: FitProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The linear adapter, in so many steps that it learns.
pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        epochs: 5,
        min_steps: 0,
        batch_size: 16,
        learning_rate: 3e-3,
        ..ModelConfig::of(Strategy::Linear)
    }
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor
        .flatten_all()
        .and_then(|flat| flat.to_vec1())
        .expect("values")
}
