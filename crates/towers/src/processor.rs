//! Which kernels run on this processor: AVX-512, AVX2 with FMA, NEON, or whatever the compiler makes of portable code. `pulp`
//! looks at the processor.

#[cfg(target_arch = "aarch64")]
use pulp::aarch64::Neon;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use pulp::{Scalar, Simd};

use crate::crossed::Cross;
use crate::dots::{Dots, WholeProducts};
use crate::integer::{Bytes, Shorts};
use crate::kernel::{Kernel, Multiply, Vectors};
use crate::lanes::Lanes;
use crate::operand::Pair;
#[cfg(target_arch = "x86_64")]
use crate::{
    amx::{ByteProducts, COLUMNS_OF_BYTES, PairProducts},
    tiles::Tiles,
    x86,
};

/// The widths of CLIP's usual towers are above it; whether halves gain anything below was not measured.
const HALVES_FROM: usize = 512;

fn kernel<T>(
    name: &'static str,
    vectors: impl Vectors + 'static,
    products: impl Multiply<T> + 'static,
) -> Kernel<T> {
    Kernel {
        name,
        vectors: Box::new(vectors),
        products: Box::new(products),
        halves_from: None,
    }
}

/// Multiplies in halves where inputs and outputs are at least so many.
fn in_halves<T>(from: usize, kernel: Kernel<T>) -> Kernel<T> {
    Kernel {
        halves_from: Some(from),
        ..kernel
    }
}

/// By vectors alone.
fn lanes<T, L: Vectors + Multiply<T> + Copy + 'static>(name: &'static str, lanes: L) -> Kernel<T> {
    kernel(name, lanes, lanes)
}

/// All that runs here with weights in f32, the best first.
pub(crate) fn all() -> Vec<Kernel<f32>> {
    let mut all = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = V4::try_new() {
            all.push(lanes("avx512", Lanes::<_, 64, 32, 4>(simd)));
            all.push(lanes("avx512", Lanes::<_, 32, 16, 2>(simd)));
            all.push(lanes("avx512", Lanes::<_, 16, 8, 1>(simd)));
        }
        if let Some(simd) = V3::try_new() {
            all.push(lanes("avx2", Lanes::<_, 16, 8, 2>(simd)));
            all.push(lanes("avx2", Lanes::<_, 8, 4, 1>(simd)));
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = Neon::try_new() {
        all.push(lanes("neon", Lanes::<_, 16, 8, 4>(simd)));
        all.push(lanes("neon", Lanes::<_, 8, 4, 2>(simd)));
    }
    all.push(lanes("portable", Lanes::<_, 8, 4, 8>(Scalar)));
    if cfg!(test) {
        // The panels of processors that tests may not run on.
        all.push(lanes("portable", Lanes::<_, 32, 16, 32>(Scalar)));
        all.push(lanes("portable", Lanes::<_, 64, 32, 64>(Scalar)));
    }
    all
}

/// What this processor has made for weights in bfloat16, the best first.
pub(crate) fn made_for_bf16() -> Vec<Kernel<Pair>> {
    #[cfg(target_arch = "x86_64")]
    {
        let of = |simd| {
            let vectors = Lanes::<_, { x86::COLUMNS }, { x86::PAIRS }, 2>(simd);
            let amx = Tiles::of_pairs().map(|tiles| kernel("amx", vectors, PairProducts(tiles)));
            let dots = || x86::DotProducts::try_new().map(|dots| kernel("avx512bf16", vectors, dots));
            let halves = dots().map(|dots| in_halves(HALVES_FROM, dots));
            amx.into_iter().chain(halves).chain(dots())
        };
        V4::try_new().into_iter().flat_map(of).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// All that runs here with weights in bfloat16, the best first: what is made for it, and then vectors of f32.
pub(crate) fn all_bf16() -> Vec<Kernel<Pair>> {
    let mut all = made_for_bf16();
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = V4::try_new() {
            all.push(lanes("avx512", Lanes::<_, 32, 16, 2>(simd)));
        }
        if let Some(simd) = V3::try_new() {
            all.push(lanes("avx2", Lanes::<_, 16, 8, 2>(simd)));
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = Neon::try_new() {
        all.push(lanes("neon", Lanes::<_, 16, 8, 4>(simd)));
    }
    all.push(lanes("portable", Lanes::<_, 8, 4, 8>(Scalar)));
    if cfg!(test) {
        all.push(lanes("portable", Lanes::<_, 32, 16, 32>(Scalar)));
        // In halves also what is smaller than it pays for.
        all.push(in_halves(0, lanes("portable", Lanes::<_, 8, 4, 8>(Scalar))));
        all.push(in_halves(0, lanes("portable", Lanes::<_, 32, 16, 32>(Scalar))));
    }
    all
}

/// Of 8 bits, by the sums of `dots`; a row of a panel is a `QUARTER` of W lanes.
fn bytes<const QUARTER: usize, S, D, const W: usize, const HALF: usize, const VECTORS: usize>(
    name: &'static str,
    lanes: Lanes<S, W, HALF, VECTORS>,
    dots: D,
) -> Kernel<Bytes>
where
    S: Simd,
    D: Dots<S> + 'static,
{
    kernel(
        name,
        lanes,
        WholeProducts::<S, D, W, QUARTER, VECTORS>(lanes.0, dots),
    )
}

/// Of 16 bits, by the sums of `dots`.
fn shorts<S, D, const W: usize, const HALF: usize, const VECTORS: usize>(
    name: &'static str,
    lanes: Lanes<S, W, HALF, VECTORS>,
    dots: D,
) -> Kernel<Shorts>
where
    S: Simd,
    D: Dots<S> + 'static,
{
    kernel(
        name,
        lanes,
        WholeProducts::<S, D, W, HALF, VECTORS>(lanes.0, dots),
    )
}

/// What this processor multiplies whole numbers of 8 bits with faster than f32, the best first.
pub(crate) fn made_for_int8() -> Vec<Kernel<Bytes>> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut all = Vec::new();
        if let Some(simd) = V4::try_new() {
            let (wide, narrow) = (
                Lanes::<_, COLUMNS_OF_BYTES, 32, 4>(simd),
                Lanes::<_, 32, 16, 2>(simd),
            );
            all.extend(Tiles::of_bytes().map(|tiles| kernel("amx", wide, ByteProducts(tiles, simd))));
            if let Some(vnni) = x86::Vnni::try_new() {
                all.push(bytes::<16, _, _, _, _, _>("avx512vnni", wide, vnni));
                all.push(bytes::<8, _, _, _, _, _>("avx512vnni", narrow, vnni));
            }
            all.push(bytes::<16, _, _, _, _, _>("avx512", wide, simd));
            all.push(bytes::<8, _, _, _, _, _>("avx512", narrow, simd));
        }
        if let Some(simd) = V3::try_new() {
            all.push(bytes::<4, _, _, _, _, _>(
                "avx2",
                Lanes::<_, 16, 8, 2>(simd),
                simd,
            ));
        }
        all
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// All that runs here with whole numbers of 8 bits, the best first.
pub(crate) fn all_int8() -> Vec<Kernel<Bytes>> {
    let mut all = made_for_int8();
    all.push(bytes::<2, _, _, _, _, _>(
        "portable",
        Lanes::<_, 8, 4, 8>(Scalar),
        Scalar,
    ));
    if cfg!(test) {
        all.push(bytes::<8, _, _, _, _, _>(
            "portable",
            Lanes::<_, 32, 16, 32>(Scalar),
            Scalar,
        ));
        all.push(bytes::<16, _, _, _, _, _>(
            "portable",
            Lanes::<_, 64, 32, 64>(Scalar),
            Scalar,
        ));
    }
    all
}

/// What this processor multiplies whole numbers of 16 bits with faster than f32, the best first. Not with AVX-512 alone: a
/// product and its sum share two ports there, which do as many products of f32 (Intel's optimisation manual); with AVX2 there is
/// one more for sums.
pub(crate) fn made_for_int16() -> Vec<Kernel<Shorts>> {
    #[cfg(target_arch = "x86_64")]
    match (V4::try_new(), x86::Vnni::try_new()) {
        (None, _) => V3::try_new().map(int16_by_avx2).into_iter().collect(),
        (Some(_), None) => Vec::new(),
        (Some(simd), Some(vnni)) => vec![
            shorts("avx512vnni", Lanes::<_, 64, 32, 4>(simd), vnni),
            shorts("avx512vnni", Lanes::<_, 32, 16, 2>(simd), vnni),
        ],
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(target_arch = "x86_64")]
fn int16_by_avx2(simd: V3) -> Kernel<Shorts> {
    shorts("avx2", Lanes::<_, 16, 8, 2>(simd), simd)
}

/// All that runs here with whole numbers of 16 bits, the best first.
pub(crate) fn all_int16() -> Vec<Kernel<Shorts>> {
    let mut all = made_for_int16();
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V4::try_new() {
        all.push(shorts("avx512", Lanes::<_, 32, 16, 2>(simd), simd));
        all.extend(V3::try_new().map(int16_by_avx2));
    }
    all.push(shorts("portable", Lanes::<_, 8, 4, 8>(Scalar), Scalar));
    if cfg!(test) {
        all.push(shorts("portable", Lanes::<_, 32, 16, 32>(Scalar), Scalar));
        all.push(shorts("portable", Lanes::<_, 64, 32, 64>(Scalar), Scalar));
    }
    all
}

/// What multiplies rows in f32 and columns of whole numbers, in panels of one width.
pub(crate) type WholeSquares = (Kernel<f32>, Box<dyn Cross<Shorts, i32>>);

/// All of it that runs here, the best first.
pub(crate) fn whole_squares() -> Vec<WholeSquares> {
    let mut all: Vec<WholeSquares> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = V4::try_new() {
            let vectors = || lanes("avx512", Lanes::<_, 32, 16, 2>(simd));
            if let Some(vnni) = x86::Vnni::try_new() {
                all.push((vectors(), Box::new(WholeProducts::<_, _, 32, 16, 2>(simd, vnni))));
            }
            all.push((vectors(), Box::new(WholeProducts::<_, _, 32, 16, 2>(simd, simd))));
        }
        if let Some(simd) = V3::try_new() {
            let vectors = lanes("avx2", Lanes::<_, 16, 8, 2>(simd));
            all.push((vectors, Box::new(WholeProducts::<_, _, 16, 8, 2>(simd, simd))));
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = Neon::try_new() {
        let vectors = lanes("neon", Lanes::<_, 16, 8, 4>(simd));
        all.push((
            vectors,
            Box::new(WholeProducts::<_, _, 16, 8, 16>(Scalar, Scalar)),
        ));
    }
    let vectors = lanes("portable", Lanes::<_, 8, 4, 8>(Scalar));
    all.push((vectors, Box::new(WholeProducts::<_, _, 8, 4, 8>(Scalar, Scalar))));
    all
}
