//! Kernels against plain sums in f64, and towers against one another.

use proptest::prelude::*;

use super::*;
use crate::blocks::Aligned;
use crate::elementwise::{self, Activate, Softmax};
use crate::kernel::all;

/// Numbers without a pattern, between -1 and 1.
fn noise(seed: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| (((i + 1) * (2 * seed + 1)) as f64 * 12.9898).sin() as f32)
        .collect()
}

/// Rows of values as one block.
fn block(rows: &[Vec<f32>], panel: usize) -> Blocks {
    in_panels(&rows.concat(), rows[0].len(), panel)
}

fn rows(blocks: &Blocks, count: usize, columns: usize) -> Vec<Vec<f32>> {
    (0..count)
        .map(|row| blocks.row(0, row).flatten().copied().take(columns).collect())
        .collect()
}

fn matrix(seed: usize, rows: usize, columns: usize) -> Vec<Vec<f32>> {
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
            let panel = kernel.columns();
            let packed = Matrix::pack(&right.concat(), inputs, &bias, panel);
            let mut out = Blocks::zeros(Layout::new(panel, count, outputs), 1);
            packed.product(kernel.as_ref(), &block(&left, panel), Extent { blocks: 1, rows: count }, &mut out, Start::Bias, None);
            for (left, found) in left.iter().zip(rows(&out, count, outputs)) {
                for ((right, bias), found) in right.iter().zip(&bias).zip(found) {
                    let products = left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r));
                    let wanted = f64::from(*bias) + products.clone().sum::<f64>();
                    let size = 1.0 + products.map(f64::abs).sum::<f64>();
                    let apart = (wanted - f64::from(found)).abs();
                    prop_assert!(apart < 1e-5 * size, "{}: {found}, not {wanted}", kernel.name());
                }
            }
        }
    }

    #[test]
    fn norms_and_softmaxes_are_those_of_plain_sums(
        count in 1_usize..9,
        panels in 1_usize..6,
        seed in 0_usize..1000,
        offset in -20_f32..20.0,
    ) {
        for kernel in all() {
            let panel = kernel.columns();
            let columns = panels * panel;
            let input: Vec<Vec<f32>> = matrix(seed, count, columns)
                .into_iter()
                .map(|row| row.into_iter().map(|x| 4.0 * x + offset).collect())
                .collect();
            let (weight, bias) = (noise(seed + 5, columns), noise(seed + 6, columns));
            let from = block(&input, panel);
            let mut to = Blocks::zeros(from.layout, 1);
            kernel.layer_norm(elementwise::LayerNorm {
                input: &from.values,
                output: &mut to.values,
                stride: from.layout.stride,
                rows: 0..count,
                weight: &weight,
                bias: &bias,
                epsilon: 1e-5,
            });
            let mut soft = block(&input, panel);
            let stride = soft.layout.stride;
            kernel.softmax(Softmax { block: &mut soft.values, stride, rows: 0..count });
            let (normed, soft) = (rows(&to, count, columns), rows(&soft, count, columns));
            for ((input, normed), soft) in input.iter().zip(normed).zip(soft) {
                let x: Vec<f64> = input.iter().copied().map(f64::from).collect();
                let mean = x.iter().sum::<f64>() / columns as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
                let most = x.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
                for i in 0..columns {
                    let wanted = (x[i] - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                    prop_assert!((wanted - f64::from(normed[i])).abs() < 2e-5, "{}", kernel.name());
                    let wanted = (x[i] - most).exp() / sum;
                    prop_assert!((wanted - f64::from(soft[i])).abs() < 1e-6, "{}", kernel.name());
                }
            }
        }
    }
}

/// The error function, by its series and, where that cancels, by its limit.
fn erf(x: f64) -> f64 {
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
    for kernel in all() {
        let of = |activation| {
            let mut values = Aligned::zeros(inputs.len());
            values.copy_from_slice(&inputs);
            kernel.activate(Activate {
                values: &mut values,
                activation,
            });
            values.to_vec()
        };
        for (x, y) in inputs.iter().zip(of(Activation::QuickGelu)) {
            let wanted = f64::from(*x) / (1.0 + (-1.702 * f64::from(*x)).exp());
            assert!(
                (wanted - f64::from(y)).abs() < 2e-6 * wanted.abs().max(1.0),
                "{}: {x}",
                kernel.name()
            );
        }
        for (x, y) in inputs.iter().zip(of(Activation::Gelu)) {
            let wanted = f64::from(*x) * (1.0 + erf(f64::from(*x) / 2_f64.sqrt())) / 2.0;
            assert!(
                (wanted - f64::from(y)).abs() < 2e-6 * wanted.abs().max(1.0),
                "{}: {x}",
                kernel.name()
            );
        }
    }
}

/// A small tower of an odd shape: patches and features that fill no panel, tokens that fill no group of rows.
const SMALL: Shape = Shape {
    image_size: 31,
    patch_size: 7,
    width: 192,
    mlp_width: 256,
    layers: 2,
    heads: 3,
    activation: Activation::Gelu,
    layer_norm_epsilon: 1e-5,
    dim: 37,
};

const PIXELS: usize = 3 * SMALL.image_size * SMALL.image_size;

/// The tower by each kind of instructions that suits it, with the same weights.
fn towers() -> Vec<Tower> {
    let tower = |instructions| {
        let mut seed = 0;
        let mut take = |_: &str, shape: &[usize]| {
            seed += 1;
            let len: usize = shape.iter().product();
            let spread = if shape.len() > 1 {
                (3.0 / (len / shape[0]) as f32).sqrt()
            } else {
                1.0
            };
            Ok::<_, ()>(noise(seed, len).into_iter().map(|x| x * spread).collect())
        };
        Tower::load(SMALL, instructions, &mut take).expect("made-up weights")
    };
    Instructions::for_shape(&SMALL).into_iter().map(tower).collect()
}

#[test]
fn all_instructions_give_the_same() {
    let towers = towers();
    assert!(towers.len() > 1, "there are portable ones and others");
    let pixels = noise(1, 3 * PIXELS);
    let mut states = Vec::new();
    let features = towers[0].forward(&pixels, Some(&mut states));
    assert_eq!(features.len(), 3 * SMALL.dim);
    assert_eq!(states.len(), 3 * SMALL.tokens() * SMALL.width);
    let close =
        |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    for tower in &towers {
        let mut others = Vec::new();
        let found = tower.forward(&pixels, Some(&mut others));
        assert!(
            close(&found, &features) && close(&others, &states),
            "{}",
            tower.instructions()
        );
        assert_eq!(
            tower.forward(&pixels, None),
            found,
            "the same bits without the states"
        );
    }
}

#[test]
fn features_depend_on_neither_neighbours_nor_the_number_of_threads() {
    let pixels = noise(2, 70 * PIXELS);
    for tower in towers() {
        let together = tower.forward(&pixels, None);
        let alone: Vec<f32> = pixels
            .chunks(PIXELS)
            .flat_map(|image| tower.forward(image, None))
            .collect();
        assert_eq!(together, alone);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .expect("threads");
        assert_eq!(pool.install(|| tower.forward(&pixels, None)), together);
    }
    assert!(towers()[0].forward(&[], None).is_empty());
}

#[test]
fn what_is_no_number_reaches_the_features() {
    let mut pixels = noise(3, PIXELS);
    pixels[1000] = f32::NAN;
    for tower in towers() {
        let features = tower.forward(&pixels, None);
        assert!(
            features.iter().all(|value| value.is_nan()),
            "{}",
            tower.instructions()
        );
    }
}
