//! The tower on a GPU against the one on the processor. Where there is no GPU, nothing is compared, and the test says so.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice};

use super::noise;
use super::towers::{cosine, weights};
use crate::cuda::{self, Pixels};
use crate::{Activation, ImageShape, ImageTower, Instructions, Precision, Transformer};

/// Cosine with features, and with states, in f32.
const LEAST: f64 = 0.999;

/// A small tower with heads of a width.
fn shape(head: usize, image_size: usize, activation: Activation) -> ImageShape {
    ImageShape {
        image_size,
        patch_size: 6,
        transformer: Transformer {
            width: 4 * head,
            mlp_width: 5 * head,
            layers: 3,
            heads: 4,
            activation,
            layer_norm_epsilon: 1e-5,
        },
        dim: 40,
    }
}

fn on_host(context: &Arc<CudaContext>, values: &CudaSlice<f32>) -> Vec<f32> {
    let found = values.stream().clone_dtoh(values).expect("a copy");
    context.synchronize().expect("a device that works");
    found
}

#[test]
fn a_gpu_gives_what_the_processor_gives() {
    let Ok(context) = CudaContext::new(0) else {
        eprintln!("no GPU: nothing was compared");
        return;
    };
    // Fewer tokens than a block has, as many and one more, and several blocks of them.
    let shapes = [
        shape(32, 36, Activation::QuickGelu),
        shape(64, 48, Activation::Gelu),
        shape(64, 84, Activation::QuickGelu),
        shape(80, 96, Activation::QuickGelu),
    ];
    for shape in shapes {
        assert!(cuda::ImageTower::suits(&shape));
        let exact = Instructions::suiting(&shape.transformer, Precision::F32).remove(0);
        let exact = ImageTower::load::<()>(shape, exact, &mut weights()).expect("weights");
        let tower = cuda::ImageTower::load::<cuda::Error>(shape, &context, &mut weights()).expect("weights");
        let near = |found: &[f32], wanted: &[f32], what: &str| {
            assert_eq!(found.len(), wanted.len());
            let rows = found.chunks(shape.dim).zip(wanted.chunks(shape.dim));
            let least = rows.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
            assert!(least >= LEAST, "{what} of {shape:?}: {least}");
        };
        // The third time it is a graph that computes.
        for images in [1, 5, 5, 5, 200] {
            let pixels = noise(images, images * shape.pixels());
            let mut wanted_states = Vec::new();
            let wanted = exact.forward(&pixels, Some(&mut wanted_states));
            let of_each: Vec<&[f32]> = pixels.chunks(shape.pixels()).collect();
            let resident = tower.stream().clone_htod(&pixels).expect("a copy");
            let room = |len| tower.stream().alloc_zeros::<f32>(len).expect("memory");
            for pixels in [Pixels::Host(&of_each), Pixels::Device(resident.as_view())] {
                let (mut features, mut states) = (room(wanted.len()), room(wanted_states.len()));
                tower
                    .forward(&pixels, &mut features, Some(&mut states))
                    .expect("states");
                near(&on_host(&context, &features), &wanted, "features beside states");
                assert!(cosine(&on_host(&context, &states), &wanted_states) >= LEAST);
                let mut features = room(wanted.len());
                tower.forward(&pixels, &mut features, None).expect("features");
                near(&on_host(&context, &features), &wanted, "features");
            }
        }
        let mut none = tower.stream().alloc_zeros(0).expect("no memory");
        tower
            .forward(&Pixels::Host(&[]), &mut none, None)
            .expect("nothing");
    }
}
