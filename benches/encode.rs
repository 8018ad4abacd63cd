//! What an answer is made of, stage by stage: a digest, decoding, with resizing and without, tokens, the towers of the embedded
//! backbone, a head.
//!
//! `just bench --bench encode`. `CLIPKEEP_BENCH_BACKBONE` names another backbone, as `--backbone` does; `CLIPKEEP_DTYPE` another type than a
//! server takes.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

mod pictures;

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use clipkeep::adapter::Head;
use clipkeep::clip::{Backbone, BackboneSource, Limits};
use clipkeep::domain::Digest;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use image::ImageFormat;
use turbojpeg::PixelFormat;

use pictures::encoded;

criterion_group!(
    benches,
    digests,
    images,
    texts,
    decoding,
    preprocessing,
    tokens,
    heads
);
criterion_main!(benches);

/// What an image costs that was seen lately, beside its head.
fn digests(criterion: &mut Criterion) {
    let bytes = encoded((500, 375), ImageFormat::Jpeg, 0);
    let mut group = criterion.benchmark_group("digest");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("jpeg-500x375", |bench| {
        bench.iter(|| Digest::of(black_box(&bytes)));
    });
}

fn images(criterion: &mut Criterion) {
    let backbone = backbone();
    let size = backbone.image_size();
    let mut group = criterion.benchmark_group(format!("images/{}", backbone.name()));
    group.sample_size(10);
    for batch in [1, 8, 32] {
        let pixels = Tensor::rand(0_f32, 256.0, (batch, 3, size, size), &Device::Cpu);
        let pixels = pixels.and_then(|pixels| pixels.to_dtype(DType::U8)).unwrap();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_with_input(BenchmarkId::from_parameter(batch), &pixels, |bench, pixels| {
            bench.iter(|| backbone.encode_images(black_box(pixels)).unwrap());
        });
    }
}

fn texts(criterion: &mut Criterion) {
    let backbone = backbone();
    let tokenizer = backbone.tokenizer();
    let ids: Vec<_> = (0..32)
        .map(|number| tokenizer.encode(&format!("a photo of object {number}.")).unwrap())
        .collect();
    let mut group = criterion.benchmark_group(format!("texts/{}", backbone.name()));
    group
        .sample_size(10)
        .throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("32", |bench| {
        bench.iter(|| backbone.encode_tokens(black_box(&ids)).unwrap());
    });
}

fn tokens(criterion: &mut Criterion) {
    let tokenizer = backbone().tokenizer();
    let mut group = criterion.benchmark_group("tokens");
    group.throughput(Throughput::Elements(1));
    group.bench_function("prompt", |bench| {
        bench.iter(|| tokenizer.encode(black_box("a photo of a snow leopard.")).unwrap());
    });
}

/// Probabilities from features of ViT-B/32's width.
fn heads(criterion: &mut Criterion) {
    const DIM: usize = 512;
    let mut group = criterion.benchmark_group("head");
    for classes in [10, 1_000, 20_000] {
        let anchors = Tensor::randn(0_f32, 1.0, (classes, DIM), &Device::Cpu).unwrap();
        let head = Head::zero_shot(anchors, 100.0).unwrap();
        for images in [1, 16] {
            let features = Tensor::randn(0_f32, 1.0, (images, DIM), &Device::Cpu).unwrap();
            group.throughput(Throughput::Elements(images as u64));
            let name = BenchmarkId::new(format!("{classes}-classes"), images);
            group.bench_with_input(name, &features, |bench, features| {
                bench.iter(|| head.probabilities(black_box(features)).unwrap());
            });
        }
    }
}

/// Of JPEGs alone, in whole: the decoder that comes first, and the one of `image`, which has what that one does not take.
fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decoding");
    group.sample_size(10).throughput(Throughput::Elements(1));
    for (width, height) in [(500, 375), (4000, 3000)] {
        let file = encoded((width, height), ImageFormat::Jpeg, 0);
        let name = |decoder| BenchmarkId::new(decoder, format!("{width}x{height}"));
        group.bench_function(name("libjpeg-turbo"), |bench| {
            bench.iter(|| turbojpeg::decompress(black_box(&file), PixelFormat::RGB).unwrap());
        });
        group.bench_function(name("zune-jpeg"), |bench| {
            bench.iter(|| image::load_from_memory(black_box(&file)).unwrap());
        });
    }
}

fn preprocessing(criterion: &mut Criterion) {
    let processor = backbone().image_processor();
    let limits = Limits { max_pixels: 1 << 24 };
    let mut group = criterion.benchmark_group("preprocessing");
    group.sample_size(10).throughput(Throughput::Elements(1));
    for (width, height) in [(32, 32), (500, 375), (4000, 3000)] {
        // Of a bitmap there is nothing to decode: what it takes is resizing, of all pixels.
        for (name, format) in [("jpeg", ImageFormat::Jpeg), ("bitmap", ImageFormat::Bmp)] {
            let file = encoded((width, height), format, 0);
            group.bench_function(format!("{name}-{width}x{height}"), |bench| {
                bench.iter(|| processor.process(black_box(&file), limits).unwrap());
            });
        }
    }
}

fn backbone() -> Backbone {
    let source = std::env::var("CLIPKEEP_BENCH_BACKBONE").unwrap_or_else(|_| "embedded".to_owned());
    let source: BackboneSource = source.parse().unwrap();
    let dtype = std::env::var("CLIPKEEP_DTYPE").unwrap_or_else(|_| "auto".to_owned());
    let dtype = dtype.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(Backbone::load(&source, &Device::Cpu, dtype))
        .unwrap()
}
