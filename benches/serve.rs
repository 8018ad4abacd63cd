//! What a server adds to towers and decoding, stage by stage: the way through the device's queue, and a request about images that
//! are known, of which parsing, a digest, a head and the answer's JSON are left.
//!
//! `just bench --bench serve`. With the small backbone, whose features are 256 values, where ViT-B/32's are 512.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

mod pictures;

use std::fmt::Write as _;
use std::hint::black_box;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use candle_core::Device;
use clap::Parser;
use clipkeep::app::App;
use clipkeep::clip::{Backbone, BackboneSource, Dtype};
use clipkeep::config::ServeConfig;
use clipkeep::domain::Reads;
use clipkeep::engine::{Asked, Engine, Looked, Priority};
use clipkeep::metrics;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use image::ImageFormat;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

criterion_group!(benches, queue, requests);
criterion_main!(benches);

/// The command line of `serve`.
#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    config: ServeConfig,
}

fn config(flags: &[&str]) -> ServeConfig {
    CommandLine::parse_from([&["serve", "--device", "cpu"], flags].concat()).config
}

/// From pixels to features through the engine, beside `images` of the bench `encode`, which are encoded where they are asked for.
fn queue(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let backbone = Backbone::load(&BackboneSource::Embedded, &Device::Cpu, Dtype::Auto);
    let backbone = runtime.block_on(backbone).unwrap();
    let engine = Engine::start(backbone, &config(&["--feature-cache-mib", "0"]).engine_config()).unwrap();
    let picture = picture(0);
    let mut group = criterion.benchmark_group("queue");
    for batch in [1, 32] {
        let look = || engine.look(picture.clone(), &Asked::Row(Reads::Features));
        let pixels = || -> Vec<Looked> { (0..batch).map(|_| runtime.block_on(look()).unwrap()).collect() };
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |bench| {
            let encode = |images| {
                let encoded = engine.encode(images, Priority::Interactive);
                runtime.block_on(encoded).unwrap()
            };
            bench.iter_batched(pixels, encode, BatchSize::SmallInput);
        });
    }
    group.finish();
    engine.stop();
}

/// Requests as they leave the connection, until their answers are whole.
fn requests(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--listen", "127.0.0.1:0", "--max-labels", "500", "--data-dir"];
    let config = config(&[&flags[..], &[folder.path().to_str().unwrap()]].concat());
    let app = App::build(&config, metrics::install().unwrap());
    let app = runtime.block_on(app).unwrap();
    let router = app.router();

    let labels = |count: usize| {
        let labels: Vec<_> = (0..count).map(|n| format!("label%20{n}")).collect();
        format!("/v1/models/default/classify?labels={}", labels.join(","))
    };
    let few = labels(10);
    let many = labels(500) + "&top_k=500";
    let mut group = criterion.benchmark_group("request");
    for (name, path, body) in [
        ("classify, an image", few.as_str(), raw()),
        ("classify, a form of one", &few, form(1)),
        ("classify, a form of 16", &few, form(16)),
        ("classify, JSON of one", &few, json(1)),
        ("classify, JSON of 16", &few, json(16)),
        ("classify, 500 labels told", &many, raw()),
        ("embed, JSON of 16", "/v1/embed", json(16)),
    ] {
        let ask = || runtime.block_on(answer(&router, path, &body));
        // Until then the image is not known.
        ask();
        group.bench_function(name, |bench| bench.iter(|| black_box(ask())));
    }
}

/// A body and its type.
type Sent = (&'static str, Bytes);

fn raw() -> Sent {
    ("image/jpeg", picture(0))
}

fn form(images: u8) -> Sent {
    let mut body = Vec::new();
    for seed in 0..images {
        body.extend(b"--part\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n");
        body.extend(picture(seed));
        body.extend(b"\r\n");
    }
    body.extend(b"--part--\r\n");
    ("multipart/form-data; boundary=part", body.into())
}

fn json(images: u8) -> Sent {
    let mut body = String::from(r#"{"images": ["#);
    for seed in 0..images {
        let comma = if seed == 0 { "" } else { ", " };
        write!(body, r#"{comma}{{"data": "{}"}}"#, STANDARD.encode(picture(seed))).unwrap();
    }
    body.push_str("]}");
    ("application/json", body.into())
}

async fn answer(router: &Router, path: &str, (kind, body): &Sent) -> Bytes {
    let request = Request::post(path).header(header::CONTENT_TYPE, *kind);
    let request = request.body(Body::from(body.clone())).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    axum::body::to_bytes(answer.into_body(), usize::MAX)
        .await
        .unwrap()
}

fn picture(seed: u8) -> Bytes {
    pictures::encoded((500, 375), ImageFormat::Jpeg, seed.into())
}
