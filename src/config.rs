//! What an operator can set: flags, each also as `CLIPKEEP_…` in the environment.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::clip::{self, BackboneSource, Dtype};
use crate::engine::EngineConfig;
use crate::engine::batching::Policy;
use crate::http::{self, ConnectionLimits};
use crate::learner::{LearnerConfig, UploadLimits};
use crate::store::{Location, StoreError};

const MIB: usize = 1 << 20;
/// Most megapixels of one image unless an operator says otherwise.
const MOST_MEGAPIXELS: u64 = 50;

/// Everything `clipkeep serve` can be told.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, env = "CLIPKEEP_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Listen on an address that other machines can reach, although there is no authentication.
    #[arg(long, env = "CLIPKEEP_ALLOW_REMOTE")]
    pub allow_remote: bool,
    /// Directory for the database file and for uploads on their way in.
    #[arg(long, env = "CLIPKEEP_DATA_DIR", default_value = "clipkeep-data")]
    pub data_dir: PathBuf,
    /// PostgreSQL (`postgres://…`) or another SQLite file (`sqlite:…`) instead of `clipkeep.db` in the data directory.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Connections to the database.
    #[arg(long, env = "CLIPKEEP_DATABASE_CONNECTIONS", default_value = "8")]
    pub database_connections: NonZeroU32,
    /// The engine's part.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The learner's part.
    #[command(flatten)]
    pub learner: LearnerArgs,
    /// The interface's part.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How long the server goes on after a signal to stop, not ready any more but answering: what spreads requests over several
    /// servers looks at readiness now and then, and sends here until it has seen it. In seconds.
    #[arg(long, env = "CLIPKEEP_LINGER_SECONDS", default_value_t = 0)]
    pub linger_seconds: u64,
    /// How long requests may go on after that, and a job that does not stop after these, in seconds.
    #[arg(long, env = "CLIPKEEP_DRAIN_SECONDS", default_value_t = 30)]
    pub drain_seconds: u64,
}

/// The backbone, and what runs it.
#[derive(Debug, Clone, Args)]
pub struct BackboneArgs {
    /// A Hugging Face CLIP: a local directory, or a hub id such as openai/clip-vit-base-patch16. Without it, the small
    /// one in the binary.
    #[arg(long, env = "CLIPKEEP_BACKBONE", value_name = "PATH|HUB_ID")]
    pub backbone: Option<BackboneSource>,
    /// Where the backbone runs: `auto` takes the first GPU there is.
    #[arg(
        long,
        env = "CLIPKEEP_DEVICE",
        default_value = "auto",
        value_name = "auto|cpu|cuda:N"
    )]
    pub device: DeviceChoice,
    /// What images are encoded in, and texts on a processor. `auto` takes bf16 on a GPU and on a processor with instructions
    /// for it, and int16 on others with AVX512-VNNI, or with AVX2 and no AVX-512, if features keep a cosine of 0.999 with
    /// those of f32. int8 is faster and less exact; both are for processors.
    #[arg(
        long,
        env = "CLIPKEEP_DTYPE",
        default_value = "auto",
        value_name = "auto|f32|bf16|int16|int8"
    )]
    pub dtype: Dtype,
    /// Threads for tensors on the CPU. As many as there are cores unless given.
    #[arg(long, env = "CLIPKEEP_THREADS")]
    pub threads: Option<NonZeroUsize>,
    /// Threads that decode and resize images. As many as there are for tensors unless given.
    #[arg(long, env = "CLIPKEEP_DECODE_THREADS")]
    pub decode_threads: Option<NonZeroUsize>,
}

/// Backbone, device and batching.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Inference")]
pub struct EngineArgs {
    /// The backbone.
    #[command(flatten)]
    pub backbone: BackboneArgs,
    /// Most images in a batch.
    #[arg(long, env = "CLIPKEEP_BATCH_SIZE", default_value = "32")]
    pub batch_size: NonZeroUsize,
    /// How long an image may wait for others to join its batch, in microseconds. Without it the device never waits while there
    /// is work, and batches grow while it is busy.
    #[arg(long, env = "CLIPKEEP_BATCH_WAIT_MICROS", default_value_t = 0)]
    pub batch_wait_micros: u64,
    /// How long a batch should take on the device, in milliseconds, where it would be larger. A job's batch gets a quarter of that.
    /// A smaller value makes answers come sooner while the device is busy, a larger one gives more images a second.
    #[arg(long, env = "CLIPKEEP_BATCH_MILLIS", default_value = "400")]
    pub batch_millis: NonZeroU64,
    /// Most images in a batch of a job: a classification waits for a pause in one, or, on a GPU, for its end.
    #[arg(long, env = "CLIPKEEP_JOB_BATCH_SIZE", default_value = "8")]
    pub job_batch_size: NonZeroUsize,
    /// Images that may wait for the device.
    #[arg(long, env = "CLIPKEEP_QUEUE", default_value = "256")]
    pub queue: NonZeroUsize,
    /// Text embeddings that are remembered.
    #[arg(long, env = "CLIPKEEP_TEXT_CACHE", default_value_t = 4096)]
    pub text_cache: usize,
    /// Most MiB of image features that are remembered, by the digest of the image: one that is sent again is not decoded or
    /// encoded again, and one that several send at a time is decoded once. With 0 none is remembered, and each is
    /// decoded and encoded for itself.
    #[arg(long, env = "CLIPKEEP_FEATURE_CACHE_MIB", default_value_t = 64)]
    pub feature_cache_mib: usize,
    /// Inactive versions that are kept in memory.
    #[arg(long, env = "CLIPKEEP_PINNED_VERSIONS", default_value = "4")]
    pub pinned_versions: NonZeroUsize,
}

/// How jobs are run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Learning")]
pub struct LearnerArgs {
    /// Threads that fit, unlearn and evaluate. On Linux they have the lowest priority of `nice`: what those who answer leave of the
    /// processor.
    #[arg(long, env = "CLIPKEEP_FIT_THREADS", default_value = "1")]
    pub fit_threads: NonZeroUsize,
    /// How long a worker may go silent before another server takes its job, in seconds.
    #[arg(long, env = "CLIPKEEP_LEASE_SECONDS", default_value = "60")]
    pub lease_seconds: NonZeroU64,
}

/// Bounds on requests.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most MiB in a body, uploads of tasks aside, and in one image of an upload.
    #[arg(long, env = "CLIPKEEP_MAX_BODY_MIB", default_value_t = 32)]
    pub max_body_mib: usize,
    /// Most images in a request.
    #[arg(long, env = "CLIPKEEP_MAX_IMAGES", default_value_t = 64)]
    pub max_images: usize,
    /// Most megapixels of one image.
    #[arg(long, env = "CLIPKEEP_MAX_MEGAPIXELS", default_value_t = MOST_MEGAPIXELS)]
    pub max_megapixels: u64,
    /// Most ad-hoc labels or texts in a request.
    #[arg(long, env = "CLIPKEEP_MAX_LABELS", default_value_t = 256)]
    pub max_labels: usize,
    /// Connections at a time; by default, twice as many as there may be requests, uploads and watches, and at least 64. Where one more arrives,
    /// the oldest are asked to end when they have answered.
    #[arg(long, env = "CLIPKEEP_MAX_CONNECTIONS")]
    pub max_connections: Option<NonZeroUsize>,
    /// How long a connection may bring no request, or take nothing of an answer, in seconds. A proxy in front should close those
    /// that it keeps sooner.
    #[arg(long, env = "CLIPKEEP_IDLE_SECONDS", default_value = "75")]
    pub idle_seconds: NonZeroU32,
    /// Requests that are worked on at a time; times the largest body, this bounds the memory for bodies.
    #[arg(long, env = "CLIPKEEP_MAX_REQUESTS", default_value = "128")]
    pub max_requests: NonZeroUsize,
    /// Most MiB in the body of a task; it is spooled to disk.
    #[arg(long, env = "CLIPKEEP_MAX_UPLOAD_MIB", default_value_t = 1024)]
    pub max_upload_mib: usize,
    /// Most MiB in the file of a version that is imported; one is read at a time, and takes a few times as much memory.
    #[arg(long, env = "CLIPKEEP_MAX_WEIGHTS_MIB", default_value_t = 1024)]
    pub max_weights_mib: usize,
    /// Most examples in a task.
    #[arg(long, env = "CLIPKEEP_MAX_EXAMPLES", default_value_t = 20_000)]
    pub max_examples: usize,
    /// Most MiB of all examples of a task, unpacked.
    #[arg(long, env = "CLIPKEEP_MAX_UNPACKED_MIB", default_value_t = 4096)]
    pub max_unpacked_mib: usize,
    /// Most MiB that a fit reads of a task's examples: features, or, for a model with the self-attention adapter, tokens, which
    /// are 75 times as large with ViT-B/32 and 770 times with ViT-L/14 at 336 pixels. It takes more memory
    /// than that: they are held in float16, too, and features once more as embeddings. A job that was accepted where more was
    /// allowed fails.
    #[arg(long, env = "CLIPKEEP_MAX_FIT_MIB", default_value_t = 4096)]
    pub max_fit_mib: usize,
    /// How long a request may take, uploads and event streams aside, in seconds.
    #[arg(long, env = "CLIPKEEP_DEADLINE_SECONDS", default_value = "30")]
    pub deadline_seconds: NonZeroU64,
}

/// Where the backbone runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, or the CPU where there is none.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some("")) => Ok(Self::Cuda(0)),
            (_, Some(number)) => {
                let number = number.strip_prefix(':').and_then(|n| n.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| format!("{text:?} is not a device; try cuda:0"))
            }
            _ => Err(format!("{text:?} is neither auto, cpu nor cuda:N")),
        }
    }
}

impl BackboneArgs {
    /// The same backbone, as it is when nothing is rounded.
    #[must_use]
    pub fn exact(&self) -> Self {
        Self {
            device: DeviceChoice::Cpu,
            dtype: Dtype::F32,
            ..self.clone()
        }
    }

    /// Threads for tensors.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(cores, NonZeroUsize::get)
    }

    /// Threads that decode.
    pub fn decode_threads(&self) -> usize {
        self.decode_threads
            .map_or_else(|| self.threads(), NonZeroUsize::get)
    }

    /// The sizes of an engine that serves nobody, so that its batches may all be as large as is good for throughput. Images
    /// are bounded as `serve` bounds them unless told otherwise.
    pub fn offline_engine(&self) -> EngineConfig {
        const BATCH: usize = 32;
        const QUEUE: usize = 256;
        EngineConfig {
            policy: Policy {
                max_batch: BATCH,
                max_wait: Duration::ZERO,
                background_batch: BATCH,
                background_every: 8,
                batch_time: Duration::MAX,
            },
            queue_capacity: QUEUE,
            decode_threads: self.decode_threads(),
            decode_capacity: QUEUE,
            limits: clip::Limits {
                max_pixels: MOST_MEGAPIXELS * 1_000_000,
            },
            text_cache: QUEUE,
            feature_cache_bytes: 0,
        }
    }
}

impl ServeConfig {
    /// Where the store is.
    ///
    /// # Errors
    /// When the URL is of no known kind.
    pub fn location(&self) -> Result<Location, StoreError> {
        match &self.database_url {
            Some(url) => Location::from_url(url),
            None => Location::file(&self.data_dir.join("clipkeep.db")),
        }
    }

    /// Bounds on connections.
    pub fn connection_limits(&self) -> ConnectionLimits {
        let limits = self.http_limits();
        let twice = 2 * (limits.requests + limits.uploads() + limits.watches());
        let twice = twice.max(64);
        ConnectionLimits {
            most: self.limits.max_connections.map_or(twice, NonZeroUsize::get),
            idle: Duration::from_secs(self.limits.idle_seconds.get().into()),
        }
    }

    /// Bounds for the interface.
    pub fn http_limits(&self) -> http::Limits {
        let limits = &self.limits;
        http::Limits {
            body_bytes: limits.max_body_mib * MIB,
            images: limits.max_images,
            pixels: limits.max_megapixels * 1_000_000,
            labels: limits.max_labels,
            text_bytes: http::TEXT_BYTES,
            upload_bytes: limits.max_upload_mib * MIB,
            weights_bytes: limits.max_weights_mib * MIB,
            upload: UploadLimits {
                examples: limits.max_examples,
                image_bytes: (limits.max_body_mib * MIB) as u64,
                total_bytes: (limits.max_unpacked_mib * MIB) as u64,
            },
            requests: limits.max_requests.get(),
            queue: self.engine.queue.get(),
            deadline: Duration::from_secs(limits.deadline_seconds.get()),
        }
    }

    /// The engine's sizes.
    pub fn engine_config(&self) -> EngineConfig {
        let engine = &self.engine;
        EngineConfig {
            policy: Policy {
                max_batch: engine.batch_size.get(),
                max_wait: Duration::from_micros(engine.batch_wait_micros),
                background_batch: engine.job_batch_size.get(),
                background_every: 8,
                batch_time: Duration::from_millis(engine.batch_millis.get()),
            },
            queue_capacity: engine.queue.get(),
            decode_threads: engine.backbone.decode_threads(),
            decode_capacity: engine.queue.get(),
            limits: clip::Limits {
                max_pixels: self.limits.max_megapixels * 1_000_000,
            },
            text_cache: engine.text_cache,
            feature_cache_bytes: engine.feature_cache_mib * MIB,
        }
    }

    /// How jobs are run.
    pub fn learner_config(&self) -> LearnerConfig {
        LearnerConfig {
            fit_threads: self.learner.fit_threads.get(),
            chunk: 32,
            chunk_bytes: (self.limits.max_body_mib * MIB) as u64,
            fit_bytes: (self.limits.max_fit_mib * MIB) as u64,
            lease: Duration::from_secs(self.learner.lease_seconds.get()),
            poll: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("tpu".parse::<DeviceChoice>().is_err());
    }
}
