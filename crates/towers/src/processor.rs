//! Which kernels run on this processor: AVX-512, AVX2 with FMA, NEON, or whatever the compiler makes of portable code. `pulp`
//! looks at the processor.

use pulp::Scalar;
#[cfg(target_arch = "aarch64")]
use pulp::aarch64::Neon;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

use crate::dots::WholeProducts;
use crate::integer::{Bytes, Shorts};
use crate::kernel::{Kernel, Lanes, Multiply, Vectors};
use crate::operand::Pair;
#[cfg(target_arch = "x86_64")]
use crate::x86;

fn kernel<T>(
    name: &'static str,
    vectors: impl Vectors + 'static,
    products: impl Multiply<T> + 'static,
) -> Kernel<T> {
    Kernel {
        name,
        vectors: Box::new(vectors),
        products: Box::new(products),
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
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_mut, reason = "x86 alone has some")
    )]
    let mut all = Vec::new();
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V4::try_new() {
        let vectors = Lanes::<_, { x86::COLUMNS }, { x86::PAIRS }, 2>(simd);
        if let Some(amx) = x86::Amx::try_new() {
            all.push(kernel("amx", vectors, amx));
        }
        if let Some(products) = x86::DotProducts::try_new() {
            all.push(kernel("avx512bf16", vectors, products));
        }
    }
    all
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
    }
    all
}

/// What this processor multiplies whole numbers of 8 bits with faster than f32, the best first.
pub(crate) fn made_for_int8() -> Vec<Kernel<Bytes>> {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_mut, reason = "x86 alone has some")
    )]
    let mut all = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = V4::try_new() {
            let (wide, narrow) = (Lanes::<_, 64, 32, 4>(simd), Lanes::<_, 32, 16, 2>(simd));
            if let Some(vnni) = x86::Vnni::try_new() {
                all.push(kernel(
                    "avx512vnni",
                    wide,
                    WholeProducts::<_, _, 64, 16, 4>(simd, vnni),
                ));
                all.push(kernel(
                    "avx512vnni",
                    narrow,
                    WholeProducts::<_, _, 32, 8, 2>(simd, vnni),
                ));
            }
            all.push(kernel(
                "avx512",
                wide,
                WholeProducts::<_, _, 64, 16, 4>(simd, simd),
            ));
            all.push(kernel(
                "avx512",
                narrow,
                WholeProducts::<_, _, 32, 8, 2>(simd, simd),
            ));
        }
        if let Some(simd) = V3::try_new() {
            let vectors = Lanes::<_, 16, 8, 2>(simd);
            all.push(kernel(
                "avx2",
                vectors,
                WholeProducts::<_, _, 16, 4, 2>(simd, simd),
            ));
        }
    }
    all
}

/// All that runs here with whole numbers of 8 bits, the best first.
pub(crate) fn all_int8() -> Vec<Kernel<Bytes>> {
    let mut all = made_for_int8();
    let vectors = Lanes::<_, 8, 4, 8>(Scalar);
    all.push(kernel(
        "portable",
        vectors,
        WholeProducts::<_, _, 8, 2, 8>(Scalar, Scalar),
    ));
    all
}

/// What this processor multiplies whole numbers of 16 bits with faster than f32, the best first. With AVX-512 alone they are no
/// faster: a product and its sum are two instructions there, and one of f32.
pub(crate) fn made_for_int16() -> Vec<Kernel<Shorts>> {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_mut, reason = "x86 alone has some")
    )]
    let mut all = Vec::new();
    #[cfg(target_arch = "x86_64")]
    match (V4::try_new(), V3::try_new()) {
        (Some(simd), _) => {
            if let Some(vnni) = x86::Vnni::try_new() {
                let vectors = Lanes::<_, 64, 32, 4>(simd);
                all.push(kernel(
                    "avx512vnni",
                    vectors,
                    WholeProducts::<_, _, 64, 32, 4>(simd, vnni),
                ));
                let vectors = Lanes::<_, 32, 16, 2>(simd);
                all.push(kernel(
                    "avx512vnni",
                    vectors,
                    WholeProducts::<_, _, 32, 16, 2>(simd, vnni),
                ));
            }
        }
        (None, Some(simd)) => all.push(int16_by_avx2(simd)),
        (None, None) => {}
    }
    all
}

#[cfg(target_arch = "x86_64")]
fn int16_by_avx2(simd: V3) -> Kernel<Shorts> {
    let vectors = Lanes::<_, 16, 8, 2>(simd);
    kernel("avx2", vectors, WholeProducts::<_, _, 16, 8, 2>(simd, simd))
}

/// All that runs here with whole numbers of 16 bits, the best first.
pub(crate) fn all_int16() -> Vec<Kernel<Shorts>> {
    let mut all = made_for_int16();
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V4::try_new() {
        let vectors = Lanes::<_, 32, 16, 2>(simd);
        all.push(kernel(
            "avx512",
            vectors,
            WholeProducts::<_, _, 32, 16, 2>(simd, simd),
        ));
        all.extend(V3::try_new().map(int16_by_avx2));
    }
    let vectors = Lanes::<_, 8, 4, 8>(Scalar);
    all.push(kernel(
        "portable",
        vectors,
        WholeProducts::<_, _, 8, 4, 8>(Scalar, Scalar),
    ));
    all
}
