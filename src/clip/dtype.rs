//! In which type the image tower multiplies, and which is best on the CPU.

use std::str::FromStr;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use clipkeep_vision::{Instructions, Precision, Shape, Take, Tower};

/// What a bfloat16's features must at least have for a cosine with f32's to be chosen.
const LEAST_COSINE: f64 = 0.999;
/// Images that towers are compared on.
const IMAGES: usize = 4;
/// Times that each of them encodes these, of which the fastest counts.
const TIMES: usize = 3;

/// What weights and activations are rounded to where they are multiplied. Sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// On the CPU the fastest whose features have a cosine of at least 0.999 with those of f32; on a GPU bfloat16.
    #[default]
    Auto,
    /// Not at all.
    F32,
    /// bfloat16, whether or not the processor has instructions for it.
    Bf16,
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("{text:?} is neither auto, f32 nor bf16")),
        }
    }
}

impl Dtype {
    /// That of an image tower in tensors: candle has no fast products of bfloat16 on the CPU.
    pub(super) fn of_tensors(self, device: &Device) -> DType {
        match self {
            Self::Auto | Self::Bf16 if !device.is_cpu() => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The tower of a shape that suits this processor best; `None` where none does. Tensors may be taken more than once.
    pub(super) fn tower<E>(self, shape: Shape, take: &mut Take<'_, E>) -> Result<Option<Tower>, E> {
        let best = |mut found: Vec<Instructions>| (!found.is_empty()).then(|| found.swap_remove(0));
        let mut load = |instructions: Option<Instructions>| {
            let tower = instructions.map(|instructions| Tower::load(shape, instructions, take));
            tower.transpose()
        };
        match self {
            Self::F32 => load(best(Instructions::for_shape(&shape, Precision::F32))),
            Self::Bf16 => load(best(Instructions::for_shape(&shape, Precision::Bf16))),
            Self::Auto => {
                let exact = load(best(Instructions::for_shape(&shape, Precision::F32)))?;
                let rounded = load(best(Instructions::made_for(&shape, Precision::Bf16)))?;
                Ok(match (exact, rounded) {
                    (Some(exact), Some(rounded)) => Some(better(exact, rounded)),
                    (exact, rounded) => exact.or(rounded),
                })
            }
        }
    }
}

/// The second tower if it is faster and its features are near enough to those of the first.
fn better(exact: Tower, rounded: Tower) -> Tower {
    let pixels: Vec<f32> = (0..IMAGES * 3 * exact.shape().image_size.pow(2))
        .map(|i| (i as f32 * 12.9898).sin())
        .collect();
    let (wanted, exact_time) = timed(&exact, &pixels);
    let (found, rounded_time) = timed(&rounded, &pixels);
    let rows = found
        .chunks(exact.shape().dim)
        .zip(wanted.chunks(exact.shape().dim));
    let cosine = rows.map(|(a, b)| cosine(a, b)).fold(f64::INFINITY, f64::min);
    let chosen = if cosine >= LEAST_COSINE && rounded_time < exact_time {
        rounded
    } else {
        exact
    };
    tracing::info!(
        cosine,
        f32_ms = exact_time.as_secs_f64() * 1e3,
        bf16_ms = rounded_time.as_secs_f64() * 1e3,
        chosen = %chosen,
        "compared the image tower in f32 and in bf16"
    );
    chosen
}

/// A tower's features, and how long they took.
fn timed(tower: &Tower, pixels: &[f32]) -> (Vec<f32>, Duration) {
    let mut features = Vec::new();
    let mut fastest = Duration::MAX;
    for _ in 0..TIMES {
        let start = Instant::now();
        features = tower.forward(pixels, None);
        fastest = fastest.min(start.elapsed());
    }
    (features, fastest)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        image_size: 32,
        patch_size: 8,
        width: 128,
        mlp_width: 256,
        layers: 2,
        heads: 2,
        activation: clipkeep_vision::Activation::QuickGelu,
        layer_norm_epsilon: 1e-5,
        dim: 24,
    };

    /// Weights without a pattern, times `size`.
    fn take(size: f32) -> impl FnMut(&str, &[usize]) -> Result<Vec<f32>, ()> {
        move |name, shape| {
            let seed = name.len() as f32;
            let value = |i| ((i as f32 + 1.0) * (12.9898 + seed)).sin() * size;
            Ok((0..shape.iter().product::<usize>()).map(value).collect())
        }
    }

    fn tower(dtype: Dtype, size: f32) -> Tower {
        let tower = dtype.tower(SHAPE, &mut take(size)).expect("weights");
        tower.expect("some instructions suit it")
    }

    #[test]
    fn what_is_asked_for_is_loaded() {
        for (text, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
            let dtype: Dtype = text.parse().expect("a dtype");
            assert_eq!(tower(dtype, 0.1).precision(), precision);
        }
        assert!("f16".parse::<Dtype>().is_err());
    }

    #[test]
    fn features_that_are_not_near_are_not_chosen() {
        // Another tower altogether: its cosine is that of chance.
        let [exact, other] = [tower(Dtype::F32, 0.1), tower(Dtype::Bf16, 0.3)];
        assert_eq!(better(exact, other).precision(), Precision::F32);
    }

    #[test]
    fn the_faster_of_two_that_agree_is_chosen() {
        let [exact, rounded] = [tower(Dtype::F32, 0.1), tower(Dtype::Bf16, 0.1)];
        let pixels = vec![0.5; IMAGES * 3 * SHAPE.image_size.pow(2)];
        let agree = cosine(
            &exact.forward(&pixels, None)[..SHAPE.dim],
            &rounded.forward(&pixels, None)[..SHAPE.dim],
        );
        assert!(agree > LEAST_COSINE, "{agree}");
        let auto = tower(Dtype::Auto, 0.1);
        let has_instructions = !Instructions::made_for(&SHAPE, Precision::Bf16).is_empty();
        assert!(has_instructions || auto.precision() == Precision::F32);
    }
}
