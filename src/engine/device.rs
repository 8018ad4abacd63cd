//! The thread that owns the backbone: takes a batch, encodes it, applies each asked head to its rows, replies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::batching::Policy;
use super::error::because;
use super::queue::{PushError, Queue};
use super::{EngineError, Input, Output, Pixels, Priority, Timing, Work};
use crate::adapter::Head;
use crate::clip::Backbone;
use crate::metrics;

pub(super) struct DeviceThread {
    queue: Arc<Queue>,
    last_success: Arc<Mutex<Option<Instant>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceThread {
    pub(super) fn start(backbone: Backbone, policy: Policy, capacity: usize) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(policy, capacity));
        let last_success = Arc::new(Mutex::new(None));
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn({
            let queue = Arc::clone(&queue);
            let last_success = Arc::clone(&last_success);
            move || {
                // Whatever ends this thread, callers must learn of it instead of waiting for ever.
                let _abandon = AbandonOnDrop(&queue);
                while let Some(batch) = queue.next_batch() {
                    if run(&backbone, batch) {
                        *last_success.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    }
                }
            }
        })?;
        Ok(Self {
            queue,
            last_success,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn push(&self, work: Vec<Work>, priority: Priority) -> Result<(), PushError> {
        self.queue.push(work, priority)
    }

    pub(super) fn queue_depth(&self) -> (usize, usize) {
        self.queue.depth()
    }

    /// When a forward last gave finite numbers.
    pub(super) fn last_success(&self) -> Option<Instant> {
        *self.last_success.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the device thread panicked");
        }
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct AbandonOnDrop<'a>(&'a Queue);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Runs one batch and replies to everyone in it; whether all of it went well.
fn run(backbone: &Backbone, batch: Vec<Work>) -> bool {
    let (images, texts): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .partition(|work| matches!(work.input, Input::Image { .. }));
    [images, texts]
        .into_iter()
        .filter(|group| !group.is_empty())
        .fold(true, |fine, group| {
            let (inputs, replies): (Vec<_>, Vec<_>) = group
                .into_iter()
                .map(|work| (work.input, (work.reply, work.enqueued)))
                .unzip();
            let started = Instant::now();
            // A panic in a tensor library must cost one batch, not the server.
            let outputs = catch_unwind(AssertUnwindSafe(|| encode(backbone, inputs)))
                .unwrap_or_else(|_| Err("a forward panicked".to_owned()));
            let (outputs, timing) = match outputs {
                Ok(done) => done,
                Err(reason) => {
                    tracing::error!(reason, images = replies.len(), "a batch failed");
                    for (reply, _) in replies {
                        let _ = reply.send(Err(EngineError::Backbone(reason.clone())));
                    }
                    return false;
                }
            };
            metrics::batch_encoded(outputs.len(), timing.encode, timing.head);
            let mut finite = true;
            for ((reply, enqueued), (features, probabilities)) in replies.into_iter().zip(outputs) {
                let timing = Timing {
                    queue: started.saturating_duration_since(enqueued),
                    ..timing
                };
                metrics::queue_waited(timing.queue);
                let usable = features
                    .iter()
                    .chain(&probabilities)
                    .all(|value| value.is_finite());
                finite &= usable;
                let output = if usable {
                    Ok(Output {
                        features,
                        probabilities,
                        timing,
                    })
                } else {
                    Err(EngineError::NotFinite)
                };
                // The caller may have gone away during the forward.
                let _ = reply.send(output);
            }
            fine && finite
        })
}

/// Feature and probability rows of inputs of one kind, in order.
type Rows = Vec<(Vec<f32>, Vec<f32>)>;

/// Rows and times, or why there are none.
fn encode(backbone: &Backbone, inputs: Vec<Input>) -> Result<(Rows, Timing), String> {
    let count = inputs.len();
    let started = Instant::now();
    let mut pixels = Vec::new();
    let mut tokens = Vec::new();
    let mut heads = Vec::with_capacity(count);
    for input in inputs {
        match input {
            Input::Image {
                pixels: Pixels(values),
                head,
            } => {
                pixels.extend_from_slice(&values);
                heads.push(head);
            }
            Input::Text { tokens: ids } => {
                tokens.push(ids);
                heads.push(None);
            }
        }
    }
    let features = if tokens.is_empty() {
        let side = backbone.image_size();
        let pixels = Tensor::from_vec(pixels, (count, 3, side, side), backbone.device()).map_err(failed)?;
        backbone.encode_images(&pixels).map_err(failed)?
    } else {
        backbone.encode_tokens(&tokens).map_err(failed)?
    };
    let rows = features.to_vec2::<f32>().map_err(failed)?;
    let encode = started.elapsed();

    let started = Instant::now();
    let probabilities = apply_heads(&features, &heads)?;
    let timing = Timing {
        queue: Duration::ZERO,
        encode,
        head: started.elapsed(),
    };
    Ok((rows.into_iter().zip(probabilities).collect(), timing))
}

/// Each asked head applied once, to all of its rows.
fn apply_heads(features: &Tensor, heads: &[Option<Arc<Head>>]) -> Result<Vec<Vec<f32>>, String> {
    let mut probabilities = vec![Vec::new(); heads.len()];
    let mut groups: Vec<(&Arc<Head>, Vec<u32>)> = Vec::new();
    for (row, head) in heads.iter().enumerate() {
        let Some(head) = head else { continue };
        match groups.iter_mut().find(|(known, _)| Arc::ptr_eq(known, head)) {
            Some((_, rows)) => rows.push(row as u32),
            None => groups.push((head, vec![row as u32])),
        }
    }
    for (head, rows) in groups {
        let index = Tensor::new(rows.as_slice(), features.device()).map_err(failed)?;
        let selected = features.index_select(&index, 0).map_err(failed)?;
        let answers = head.probabilities(&selected).map_err(failed)?;
        for (row, answer) in rows.into_iter().zip(answers) {
            probabilities[row as usize] = answer;
        }
    }
    Ok(probabilities)
}

fn failed(error: impl std::error::Error + 'static) -> String {
    because(&error)
}
