//! The thread that owns the backbone: takes a batch, encodes it, applies each asked head to its rows, replies.
//!
//! Where packed weights compute, a background batch has pauses, and what is urgent is taken, encoded and answered in them.
//! Invariant: whatever happens to a batch, everyone in it is answered, or sees an engine that has stopped.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor, bail};
use tokio_util::sync::CancellationToken;

use super::batching::Policy;
use super::error::because;
use super::features::FeatureCache;
use super::queue::{Batch, PushError, Queue};
use super::{Asked, EngineError, Input, Output, Pixels, Priority, Timing, Work};
use crate::clip::{Backbone, EncodeError};
use crate::domain::Reads;
use crate::metrics;

pub(super) struct DeviceThread {
    queue: Arc<Queue>,
    last_success: Arc<Mutex<Option<Instant>>>,
    lost: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceThread {
    /// What it encodes of images with a digest is remembered in `features`. After a batch that failed, `works` says whether the
    /// device still does.
    pub(super) fn start(
        backbone: Backbone,
        policy: Policy,
        capacity: usize,
        features: Option<Arc<FeatureCache>>,
        works: fn(&Device) -> bool,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(policy, capacity));
        let last_success = Arc::new(Mutex::new(None));
        let lost = CancellationToken::new();
        let worker = Worker {
            backbone,
            queue: Arc::clone(&queue),
            features,
            works,
            last_success: Arc::clone(&last_success),
        };
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn({
            let lost = lost.clone();
            move || {
                // Whatever ends this thread, callers must learn of it instead of waiting for ever.
                let _abandon = AbandonOnDrop(&worker.queue);
                while let Some(batch) = worker.queue.next_batch() {
                    if worker.run(batch).is_err() {
                        tracing::error!("the device computes nothing any more");
                        lost.cancel();
                        return;
                    }
                }
            }
        })?;
        Ok(Self {
            queue,
            last_success,
            lost,
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

    /// Cancelled when the device is lost: nothing is computed from then on.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
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

/// Whether a device still computes. An error of CUDA's is often for the life of the process (`CUDA_ERROR_ILLEGAL_ADDRESS` and
/// its like): whatever is asked of the device afterwards fails with it.
pub(super) fn computes(device: &Device) -> bool {
    let sum = || {
        let one = Tensor::new(&[1.0_f32], device)?;
        (&one + &one)?.to_vec1::<f32>()
    };
    sum().is_ok_and(|sum| sum == [2.0])
}

struct AbandonOnDrop<'a>(&'a Queue);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// The device is lost. Those whose batch found it were not told why: callers see an engine that has stopped, as it will have,
/// and a job is taken up again by the next process.
struct Lost;

/// What became of a batch.
enum Went {
    /// Everyone in it was answered with finite numbers.
    Well,
    /// Some were told why they were not.
    Badly,
}

/// What the device thread works with.
struct Worker {
    backbone: Backbone,
    queue: Arc<Queue>,
    features: Option<Arc<FeatureCache>>,
    works: fn(&Device) -> bool,
    last_success: Arc<Mutex<Option<Instant>>>,
}

/// What came between a batch.
#[derive(Default)]
struct Between {
    time: Cell<Duration>,
    lost: Cell<bool>,
}

impl Worker {
    /// Runs one batch and replies to everyone in it.
    fn run(&self, batch: Batch) -> Result<(), Lost> {
        let Batch { work, priority } = batch;
        let (images, texts): (Vec<_>, Vec<_>) = work
            .into_iter()
            .partition(|work| matches!(work.input, Input::Image { .. }));
        let mut went = Went::Well;
        for group in [images, texts].into_iter().filter(|group| !group.is_empty()) {
            if let Went::Badly = self.run_group(group, priority)? {
                went = Went::Badly;
            }
        }
        if let Went::Well = went {
            *self.last_success.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(())
    }

    /// Runs what is all images or all texts.
    fn run_group(&self, group: Vec<Work>, priority: Priority) -> Result<Went, Lost> {
        let (inputs, replies): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|work| (work.input, (work.reply, work.enqueued)))
            .unzip();
        let are_images = matches!(inputs.first(), Some(Input::Image { .. }));
        let started = Instant::now();
        let between = Between::default();
        let pause = || match priority {
            Priority::Interactive => {}
            Priority::Background => self.serve_between(&between),
        };
        // A panic in a tensor library must cost one batch, not the server.
        let outputs = catch_unwind(AssertUnwindSafe(|| self.encode(inputs, &pause)))
            .unwrap_or_else(|_| Err("a forward panicked".to_owned()));
        if between.lost.get() {
            return Err(Lost);
        }
        let (outputs, mut timing) = match outputs {
            Ok(done) => done,
            Err(reason) => {
                tracing::error!(reason, inputs = replies.len(), "a batch failed");
                let device = self.backbone.device();
                if !catch_unwind(AssertUnwindSafe(|| (self.works)(device))).unwrap_or(false) {
                    return Err(Lost);
                }
                for (reply, _) in replies {
                    let _ = reply.send(Err(EngineError::Backbone(reason.clone())));
                }
                return Ok(Went::Badly);
            }
        };
        timing.encode = timing.encode.saturating_sub(between.time.get());
        metrics::batch_encoded(outputs.len(), timing.encode, timing.head);
        if are_images {
            self.queue.took(outputs.len(), timing.encode);
        }
        let mut went = Went::Well;
        for ((reply, enqueued), values) in replies.into_iter().zip(outputs) {
            let timing = Timing {
                queue: started.saturating_duration_since(enqueued),
                ..timing
            };
            metrics::queue_waited(timing.queue);
            let output = if values.iter().all(|value| value.is_finite()) {
                Ok(Output { values, timing })
            } else {
                went = Went::Badly;
                Err(EngineError::NotFinite)
            };
            // The caller may have gone away during the forward.
            let _ = reply.send(output);
        }
        Ok(went)
    }

    /// Runs what is urgent between the steps of a background batch.
    fn serve_between(&self, between: &Between) {
        while !between.lost.get()
            && let Some(batch) = self.queue.next_urgent()
        {
            let started = Instant::now();
            between.lost.set(self.run(batch).is_err());
            between.time.set(between.time.get() + started.elapsed());
        }
    }

    /// Answers and times, or why there are none.
    fn encode(&self, inputs: Vec<Input>, pause: &dyn Fn()) -> Result<(Answers, Timing), String> {
        let backbone = &self.backbone;
        let count = inputs.len();
        let started = Instant::now();
        let mut pixels = Vec::with_capacity(count);
        let mut tokens = Vec::new();
        let mut asked = Vec::with_capacity(count);
        let mut images = Vec::new();
        for input in inputs {
            match input {
                Input::Image {
                    pixels: Pixels { values, image },
                    asked: of_image,
                } => {
                    pixels.push(values);
                    images.push(image);
                    asked.push(of_image);
                }
                Input::Text { tokens: ids } => {
                    tokens.push(ids);
                    asked.push(Asked::Row(Reads::Features));
                }
            }
        }
        let encoded = if tokens.is_empty() {
            let pixels: Vec<&[f32]> = pixels.iter().map(Vec::as_slice).collect();
            Encoded::images(backbone, &pixels, &asked, pause).map_err(failed)?
        } else {
            Encoded {
                features: backbone.encode_tokens_pausing(&tokens, pause).map_err(failed)?,
                tokens: None,
            }
        };
        let (rows, heads): (Vec<_>, Vec<_>) = grouped(&asked)
            .into_iter()
            .partition(|(asked, _)| matches!(asked, Asked::Row(_) | Asked::Rows));
        let mut answers = vec![Vec::new(); count];
        encoded.answer(&rows, &mut answers).map_err(failed)?;
        // A device works on while its host goes on: without this the heads' time would hold the forward's.
        backbone.device().synchronize().map_err(failed)?;
        let encode = started.elapsed();
        if let Some(cache) = self
            .features
            .as_ref()
            .filter(|_| images.iter().any(Option::is_some))
        {
            let rows = encoded.features.to_vec2::<f32>().map_err(failed)?;
            for (image, row) in images.into_iter().zip(rows) {
                if let Some(image) = image.filter(|_| row.iter().all(|value| value.is_finite())) {
                    cache.insert(image, row.into());
                }
            }
        }

        let started = Instant::now();
        encoded.answer(&heads, &mut answers).map_err(failed)?;
        let timing = Timing {
            queue: Duration::ZERO,
            encode,
            head: started.elapsed(),
        };
        Ok((answers, timing))
    }
}

/// The values that answer each input of a batch, in order.
type Answers = Vec<Vec<f32>>;

/// What was asked, each thing once, and the places of those who did.
fn grouped(asked: &[Asked]) -> Vec<(&Asked, Vec<u32>)> {
    let mut groups: Vec<(&Asked, Vec<u32>)> = Vec::new();
    for (place, asked) in asked.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known.is_same(asked)) {
            Some((_, places)) => places.push(place as u32),
            None => groups.push((asked, vec![place as u32])),
        }
    }
    groups
}

/// What the backbone made of a batch, one row an input.
struct Encoded {
    features: Tensor,
    /// `None` unless somebody reads them.
    tokens: Option<Tensor>,
}

impl Encoded {
    fn images(
        backbone: &Backbone,
        pixels: &[&[f32]],
        asked: &[Asked],
        pause: &dyn Fn(),
    ) -> Result<Self, EncodeError> {
        let are_tokens_read = asked.iter().any(|asked| asked.reads() == Reads::Tokens);
        let reads = if are_tokens_read {
            Reads::Tokens
        } else {
            Reads::Features
        };
        let (features, tokens) = backbone.encode_pixels(pixels, reads, pause)?;
        Ok(Self { features, tokens })
    }

    /// Fills in the answers to groups, each with one piece of work.
    fn answer(&self, groups: &[(&Asked, Vec<u32>)], answers: &mut Answers) -> candle_core::Result<()> {
        for (asked, places) in groups {
            let rows = match (asked.reads(), &self.tokens) {
                (Reads::Features, _) => &self.features,
                (Reads::Tokens, Some(tokens)) => tokens,
                (Reads::Tokens, None) => bail!("these inputs have no tokens"),
            };
            let index = Tensor::new(places.as_slice(), rows.device())?;
            let rows = rows.index_select(&index, 0)?;
            let values = match asked {
                Asked::Row(_) => rows.to_vec2()?,
                Asked::Rows => Tensor::cat(&[self.features.index_select(&index, 0)?, rows], 1)?.to_vec2()?,
                Asked::Probabilities(head) => head.probabilities(&rows)?,
            };
            for (place, values) in places.iter().zip(values) {
                answers[*place as usize] = values;
            }
        }
        Ok(())
    }
}

fn failed(error: impl std::error::Error + 'static) -> String {
    because(&error)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use tokio::sync::oneshot;

    use super::*;
    use crate::clip::{BackboneSource, Dtype};

    async fn backbone() -> Backbone {
        let backbone = Backbone::load(&BackboneSource::Embedded, &Device::Cpu, Dtype::F32).await;
        backbone.expect("a backbone")
    }

    type Reply = oneshot::Receiver<Result<Output, EngineError>>;

    /// Work on an image of so many values.
    fn work(values: usize) -> (Work, Reply) {
        let (reply, answer) = oneshot::channel();
        let pixels = Pixels {
            values: vec![0.5; values],
            image: None,
        };
        let asked = Asked::Row(Reads::Features);
        let work = Work {
            input: Input::Image { pixels, asked },
            enqueued: Instant::now(),
            reply,
        };
        (work, answer)
    }

    #[tokio::test]
    async fn what_is_urgent_is_answered_in_the_pauses_of_a_job_s_batch() {
        let backbone = backbone().await;
        let values = 3 * backbone.image_size().pow(2);
        let policy = Policy {
            max_batch: 1,
            max_wait: Duration::ZERO,
            background_batch: 1,
            background_every: 4,
            batch_time: Duration::MAX,
        };
        let worker = Worker {
            backbone,
            queue: Arc::new(Queue::new(policy, 8)),
            features: None,
            works: computes,
            last_success: Arc::default(),
        };
        let (urgent, mut answers): (Vec<_>, Vec<_>) = (0..5).map(|_| work(values)).unzip();
        worker
            .queue
            .push(urgent, Priority::Interactive)
            .expect("room for all");
        let (of_job, mut answer_of_job) = work(values);
        let batch = Batch {
            work: vec![of_job],
            priority: Priority::Background,
        };
        assert!(worker.run(batch).is_ok());
        let row = |answer: &mut Reply| Some(answer.try_recv().ok()?.expect("a row").values);
        let wanted = row(&mut answer_of_job).expect("the job's");
        let found: Vec<_> = answers.iter_mut().map_while(row).collect();
        assert_eq!(found, vec![wanted; 3], "three of four batches, and no more");
        assert_eq!(worker.queue.depth(), (2, 0));
    }

    /// A thread whose device `works` or not, and what it answers to an image of the wrong size, whose batch fails.
    async fn after_a_failure(
        works: fn(&Device) -> bool,
    ) -> (DeviceThread, Option<Result<Output, EngineError>>) {
        let policy = Policy {
            max_batch: 1,
            max_wait: Duration::ZERO,
            background_batch: 1,
            background_every: 1,
            batch_time: Duration::MAX,
        };
        let thread = DeviceThread::start(backbone().await, policy, 8, None, works);
        let thread = thread.expect("a thread");
        let answer = ask(&thread).await;
        (thread, answer)
    }

    /// `None` where nobody answers.
    async fn ask(thread: &DeviceThread) -> Option<Result<Output, EngineError>> {
        let (work, answer) = work(7);
        thread.push(vec![work], Priority::Interactive).ok()?;
        answer.await.ok()
    }

    #[tokio::test]
    async fn a_device_that_computes_nothing_any_more_ends_its_thread() {
        for works in [(|_| false) as fn(&Device) -> bool, |_| {
            panic!("the context is gone")
        }] {
            let (thread, answer) = after_a_failure(works).await;
            assert!(answer.is_none(), "the engine has stopped, and says nothing else");
            let lost = tokio::time::timeout(Duration::from_mins(1), thread.lost().cancelled()).await;
            assert!(lost.is_ok() && ask(&thread).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_batch_that_fails_on_a_device_that_works_costs_nothing_else() {
        let (thread, answer) = after_a_failure(computes).await;
        assert!(answer.is_some_and(|answer| answer.is_err()));
        assert!(ask(&thread).await.is_some() && !thread.lost().is_cancelled());
    }
}
