//! Inference: from bytes to features, and from features to probabilities.
//!
//! ```text
//! bytes ──▶ decode pool (CPU) ──▶ bounded queue ──▶ device thread: batch, encode, heads ──▶ reply
//! ```
//!
//! The backbone belongs to the device thread alone; everyone else holds an [`Engine`], a cheap handle. Only a fit reads
//! weights besides, on its own threads: those of the text tower and of the image tower's end, which nobody can change. A full
//! queue is an error for the caller, work nobody awaits any more is skipped, and every reply says how long each
//! stage took.

mod anchors;
pub mod batching;
mod decode;
mod device;
mod encoded;
mod error;
mod features;
mod heads;
mod look;
mod queue;
mod scoring;
mod texts;
mod towers;
mod underway;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, DeviceLocation};
use tokio::sync::oneshot;

use crate::adapter::{Head, Readout};
use crate::clip::{Backbone, ClipTokenizer, ImageError, ImageProcessor, Limits, PromptTower};
use crate::domain::{Digest, Reads};

use anchors::TextCache;
pub use anchors::normalised;
use batching::Policy;
use decode::DecodePool;
use device::{DeviceThread, computes};
pub use error::EngineError;
use features::FeatureCache;
use heads::HeadCache;
pub use look::{Looked, LookedAll, Pixels};
use queue::PushError;
use scoring::Scoring;
pub use texts::LONGEST_TEXT;
pub use towers::{read_out, readout};
use underway::{Decoded, Underway};

/// Who waits for a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A person or program waits for the answer.
    Interactive,
    /// A job; runs in the gaps.
    Background,
}

impl Priority {
    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Background => "background",
        }
    }
}

/// How the engine is sized.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// When and how much is batched.
    pub policy: Policy,
    /// Images that may wait for the device, for each priority.
    pub queue_capacity: usize,
    /// Threads that decode and resize.
    pub decode_threads: usize,
    /// Images that may be decoded or wait for a decode thread at a time.
    pub decode_capacity: usize,
    /// Bounds on one image.
    pub limits: Limits,
    /// Text embeddings that are remembered; of texts up to a kilobyte.
    pub text_cache: usize,
    /// Bytes that features of images may take that are remembered, on the CPU; none are where not one has room.
    pub feature_cache_bytes: usize,
}

/// What the loaded backbone is.
#[derive(Debug, Clone)]
pub struct BackboneInfo {
    /// Its name: hub id, directory or the embedded one's.
    pub name: String,
    /// SHA-256 over its files.
    pub digest: Digest,
    /// D, the number of values in a feature row.
    pub dim: usize,
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Most tokens in a text.
    pub context_length: usize,
    /// What cosines are multiplied with before the softmax.
    pub logit_scale: f64,
    /// The device that runs it, such as `cpu` or `cuda:0`.
    pub device: String,
}

/// What is asked about an image.
#[derive(Debug, Clone)]
pub enum Asked {
    /// The row that the backbone makes of it: D un-normalised features, or t · w tokens.
    Row(Reads),
    /// Both rows that the backbone makes of it, by one forward and end to end: features, then tokens.
    Rows,
    /// The probabilities that a head gives its classes.
    Probabilities(Arc<Head>),
}

impl Asked {
    /// What is read of the image for the answer.
    fn reads(&self) -> Reads {
        match self {
            Self::Row(reads) => *reads,
            Self::Rows => Reads::Tokens,
            Self::Probabilities(head) => head.reads(),
        }
    }

    /// Whether one piece of work answers both.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Row(one), Self::Row(other)) => one == other,
            (Self::Rows, Self::Rows) => true,
            (Self::Probabilities(one), Self::Probabilities(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Output {
    /// What was asked for: the values of a row or of both, or one probability a class. Of a text its D un-normalised features.
    pub values: Vec<f32>,
    /// How long it took.
    pub timing: Timing,
}

impl Output {
    /// An answer of finite numbers.
    fn finite(values: Vec<f32>, timing: Timing) -> Result<Self, EngineError> {
        if values.iter().all(|value| value.is_finite()) {
            Ok(Self { values, timing })
        } else {
            Err(EngineError::NotFinite)
        }
    }
}

/// How long an image spent in each stage of its batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// From the queue's entrance to the end of the forward, without the forward: before the batch's turn, while the device was at
    /// the batch before, and in pauses. Of an image that is known, until its head was done with others.
    pub queue: Duration,
    /// The backbone's forward of the whole batch.
    pub encode: Duration,
    /// The heads of the whole batch.
    pub head: Duration,
}

/// One unit of the device thread's work and where its result goes.
struct Work {
    input: Input,
    enqueued: Instant,
    reply: oneshot::Sender<Result<Output, EngineError>>,
}

enum Input {
    Image(Pixels),
    Text { tokens: Vec<u32> },
}

impl Work {
    fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }
}

/// A handle on the inference engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    info: BackboneInfo,
    target: Device,
    processor: Arc<ImageProcessor>,
    tokenizer: ClipTokenizer,
    limits: Limits,
    /// Texts that are encoded at a time.
    text_batch: usize,
    decode: DecodePool,
    device: DeviceThread,
    texts: TextCache,
    heads: HeadCache,
    features: Option<Arc<FeatureCache>>,
    underway: Underway,
    scoring: Scoring,
    readout: Readout,
    prompt_tower: PromptTower,
}

impl Engine {
    /// Moves the backbone to a thread of its own and starts the decode pool.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(backbone: Backbone, config: &EngineConfig) -> std::io::Result<Self> {
        let info = BackboneInfo {
            name: backbone.name().to_owned(),
            digest: backbone.digest(),
            dim: backbone.dim(),
            image_size: backbone.image_size(),
            context_length: backbone.context_length(),
            logit_scale: f64::from(backbone.logit_scale()),
            device: match backbone.device().location() {
                DeviceLocation::Cpu => "cpu".to_owned(),
                DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
            },
        };
        let features = FeatureCache::new(config.feature_cache_bytes, info.dim).map(Arc::new);
        let shared = Shared {
            info,
            target: backbone.device().clone(),
            processor: backbone.image_processor(),
            tokenizer: backbone.tokenizer(),
            limits: config.limits,
            text_batch: config.policy.max_batch.max(1),
            decode: DecodePool::start(config.decode_threads, config.decode_capacity)?,
            texts: TextCache::new(config.text_cache),
            heads: HeadCache::new(),
            underway: Underway::new(),
            scoring: Scoring::default(),
            readout: readout(backbone.image_readout()),
            prompt_tower: backbone.prompt_tower(),
            device: DeviceThread::start(
                backbone,
                config.policy,
                config.queue_capacity,
                features.clone(),
                computes,
            )?,
            features,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// What the backbone is.
    pub fn info(&self) -> &BackboneInfo {
        &self.shared.info
    }

    /// Checks from the header alone that an image is of a known format and within the limits.
    ///
    /// # Errors
    /// As [`Self::look`] would give for a bad header.
    pub fn inspect(&self, bytes: &[u8]) -> Result<(), ImageError> {
        self.shared.processor.inspect(bytes, self.shared.limits)
    }

    /// Answers what was asked about each of some images: those that are not known are encoded. One answer an image, in order.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the queue has no room for all of them.
    pub async fn encode(&self, images: Vec<Looked>, priority: Priority) -> Result<Vec<Output>, EngineError> {
        let (mut known, mut fresh) = (Vec::with_capacity(images.len()), Vec::new());
        for image in images {
            match image {
                Looked::Known(output) => known.push(Some(output)),
                Looked::Fresh(pixels) => {
                    known.push(None);
                    fresh.push(Input::Image(pixels));
                }
            }
        }
        let mut encoded = self.run(fresh, priority).await?.into_iter();
        let in_order = known
            .into_iter()
            .filter_map(|known| known.or_else(|| encoded.next()));
        Ok(in_order.collect())
    }

    /// The device that runs the backbone, where heads have to be.
    pub fn device(&self) -> &Device {
        &self.shared.target
    }

    /// Interactive and background work that waits for the device.
    pub fn queue_depth(&self) -> (usize, usize) {
        self.shared.device.queue_depth()
    }

    /// Whether the device thread lives and its last forward gave finite numbers. Runs a forward of its own when the
    /// last one is older than `max_age`.
    ///
    /// # Errors
    /// What went wrong, as [`Self::encode`] would say it.
    pub async fn check(&self, max_age: Duration) -> Result<(), EngineError> {
        if self
            .shared
            .device
            .last_success()
            .is_some_and(|at| at.elapsed() <= max_age)
        {
            return Ok(());
        }
        let side = self.shared.info.image_size;
        let grey = Pixels {
            decoded: Decoded::new(vec![128; 3 * side * side]),
            image: None,
            asked: Asked::Row(Reads::Features),
        };
        self.encode(vec![Looked::Fresh(grey)], Priority::Interactive)
            .await
            .map(|_| ())
    }

    /// Ends when the device is lost, as a GPU is to its process after some errors: only a new process can use it again.
    pub async fn lost(&self) {
        self.shared.device.lost().cancelled().await;
    }

    /// Whether the device is lost: see [`Self::lost`].
    pub fn is_lost(&self) -> bool {
        self.shared.device.lost().is_cancelled()
    }

    /// Finishes the accepted work, then ends the device thread. Blocks; later calls do nothing.
    pub fn stop(&self) {
        self.shared.device.stop();
    }

    async fn run(
        &self,
        inputs: impl IntoIterator<Item = Input>,
        priority: Priority,
    ) -> Result<Vec<Output>, EngineError> {
        let enqueued = Instant::now();
        let mut replies = Vec::new();
        let mut work = Vec::new();
        for input in inputs {
            let (reply, receiver) = oneshot::channel();
            work.push(Work {
                input,
                enqueued,
                reply,
            });
            replies.push(receiver);
        }
        if work.is_empty() {
            return Ok(Vec::new());
        }
        self.shared.device.push(work, priority).map_err(|e| match e {
            PushError::Full => EngineError::Overloaded,
            PushError::Closed => EngineError::Stopped,
        })?;
        let mut outputs = Vec::with_capacity(replies.len());
        for reply in replies {
            outputs.push(reply.await.map_err(|_| EngineError::Stopped)??);
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests;
