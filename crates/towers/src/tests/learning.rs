//! Gradients and sums against plain ones in f64.

use proptest::prelude::*;

use super::kernels::{furthest_product, roundings};
use super::{further, noise};
use crate::adapter::{LinearAdapter, LinearObjective};
use crate::crossed::Crossed;
use crate::integer::Shorts;
use crate::processor::{all, whole_squares};
use crate::regression::{MOST, RandomFeatures, STEPS};
use crate::scores::scores_by;

fn on<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads").install(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn scores_are_those_of_plain_sums_whatever_is_beside_them(
        (rows, vectors, dim) in (1_usize..150, 1_usize..600, 1_usize..70), row in 0_usize..150, seed in 0_usize..1000
    ) {
        let (x, y) = (noise(seed, rows * dim), noise(seed + 1, vectors * dim));
        let [left, right] = [&x, &y].map(|values| values.chunks(dim).map(<[f32]>::to_vec).collect::<Vec<_>>());
        let row = row % rows;
        for kernel in all() {
            let found = on(2, || scores_by(&kernel, &x, &y, dim));
            let of_rows: Vec<_> = found.chunks(vectors).map(<[f32]>::to_vec).collect();
            let wrong = furthest_product(&left, &right, &vec![0.0; vectors], &of_rows);
            prop_assert!(wrong <= roundings(dim), "{kernel}: {wrong}");
            let alone = scores_by(&kernel, &left[row], &y, dim);
            prop_assert_eq!(&of_rows[row], &alone, "{}", kernel);
        }
    }

    #[test]
    fn products_of_columns_are_those_of_plain_sums(count in 1_usize..300, seed in 0_usize..1000) {
        for kernel in all() {
            let width = kernel.columns();
            let [left, right] = [seed, seed + 1].map(|seed| noise(seed, count * width));
            let mut found = vec![1.0; width * width];
            kernel.vectors.cross(Crossed { left: &left, right: &right, output: &mut found });
            let columns = |values: &[f32]| -> Vec<Vec<f32>> {
                let column = |at: usize| values.iter().copied().skip(at).step_by(width).collect();
                (0..width).map(column).collect()
            };
            let of_rows: Vec<_> = found.chunks(width).map(<[f32]>::to_vec).collect();
            let wrong = furthest_product(&columns(&left), &columns(&right), &vec![1.0; width], &of_rows);
            prop_assert!(wrong <= roundings(count + 1), "{kernel}: {wrong}");
        }
        for (kernel, squares) in whole_squares() {
            let width = kernel.columns();
            let numbers = |seed| -> Vec<Shorts> {
                let steps: Vec<u16> = noise(seed, 2 * count * width).iter().map(|x| (x.abs() * MOST) as u16).collect();
                steps.as_chunks::<2>().0.to_vec()
            };
            let (left, right) = (numbers(seed), numbers(seed + 1));
            let count = count.min(256);
            let mut found = vec![3; width * width];
            squares.cross(Crossed {
                left: &left[..count * width],
                right: &right[..count * width],
                output: &mut found,
            });
            for (at, found) in found.iter().enumerate() {
                let pairs = (0..count).map(|k| (left[k * width + at / width], right[k * width + at % width]));
                let sums = pairs.map(|(l, r)| i32::from(l[0]) * i32::from(r[0]) + i32::from(l[1]) * i32::from(r[1]));
                prop_assert_eq!(*found, 3 + sums.sum::<i32>(), "{} at {}", kernel, at);
            }
        }
    }

    #[test]
    fn sums_over_random_features_are_exact(
        count in 1_usize..700,
        dim in 1_usize..70,
        size in 1_usize..90,
        seed in 0_usize..1000,
    ) {
        let projection: Vec<f32> = noise(seed, size * dim).iter().map(|x| x * 3.0).collect();
        let rows = noise(seed + 1, count * dim);
        let classes: Vec<usize> = (0..count).map(|row| row * 3 / count).collect();
        // A sum of products, and the sum of their sizes.
        let exact = |row: usize, feature: usize| {
            let pairs = rows[row * dim..].iter().zip(&projection[feature * dim..]).take(dim);
            let products = pairs.map(|(x, r)| f64::from(*x) * f64::from(*r));
            products.fold((0.0, 0.0), |(sum, sizes), product| (sum + product, sizes + product.abs()))
        };
        for (kernel, squares) in whole_squares() {
            let name = kernel.to_string();
            let features = RandomFeatures::by(kernel, squares, &projection, dim);
            let found = features.of(&rows);
            for (at, feature) in found.iter().enumerate() {
                let (sum, sizes) = exact(at / size, at % size);
                let expected = sum.clamp(0.0, f64::from(MOST / STEPS));
                let apart = (f64::from(*feature) - expected).abs();
                let bound = 0.5 / f64::from(STEPS) + roundings(dim) * sizes;
                prop_assert!(apart <= bound, "{}: {} of {}", name, feature, expected);
            }
            let sums = |rows: &[f32], classes: &[usize]| {
                let (mut triangle, mut sums) = (vec![0.25; size * (size + 1) / 2], vec![0.0; 3 * size]);
                features.add(rows, classes, &mut triangle, &mut sums);
                (triangle, sums)
            };
            let (triangle, of_classes) = on(1, || sums(&rows, &classes));
            let mut places = (0..size).flat_map(|i| (0..=i).map(move |j| (i, j)));
            for value in &triangle {
                let (i, j) = places.next().expect("a place");
                let products = found.chunks_exact(size).map(|row| f64::from(row[i]) * f64::from(row[j]));
                let expected = 0.25 + products.sum::<f64>();
                prop_assert_eq!(value.to_bits(), expected.to_bits(), "{} at {}, {}", name, i, j);
            }
            for (at, value) in of_classes.iter().enumerate() {
                let own = found.chunks_exact(size).zip(&classes).filter(|(_, class)| **class == at / size);
                let expected = own.fold(0.0, |sum, (row, _)| sum + f64::from(row[at % size]));
                prop_assert_eq!(value.to_bits(), expected.to_bits(), "{}", name);
            }
            prop_assert!(on(3, || sums(&rows, &classes)) == (triangle, of_classes), "{}", name);
        }
    }

    #[test]
    fn gradients_of_a_linear_adapter_are_those_of_their_formula(
        count in 1_usize..300,
        dim in 2_usize..40,
        classes in 1_usize..90,
        seed in 0_usize..1000,
    ) {
        let unit = |rows: Vec<f32>| -> Vec<f32> {
            let of = rows.chunks_exact(dim);
            of.flat_map(|row| {
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter().map(move |x| x / length)
            })
            .collect()
        };
        let anchors = unit(noise(seed, classes * dim));
        let (weight, bias) = (noise(seed + 1, dim * dim), noise(seed + 2, dim));
        let x = noise(seed + 3, count * dim);
        let columns: Vec<u32> = (0..count).map(|row| (row * 7 % classes) as u32).collect();
        let adapter = LinearAdapter { weight: &weight, bias: &bias };
        let plain = Plain { adapter, anchors: &anchors, dim };
        for kernel in all() {
            let name = kernel.to_string();
            let mut objective = LinearObjective::by(kernel, &anchors, dim, 9.0);
            // What an earlier batch left behind must not matter.
            objective.gradient(adapter, &noise(seed + 4, 290 * dim), &vec![0; 290]);
            let found = on(1, || objective.gradient(adapter, &x, &columns));
            let Slopes { loss, by_weight, by_bias, steepness } = plain.gradient(&x, &columns);
            // What is seen of rounding errors, where no length is small.
            let apart = (found.loss - loss).abs();
            prop_assert!(apart < 1e-5 * loss.max(1.0) * steepness.max(1.0), "{}: {} and {}", name, found.loss, loss);
            // Of few rows slopes may nearly cancel: measured by what they are sums of.
            let scale = 9.0 / f64::from(u32::try_from(dim).expect("small")).sqrt() * steepness.max(1.0);
            for (found, expected) in [(&found.weight, &by_weight), (&found.bias, &by_bias)] {
                let pairs = found.iter().zip(expected.iter());
                let apart = pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, further);
                prop_assert!(apart < 1e-4 * scale, "{}: {}", name, apart);
            }
            let again = on(3, || objective.gradient(adapter, &x, &columns));
            prop_assert!(again.loss.to_bits() == found.loss.to_bits(), "{}", name);
            prop_assert!(again.weight == found.weight && again.bias == found.bias, "{}", name);
        }
    }
}

/// The gradient in f64, value by value.
struct Plain<'a> {
    adapter: LinearAdapter<'a>,
    anchors: &'a [f32],
    dim: usize,
}

/// The loss and how it changes with the parameters.
struct Slopes {
    loss: f64,
    by_weight: Vec<f64>,
    by_bias: Vec<f64>,
    /// How much of a rounding error of y is found in the slopes, the mean over rows: they are of y / |y|, divided by |y|.
    steepness: f64,
}

impl Plain<'_> {
    fn gradient(&self, x: &[f32], columns: &[u32]) -> Slopes {
        let dim = self.dim;
        let dot = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
        let (mut loss, mut weight, mut bias) = (0.0, vec![0.0; dim * dim], vec![0.0; dim]);
        let mut steepness = 0.0;
        for (x, own) in x.chunks_exact(dim).zip(columns) {
            let own = *own as usize;
            let wide: Vec<f64> = x.iter().copied().map(f64::from).collect();
            let rows = self.adapter.weight.chunks_exact(dim).zip(self.adapter.bias);
            let y: Vec<f64> = rows
                .map(|(row, bias)| dot(row, &wide) + f64::from(*bias))
                .collect();
            let length = y.iter().map(|y| y * y).sum::<f64>().sqrt();
            steepness += (1.0 / length).max(1.0 / length.powi(2)) / columns.len() as f64;
            let u: Vec<f64> = y.iter().map(|y| y / length).collect();
            let logits: Vec<f64> = self
                .anchors
                .chunks_exact(dim)
                .map(|anchor| 9.0 * dot(anchor, &u))
                .collect();
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let all: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
            loss += (all.ln() + most - logits[own]) / columns.len() as f64;
            let mut by_unit = vec![0.0; dim];
            for (class, (anchor, logit)) in self.anchors.chunks_exact(dim).zip(&logits).enumerate() {
                let chance = (logit - most).exp() / all - f64::from(u8::from(class == own));
                let pairs = by_unit.iter_mut().zip(anchor);
                pairs
                    .for_each(|(sum, value)| *sum += chance * 9.0 / columns.len() as f64 * f64::from(*value));
            }
            let along: f64 = by_unit.iter().zip(&u).map(|(a, b)| a * b).sum();
            for (i, (by_unit, u)) in by_unit.iter().zip(&u).enumerate() {
                let slope = (by_unit - along * u) / length;
                bias[i] += slope;
                let row = weight[i * dim..].iter_mut().zip(&wide);
                row.for_each(|(sum, x)| *sum += slope * x);
            }
        }
        Slopes {
            loss,
            by_weight: weight,
            by_bias: bias,
            steepness,
        }
    }
}

#[test]
fn rows_of_zeros_have_no_slope_and_what_is_no_number_is_seen() {
    const DIM: usize = 20;
    let (weight, anchors) = (noise(1, DIM * DIM), noise(2, 5 * DIM));
    let bias = vec![0.0; DIM];
    let adapter = LinearAdapter {
        weight: &weight,
        bias: &bias,
    };
    for kernel in all() {
        let name = kernel.to_string();
        let mut objective = LinearObjective::by(kernel, &anchors, DIM, 100.0);
        let mut x = vec![0.0; 3 * DIM];
        let found = objective.gradient(adapter, &x, &[0, 4, 2]);
        assert!(
            (found.loss - 5.0_f64.ln()).abs() < 1e-6,
            "{name}: all are as likely"
        );
        assert!(found.weight.iter().all(|slope| *slope == 0.0), "{name}");
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[DIM + 7] = value;
            let found = objective.gradient(adapter, &x, &[0, 4, 2]);
            assert!(!found.loss.is_finite(), "{name}: {}", found.loss);
        }
        x[DIM + 7] = 0.0;
        let found = objective.gradient(adapter, &x, &[0, 4, 2]);
        assert!(
            found.loss.is_finite(),
            "{name}: nothing stays of an earlier batch"
        );
    }
}

#[test]
#[should_panic(expected = "a class for each row")]
fn sums_of_rows_without_a_class_are_refused() {
    let features = RandomFeatures::new(&[1.0; 6], 3);
    features.add(&[0.5; 6], &[0], &mut [0.0; 3], &mut [0.0; 2]);
}
