//! What a forward allocates once its memory is there: the features that it returns, and which inputs are whose.

use std::borrow::Cow;

use clipkeep_towers::{
    Activation, ImageShape, ImageTower, Instructions, Precision, TextShape, TextTower, Transformer,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// As wide as one whose products are made of halves where that is faster.
const TRANSFORMER: Transformer = Transformer {
    width: 512,
    mlp_width: 1024,
    layers: 2,
    heads: 8,
    activation: Activation::QuickGelu,
    layer_norm_epsilon: 1e-5,
};

const SHAPE: ImageShape = ImageShape {
    image_size: 64,
    patch_size: 16,
    transformer: TRANSFORMER,
    dim: 64,
};

const TEXTS: TextShape = TextShape {
    context_length: 20,
    transformer: TRANSFORMER,
    dim: SHAPE.dim,
};

/// Bytes a forward besides features: far fewer than the activations of one image.
const BESIDES: u64 = 4096;
/// Allocations a forward.
const ALLOCATIONS: u64 = 16;
const FORWARDS: u64 = 8;
const TIMES: usize = 4;

/// Small weights without a pattern.
fn weights() -> impl FnMut(&str, &[usize]) -> Result<Cow<'static, [f32]>, ()> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    move |_, shape| {
        let values = (0..shape.iter().product()).map(|_| random.random_range(-0.05..0.05));
        Ok(values.collect())
    }
}

/// Bytes that are mapped: matrices and activations are no allocations. On Linux alone.
fn mapped() -> u64 {
    const PAGE: u64 = 4096;
    let sizes = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = sizes
        .split(' ')
        .next()
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.map_or(0, |pages| pages * PAGE)
}

/// What forwards take, once the first ones have taken what they need: allocated bytes and allocations of each, and mapped bytes of
/// all of them together. Of several times the least: a thread may be late to take what it needs, and does so once.
fn taken(forward: impl Fn() -> Vec<f32>) -> (u64, u64, u64) {
    let all = || {
        for _ in 0..FORWARDS {
            forward();
        }
    };
    all();
    let times = (0..TIMES).map(|_| {
        let before = (mapped(), dhat::HeapStats::get());
        all();
        let after = (dhat::HeapStats::get(), mapped());
        let bytes = after.0.total_bytes - before.1.total_bytes;
        let blocks = after.0.total_blocks - before.1.total_blocks;
        (
            bytes / FORWARDS,
            blocks / FORWARDS,
            after.1.saturating_sub(before.0),
        )
    });
    let least = |least: (u64, u64, u64), time: (u64, u64, u64)| {
        (least.0.min(time.0), least.1.min(time.1), least.2.min(time.2))
    };
    times.reduce(least).unwrap_or_default()
}

#[test]
fn forwards_use_their_memory_again() {
    let _profiler = dhat::Profiler::builder()
        .testing()
        .trim_backtraces(Some(4))
        .build();
    assert!(SHAPE.tokens() * TRANSFORMER.width * size_of::<f32>() > 4 * BESIDES as usize);
    let check = |name: &str, rows: usize, forward: &dyn Fn() -> Vec<f32>| {
        let (bytes, allocations, mapped) = taken(forward);
        let features = (rows * SHAPE.dim * size_of::<f32>()) as u64;
        assert!(
            bytes <= features + BESIDES && allocations <= ALLOCATIONS && mapped == 0,
            "{name}, {rows} at a time: {bytes} bytes in {allocations} allocations a forward, and {mapped} mapped by all"
        );
    };
    for precision in [Precision::F32, Precision::Bf16, Precision::Int16, Precision::Int8] {
        for instructions in Instructions::made_for(&TRANSFORMER, precision) {
            let name = instructions.to_string();
            let tower = ImageTower::load(SHAPE, instructions, &mut weights()).expect("weights");
            for images in [1, 9] {
                let bytes = vec![200; images * SHAPE.bytes()];
                check(&name, images, &|| tower.forward(&bytes, None));
            }
        }
        for instructions in Instructions::made_for_texts(&TRANSFORMER, precision) {
            let name = instructions.to_string();
            let tower = TextTower::load(TEXTS, instructions, &mut weights()).expect("weights");
            for lengths in [&[9][..], &[3, TEXTS.context_length, 7]] {
                let embeddings = vec![0.5; lengths.iter().sum::<usize>() * TRANSFORMER.width];
                check(&name, lengths.len(), &|| tower.forward(&embeddings, lengths));
            }
        }
    }
}
