//! Which configurations make sense.

use super::config::ModelConfig;
use super::strategy::{
    Anchors, EnsembleWeights, Hinge, Initialisation, Keep, Rehearsal, Retention, Strategy,
};

/// A configuration that makes no sense, and the field at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {expected}")]
pub struct ConfigError {
    /// Path of the field, as in the JSON.
    pub field: &'static str,
    /// What would be accepted, and why.
    pub expected: &'static str,
}

/// Most rows of a batch, new examples and rehearsed ones together: with the classes they bound a fit's memory.
const MOST_ROWS: f64 = 16_384.0;

impl ModelConfig {
    /// Checks every field's range, then whether they make sense together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.ranges()?;
        self.retention_in_range()?;
        self.rehearsal_in_range()?;
        self.combination()
    }

    fn ranges(&self) -> Result<(), ConfigError> {
        let EnsembleWeights {
            zero_shot,
            linear,
            prototypes,
        } = self.weights;
        rule(
            [zero_shot, linear, prototypes]
                .iter()
                .all(|weight| (0.0..=100.0).contains(weight))
                && prototypes > 0.0,
            "weights",
            "between 0 and 100, that of the prototypes above 0",
        )?;
        rule(
            (1..=10_000).contains(&self.random_features),
            "random_features",
            "between 1 and 10000",
        )?;
        rule(
            self.lambda
                .is_none_or(|lambda| lambda > 0.0 && lambda.is_finite()),
            "lambda",
            "above 0",
        )?;
        rule(
            self.learning_rate > 0.0 && self.learning_rate <= 1.0,
            "learning_rate",
            "above 0 and at most 1",
        )?;
        rule((1..=1000).contains(&self.epochs), "epochs", "between 1 and 1000")?;
        rule(self.min_steps <= 10_000, "min_steps", "at most 10000")?;
        rule(
            (1..=1_000_000).contains(&self.max_steps),
            "max_steps",
            "between 1 and 1000000",
        )?;
        rule(
            (1..=4096).contains(&self.batch_size),
            "batch_size",
            "between 1 and 4096",
        )?;
        rule(
            (0.0..=0.5).contains(&self.held_out),
            "held_out",
            "between 0 and 0.5",
        )?;
        rule(
            (1..=64).contains(&self.templates.len()),
            "templates",
            "between 1 and 64 templates",
        )?;
        rule(
            self.templates
                .iter()
                .all(|t| t.matches("{}").count() == 1 && t.len() <= 512),
            "templates",
            "texts of at most 512 bytes that hold {} exactly once",
        )
    }

    fn retention_in_range(&self) -> Result<(), ConfigError> {
        match self.retention {
            Retention::None => Ok(()),
            Retention::Importance { ratio } | Retention::Random { ratio } => rule(
                ratio > 0.0 && ratio <= 1.0,
                "retention.ratio",
                "above 0 and at most 1",
            ),
            Retention::Svd { bias } => rule((0.0..=1.0).contains(&bias), "retention.bias", "between 0 and 1"),
            Retention::Penalty { strength } => rule(
                strength > 0.0 && strength.is_finite(),
                "retention.strength",
                "above 0",
            ),
        }
    }

    fn rehearsal_in_range(&self) -> Result<(), ConfigError> {
        match self.rehearsal {
            Rehearsal::None => {}
            Rehearsal::Gaussian { rank, .. } => {
                rule((1..=1024).contains(&rank), "rehearsal.rank", "between 1 and 1024")?;
            }
            Rehearsal::Exemplars { per_class, .. } => rule(
                (1..=1000).contains(&per_class),
                "rehearsal.per_class",
                "between 1 and 1000",
            )?,
        }
        let per_example = self.rehearsal.per_example();
        if self.rehearsal != Rehearsal::None {
            rule(
                per_example > 0.0 && per_example <= 16.0,
                "rehearsal.per_example",
                "above 0 and at most 16",
            )?;
        }
        rule(
            self.batch_size as f64 * (1.0 + per_example) <= MOST_ROWS,
            "batch_size",
            "so small that a batch has at most 16384 rows with those that are rehearsed",
        )?;
        let Some(Hinge {
            threshold,
            margin,
            weight,
        }) = self.hinge
        else {
            return Ok(());
        };
        rule(
            threshold > 0.0 && threshold <= 2.0,
            "hinge.threshold",
            "above 0 and at most 2, the largest distance of unit vectors",
        )?;
        rule((0.0..=2.0).contains(&margin), "hinge.margin", "between 0 and 2")?;
        rule(
            weight > 0.0 && weight <= 1000.0,
            "hinge.weight",
            "above 0 and at most 1000",
        )
    }

    /// What each choice needs of the others.
    fn combination(&self) -> Result<(), ConfigError> {
        let rehearses = self.rehearsal != Rehearsal::None;
        if !self.strategy.is_trained() {
            rule(
                self.retention == Retention::None,
                "retention",
                "none: the strategy trains no weights that could be kept",
            )?;
            rule(
                !rehearses,
                "rehearsal",
                "none: the strategy trains nothing that could forget, and what it knows of old classes is exact",
            )?;
        }
        rule(
            self.hinge.is_none() || rehearses,
            "hinge",
            "left out: it acts on rehearsed rows of old classes, and none are rehearsed",
        )?;
        rule(
            !matches!(self.retention, Retention::Penalty { .. }) || rehearses,
            "retention",
            "another: the penalty's Fisher information is measured on rehearsed rows, and none are rehearsed",
        )?;
        rule(
            !matches!(self.retention, Retention::Penalty { .. }) || self.strategy != Strategy::Prompt,
            "retention",
            "another: the Fisher information of prompts takes a pass through the text tower for every example",
        )?;
        rule(
            !matches!(self.rehearsal, Rehearsal::Exemplars { .. }) || self.keep != Keep::None,
            "rehearsal",
            "none or gaussian: exemplars are features of single examples, which keep = none forbids",
        )?;
        rule(
            self.keep != Keep::All || self.strategy.adds_up(),
            "keep",
            "none or needed: all serves to unlearn a class exactly, which only the strategies ridge and gda can",
        )?;
        rule(
            self.strategy != Strategy::Prompt || self.anchors == Anchors::Text,
            "anchors",
            "text: prompts are texts",
        )?;
        rule(
            self.lambda.is_none() || self.strategy == Strategy::Ridge,
            "lambda",
            "left out: it belongs to the ridge strategy",
        )?;
        rule(
            !self.zero_shot_term || self.strategy.adds_up(),
            "zero_shot_term",
            "false: it belongs to the strategies ridge and gda",
        )?;
        rule(
            self.initialisation == Initialisation::Identity
                || matches!(
                    self.strategy,
                    Strategy::Linear | Strategy::Ensemble | Strategy::Prompt
                ),
            "initialisation",
            "identity: another is for the strategies linear, prompt and ensemble",
        )
    }
}

fn rule(holds: bool, field: &'static str, expected: &'static str) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError { field, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_partial_json_completes_from_it() {
        assert_eq!(ModelConfig::default().validate(), Ok(()));
        let config: ModelConfig = serde_json::from_str(r#"{"epochs": 3}"#).expect("valid");
        assert_eq!(
            config,
            ModelConfig {
                epochs: 3,
                ..ModelConfig::default()
            }
        );
    }

    #[test]
    fn fewest_steps_may_be_more_than_most() {
        let config: ModelConfig = serde_json::from_str(r#"{"min_steps": 500}"#).expect("valid");
        assert_eq!(config.validate(), Ok(()));
        let config: ModelConfig = serde_json::from_str(r#"{"max_steps": 0}"#).expect("readable");
        assert_eq!(config.validate().map_err(|error| error.field), Err("max_steps"));
    }

    #[test]
    fn a_batch_is_bounded_with_its_pseudo_features() {
        let batch = |batch_size, per_example| {
            let rehearsal = Rehearsal::Gaussian {
                rank: 32,
                per_example,
            };
            let config = ModelConfig {
                rehearsal,
                batch_size,
                ..ModelConfig::default()
            };
            config.validate().map_err(|error| error.field)
        };
        assert_eq!(batch(4096, 3.0), Ok(()));
        assert_eq!(batch(4096, 4.0), Err("batch_size"));
        assert_eq!(batch(1024, 15.0), Ok(()));
        assert_eq!(batch(1024, 16.0), Err("batch_size"));
        let forgetful = ModelConfig {
            batch_size: 4096,
            rehearsal: Rehearsal::None,
            ..ModelConfig::default()
        };
        assert_eq!(forgetful.validate(), Ok(()));
    }

    #[test]
    fn nonsense_names_its_field() {
        let config = ModelConfig {
            learning_rate: f64::NAN,
            ..ModelConfig::default()
        };
        assert_eq!(
            config.validate().expect_err("not a number").field,
            "learning_rate"
        );
        let config = ModelConfig {
            templates: vec!["no place".into()],
            ..ModelConfig::default()
        };
        assert_eq!(
            config.validate().expect_err("no place for the class").field,
            "templates"
        );
        assert!(
            serde_json::from_str::<ModelConfig>(r#"{"epoch": 3}"#).is_err(),
            "unknown fields are refused"
        );
    }

    #[test]
    fn what_is_left_out_suits_the_strategy() {
        let config: ModelConfig = serde_json::from_str(r#"{"strategy": "gda"}"#).expect("valid");
        assert_eq!(config, ModelConfig::of(Strategy::Gda));
        assert_eq!(
            (config.retention, config.rehearsal),
            (Retention::None, Rehearsal::None)
        );
    }

    #[test]
    fn every_strategys_default_is_valid_and_survives_json() {
        for strategy in Strategy::ALL {
            let config = ModelConfig::of(strategy);
            assert_eq!(config.validate(), Ok(()), "{strategy:?}");
            let text = serde_json::to_string(&config).expect("JSON");
            assert_eq!(serde_json::from_str::<ModelConfig>(&text).expect("valid"), config);
        }
    }

    #[test]
    fn senseless_combinations_are_refused() {
        for (config, field) in [
            (
                r#"{"strategy": "ridge", "retention": {"kind": "importance", "ratio": 0.4}}"#,
                "retention",
            ),
            (
                r#"{"strategy": "gda", "rehearsal": {"kind": "gaussian", "rank": 8, "per_example": 1}}"#,
                "rehearsal",
            ),
            (
                r#"{"keep": "none", "rehearsal": {"kind": "exemplars", "per_class": 5, "choice": "herding", "per_example": 1}}"#,
                "rehearsal",
            ),
            (
                r#"{"strategy": "linear", "rehearsal": {"kind": "none"}, "retention": {"kind": "penalty", "strength": 1}}"#,
                "retention",
            ),
            (
                r#"{"strategy": "prompt", "retention": {"kind": "penalty", "strength": 1}}"#,
                "retention",
            ),
            (
                r#"{"strategy": "linear", "rehearsal": {"kind": "none"}, "hinge": {"threshold": 0.6, "margin": 0.1, "weight": 1}}"#,
                "hinge",
            ),
            (r#"{"strategy": "prompt", "anchors": "examples"}"#, "anchors"),
            (r#"{"strategy": "linear", "lambda": 1}"#, "lambda"),
            (r#"{"strategy": "linear", "keep": "all"}"#, "keep"),
            (
                r#"{"strategy": "linear", "zero_shot_term": true}"#,
                "zero_shot_term",
            ),
            (
                r#"{"strategy": "self_attention", "initialisation": "kaiming"}"#,
                "initialisation",
            ),
        ] {
            let parsed: ModelConfig = serde_json::from_str(config).expect("readable");
            assert_eq!(parsed.validate().expect_err(config).field, field, "{config}");
        }
    }
}
