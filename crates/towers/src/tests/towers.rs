//! Towers by all kinds of instructions against one another, and against themselves in other company.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{bytes, noise};
use crate::{Activation, ImageShape, ImageTower, Instructions, Precision, TextShape, TextTower, Transformer};

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

/// How far features by different instructions may be apart. What is rounded in between is rounded to the other side now and
/// then.
const APART: [(Precision, f32); 4] = [
    (Precision::F32, 1e-4),
    (Precision::Bf16, 3e-2),
    (Precision::Int16, 4e-3),
    (Precision::Int8, 3e-2),
];

/// The cosine that features keep at least with those of f32.
const LEAST: [(Precision, f64); 3] = [
    (Precision::Bf16, 0.9995),
    (Precision::Int16, 0.9999),
    (Precision::Int8, 0.996),
];

/// Weights without a pattern, of a size that keeps products from growing; those of patches are for bytes. A name's are always the
/// same.
pub(super) fn weights<E>() -> impl FnMut(&str, &[usize]) -> Result<Cow<'static, [f32]>, E> {
    |name, shape| {
        let seed = name.bytes().fold(0_usize, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(byte.into())
        });
        let len: usize = shape.iter().product();
        let spread = match shape.len() {
            0 | 1 => 1.0,
            4 => (3.0 / (len / shape[0]) as f32).sqrt() / 128.0,
            _ => (3.0 / (len / shape[0]) as f32).sqrt(),
        };
        Ok(noise(seed, len).into_iter().map(|x| x * spread).collect())
    }
}

/// The image tower by each kind of instructions that suits it, with the same weights.
fn towers(precision: Precision) -> Vec<ImageTower> {
    let tower = |instructions| ImageTower::load::<()>(SMALL, instructions, &mut weights()).expect("weights");
    let instructions = Instructions::suiting(&TRANSFORMER, precision);
    instructions.into_iter().map(tower).collect()
}

/// As many text towers.
fn text_towers(precision: Precision) -> Vec<TextTower> {
    let tower = |instructions| TextTower::load::<()>(TEXTS, instructions, &mut weights()).expect("weights");
    let instructions = Instructions::suiting(&TRANSFORMER, precision);
    instructions.into_iter().map(tower).collect()
}

fn all_towers() -> Vec<ImageTower> {
    let mut all = towers(Precision::F32);
    for precision in [Precision::Bf16, Precision::Int16, Precision::Int8] {
        all.extend(towers(precision));
    }
    all
}

fn all_text_towers() -> Vec<TextTower> {
    let mut all = text_towers(Precision::F32);
    for precision in [Precision::Bf16, Precision::Int16, Precision::Int8] {
        all.extend(text_towers(precision));
    }
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

pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn all_instructions_give_the_same() {
    let pixels = bytes(1, 3 * PIXELS);
    for (precision, apart) in APART {
        let towers = towers(precision);
        assert!(towers.len() > 1, "there are portable ones and others");
        // Says which ones this processor compares.
        let names: Vec<String> = towers.iter().map(ImageTower::to_string).collect();
        eprintln!("compared {}", names.join(", "));
        let mut states = Vec::new();
        let is_in_halves = |tower: &&ImageTower| tower.to_string().starts_with("strassen");
        let whole = towers.iter().find(|tower| !is_in_halves(tower));
        let features = whole.expect("whole ones").forward(&pixels, Some(&mut states));
        assert_eq!(features.len(), 3 * SMALL.dim);
        assert_eq!(states.len(), 3 * SMALL.tokens() * TRANSFORMER.width);
        for tower in &towers {
            assert_eq!(tower.precision(), precision);
            let mut others = Vec::new();
            let found = tower.forward(&pixels, Some(&mut others));
            let differences = (furthest(&found, &features), furthest(&others, &states));
            let apart = if is_in_halves(&tower) { 2.0 * apart } else { apart };
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
fn rounding_keeps_directions() {
    let pixels = bytes(4, 5 * PIXELS);
    let wanted = towers(Precision::F32)[0].forward(&pixels, None);
    for (precision, least) in LEAST {
        for tower in towers(precision) {
            let found = tower.forward(&pixels, None);
            assert_ne!(found, wanted, "{tower} rounds");
            for (found, wanted) in found.chunks(SMALL.dim).zip(wanted.chunks(SMALL.dim)) {
                let cosine = cosine(found, wanted);
                assert!(cosine > least, "{tower}: {cosine}");
            }
        }
    }
}

#[test]
fn features_depend_on_neither_neighbours_nor_the_number_of_threads() {
    let pixels = bytes(2, 70 * PIXELS);
    for tower in all_towers() {
        let (mut states, mut states_alone) = (Vec::new(), Vec::new());
        let together = tower.forward(&pixels, Some(&mut states));
        let alone: Vec<f32> = pixels
            .chunks(PIXELS)
            .flat_map(|image| tower.forward(image, Some(&mut states_alone)))
            .collect();
        assert_eq!(together, alone, "{tower}");
        assert!(states == states_alone, "{tower}");
        let (images, mut in_step) = (pixels.chunks(PIXELS).collect::<Vec<_>>(), Vec::new());
        let found = tower.forward_pausing(&images, Some(&mut in_step), Some(&|| ()));
        assert!(found == alone && in_step == states, "{tower}: in step");
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let found = pool.expect("threads").install(|| tower.forward(&pixels, None));
            assert!(found == together, "{tower}: {threads} threads");
        }
        assert!(tower.forward(&[], None).is_empty());
    }
}

#[test]
fn forwards_in_a_pause_change_nothing() {
    let pixels = bytes(5, 4 * PIXELS);
    let (images, others) = pixels.split_at(3 * PIXELS);
    let images: Vec<&[u8]> = images.chunks(PIXELS).collect();
    for tower in all_towers() {
        let wanted = tower.forward(others, None);
        let pauses = AtomicUsize::new(0);
        let pause = || {
            pauses.fetch_add(1, Ordering::Relaxed);
            assert!(rayon::current_thread_index().is_some(), "a thread of the pool");
            assert_eq!(tower.forward(others, None), wanted, "{tower}");
        };
        let found = tower.forward_pausing(&images, None, Some(&pause));
        assert_eq!(found, tower.forward(&pixels[..3 * PIXELS], None), "{tower}");
        let pauses = pauses.into_inner();
        assert!(pauses > TRANSFORMER.layers, "{tower}: {pauses}");
    }
}

#[test]
fn a_panic_in_a_pause_is_the_callers_and_costs_its_forward_alone() {
    let pixels = bytes(8, 3 * PIXELS);
    let images: Vec<&[u8]> = pixels.chunks(PIXELS).collect();
    let tower = &towers(Precision::F32)[0];
    let wanted = tower.forward(&pixels, None);
    let panics = || std::panic::panic_any("enough");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tower.forward_pausing(&images, None, Some(&panics))
    }));
    let reason = ended.expect_err("a panic");
    assert_eq!(reason.downcast_ref(), Some(&"enough"));
    assert_eq!(tower.forward_pausing(&images, None, Some(&|| ())), wanted);
}

#[test]
fn texts_in_a_pause_of_others_change_nothing() {
    let (lengths, few) = ([5, 77, 30], [9, 4]);
    let (texts, others) = (embeddings(6, &lengths), embeddings(7, &few));
    for tower in all_text_towers() {
        let wanted = tower.forward(&others, &few);
        let pauses = AtomicUsize::new(0);
        let pause = || {
            pauses.fetch_add(1, Ordering::Relaxed);
            assert!(rayon::current_thread_index().is_some(), "a thread of the pool");
            assert_eq!(tower.forward(&others, &few), wanted, "{tower}");
        };
        let found = tower.forward_pausing(&texts, &lengths, Some(&pause));
        assert_eq!(found, tower.forward(&texts, &lengths), "{tower}");
        let pauses = pauses.into_inner();
        assert!(pauses > TRANSFORMER.layers, "{tower}: {pauses}");
    }
}

#[test]
fn all_instructions_read_texts_alike() {
    let lengths = [7, 77, 1, 16, 64, 65, 3];
    let texts = embeddings(5, &lengths);
    let exact = text_towers(Precision::F32)[0].forward(&texts, &lengths);
    assert_eq!(exact.len(), lengths.len() * TEXTS.dim);
    for (precision, apart) in APART {
        let towers = text_towers(precision);
        let wanted = towers[0].forward(&texts, &lengths);
        for tower in &towers {
            assert_eq!(tower.precision(), precision);
            let found = tower.forward(&texts, &lengths);
            let difference = furthest(&found, &wanted);
            assert!(difference < apart, "{tower}: {difference}");
            for (found, exact) in found.chunks(TEXTS.dim).zip(exact.chunks(TEXTS.dim)) {
                let cosine = cosine(found, exact);
                let least = LEAST.iter().find(|(rounded, _)| *rounded == precision);
                let least = least.map_or(0.99999, |(_, least)| *least);
                assert!(cosine > least, "{tower}: {cosine}");
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
    let tower = |instructions| TextTower::load::<()>(shape, instructions, &mut weights()).expect("weights");
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
