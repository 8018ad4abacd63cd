//! What a job does besides encoding and its fit, stage by stage: an upload is unpacked, its images go into the store and their features
//! take their place, a version is written down and read again, held-out examples are scored, and the version is published.
//!
//! `just bench --bench learn`. On SQLite, in a folder for temporary files.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

mod pictures;

use std::fs::File;
use std::hint::black_box;
use std::io::{Seek as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use clipkeep::adapter::{Adapter, Head, Linear, Snapshot, evaluate};
use clipkeep::domain::{
    Class, ClassId, Content, Digest, Features, Initialisation, Job, JobId, JobKind, ModelConfig, ModelName,
    NewClass, Tally,
};
use clipkeep::learner::{ArchiveKind, Upload, UploadLimits};
use clipkeep::store::{HeldOut, Lease, Location, NewExample, NewJob, Owner, Publication, Store, TaskScore};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use image::ImageFormat;
use jiff::Timestamp;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = unpacking, storing, snapshots, scoring
}
criterion_main!(benches);

/// Images of a task, and its classes.
const IMAGES: usize = 256;
const CLASSES: usize = 16;
/// Values of a row of features.
const DIM: usize = 512;
/// Images whose features are saved at a time, as a server does.
const CHUNK: u32 = 32;
const LIMITS: UploadLimits = UploadLimits {
    examples: IMAGES,
    image_bytes: 1 << 20,
    total_bytes: 1 << 30,
};
/// A worker's hold on a job.
const HOLD: Duration = Duration::from_mins(10);

fn images() -> Vec<Bytes> {
    let image = |seed| pictures::encoded((250, 188), ImageFormat::Jpeg, seed as u64);
    (0..IMAGES).map(image).collect()
}

/// From an archive on disk to the bytes of every image.
fn unpacking(criterion: &mut Criterion) {
    let mut archive = ZipWriter::new(tempfile::tempfile().unwrap());
    for (number, image) in images().iter().enumerate() {
        let name = format!("class {}/{number}.jpg", number % CLASSES);
        archive.start_file(name, SimpleFileOptions::default()).unwrap();
        archive.write_all(image).unwrap();
    }
    let archive = archive.finish().unwrap();
    let opened = || {
        let mut file = archive.try_clone().unwrap();
        file.rewind().unwrap();
        file
    };
    let unpack = |file: File| {
        let mut upload = Upload::new(LIMITS, tempfile::tempfile().unwrap());
        upload.add_archive(ArchiveKind::Zip, file, None).unwrap();
        upload.check().unwrap();
        for index in 0..upload.len() {
            black_box(upload.read(index).unwrap());
        }
    };
    let mut group = criterion.benchmark_group("upload");
    group.throughput(Throughput::Elements(IMAGES as u64));
    group.bench_function("unpack a zip", |bench| {
        bench.iter_batched(opened, unpack, BatchSize::SmallInput);
    });
}

/// A store of its own, and one who works on its jobs.
struct Bench {
    runtime: Runtime,
    store: Store,
    owner: Owner,
    images: Vec<Bytes>,
    /// Holds the store, and goes after it.
    _folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let (folder, runtime) = (tempfile::tempdir().unwrap(), Runtime::new().unwrap());
        let location = Location::file(&folder.path().join("bench.db")).unwrap();
        let store = runtime.block_on(Store::connect(location, 4)).unwrap();
        Self {
            runtime,
            store,
            owner: Owner::new(Uuid::now_v7()),
            images: images(),
            _folder: folder,
        }
    }

    /// A task of a model of its own.
    fn task(&self) -> NewJob {
        let model: ModelName = JobId::new().to_string().parse().unwrap();
        let config = ModelConfig::default();
        let created = self.store.create_model(&model, &config, Timestamp::now());
        self.runtime.block_on(created).unwrap();
        let class = |number| NewClass {
            label: format!("class {number}").parse().unwrap(),
            prompt: None,
        };
        NewJob {
            id: JobId::new(),
            kind: JobKind::Learn,
            model,
            backbone: Digest::of(b"a backbone"),
            task: "task".parse().unwrap(),
            classes: (0..CLASSES).map(class).collect(),
            now: Timestamp::now(),
        }
    }

    /// Puts a task and its images into the store.
    async fn enqueue(&self, task: NewJob) -> Job {
        let mut draft = self.store.begin_job(task).await.unwrap();
        for (number, image) in self.images.iter().enumerate() {
            let example = NewExample {
                name: format!("{number}.jpg"),
                class: (number % CLASSES) as u32,
                split: None,
                digest: Digest::of(image),
            };
            draft.add_image(example, image).await.unwrap();
        }
        draft.commit().await.unwrap()
    }

    /// A job that has begun.
    fn begun(&self) -> Job {
        let begin = async |task| {
            self.enqueue(task).await;
            let (owner, backbone) = (&self.owner, Digest::of(b"a backbone"));
            let claimed = self.store.claim_job(owner, backbone, Timestamp::now(), HOLD);
            claimed.await.unwrap().unwrap()
        };
        let task = self.task();
        self.runtime.block_on(begin(task))
    }

    /// Reads so many images, and puts features in their place.
    async fn save(&self, job: &Job, count: u32) {
        let pending = self.store.pending_images(job.id, 0, count, u64::MAX);
        let features = Features::from_f32(&[0.5; DIM]).unwrap();
        let of = pending.await.unwrap().into_iter();
        let of: Vec<_> = of.map(|example| (example.position, features.clone())).collect();
        assert_eq!(of.len(), count as usize);
        let saved = self.store.save_features(job.id, &self.owner, &of);
        assert_eq!(saved.await.unwrap(), Lease::Held);
    }

    /// What a job publishes whose images are encoded.
    fn publication<'a>(&'a self, snapshot: &Content, statistics: &'a [u8]) -> Publication<'a> {
        let job = self.begun();
        self.runtime.block_on(self.save(&job, IMAGES as u32));
        let tally = Tally {
            correct: 9,
            total: 10,
        };
        let classes: Vec<Class> = classes(CLASSES);
        let held_out = (0..10 * CLASSES).map(|number| HeldOut {
            class: classes[number % CLASSES].id,
            digest: Digest::of(&number.to_le_bytes()),
            features: Features::from_f32(&[0.5; DIM]).unwrap(),
        });
        Publication {
            job: job.id,
            owner: &self.owner,
            base: None,
            snapshot: snapshot.clone(),
            statistics,
            config: ModelConfig::default(),
            report: serde_json::Value::Null,
            held_out: held_out.collect(),
            classes,
            train_count: IMAGES as u32,
            held_out_count: 10 * CLASSES as u32,
            scores: vec![TaskScore {
                task: None,
                tally,
                zero_shot: tally,
            }],
            actor: "bench".to_owned(),
            now: Timestamp::now(),
        }
    }
}

/// What a job asks of the store.
fn storing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    {
        let bench = Bench::new();
        group.throughput(Throughput::Elements(IMAGES as u64));
        group.bench_function("take in a task's images", |criterion| {
            let enqueue = |task| bench.runtime.block_on(bench.enqueue(task));
            criterion.iter_batched(|| bench.task(), enqueue, BatchSize::PerIteration);
        });
    }
    let bench = Bench::new();
    group.throughput(Throughput::Elements(CHUNK.into()));
    group.bench_function("a chunk's features for its images", |criterion| {
        let save = |job| bench.runtime.block_on(bench.save(&job, CHUNK));
        criterion.iter_batched(|| bench.begun(), save, BatchSize::PerIteration);
    });
    let (snapshot, statistics) = (Content::of(snapshot(1000).encode().unwrap()), vec![7; 1 << 20]);
    group.throughput(Throughput::Elements(1));
    group.bench_function("publish a version", |criterion| {
        let publish = |of| bench.runtime.block_on(bench.store.publish(of)).unwrap();
        let publication = || bench.publication(&snapshot, &statistics);
        criterion.iter_batched(publication, publish, BatchSize::PerIteration);
    });
    group.finish();
}

fn classes(count: usize) -> Vec<Class> {
    let class = |number| Class {
        id: ClassId::new(),
        label: format!("class {number}").parse().unwrap(),
        prompt: None,
        task: "task".parse().unwrap(),
    };
    (0..count).map(class).collect()
}

fn snapshot(count: usize) -> Snapshot {
    Snapshot::new(classes(count), head(count), "a backbone".to_owned()).unwrap()
}

/// A linear adapter before so many classes.
fn head(classes: usize) -> Head {
    let rng = &mut ChaCha8Rng::seed_from_u64(0);
    let adapter = Linear::initial(Initialisation::Kaiming, DIM, rng, &Device::Cpu).unwrap();
    Head::new(Adapter::Linear(adapter), rows(classes), 100.0).unwrap()
}

fn rows(count: usize) -> Tensor {
    Tensor::randn(0_f32, 1.0, (count, DIM), &Device::Cpu).unwrap()
}

/// A version as bytes, and back.
fn snapshots(criterion: &mut Criterion) {
    let snapshot = snapshot(1000);
    let bytes = snapshot.encode().unwrap();
    let mut group = criterion.benchmark_group("snapshot of 1,000 classes");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode", |bench| {
        bench.iter(|| black_box(&snapshot).encode().unwrap());
    });
    group.bench_function("decode", |bench| {
        bench.iter(|| Snapshot::decode(black_box(&bytes), &Device::Cpu).unwrap());
    });
}

/// How many held-out examples a head gets right.
fn scoring(criterion: &mut Criterion) {
    const ROWS: usize = 1000;
    let labels: Vec<u32> = (0..ROWS as u32).collect();
    let (head, rows) = (head(ROWS), rows(ROWS));
    let mut group = criterion.benchmark_group("evaluate");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("1,000 held-out rows, 1,000 classes", |bench| {
        bench.iter(|| evaluate::correct(&head, black_box(&rows), &labels).unwrap());
    });
}
