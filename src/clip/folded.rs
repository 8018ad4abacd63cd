//! The image tower's first weights, for bytes.
//!
//! What a picture's bytes stand for (see [`Normalisation`]) is multiplied with the weights of the patch embedding first of all:
//!
//! ```text
//! Σ w · (scale · byte + shift) = Σ (w · scale) · (byte − 128) + Σ w · (128 · scale + shift)
//! ```
//!
//! The last sum depends on no picture: it goes onto the positions. So a picture stays bytes as far as the tower, a quarter of what
//! f32 takes, nothing is normalised while it serves, and bfloat16, which holds a byte less 128 exactly, rounds no pixel.

use clipkeep_towers::MIDDLE;

use super::config::ClipConfig;
use super::error::BackboneError;
use super::image_processor::Normalisation;
use super::weights::Weights;

const EMBEDDINGS: &str = "vision_model.embeddings";

/// Has `weights` give what an image tower of this configuration needs for bytes that stand for what a `file` says.
pub(super) fn fold(
    weights: &mut Weights<'_>,
    config: &ClipConfig,
    (file, normalisation): (&'static str, Normalisation),
) -> Result<(), BackboneError> {
    let vision = &config.vision;
    let (width, patch) = (vision.encoder.width, vision.patch_size);
    let of_patches = format!("{EMBEDDINGS}.patch_embedding.weight");
    let of_positions = format!("{EMBEDDINGS}.position_embedding.weight");
    let mut kernels = weights
        .values(&of_patches, &[width, 3, patch, patch])?
        .into_owned();
    let mut positions = weights
        .values(&of_positions, &[vision.tokens(), width])?
        .into_owned();
    let shifts: Vec<f64> = kernels
        .chunks_exact_mut(3 * patch * patch)
        .map(|kernel| shift(kernel, normalisation))
        .collect();
    // The class token's comes first.
    for position in positions.chunks_exact_mut(width).skip(1) {
        let values = position.iter_mut().zip(&shifts);
        values.for_each(|(value, shift)| *value = (f64::from(*value) + shift) as f32);
    }
    for (key, values) in [(of_patches, kernels), (of_positions, positions)] {
        if !weights.replace(&key, values) {
            return Err(BackboneError::Invalid {
                file,
                reason: format!("{normalisation:?} makes {key} infinite"),
            });
        }
    }
    Ok(())
}

/// Makes an output's weights those for bytes, and returns what goes onto the positions.
fn shift(kernel: &mut [f32], normalisation: Normalisation) -> f64 {
    let Normalisation { scale, shift } = normalisation;
    let channels = kernel
        .chunks_exact_mut(kernel.len() / 3)
        .zip(scale.into_iter().zip(shift));
    let shifts = channels.map(|(weights, (scale, shift))| {
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        for weight in weights {
            *weight = (f64::from(*weight) * scale) as f32;
        }
        sum * (f64::from(MIDDLE) * scale + shift)
    });
    shifts.sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::clip::dtype::noise;
    use crate::clip::source::BackboneFiles;

    const UNLIKE: Normalisation = Normalisation {
        scale: [0.02, -0.01, 0.003],
        shift: [-2.0, 0.7, 30.0],
    };

    #[test]
    fn what_is_folded_gives_for_bytes_what_weights_give_for_what_they_stand_for() {
        let files = BackboneFiles::embedded();
        let config = ClipConfig::parse(&files.config).expect("a configuration");
        let (width, patch, tokens) = (
            config.vision.encoder.width,
            config.vision.patch_size,
            config.vision.tokens(),
        );
        let mut weights = files.tensors(&Device::Cpu).expect("weights");
        let read = |weights: &mut Weights<'_>| {
            let kernels = weights.values(
                &format!("{EMBEDDINGS}.patch_embedding.weight"),
                &[width, 3, patch, patch],
            );
            let positions = weights.values(
                &format!("{EMBEDDINGS}.position_embedding.weight"),
                &[tokens, width],
            );
            [kernels, positions].map(|values| values.expect("a tensor").into_owned())
        };
        let [kernels, positions] = read(&mut weights);
        fold(&mut weights, &config, ("test", UNLIKE)).expect("folded");
        let [folded, shifted] = read(&mut weights);
        assert_eq!(shifted[..width], positions[..width], "the class token's");
        let bytes = noise(3 * patch * patch);
        let sum = |kernel: &[f32], value: &dyn Fn(usize) -> f64| -> f64 {
            let products = kernel
                .iter()
                .enumerate()
                .map(|(at, weight)| f64::from(*weight) * value(at));
            products.sum()
        };
        for (output, kernels) in kernels
            .chunks(3 * patch * patch)
            .zip(folded.chunks(3 * patch * patch))
            .enumerate()
        {
            let stands_for = |at: usize| {
                let channel = at / (patch * patch);
                UNLIKE.scale[channel] * f64::from(bytes[at]) + UNLIKE.shift[channel]
            };
            let wanted = sum(kernels.0, &stands_for) + f64::from(positions[width + output]);
            let less_the_middle = |at: usize| f64::from(bytes[at]) - f64::from(MIDDLE);
            let found = sum(kernels.1, &less_the_middle) + f64::from(shifted[width + output]);
            assert!(
                (found - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                "{output}: {found}, not {wanted}"
            );
        }
    }

    #[test]
    fn weights_that_become_too_large_are_refused_by_name() {
        let files = BackboneFiles::embedded();
        let config = ClipConfig::parse(&files.config).expect("a configuration");
        let mut weights = files.tensors(&Device::Cpu).expect("weights");
        let huge = Normalisation {
            scale: [1.0, f64::MAX, 1.0],
            ..UNLIKE
        };
        let error = fold(&mut weights, &config, ("test", huge)).expect_err("too large");
        assert!(
            matches!(&error, BackboneError::Invalid { file: "test", reason } if reason.contains("patch_embedding")),
            "{error}"
        );
    }
}
