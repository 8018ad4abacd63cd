//! The choices that a model's configuration is made of.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is trained on top of the frozen backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Nothing: the bare backbone among the classes learned. What others are compared with.
    ZeroShot,
    /// One matrix and bias on the image features, carried on from task to task (arXiv 2310.20348).
    Linear,
    /// A residual self-attention block over the last layer's tokens of the image tower, then a layer norm and projection of
    /// its class token (arXiv 2310.20348).
    SelfAttention,
    /// Context vectors before the class's name, learned through the text tower (arXiv 2310.20348, as CoOp, arXiv
    /// 2109.01134).
    Prompt,
    /// Ridge regression on random features, in closed form (arXiv 2307.02251).
    Ridge,
    /// Gaussian discriminant analysis: class means and one covariance, in closed form (arXiv 2402.04087).
    Gda,
    /// The bare backbone, the linear adapter, and prototypes: class means among whitened features, behind a linear
    /// adapter of their own. Their logits are added up, weighted by `weights`.
    Ensemble,
}

impl Strategy {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::ZeroShot,
        Self::Linear,
        Self::SelfAttention,
        Self::Prompt,
        Self::Ridge,
        Self::Gda,
        Self::Ensemble,
    ];

    /// Whether it looks at the spread that all classes share.
    pub fn needs_scatter(self) -> bool {
        matches!(self, Self::Gda | Self::Ensemble)
    }

    /// Whether it regresses on random features.
    pub fn needs_gram(self) -> bool {
        matches!(self, Self::Ridge)
    }

    /// Whether it is made of statistics that add up, so that what was learned can be taken out again.
    pub fn adds_up(self) -> bool {
        matches!(self, Self::Ridge | Self::Gda)
    }

    /// Whether it trains weights by gradient, which retention and rehearsal are about.
    pub fn is_trained(self) -> bool {
        match self {
            Self::Linear | Self::SelfAttention | Self::Prompt | Self::Ensemble => true,
            Self::ZeroShot | Self::Ridge | Self::Gda => false,
        }
    }

    /// What it reads of an image.
    pub fn reads(self) -> Reads {
        match self {
            Self::SelfAttention => Reads::Tokens,
            Self::ZeroShot | Self::Linear | Self::Prompt | Self::Ridge | Self::Gda | Self::Ensemble => {
                Reads::Features
            }
        }
    }
}

/// What a model is given of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The backbone's features, D values.
    Features,
    /// The tokens of the image tower's last layer, one after another: t · w values.
    Tokens,
}

/// What stands for a class among the embeddings of texts and images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anchors {
    /// The embedding of its words.
    Text,
    /// The mean of its examples' embeddings: for labels that say nothing to a language model, such as part numbers.
    /// An ensemble is then its prototypes alone.
    Examples,
    /// Half of each: the mean of the embedding of its words and that of its examples.
    Blend,
}

/// How much each part of an ensemble counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnsembleWeights {
    /// The bare backbone.
    pub zero_shot: f64,
    /// The linear adapter before the text anchors.
    pub linear: f64,
    /// The prototypes.
    pub prototypes: f64,
}

/// How what is trained starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initialisation {
    /// As zero-shot CLIP: identity and zero bias; attention that adds nothing; the words of the first template as context.
    Identity,
    /// At random, as arXiv 2310.20348 starts: a Kaiming-normal weight; sixteen context vectors from N(0, 0.02²).
    Kaiming,
}

/// What becomes of the weights a new task moved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Retention {
    /// All new weights stay.
    None,
    /// Only the share `ratio` of entries that moved furthest stays new (arXiv 2310.20348).
    Importance {
        /// Share of entries that become new, in (0, 1].
        ratio: f64,
    },
    /// A random share `ratio` of entries stays new: the control that importance is measured against.
    Random {
        /// Share of entries that become new, in (0, 1].
        ratio: f64,
    },
    /// Along the old matrix's singular directions, what moved furthest stays new and the rest in part (RAPF, arXiv
    /// 2407.14143).
    Svd {
        /// Share that stays new of what did not move, in [0, 1].
        bias: f64,
    },
    /// All new weights stay, but moving costs while they are trained: `strength` Σ F (θ − θ_old)², F the diagonal Fisher
    /// information on rehearsed old classes (EWC, arXiv 1612.00796).
    Penalty {
        /// λ, what the sum is multiplied with.
        strength: f64,
    },
}

/// How old classes are remembered while a new task is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rehearsal {
    /// Not at all.
    None,
    /// Pseudo-features drawn from one Gaussian a class; no example is kept.
    Gaussian {
        /// Principal directions kept a class; the variance outside them is spread evenly.
        rank: usize,
        /// Pseudo-features in a batch for each new example in it.
        per_example: f64,
    },
    /// A few of each class's own examples, kept as features.
    Exemplars {
        /// Examples kept a class.
        per_class: usize,
        /// Which ones.
        choice: Choice,
        /// Old examples in a batch for each new one in it.
        per_example: f64,
    },
}

impl Rehearsal {
    /// Rehearsed rows in a batch for each new example in it.
    pub fn per_example(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Gaussian { per_example, .. } | Self::Exemplars { per_example, .. } => per_example,
        }
    }
}

/// Which examples stand for their class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// One after another the one that brings the mean of those chosen nearest to the class's (iCaRL, arXiv 1611.07725).
    Herding,
    /// Any.
    Random,
}

/// Pushes old classes away from new ones whose anchors stand close (RAPF, arXiv 2407.14143, section 3.2): a rehearsed row of
/// an old class i is to be nearer to its own anchor than to that of such a new class j by `margin`, in cosines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hinge {
    /// Anchors nearer than this, in Euclidean distance, are a pair.
    pub threshold: f64,
    /// The lead that a row's own anchor must have.
    pub margin: f64,
    /// What the mean shortfall is multiplied with in the loss.
    pub weight: f64,
}

/// What of single examples outlives the job that learned them. Images never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Nothing: a task's held-out examples are scored once, when it is learned.
    None,
    /// The features of held-out examples, on which every later version is scored, and exemplars where they are rehearsed.
    Needed,
    /// Besides those the features of all examples, 4 · D bytes each, which every job reads: tasks and single classes can then
    /// be unlearned exactly, and the order of learning leaves no trace. For the strategies in closed form, `ridge` and `gda`.
    All,
}
