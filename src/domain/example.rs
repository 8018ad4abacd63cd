//! Labelled examples, as features.

use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

/// Which part of a task an example belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Fitted on.
    Train,
    /// Never fitted on; every version is scored on it.
    HeldOut,
}

impl Split {
    /// The name in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// What a model reads of one image, kept as float16: D un-normalised features, or t · w values of tokens. Clones share them.
#[derive(Debug, Clone, PartialEq)]
pub struct Features(Arc<[f16]>);

impl Features {
    /// Rounds values to float16. `None` if a value is not finite or leaves float16's range.
    pub fn from_f32(values: &[f32]) -> Option<Self> {
        let rounded: Arc<[f16]> = values.iter().map(|&v| f16::from_f32(v)).collect();
        rounded.iter().all(|v| v.is_finite()).then_some(Self(rounded))
    }

    /// From little-endian bytes, two a value. `None` for an odd length.
    pub fn from_le_bytes(bytes: &[u8]) -> Option<Self> {
        let pairs = bytes.chunks_exact(2);
        pairs
            .remainder()
            .is_empty()
            .then(|| Self(pairs.map(|b| f16::from_le_bytes([b[0], b[1]])).collect()))
    }

    /// Little-endian bytes, two a value.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// How many values there are: D, or t · w.
    pub fn dim(&self) -> usize {
        self.0.len()
    }

    /// The values, widened.
    pub fn values(&self) -> impl ExactSizeIterator<Item = f32> + '_ {
        self.0.iter().map(|v| v.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_survive_the_store() {
        let features = Features::from_f32(&[0.5, -3.0, 1024.0]).expect("in range");
        assert_eq!(
            Features::from_le_bytes(&features.to_le_bytes()),
            Some(features.clone())
        );
        assert_eq!(features.values().collect::<Vec<_>>(), [0.5, -3.0, 1024.0]);
        assert_eq!(Features::from_f32(&[f32::NAN]), None);
        assert_eq!(Features::from_f32(&[1e6]), None);
        assert_eq!(Features::from_le_bytes(&[0; 3]), None);
    }
}
