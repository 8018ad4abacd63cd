//! How a model learns.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::strategy::{
    Anchors, EnsembleWeights, Hinge, Initialisation, Keep, Rehearsal, Retention, Strategy,
};

/// Defines a configuration, and beside it what somebody gives of one: the same fields, each of which may be left out.
macro_rules! configuration {
    ($($(#[$note:meta])* $field:ident: $kind:ty,)*) => {
        /// How a model learns. Kept with every version, seed included, so that a version can be made again.
        ///
        /// A field that is left out has the value that suits the strategy.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(from = "Given")]
        #[schema(default = ModelConfig::default)]
        pub struct ModelConfig {
            $($(#[$note])* #[schema(required = false)] pub $field: $kind,)*
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Given {
            $($field: Option<$kind>,)*
        }

        impl From<Given> for ModelConfig {
            fn from(given: Given) -> Self {
                let suiting = Self::of(given.strategy.unwrap_or(Self::default().strategy));
                Self {
                    $($field: given.$field.unwrap_or(suiting.$field),)*
                }
            }
        }
    };
}

configuration! {
    /// What is trained.
    strategy: Strategy,
    /// What stands for a class.
    anchors: Anchors,
    /// How much each part of an ensemble counts.
    weights: EnsembleWeights,
    /// How what is trained starts.
    initialisation: Initialisation,
    /// What becomes of moved weights.
    retention: Retention,
    /// How old classes are remembered.
    rehearsal: Rehearsal,
    /// Whether classes that are easily confused are pushed apart.
    hinge: Option<Hinge>,
    /// M, the random features of `ridge`. It keeps M(M + 1)/2 doubles a task.
    random_features: usize,
    /// λ of `ridge`; chosen by examples where it is left out: by a sample of all that are known where `keep` is `all`,
    /// otherwise by the first task's.
    lambda: Option<f64>,
    /// Whether the logits of `ridge` and `gda` have those of the bare backbone added, weighted by what suits examples
    /// best. Only with text anchors.
    zero_shot_term: bool,
    /// What of single examples is kept.
    keep: Keep,
    /// Peak learning rate of Adam for a logit scale of 100; at another scale s it is multiplied by 100 / s.
    learning_rate: f64,
    /// Passes over a task's examples.
    epochs: usize,
    /// Fewest optimiser updates of a training: a task of few examples is passed over as often as that takes.
    min_steps: usize,
    /// Most optimiser updates of a training, in whole passes and at least one: many examples need fewer. Not where a class's
    /// examples would be seen less than a hundred times, all together, and never less than `min_steps`.
    max_steps: usize,
    /// New examples in a batch.
    batch_size: usize,
    /// Share of each class's examples held out when the caller brings no split of their own, in [0, 0.5].
    held_out: f64,
    /// Prompt templates; each holds `{}` once, where the class's words go.
    templates: Vec<String>,
    /// All randomness of a fit comes from it.
    seed: u64,
}

/// Of the strategy that learns where none is named.
impl Default for ModelConfig {
    fn default() -> Self {
        Self::of(Strategy::Ensemble)
    }
}

impl ModelConfig {
    /// What suits a strategy.
    ///
    /// `per_example`, learning rate, epochs and batch size of the linear adapter were chosen together on CLIP ViT-B/32
    /// features of ImageNet, ten tasks of 100 classes and five of 50: fitted on three examples a class, compared on a
    /// fourth. More pseudo-features forget less and cost more; smaller batches learn as much from fewer of them. So were
    /// the ratios: 0.2 ends a point and a half higher than 0.4 with the linear adapter alone, and 0.4 a little higher than 0.3
    /// with the ensemble. With the embedded backbone, whose adapters have further to go, 0.4 would suit the linear
    /// adapter alone: on training pictures of CIFAR-100 it ends four points higher with it. The weights of the ensemble were compared on
    /// ten tasks of ImageNet, zero-shot at 0.3 and 0.5 and prototypes from 0.2 to 0.8 beside the linear adapter at 0.7; the
    /// best stand here, and all are within two points. `min_steps` is what a task of 400 examples takes, less a little:
    /// with ten photographs a class, ten passes alone are too few steps to learn anything. `max_steps` keeps a task of 10,000
    /// examples to one pass: on features of CIFAR-100, ten classes of 450 pictures a task, the linear adapter ends 0.3 and
    /// the ensemble 0.6 points lower after one pass than after ten, and eight times earlier. Self-attention and
    /// prompts were compared on training pictures of CIFAR-100 with the embedded backbone, four tasks of five classes: with
    /// a ratio of 0.2 self-attention ends seven points higher than with 0.4 and forgets a third as much, and more or better
    /// rehearsal gains little more than a point over that; prompts end four points higher at 5e-3 than at 1e-3, and two higher
    /// with no retention than with 0.7 of the context kept.
    pub fn of(strategy: Strategy) -> Self {
        let trained = Self {
            strategy,
            anchors: Anchors::Text,
            weights: EnsembleWeights {
                zero_shot: 0.5,
                linear: 0.7,
                prototypes: 0.5,
            },
            initialisation: Initialisation::Identity,
            retention: Retention::Importance { ratio: 0.4 },
            rehearsal: Rehearsal::Gaussian {
                rank: 32,
                per_example: 4.0,
            },
            hinge: None,
            random_features: 2048,
            lambda: None,
            zero_shot_term: strategy.adds_up(),
            keep: if strategy.adds_up() {
                Keep::All
            } else {
                Keep::Needed
            },
            learning_rate: 3e-4,
            epochs: 10,
            min_steps: 60,
            max_steps: 160,
            batch_size: 64,
            held_out: 0.2,
            templates: vec!["a good photo of a {}.".to_owned()],
            seed: 1993,
        };
        match strategy {
            Strategy::Ensemble => trained,
            Strategy::Linear => Self {
                retention: Retention::Importance { ratio: 0.2 },
                ..trained
            },
            Strategy::SelfAttention => Self {
                retention: Retention::Importance { ratio: 0.2 },
                rehearsal: Rehearsal::Gaussian {
                    rank: 8,
                    per_example: 2.0,
                },
                batch_size: 32,
                ..trained
            },
            Strategy::Prompt => Self {
                retention: Retention::None,
                learning_rate: 5e-3,
                ..trained
            },
            Strategy::ZeroShot | Strategy::Ridge | Strategy::Gda => Self {
                retention: Retention::None,
                rehearsal: Rehearsal::None,
                ..trained
            },
        }
    }
}

impl ModelConfig {
    /// Whether a fit looks at what is kept of old classes.
    pub fn remembers(&self) -> bool {
        let strategy = self.strategy;
        (strategy.is_trained() && self.rehearsal != Rehearsal::None)
            || strategy.needs_scatter()
            || strategy.needs_gram()
    }

    /// Whether the bare backbone's logits stand beside a closed form. Means of examples have seen all examples, so there
    /// is nothing to weigh them by.
    pub fn beside_backbone(&self) -> bool {
        self.zero_shot_term && self.anchors == Anchors::Text
    }
}
