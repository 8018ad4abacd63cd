//! Adam and its learning rate over a fit.

use std::f64::consts::PI;

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::host::read;

/// Adam for one tensor (Kingma & Ba 2015, algorithm 1), with their β and ε.
#[derive(Debug)]
pub(super) struct Adam {
    moments: Moments,
    step: i32,
}

/// Running means of the gradient and of its square.
#[derive(Debug)]
enum Moments {
    /// On the CPU, in f32: one pass over plain memory. Tensor operators would take ten, and hand each to threads that
    /// wait for one another and that no setting of ours bounds.
    Plain { first: Vec<f32>, second: Vec<f32> },
    /// On other devices and in other types.
    Tensors { first: Tensor, second: Tensor },
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Values that one thread moves at a time.
const CHUNK: usize = 1 << 14;

impl Adam {
    pub(super) fn new(parameter: &Tensor) -> Result<Self> {
        let moments = if parameter.device().is_cpu() && parameter.dtype() == DType::F32 {
            let zeros = vec![0.0; parameter.elem_count()];
            Moments::Plain {
                first: zeros.clone(),
                second: zeros,
            }
        } else {
            Moments::Tensors {
                first: parameter.zeros_like()?,
                second: parameter.zeros_like()?,
            }
        };
        Ok(Self { moments, step: 0 })
    }

    /// The parameter after one step against `gradient`.
    pub(super) fn step(&mut self, parameter: &Tensor, gradient: &Tensor, rate: f64) -> Result<Tensor> {
        self.step += 1;
        // The two bias corrections, folded into the rate and the ε.
        let correction = (1.0 - BETA2.powi(self.step)).sqrt();
        let rate = rate * correction / (1.0 - BETA1.powi(self.step));
        let epsilon = EPSILON * correction;
        match &mut self.moments {
            Moments::Plain { first, second } => {
                let mut next = vec![0.0; parameter.elem_count()];
                let slopes = gradient.contiguous()?;
                read(&parameter.contiguous()?, |values| {
                    read(&slopes, |slopes| {
                        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
                        let given = values.par_chunks(CHUNK).zip(slopes.par_chunks(CHUNK));
                        let parts = next.par_chunks_mut(CHUNK).zip(given).zip(moments);
                        parts.for_each(|((next, given), moments)| {
                            step_plain(next, given, moments, (rate as f32, epsilon as f32));
                        });
                        Ok(())
                    })
                })?;
                Tensor::from_vec(next, parameter.shape(), parameter.device())
            }
            Moments::Tensors { first, second } => {
                *first = ((&*first * BETA1)? + (gradient * (1.0 - BETA1))?)?;
                *second = ((&*second * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
                let denominator = (second.sqrt()? + epsilon)?;
                parameter - ((&*first / denominator)? * rate)?
            }
        }
    }
}

/// All slices of one length.
fn step_plain(
    next: &mut [f32],
    (parameter, gradient): (&[f32], &[f32]),
    (first, second): (&mut [f32], &mut [f32]),
    (rate, epsilon): (f32, f32),
) {
    let moments = first.iter_mut().zip(second);
    let given = parameter.iter().zip(gradient);
    for ((next, (p, g)), (m, v)) in next.iter_mut().zip(given).zip(moments) {
        *m = *m * BETA1 as f32 + g * (1.0 - BETA1) as f32;
        *v = *v * BETA2 as f32 + g * g * (1.0 - BETA2) as f32;
        *next = p - *m / (v.sqrt() + epsilon) * rate;
    }
}

/// The logit scale of OpenAI's CLIP, which learning rates are given for.
const REFERENCE_SCALE: f64 = 100.0;

/// A learning rate given for a logit scale of 100, at another scale. Adam's steps do not grow with the loss's gradient,
/// so the smaller the scale, the further the weights must move to change the logits by as much.
pub(super) fn peak_rate(configured: f64, scale: f64) -> f64 {
    configured * REFERENCE_SCALE / scale
}

/// The learning rate at `step` of `steps`: half a cosine from `peak` to zero (Loshchilov & Hutter 2017, without
/// restarts).
///
/// For every task, the first included: arXiv 2310.20348's steps down at epochs 4 and 10 did no better there.
pub(super) fn cosine(peak: f64, step: usize, steps: usize) -> f64 {
    peak * 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const ADAM_REFERENCE: [([f32; 2], [f32; 2]); 3] = [
        ([0.5, -1.0], [0.9, -1.9]),
        ([0.1, 3.0], [0.819_695_9, -1.949_418_9]),
        ([-0.2, 0.01], [0.785_260_6, -1.987_821_8]),
    ];

    #[test]
    fn adam_takes_the_reference_steps() -> Result<()> {
        // PyTorch 2: p = [1, -2]; torch.optim.Adam([p], lr=0.1); gradients [0.5, -1], [0.1, 3], [-0.2, 0.01].
        let mut parameter = Tensor::new(&[1.0_f32, -2.0], &Device::Cpu)?;
        let mut adam = Adam::new(&parameter)?;
        for (gradient, expected) in ADAM_REFERENCE {
            parameter = adam.step(&parameter, &Tensor::new(&gradient, &Device::Cpu)?, 0.1)?;
            for (value, expected) in parameter.to_vec1::<f32>()?.iter().zip(expected) {
                assert!((value - expected).abs() < 2e-6, "{value} and {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn tensors_take_the_steps_of_plain_memory() -> Result<()> {
        let noise = |seed: f32| {
            let values = (0..6 * 4).map(|i| (i as f32 * 12.9898 + seed).sin());
            Tensor::from_iter(values, &Device::Cpu)?.reshape((6, 4))
        };
        let mut plain = noise(0.0)?;
        let mut wide = plain.to_dtype(DType::F64)?;
        let (mut of_plain, mut of_wide) = (Adam::new(&plain)?, Adam::new(&wide)?);
        for step in 1..20_i16 {
            // Laid out the other way round, as a transposed product is.
            let gradient = noise(f32::from(step))?.t()?.contiguous()?.t()?;
            plain = of_plain.step(&plain, &gradient, 0.01)?;
            wide = of_wide.step(&wide, &gradient.to_dtype(DType::F64)?, 0.01)?;
        }
        assert_eq!(plain.dims(), wide.dims());
        let apart = (plain.to_dtype(DType::F64)? - wide)?
            .abs()?
            .max_all()?
            .to_scalar::<f64>()?;
        assert!(apart < 1e-5, "{apart}");
        Ok(())
    }

    #[test]
    fn the_rate_falls_from_the_peak_to_nothing() {
        let rates = [0, 15, 30, 45, 60].map(|step| cosine(2.0, step, 60));
        let expected = [2.0, 1.0 + 0.5_f64.sqrt(), 1.0, 1.0 - 0.5_f64.sqrt(), 0.0];
        assert!(
            rates
                .iter()
                .zip(expected)
                .all(|(rate, expected)| (rate - expected).abs() < 1e-12)
        );
    }
}
