//! The tower on a GPU against the one on the processor. Where there is no GPU, nothing is compared, and the test says so.

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaSlice, DriverError};

use super::bytes;
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

#[test]
fn a_gpu_gives_what_the_processor_gives() {
    let context = match CudaContext::new(0) {
        Ok(context) => context,
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_STUB_LIBRARY)) => {
            eprintln!("no GPU: nothing was compared");
            return;
        }
        Err(error) => panic!("a GPU that cannot be used: {error}"),
    };
    let others = context.new_stream().expect("a stream");
    // Fewer tokens than a block has, as many and one more, and several blocks of them; lines of pixels in pairs alone.
    let shapes = [
        shape(32, 42, Activation::QuickGelu),
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
        let near = |found: &CudaSlice<f32>, wanted: &[f32], row: usize| {
            let found = others.clone_dtoh(found).expect("a copy");
            assert_eq!(found.len(), wanted.len());
            let rows = found.chunks(row).zip(wanted.chunks(row)).enumerate();
            for (place, (found, wanted)) in rows {
                let cosine = cosine(found, wanted);
                assert!(
                    cosine >= LEAST,
                    "row {place} of {row} values, {shape:?}: {cosine}"
                );
            }
        };
        // The third time it is a graph that computes.
        for images in [1, 5, 5, 5, 200] {
            let pixels = bytes(images, images * shape.bytes());
            let mut wanted_states = Vec::new();
            let wanted = exact.forward(&pixels, Some(&mut wanted_states));
            let of_each: Vec<&[u8]> = pixels.chunks(shape.bytes()).collect();
            let resident = others.clone_htod(&pixels).expect("a copy");
            let room = |len| others.alloc_zeros::<f32>(len).expect("memory");
            for pixels in [Pixels::Host(&of_each), Pixels::Device(resident.as_view())] {
                let (mut features, mut states) = (room(wanted.len()), room(wanted_states.len()));
                tower
                    .forward(&pixels, &mut features, Some(&mut states))
                    .expect("states");
                near(&features, &wanted, shape.dim);
                near(&states, &wanted_states, shape.transformer.width);
                let mut features = room(wanted.len());
                tower.forward(&pixels, &mut features, None).expect("features");
                near(&features, &wanted, shape.dim);
            }
        }
        let mut untouched = others.clone_htod(&[0.5_f32]).expect("memory");
        tower
            .forward(&Pixels::Host(&[]), &mut untouched, None)
            .expect("nothing");
        assert_eq!(others.clone_dtoh(&untouched), Ok(vec![0.5]));
    }
}
