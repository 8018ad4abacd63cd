//! A strategy to be compared, as the command line names it.

use std::str::FromStr;

use serde::de::value::Error as Unnamed;
use serde::de::{DeserializeOwned, IntoDeserializer as _};

use crate::domain::{Choice, Hinge, ModelConfig, Rehearsal, Retention};

/// A name, and how a model learns that is called by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Contender {
    /// As it was written.
    pub name: String,
    /// How it learns.
    pub config: ModelConfig,
    /// Whether it is given all classes as one task: what learning in tasks is measured against.
    pub is_joint: bool,
}

/// `default`, or a strategy and options behind colons: `linear:retention=none:rehearsal=none:lr=1e-3`.
impl FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let mut config = match parts.next().unwrap_or_default() {
            "default" => ModelConfig::default(),
            name => ModelConfig::of(named("strategy", name)?),
        };
        let mut is_joint = false;
        for option in parts {
            match option.split_once('=') {
                None if option == "joint" => is_joint = true,
                Some((name, value)) => set(&mut config, name, value)?,
                None => return Err(format!("{option:?} is no option; write name=value, or joint")),
            }
        }
        config.validate().map_err(|error| format!("{text}: {error}"))?;
        Ok(Self {
            name: text.to_owned(),
            config,
            is_joint,
        })
    }
}

/// The options, for whoever mistypes one.
const OPTIONS: &str = "retention, ratio, bias, strength, rehearsal, rank, per_class, choice, per_example, hinge, margin, \
                       hinge_weight, keep, random_features, lambda, zero_shot_term, initialisation, lr, epochs, min_steps, max_steps, batch, \
                       seed, w_zero_shot, w_linear and w_prototypes";

fn set(config: &mut ModelConfig, name: &str, value: &str) -> Result<(), String> {
    match name {
        "retention" => config.retention = retention(value, config.retention)?,
        "rehearsal" => config.rehearsal = rehearsal(value, config.rehearsal)?,
        "ratio" | "bias" | "strength" => {
            let field = match (name, &mut config.retention) {
                ("ratio", Retention::Importance { ratio } | Retention::Random { ratio }) => ratio,
                ("bias", Retention::Svd { bias }) => bias,
                ("strength", Retention::Penalty { strength }) => strength,
                _ => return Err(format!("{name} belongs to another retention, which comes first")),
            };
            *field = number(name, value)?;
        }
        "rank" | "per_class" | "choice" | "per_example" => match (name, &mut config.rehearsal) {
            ("rank", Rehearsal::Gaussian { rank, .. }) => *rank = number(name, value)?,
            ("per_class", Rehearsal::Exemplars { per_class, .. }) => *per_class = number(name, value)?,
            ("choice", Rehearsal::Exemplars { choice, .. }) => *choice = named(name, value)?,
            (
                "per_example",
                Rehearsal::Gaussian { per_example, .. } | Rehearsal::Exemplars { per_example, .. },
            ) => *per_example = number(name, value)?,
            _ => return Err(format!("{name} belongs to another rehearsal, which comes first")),
        },
        "hinge" | "margin" | "hinge_weight" => {
            let hinge = config.hinge.get_or_insert(HINGE);
            match name {
                "hinge" => hinge.threshold = number(name, value)?,
                "margin" => hinge.margin = number(name, value)?,
                _ => hinge.weight = number(name, value)?,
            }
        }
        "keep" => config.keep = named(name, value)?,
        "random_features" => config.random_features = number(name, value)?,
        "lambda" => config.lambda = Some(number(name, value)?),
        "zero_shot_term" => config.zero_shot_term = number(name, value)?,
        "initialisation" => config.initialisation = named(name, value)?,
        "lr" => config.learning_rate = number(name, value)?,
        "epochs" => config.epochs = number(name, value)?,
        "min_steps" => config.min_steps = number(name, value)?,
        "max_steps" => config.max_steps = number(name, value)?,
        "batch" => config.batch_size = number(name, value)?,
        "seed" => config.seed = number(name, value)?,
        "w_zero_shot" => config.weights.zero_shot = number(name, value)?,
        "w_linear" => config.weights.linear = number(name, value)?,
        "w_prototypes" => config.weights.prototypes = number(name, value)?,
        _ => return Err(format!("{name:?} is no option; there are {OPTIONS}")),
    }
    Ok(())
}

/// RAPF's margin, and a threshold among those that its authors use.
const HINGE: Hinge = Hinge {
    threshold: 0.65,
    margin: 0.1,
    weight: 1.0,
};

/// A retention by its name; a mask has the share of the one before.
fn retention(value: &str, before: Retention) -> Result<Retention, String> {
    const RATIO: f64 = 0.4;
    const BIAS: f64 = 0.5;
    const STRENGTH: f64 = 100.0;
    let ratio = match before {
        Retention::Importance { ratio } | Retention::Random { ratio } => ratio,
        Retention::None | Retention::Svd { .. } | Retention::Penalty { .. } => RATIO,
    };
    match value {
        "none" => Ok(Retention::None),
        "importance" => Ok(Retention::Importance { ratio }),
        "random" => Ok(Retention::Random { ratio }),
        "svd" => Ok(Retention::Svd { bias: BIAS }),
        "penalty" => Ok(Retention::Penalty { strength: STRENGTH }),
        _ => Err(format!(
            "{value:?} is no retention; there are none, importance, random, svd and penalty"
        )),
    }
}

fn rehearsal(value: &str, before: Rehearsal) -> Result<Rehearsal, String> {
    const PER_CLASS: usize = 20;
    let per_example = match before {
        Rehearsal::None => 4.0,
        _ => before.per_example(),
    };
    match value {
        "none" => Ok(Rehearsal::None),
        "gaussian" => Ok(match before {
            Rehearsal::Gaussian { .. } => before,
            _ => Rehearsal::Gaussian {
                rank: 32,
                per_example,
            },
        }),
        "exemplars" => Ok(Rehearsal::Exemplars {
            per_class: PER_CLASS,
            choice: Choice::Herding,
            per_example,
        }),
        _ => Err(format!(
            "{value:?} is no rehearsal; there are none, gaussian and exemplars"
        )),
    }
}

/// A choice by its name in a configuration.
fn named<T: DeserializeOwned>(what: &str, value: &str) -> Result<T, String> {
    T::deserialize(value.into_deserializer()).map_err(|error: Unnamed| format!("{what}: {error}"))
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{value:?} is no number for {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Strategy;

    #[test]
    fn contenders_are_parsed() {
        let parsed = |text: &str| text.parse::<Contender>();
        assert_eq!(parsed("default").expect("known").config, ModelConfig::default());
        let plain = parsed("linear:retention=none:rehearsal=none:lr=0.001:joint").expect("known");
        assert_eq!(
            (
                plain.config.strategy,
                plain.config.retention,
                plain.config.rehearsal
            ),
            (Strategy::Linear, Retention::None, Rehearsal::None)
        );
        assert!(plain.is_joint && (plain.config.learning_rate - 0.001).abs() < 1e-12);
        let random = parsed("linear:retention=random:ratio=0.2").expect("known");
        assert_eq!(random.config.retention, Retention::Random { ratio: 0.2 });
        let exemplars =
            parsed("linear:rehearsal=exemplars:per_class=5:choice=random:hinge=0.6").expect("known");
        let expected = Rehearsal::Exemplars {
            per_class: 5,
            choice: Choice::Random,
            per_example: 4.0,
        };
        assert_eq!(exemplars.config.rehearsal, expected);
        assert_eq!(exemplars.config.hinge.map(|hinge| hinge.threshold), Some(0.6));
        assert_eq!(
            parsed("ridge").expect("known").config,
            ModelConfig::of(Strategy::Ridge)
        );
        for wrong in [
            "telepathy",
            "linear:speed=1",
            "linear:lr=fast",
            "linear:lr=-1",
            "linear:retention=none:ratio=0.2",
            "linear:alone",
            "linear:rehearsal=none:rank=3",
            "ridge:retention=random",
            "gda:choice=herding",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
