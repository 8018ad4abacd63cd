//! Kernels against plain sums in f64.

use proptest::prelude::*;

use super::{further, noise};
use crate::Activation;
use crate::blocks::{Aligned, Blocks, Extent, in_panels};
use crate::elementwise::{self, Activate, Round, Softmax};
use crate::kernel::{Kernel, Vectors};
use crate::matrix::{Matrix, Output};
use crate::operand::{Left, Operand, Pair};
use crate::processor::{all, all_bf16, all_int8, all_int16};

/// Rows of values as one block.
pub(super) fn block<T: Operand>(rows: &[Vec<f32>], panel: usize) -> Blocks<T> {
    in_panels(&rows.concat(), rows[0].len(), panel)
}

/// Vectors of every width that runs here.
fn vectors() -> Vec<Box<dyn Vectors>> {
    let vectors = all().into_iter().map(|kernel| kernel.vectors);
    vectors
        .chain(all_bf16().into_iter().map(|kernel| kernel.vectors))
        .collect()
}

/// The values that pairs hold, row by row.
pub(super) fn unpaired(blocks: &Blocks<Pair>, count: usize, columns: usize) -> Vec<Vec<f32>> {
    let values = |piece: &[Pair]| {
        let lower = piece.iter().map(|pair| f32::from_bits(pair << 16));
        let upper = piece.iter().map(|pair| f32::from_bits(pair & 0xffff_0000));
        lower.chain(upper).collect::<Vec<_>>()
    };
    let row = |row| blocks.row(0, row).flat_map(values).take(columns).collect();
    (0..count).map(row).collect()
}

/// The nearest bfloat16, by way of whole numbers of units in its last place; ties to even.
pub(super) fn nearest(value: f32) -> f32 {
    if value == 0.0 {
        return value;
    }
    let unit = 2_f64.powi(f64::from(value.abs()).log2().floor() as i32 - 7);
    ((f64::from(value) / unit).round_ties_even() * unit) as f32
}

pub(super) fn rows(blocks: &Blocks, count: usize, columns: usize) -> Vec<Vec<f32>> {
    (0..count)
        .map(|row| blocks.row(0, row).flatten().copied().take(columns).collect())
        .collect()
}

pub(super) fn matrix(seed: usize, rows: usize, columns: usize) -> Vec<Vec<f32>> {
    (0..rows).map(|row| noise(seed + 31 * row, columns)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_are_those_of_plain_sums(
        count in 1_usize..40,
        inputs in 1_usize..600,
        outputs in 1_usize..80,
        seed in 0_usize..1000,
    ) {
        let left = matrix(seed, count, inputs);
        let right = matrix(seed + 7, outputs, inputs);
        let bias = noise(seed + 3, outputs);
        for kernel in all() {
            let found = product(&kernel, &left, &right, &bias);
            let wrong = furthest_product(&left, &right, &bias, &found);
            prop_assert!(wrong <= roundings(inputs + 1), "{kernel}: {wrong}");
        }
        let [left, right] = [left, right].map(|rows| {
            let nearest = |row: Vec<f32>| row.into_iter().map(nearest).collect();
            rows.into_iter().map(nearest).collect::<Vec<Vec<f32>>>()
        });
        for kernel in all_bf16() {
            let found = product(&kernel, &left, &right, &bias);
            let wrong = furthest_product(&left, &right, &bias, &found);
            prop_assert!(wrong <= roundings(inputs + 1), "{kernel}: {wrong}");
        }
    }

    #[test]
    fn products_of_whole_numbers_are_as_near_as_their_steps(
        count in 1_usize..70,
        inputs in 1_usize..2200,
        outputs in 1_usize..80,
        seed in 0_usize..1000,
        offset in -3_f32..3.0,
        size in -30_i32..30,
    ) {
        let size = 2_f32.powi(size);
        let left: Vec<Vec<f32>> = matrix(seed, count, inputs)
            .into_iter()
            .map(|row| row.into_iter().map(|x| (x + offset) * size).collect())
            .collect();
        let right = matrix(seed + 7, outputs, inputs);
        let bias: Vec<f32> = noise(seed + 3, outputs).into_iter().map(|x| x * size).collect();
        for kernel in all_int8() {
            let found = product(&kernel, &left, &right, &bias);
            prop_assert!(are_within_steps((&left, 255.0), (&right, 64.0), &bias, &found), "{kernel}");
        }
        for kernel in all_int16() {
            let found = product(&kernel, &left, &right, &bias);
            prop_assert!(are_within_steps((&left, 4095.0), (&right, 2047.0), &bias, &found), "{kernel}");
        }
    }

    #[test]
    fn pairs_hold_the_nearest_numbers(
        count in 1_usize..9,
        panels in 1_usize..4,
        seed in 0_usize..1000,
        power in -30_i32..30,
    ) {
        for vectors in all_bf16().into_iter().map(|kernel| kernel.vectors) {
            let panel = vectors.columns();
            let columns = panels * panel;
            let values: Vec<Vec<f32>> = matrix(seed, count, columns)
                .into_iter()
                .map(|row| row.into_iter().map(|x| x * 2_f32.powi(power)).collect())
                .collect();
            let wanted: Vec<Vec<f32>> = values.iter().map(|row| row.iter().copied().map(nearest).collect()).collect();
            prop_assert_eq!(&unpaired(&block(&values, panel), count, columns), &wanted);
            let from: Blocks = block(&values, panel);
            let mut to = Blocks::<Pair>::zeros(panel, count, columns, 1);
            vectors.round(Round { values: &from.values, operands: &mut to.values });
            prop_assert_eq!(&unpaired(&to, count, columns), &wanted);
        }
    }

    #[test]
    fn norms_and_softmaxes_are_those_of_plain_sums(
        count in 1_usize..9,
        panels in 1_usize..6,
        seed in 0_usize..1000,
        offset in -20_f32..20.0,
    ) {
        for vectors in vectors() {
            let panel = vectors.columns();
            let columns = panels * panel;
            let input: Vec<Vec<f32>> = matrix(seed, count, columns)
                .into_iter()
                .map(|row| row.into_iter().map(|x| 4.0 * x + offset).collect())
                .collect();
            let (weight, bias) = (noise(seed + 5, columns), noise(seed + 6, columns));
            let from: Blocks = block(&input, panel);
            let stride = from.layout.stride;
            let mut to = Blocks::<f32>::zeros(panel, count, columns, 1);
            vectors.layer_norm(elementwise::LayerNorm {
                input: &from.values,
                output: &mut to.values,
                stride,
                rows: 0..count,
                weight: &weight,
                bias: &bias,
                epsilon: 1e-5,
            });
            let mut soft: Blocks = block(&input, panel);
            vectors.softmax(Softmax { block: &mut soft.values, stride, rows: 0..count });
            let (normed, soft) = (rows(&to, count, columns), rows(&soft, count, columns));
            for ((input, normed), soft) in input.iter().zip(normed).zip(soft) {
                let x: Vec<f64> = input.iter().copied().map(f64::from).collect();
                let mean = x.iter().sum::<f64>() / columns as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
                let most = x.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
                for i in 0..columns {
                    let wanted = (x[i] - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                    prop_assert!((wanted - f64::from(normed[i])).abs() < 2e-5, "{panel} columns");
                    let wanted = (x[i] - most).exp() / sum;
                    prop_assert!((wanted - f64::from(soft[i])).abs() < 1e-6, "{panel} columns");
                }
            }
        }
    }
}

/// `left · rightᵀ + bias` by a kernel.
fn product<T: Operand>(
    kernel: &Kernel<T>,
    left: &[Vec<f32>],
    right: &[Vec<f32>],
    bias: &[f32],
) -> Vec<Vec<f32>> {
    let panel = kernel.columns();
    let (count, inputs) = (left.len(), left[0].len());
    let packed = Matrix::<T>::pack(&right.concat(), inputs, bias, panel);
    let mut out = Blocks::<f32>::zeros(panel, count, right.len(), 1);
    let extent = Extent::new(1, count);
    let mut of_rows = Left::<T>::zeros(panel, count, inputs, 1);
    of_rows.pieces = block(left, panel);
    packed.product(kernel, &mut of_rows, extent, Output::new(&mut out));
    rows(&out, count, right.len())
}

/// What a sum of so many terms in f32 may be off by, in parts of the sum of their sizes, in whatever order it is taken: each of
/// them is rounded at most so many times where nothing is too small (Higham, *Accuracy and Stability of Numerical
/// Algorithms*, section 3.1). One more is for the sum that it is compared with.
pub(super) fn roundings(terms: usize) -> f64 {
    let most = (terms + 1) as f64 * f64::from(f32::EPSILON) / 2.0;
    most / (1.0 - most)
}

/// How far a product is from what it should be, against the sizes of what is summed.
pub(super) fn furthest_product(
    left: &[Vec<f32>],
    right: &[Vec<f32>],
    bias: &[f32],
    found: &[Vec<f32>],
) -> f64 {
    let mut furthest = 0.0_f64;
    for (left, found) in left.iter().zip(found) {
        for ((right, bias), found) in right.iter().zip(bias).zip(found) {
            let products = left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r));
            let wanted = f64::from(*bias) + products.clone().sum::<f64>();
            let size = f64::from(bias.abs()) + products.map(f64::abs).sum::<f64>();
            let apart = (wanted - f64::from(*found)).abs();
            if apart != 0.0 {
                furthest = further(furthest, apart / size);
            }
        }
    }
    furthest
}

#[test]
fn the_largest_whole_numbers_do_not_overflow() {
    fn check<T: Operand>(kernels: Vec<Kernel<T>>) {
        for kernel in kernels {
            for inputs in [256, 257, 1024, 2100] {
                // Of the first, all but one have the largest number, and all weights have.
                let mut row = vec![1.0; inputs];
                row[inputs / 2] = 0.0;
                let columns = [vec![1.0; inputs], vec![-1.0; inputs]];
                let found = product(&kernel, &[row], &columns, &[0.0; 2]);
                let wanted = inputs as f32 - 1.0;
                for (found, wanted) in found[0].iter().zip([wanted, -wanted]) {
                    assert!(
                        (found - wanted).abs() < 1e-5 * wanted.abs(),
                        "{kernel}: {found} for {wanted}"
                    );
                }
            }
        }
    }
    check(all_int8());
    check(all_int16());
}

#[test]
fn rows_without_a_span_of_numbers_are_what_they_are() {
    fn check<T: Operand>(kernels: Vec<Kernel<T>>) {
        const INPUTS: usize = 64;
        let alternating = |a, b| (0..INPUTS).map(|i| if i % 2 == 0 { a } else { b }).collect();
        let rows = [
            vec![-3.0; INPUTS],
            vec![0.0; INPUTS],
            alternating(1e-40, 3e-40),
            alternating(f32::INFINITY, 1.0),
            alternating(3e38, -3e38),
            alternating(1.0, f32::NAN),
        ];
        for kernel in kernels {
            let found = product(
                &kernel,
                &rows,
                &[vec![0.5; INPUTS], vec![0.0; INPUTS]],
                &[0.25; 2],
            );
            for (row, wanted) in [(0, 0.25 - 96.0), (1, 0.25), (2, 0.25)] {
                assert!(
                    (found[row][0] - wanted).abs() < 1e-4,
                    "{kernel}: {:?}",
                    found[row]
                );
                assert!((found[row][1] - 0.25).abs() < 1e-6, "{kernel}: {:?}", found[row]);
            }
            for row in &found[3..] {
                assert!(row.iter().all(|value| value.is_nan()), "{kernel}: {row:?}");
            }
        }
    }
    check(all_int8());
    check(all_int16());
}

/// Whether a product is off by no more than what rounding may do: half a step of the numbers of each row and of each column,
/// which have so many steps between least and most, and between 0 and the largest.
fn are_within_steps(
    (left, levels): (&[Vec<f32>], f64),
    (right, largest): (&[Vec<f32>], f64),
    bias: &[f32],
    found: &[Vec<f32>],
) -> bool {
    let doubles = |row: &[f32]| row.iter().copied().map(f64::from).collect::<Vec<_>>();
    let right: Vec<_> = right.iter().map(|row| doubles(row)).collect();
    left.iter().zip(found).all(|(left, found)| {
        let left = doubles(left);
        // What pads a row is part of it.
        let most = left.iter().copied().fold(0.0, f64::max);
        let least = left.iter().copied().fold(0.0, f64::min);
        let row_step = (most - least) / levels;
        right.iter().zip(bias).zip(found).all(|((right, bias), found)| {
            let column_step = right.iter().map(|w| w.abs()).fold(0.0, f64::max) / largest;
            let pairs = || left.iter().zip(right);
            let wanted = f64::from(*bias) + pairs().map(|(x, w)| x * w).sum::<f64>();
            let off = |(x, w): (&f64, &f64)| {
                (x.abs() * column_step + w.abs() * row_step + row_step * column_step / 2.0) / 2.0
            };
            // Sums in f32 add their own.
            let sizes = f64::from(bias.abs()) + (most - least) * right.iter().map(|w| w.abs()).sum::<f64>();
            let bound = pairs().map(off).sum::<f64>() + 1e-5 * sizes;
            (wanted - f64::from(*found)).abs() <= bound
        })
    })
}

/// The error function, by its series and, where that cancels, by its limit.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

#[test]
fn activations_are_those_of_their_formulas() {
    let inputs: Vec<f32> = (-1280..1280).map(|i| i as f32 / 64.0).collect();
    for vectors in vectors() {
        let columns = vectors.columns();
        let of = |activation| {
            let mut values = Aligned::zeros(inputs.len());
            values.copy_from_slice(&inputs);
            vectors.activate(Activate {
                values: &mut values,
                activation,
            });
            values.to_vec()
        };
        for (x, y) in inputs.iter().zip(of(Activation::QuickGelu)) {
            let wanted = f64::from(*x) / (1.0 + (-1.702 * f64::from(*x)).exp());
            assert!(
                (wanted - f64::from(y)).abs() < 2e-6 * wanted.abs().max(1.0),
                "{columns} columns: {x}"
            );
        }
        for (x, y) in inputs.iter().zip(of(Activation::Gelu)) {
            let wanted = f64::from(*x) * (1.0 + erf(f64::from(*x) / 2_f64.sqrt())) / 2.0;
            assert!(
                (wanted - f64::from(y)).abs() < 2e-6 * wanted.abs().max(1.0),
                "{columns} columns: {x}"
            );
        }
    }
}
