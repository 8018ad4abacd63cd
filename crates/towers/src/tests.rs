//! Kernels against plain sums in f64, and towers against one another.

use proptest::prelude::*;

use super::*;
use crate::blocks::{Aligned, Blocks, Extent, in_panels};
use crate::elementwise::{self, Activate, Round, Softmax};
use crate::kernel::{Vectors, all, all_bf16};
use crate::matrix::{Matrix, Start};
use crate::operand::Operand;

/// Numbers without a pattern, between -1 and 1.
fn noise(seed: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| (((i + 1) * (2 * seed + 1)) as f64 * 12.9898).sin() as f32)
        .collect()
}

/// Rows of values as one block.
fn block<T: Operand>(rows: &[Vec<f32>], panel: usize) -> Blocks<T> {
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
fn unpaired(blocks: &Blocks<Pair>, count: usize, columns: usize) -> Vec<Vec<f32>> {
    let values = |piece: &[Pair]| {
        let lower = piece.iter().map(|pair| f32::from_bits(pair << 16));
        let upper = piece.iter().map(|pair| f32::from_bits(pair & 0xffff_0000));
        lower.chain(upper).collect::<Vec<_>>()
    };
    let row = |row| blocks.row(0, row).flat_map(values).take(columns).collect();
    (0..count).map(row).collect()
}

/// The nearest bfloat16, by way of whole numbers of units in its last place; ties to even.
fn nearest(value: f32) -> f32 {
    let unit = 2_f64.powi(f64::from(value.abs()).log2().floor() as i32 - 7);
    ((f64::from(value) / unit).round_ties_even() * unit) as f32
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
            let found = product(&kernel, &left, &right, &bias);
            let wrong = furthest_product(&left, &right, &bias, &found);
            prop_assert!(wrong < 1e-5, "{kernel}: {wrong}");
        }
        let [left, right] = [left, right].map(|rows| {
            let nearest = |row: Vec<f32>| row.into_iter().map(nearest).collect();
            rows.into_iter().map(nearest).collect::<Vec<Vec<f32>>>()
        });
        for kernel in all_bf16() {
            let found = product(&kernel, &left, &right, &bias);
            let wrong = furthest_product(&left, &right, &bias, &found);
            prop_assert!(wrong < 1e-5, "{kernel}: {wrong}");
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
    let extent = Extent {
        blocks: 1,
        rows: count,
    };
    packed.product(kernel, &block(left, panel), extent, &mut out, Start::Bias, None);
    rows(&out, count, right.len())
}

/// How far a product is from what it should be, against the sizes of what is summed.
fn furthest_product(left: &[Vec<f32>], right: &[Vec<f32>], bias: &[f32], found: &[Vec<f32>]) -> f64 {
    let mut furthest = 0.0_f64;
    for (left, found) in left.iter().zip(found) {
        for ((right, bias), found) in right.iter().zip(bias).zip(found) {
            let products = left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r));
            let wanted = f64::from(*bias) + products.clone().sum::<f64>();
            let size = 1.0 + products.map(f64::abs).sum::<f64>();
            let apart = (wanted - f64::from(*found)).abs() / size;
            // What is no number is further than anything.
            furthest = if apart <= furthest { furthest } else { apart };
        }
    }
    furthest
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

/// A small transformer: tokens that fill no group of rows.
const TRANSFORMER: Transformer = Transformer {
    width: 192,
    mlp_width: 256,
    layers: 2,
    heads: 3,
    activation: Activation::Gelu,
    layer_norm_epsilon: 1e-5,
};

/// A small tower of an odd shape: patches and features that fill no panel.
const SMALL: ImageShape = ImageShape {
    image_size: 31,
    patch_size: 7,
    transformer: TRANSFORMER,
    dim: 37,
};

const PIXELS: usize = 3 * SMALL.image_size * SMALL.image_size;

/// A small text tower.
const TEXTS: TextShape = TextShape {
    context_length: 77,
    transformer: TRANSFORMER,
    dim: 37,
};

/// Weights without a pattern, of a size that keeps products from growing.
fn weights() -> impl FnMut(&str, &[usize]) -> Result<Vec<f32>, ()> {
    let mut seed = 0;
    move |_, shape| {
        seed += 1;
        let len: usize = shape.iter().product();
        let spread = if shape.len() > 1 {
            (3.0 / (len / shape[0]) as f32).sqrt()
        } else {
            1.0
        };
        Ok(noise(seed, len).into_iter().map(|x| x * spread).collect())
    }
}

/// The image tower by each kind of instructions that suits it, with the same weights.
fn towers(precision: Precision) -> Vec<ImageTower> {
    let tower = |instructions| ImageTower::load(SMALL, instructions, &mut weights()).expect("weights");
    let instructions = Instructions::suiting(&TRANSFORMER, precision);
    instructions.into_iter().map(tower).collect()
}

/// As many text towers.
fn text_towers(precision: Precision) -> Vec<TextTower> {
    let tower = |instructions| TextTower::load(TEXTS, instructions, &mut weights()).expect("weights");
    let instructions = Instructions::suiting(&TRANSFORMER, precision);
    instructions.into_iter().map(tower).collect()
}

fn all_towers() -> Vec<ImageTower> {
    let mut all = towers(Precision::F32);
    all.extend(towers(Precision::Bf16));
    all
}

fn all_text_towers() -> Vec<TextTower> {
    let mut all = text_towers(Precision::F32);
    all.extend(text_towers(Precision::Bf16));
    all
}

/// Embeddings of texts with these lengths.
fn embeddings(seed: usize, lengths: &[usize]) -> Vec<f32> {
    noise(seed, lengths.iter().sum::<usize>() * TRANSFORMER.width)
}

/// The largest difference of two rows.
fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, |most, apart| if apart <= most { most } else { apart })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn all_instructions_give_the_same() {
    let pixels = noise(1, 3 * PIXELS);
    // What is rounded in between is rounded to the other side now and then.
    for (precision, apart) in [(Precision::F32, 1e-4), (Precision::Bf16, 3e-2)] {
        let towers = towers(precision);
        assert!(towers.len() > 1, "there are portable ones and others");
        // Says which ones this processor compares.
        let names: Vec<String> = towers.iter().map(ImageTower::to_string).collect();
        eprintln!("compared {}", names.join(", "));
        let mut states = Vec::new();
        let features = towers[0].forward(&pixels, Some(&mut states));
        assert_eq!(features.len(), 3 * SMALL.dim);
        assert_eq!(states.len(), 3 * SMALL.tokens() * TRANSFORMER.width);
        for tower in &towers {
            assert_eq!(tower.precision(), precision);
            let mut others = Vec::new();
            let found = tower.forward(&pixels, Some(&mut others));
            let differences = (furthest(&found, &features), furthest(&others, &states));
            assert!(
                differences.0 < apart && differences.1 < apart,
                "{tower}: {differences:?}"
            );
            assert_eq!(
                tower.forward(&pixels, None),
                found,
                "{tower}: the same bits without the states"
            );
        }
    }
}

#[test]
fn bfloat16_keeps_directions() {
    let pixels = noise(4, 5 * PIXELS);
    let wanted = towers(Precision::F32)[0].forward(&pixels, None);
    for tower in towers(Precision::Bf16) {
        let found = tower.forward(&pixels, None);
        assert_ne!(found, wanted, "{tower} rounds");
        for (found, wanted) in found.chunks(SMALL.dim).zip(wanted.chunks(SMALL.dim)) {
            let cosine = cosine(found, wanted);
            assert!(cosine > 0.9995, "{tower}: {cosine}");
        }
    }
}

#[test]
fn features_depend_on_neither_neighbours_nor_the_number_of_threads() {
    let pixels = noise(2, 70 * PIXELS);
    for tower in all_towers() {
        let together = tower.forward(&pixels, None);
        let alone: Vec<f32> = pixels
            .chunks(PIXELS)
            .flat_map(|image| tower.forward(image, None))
            .collect();
        assert_eq!(together, alone, "{tower}");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .expect("threads");
        assert_eq!(pool.install(|| tower.forward(&pixels, None)), together, "{tower}");
        assert!(tower.forward(&[], None).is_empty());
    }
}

#[test]
fn what_is_no_number_reaches_the_features_of_its_image_alone() {
    let mut pixels = noise(3, 3 * PIXELS);
    pixels[PIXELS + 1000] = f32::NAN;
    for tower in all_towers() {
        // Twice: what the first leaves behind must not matter.
        for _ in 0..2 {
            let features = tower.forward(&pixels, None);
            for (image, features) in features.chunks(SMALL.dim).enumerate() {
                let is_wrong = |value: &f32| value.is_nan() == (image == 1);
                assert!(features.iter().all(is_wrong), "{tower}: image {image}");
            }
        }
        assert!(
            tower
                .forward(&pixels[..PIXELS], None)
                .iter()
                .all(|value| !value.is_nan())
        );
    }
}

#[test]
fn all_instructions_read_texts_alike() {
    let lengths = [7, 77, 1, 16, 64, 65, 3];
    let texts = embeddings(5, &lengths);
    let exact = text_towers(Precision::F32)[0].forward(&texts, &lengths);
    assert_eq!(exact.len(), lengths.len() * TEXTS.dim);
    for (precision, apart) in [(Precision::F32, 1e-4), (Precision::Bf16, 3e-2)] {
        let towers = text_towers(precision);
        let wanted = towers[0].forward(&texts, &lengths);
        for tower in &towers {
            assert_eq!(tower.precision(), precision);
            let found = tower.forward(&texts, &lengths);
            let difference = furthest(&found, &wanted);
            assert!(difference < apart, "{tower}: {difference}");
            for (found, exact) in found.chunks(TEXTS.dim).zip(exact.chunks(TEXTS.dim)) {
                let cosine = cosine(found, exact);
                assert!(cosine > 0.9995, "{tower}: {cosine}");
            }
        }
    }
}

#[test]
fn a_text_is_read_alike_in_any_company_and_by_any_number_of_threads() {
    // More than are read at a time.
    let lengths: Vec<usize> = (0..140)
        .map(|text| if text % 20 == 0 { 77 } else { 1 + text * 31 % 23 })
        .collect();
    let texts = embeddings(6, &lengths);
    for tower in all_text_towers() {
        let together = tower.forward(&texts, &lengths);
        let (mut rest, mut alone) = (texts.as_slice(), Vec::new());
        for length in &lengths {
            let (text, after) = rest.split_at(length * TRANSFORMER.width);
            alone.extend(tower.forward(text, &[*length]));
            rest = after;
        }
        assert!(together == alone, "{tower}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let found = pool.expect("threads").install(|| tower.forward(&texts, &lengths));
        assert!(found == together, "{tower}");
        assert!(tower.forward(&[], &[]).is_empty());
    }
}

#[test]
fn what_is_no_number_reaches_the_features_of_its_text_alone() {
    let lengths = [5, 40, 9, 77, 2];
    let mut texts = embeddings(7, &lengths);
    texts[(5 + 3) * TRANSFORMER.width] = f32::NAN;
    for tower in all_text_towers() {
        for _ in 0..2 {
            let features = tower.forward(&texts, &lengths);
            for (text, features) in features.chunks(TEXTS.dim).enumerate() {
                let is_wrong = |value: &f32| value.is_nan() == (text == 1);
                assert!(features.iter().all(is_wrong), "{tower}: text {text}");
            }
        }
    }
}

#[test]
fn a_text_may_be_longer_than_a_block_usually_is() {
    let shape = TextShape {
        context_length: 150,
        ..TEXTS
    };
    let lengths = [150, 9, 150];
    let texts = embeddings(9, &lengths);
    let tower = |instructions| TextTower::load(shape, instructions, &mut weights()).expect("weights");
    let instructions = Instructions::suiting(&TRANSFORMER, Precision::F32);
    let found: Vec<_> = instructions
        .into_iter()
        .map(|instructions| tower(instructions).forward(&texts, &lengths))
        .collect();
    assert_eq!(found[0].len(), 3 * shape.dim);
    for other in &found[1..] {
        assert!(furthest(other, &found[0]) < 1e-4);
    }
}

#[test]
fn tokens_see_what_is_before_them() {
    let lengths = [20];
    let texts = embeddings(8, &lengths);
    for tower in all_text_towers() {
        let of = |length: usize| tower.forward(&texts[..length * TRANSFORMER.width], &[length]);
        let mut changed = texts.clone();
        changed[0] += 1.0;
        assert_ne!(
            tower.forward(&changed, &lengths),
            of(20),
            "{tower}: the first counts"
        );
        assert_ne!(of(19), of(20));
    }
}
