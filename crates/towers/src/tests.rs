//! Kernels, gradients, sums and whole towers against plain ones in f64, and towers against one another.

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod kernels;
mod learning;
mod strassen;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod tiles;
mod towers;
mod whole;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers without a pattern, between -1 and 1.
fn noise(seed: usize, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Bytes without a pattern.
fn bytes(seed: usize, len: usize) -> Vec<u8> {
    let of_number = |number: f32| (128.0 * (1.0 + number)) as u8;
    noise(seed, len).into_iter().map(of_number).collect()
}

/// The larger of two distances; what is no number is further than anything.
fn further(one: f64, other: f64) -> f64 {
    if one.is_nan() || other.is_nan() {
        return f64::INFINITY;
    }
    one.max(other)
}
