//! How a model learns.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::strategy::{
    Anchors, EnsembleWeights, Hinge, Initialisation, Keep, Rehearsal, Retention, Strategy,
};

/// How a model learns. Kept with every version, seed included, so that a version can be made again.
///
/// A field that is left out has the value that suits the strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
#[schema(default = ModelConfig::default)]
pub struct ModelConfig {
    /// What is trained.
    #[schema(required = false)]
    pub strategy: Strategy,
    /// What stands for a class.
    #[schema(required = false)]
    pub anchors: Anchors,
    /// How much each part of an ensemble counts.
    #[schema(required = false)]
    pub weights: EnsembleWeights,
    /// How what is trained starts.
    #[schema(required = false)]
    pub initialisation: Initialisation,
    /// What becomes of moved weights.
    #[schema(required = false)]
    pub retention: Retention,
    /// How old classes are remembered.
    #[schema(required = false)]
    pub rehearsal: Rehearsal,
    /// Whether classes that are easily confused are pushed apart.
    pub hinge: Option<Hinge>,
    /// M, the random features of `ridge`. It keeps M(M + 1)/2 doubles a task.
    #[schema(required = false)]
    pub random_features: usize,
    /// λ of `ridge`; chosen by the first task's examples where it is left out.
    pub lambda: Option<f64>,
    /// Whether the logits of `ridge` and `gda` have those of the bare backbone added, weighted by what suits a task's
    /// examples best. Only with text anchors.
    #[schema(required = false)]
    pub zero_shot_term: bool,
    /// What of single examples is kept.
    #[schema(required = false)]
    pub keep: Keep,
    /// Peak learning rate of Adam for a logit scale of 100; at another scale s it is multiplied by 100 / s.
    #[schema(required = false)]
    pub learning_rate: f64,
    /// Passes over a task's examples.
    #[schema(required = false)]
    pub epochs: usize,
    /// Fewest optimiser updates of a fit: a task of few examples is passed over as often as that takes.
    #[schema(required = false)]
    pub min_steps: usize,
    /// New examples in a batch.
    #[schema(required = false)]
    pub batch_size: usize,
    /// Share of each class's examples held out when the caller brings no split of their own, in [0, 0.5].
    #[schema(required = false)]
    pub held_out: f64,
    /// Prompt templates; each holds `{}` once, where the class's words go.
    #[schema(required = false)]
    pub templates: Vec<String>,
    /// All randomness of a fit comes from it.
    #[schema(required = false)]
    pub seed: u64,
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
    /// `per_example`, learning rate, epochs, batch size and the ratio of the linear adapter were chosen together on CLIP
    /// ViT-B/32 features of ImageNet, ten tasks of 100 classes and five of 50: fitted on three examples a class, compared
    /// on a fourth. More pseudo-features forget less and cost more; smaller batches learn as much from fewer of them. The
    /// weights of the ensemble were compared in the same way on ten tasks of ImageNet, zero-shot at 0.3 and 0.5 and
    /// prototypes from 0.2 to 0.8 beside the linear adapter at 0.7; the best stand here, and all are within two points.
    /// `min_steps` is what a task of 400 examples takes, less a little: with ten photographs a class, ten passes alone are
    /// too few steps to learn anything. Self-attention and prompts were compared on training pictures of CIFAR-100 with
    /// the embedded backbone.
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
            zero_shot_term: matches!(strategy, Strategy::Ridge | Strategy::Gda),
            keep: Keep::Needed,
            learning_rate: 3e-4,
            epochs: 10,
            min_steps: 60,
            batch_size: 64,
            held_out: 0.2,
            templates: vec!["a good photo of a {}.".to_owned()],
            seed: 1993,
        };
        match strategy {
            Strategy::Linear | Strategy::Ensemble => trained,
            Strategy::SelfAttention => Self {
                rehearsal: Rehearsal::Gaussian {
                    rank: 8,
                    per_example: 2.0,
                },
                batch_size: 32,
                ..trained
            },
            Strategy::Prompt => Self {
                learning_rate: 1e-3,
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

impl Serialize for ModelConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// What is given, over what suits the strategy.
impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = Map::<String, Value>::deserialize(deserializer)?;
        let strategy = match given.get("strategy") {
            Some(strategy) => Strategy::deserialize(strategy).map_err(D::Error::custom)?,
            None => Self::default().strategy,
        };
        let mut whole = serde_json::to_value(Self::of(strategy)).map_err(D::Error::custom)?;
        if let Some(fields) = whole.as_object_mut() {
            fields.extend(given);
        }
        let mut track = serde_path_to_error::Track::new();
        let read = Self::deserialize(serde_path_to_error::Deserializer::new(whole, &mut track));
        read.map_err(|error| D::Error::custom(format!("{}: {error}", track.path())))
    }
}
