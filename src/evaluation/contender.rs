//! A strategy to be compared, as the command line names it.

use std::str::FromStr;

use crate::domain::{ModelConfig, Rehearsal, Retention, Strategy};

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
        let strategy = parts.next().unwrap_or_default();
        let mut config = ModelConfig::default();
        config.strategy = match strategy {
            "default" => config.strategy,
            "zero_shot" => Strategy::ZeroShot,
            "linear" => Strategy::Linear,
            "gda" => Strategy::Gda,
            "ensemble" => Strategy::Ensemble,
            other => {
                return Err(format!(
                    "{other:?} is no strategy; there are default, zero_shot, linear, gda and ensemble"
                ));
            }
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

fn set(config: &mut ModelConfig, name: &str, value: &str) -> Result<(), String> {
    match name {
        "retention" => config.retention = retention(value)?,
        "ratio" => match &mut config.retention {
            Retention::Importance { ratio } | Retention::Random { ratio } => *ratio = number(name, value)?,
            Retention::None | Retention::Svd { .. } => {
                return Err("ratio belongs to retention=importance or random, which comes first".to_owned());
            }
        },
        "rehearsal" => match (value, config.rehearsal) {
            ("none", _) => config.rehearsal = Rehearsal::None,
            ("gaussian", Rehearsal::Gaussian { .. }) => {}
            ("gaussian", Rehearsal::None) => config.rehearsal = ModelConfig::default().rehearsal,
            _ => return Err(format!("{value:?} is no rehearsal; there are none and gaussian")),
        },
        "lr" => config.learning_rate = number(name, value)?,
        "epochs" => config.epochs = number(name, value)?,
        "batch" => config.batch_size = number(name, value)?,
        "seed" => config.seed = number(name, value)?,
        "w_zero_shot" => config.weights.zero_shot = number(name, value)?,
        "w_linear" => config.weights.linear = number(name, value)?,
        "w_prototypes" => config.weights.prototypes = number(name, value)?,
        _ => {
            return Err(format!(
                "{name:?} is no option; there are retention, ratio, rehearsal, lr, epochs, batch, seed, w_zero_shot, \
                 w_linear and w_prototypes"
            ));
        }
    }
    Ok(())
}

fn retention(value: &str) -> Result<Retention, String> {
    const RATIO: f64 = 0.4;
    const BIAS: f64 = 0.5;
    match value {
        "none" => Ok(Retention::None),
        "importance" => Ok(Retention::Importance { ratio: RATIO }),
        "random" => Ok(Retention::Random { ratio: RATIO }),
        "svd" => Ok(Retention::Svd { bias: BIAS }),
        _ => Err(format!(
            "{value:?} is no retention; there are none, importance, random and svd"
        )),
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{value:?} is no number for {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for wrong in [
            "telepathy",
            "linear:speed=1",
            "linear:lr=fast",
            "linear:lr=-1",
            "linear:retention=none:ratio=0.2",
            "linear:alone",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
