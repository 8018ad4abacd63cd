//! What a forward allocates once its memory is there: the features that it returns, and which images are whose.

use std::borrow::Cow;

use clipkeep_towers::{Activation, ImageShape, ImageTower, Instructions, Precision, Transformer};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const TRANSFORMER: Transformer = Transformer {
    width: 256,
    mlp_width: 512,
    layers: 2,
    heads: 4,
    activation: Activation::QuickGelu,
    layer_norm_epsilon: 1e-5,
};

const SHAPE: ImageShape = ImageShape {
    image_size: 64,
    patch_size: 16,
    transformer: TRANSFORMER,
    dim: 64,
};

/// Bytes a forward besides features: far fewer than the activations of one image.
const BESIDES: u64 = 4096;
/// Allocations a forward.
const ALLOCATIONS: u64 = 16;
const FORWARDS: u64 = 8;

/// Small weights without a pattern.
fn weights() -> impl FnMut(&str, &[usize]) -> Result<Cow<'static, [f32]>, ()> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    move |_, shape| {
        let values = (0..shape.iter().product()).map(|_| random.random_range(-0.05..0.05));
        Ok(values.collect())
    }
}

#[test]
fn forwards_use_their_memory_again() {
    let _profiler = dhat::Profiler::builder()
        .testing()
        .trim_backtraces(Some(4))
        .build();
    assert!(SHAPE.tokens() * TRANSFORMER.width * size_of::<f32>() > 4 * BESIDES as usize);
    for precision in [Precision::F32, Precision::Bf16, Precision::Int16, Precision::Int8] {
        for instructions in Instructions::made_for(&TRANSFORMER, precision) {
            let name = instructions.to_string();
            let tower = ImageTower::load(SHAPE, instructions, &mut weights()).expect("weights");
            for images in [1, 9] {
                let bytes = vec![200; images * SHAPE.bytes()];
                let forward = || tower.forward(&bytes, None);
                for _ in 0..FORWARDS {
                    forward();
                }
                let before = dhat::HeapStats::get();
                for _ in 0..FORWARDS {
                    forward();
                }
                let after = dhat::HeapStats::get();
                let bytes = (after.total_bytes - before.total_bytes) / FORWARDS;
                let allocations = (after.total_blocks - before.total_blocks) / FORWARDS;
                let features = (images * SHAPE.dim * size_of::<f32>()) as u64;
                assert!(
                    bytes <= features + BESIDES && allocations <= ALLOCATIONS,
                    "{name}, {images} images: {bytes} bytes in {allocations} allocations a forward"
                );
            }
        }
    }
}
