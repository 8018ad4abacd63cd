//! The worker with a backbone on a CPU.

use candle_core::Tensor;
use tokio::sync::oneshot;

use super::super::batching::Policy;
use super::super::device::computes;
use super::super::underway::Decoded;
use super::super::{Asked, Input, Pixels, Work};
use super::*;
use crate::adapter::Head;
use crate::clip::{BackboneSource, Dtype};
use crate::domain::{Digest, Reads};

pub(in crate::engine) async fn backbone() -> Backbone {
    let backbone = Backbone::load(&BackboneSource::Embedded, &Device::Cpu, Dtype::F32).await;
    backbone.expect("a backbone")
}

pub(in crate::engine) type Reply = oneshot::Receiver<Result<Output, EngineError>>;

/// Work on an image of so many bytes, all the same.
pub(in crate::engine) fn work(len: usize, byte: u8) -> (Work, Reply) {
    let (reply, answer) = oneshot::channel();
    let pixels = Pixels {
        decoded: Decoded::new(vec![byte; len]),
        image: None,
        asked: Asked::Row(Reads::Features),
    };
    let work = Work {
        input: Input::Image(pixels),
        enqueued: Instant::now(),
        reply,
    };
    (work, answer)
}

/// Runs one at a time.
async fn worker() -> Worker {
    let policy = Policy {
        max_batch: 1,
        max_wait: Duration::ZERO,
        background_batch: 1,
        background_every: 4,
        batch_time: Duration::MAX,
    };
    Worker {
        backbone: backbone().await,
        queue: Arc::new(Queue::new(policy, 8, 1)),
        features: None,
        works: computes,
        last_success: Arc::default(),
        overlaps: false,
    }
}

impl Worker {
    /// How many bytes an image has.
    fn bytes(&self) -> usize {
        3 * self.backbone.image_size().pow(2)
    }
}

/// What was answered, if anything was.
fn output(answer: &mut Reply) -> Option<Output> {
    answer.try_recv().ok()?.ok()
}

fn row(answer: &mut Reply) -> Option<Vec<f32>> {
    Some(output(answer)?.values)
}

#[tokio::test]
async fn what_is_urgent_is_answered_in_the_pauses_of_a_job_s_batch() {
    let worker = worker().await;
    let one = || work(worker.bytes(), 190);
    let (urgent, mut answers): (Vec<_>, Vec<_>) = (0..5).map(|_| one()).unzip();
    worker
        .queue
        .push(urgent, Priority::Interactive)
        .expect("room for all");
    let (of_job, mut answer_of_job) = one();
    let batch = Batch {
        work: vec![of_job],
        priority: Priority::Background,
    };
    assert!(worker.follow(batch, &mut None).is_ok());
    let wanted = row(&mut answer_of_job).expect("the job's");
    let found: Vec<_> = answers.iter_mut().map_while(row).collect();
    assert_eq!(found, vec![wanted; 3], "three of four batches, and no more");
    assert_eq!(worker.queue.depth(), (2, 0));
}

#[tokio::test]
async fn a_device_that_is_lost_in_a_pause_is_lost_to_the_job_s_batch() {
    let mut worker = worker().await;
    worker.works = |_| false;
    let right = worker.bytes();
    let urgent = [right, 7, right].map(|size| work(size, 190));
    let (urgent, mut answers): (Vec<_>, Vec<_>) = urgent.into_iter().unzip();
    worker
        .queue
        .push(urgent, Priority::Interactive)
        .expect("room for all");
    let (of_job, mut answer_of_job) = work(right, 190);
    let batch = Batch {
        work: vec![of_job],
        priority: Priority::Background,
    };
    assert!(worker.follow(batch, &mut None).is_err());
    assert!(row(&mut answer_of_job).is_none());
    assert_eq!(answers.iter_mut().map_while(row).count(), 1);
    assert_eq!(worker.queue.depth(), (1, 0), "nothing is begun after it");
}

/// What becomes of images of these sizes, each a batch of its own.
fn run(worker: &Worker, sizes: [usize; 4], priority: Priority) -> (Result<(), Lost>, Vec<Reply>) {
    let of_each = sizes.into_iter().zip([0, 60, 120, 180]);
    let (mut all, answers): (Vec<_>, Vec<_>) = of_each.map(|(size, byte)| work(size, byte)).unzip();
    let enqueued = Instant::now();
    for work in &mut all {
        work.enqueued = enqueued;
    }
    worker.queue.push(all, priority).expect("room for all");
    worker.queue.close();
    (worker.work(), answers)
}

#[tokio::test]
async fn whoever_is_begun_early_has_the_same_answer() {
    let mut all = Vec::new();
    for overlaps in [false, true] {
        let mut worker = worker().await;
        worker.overlaps = overlaps;
        let right = worker.bytes();
        let (ended, mut answers) = run(&worker, [right, right, 7, right], Priority::Interactive);
        assert!(ended.is_ok() && worker.queue.depth() == (0, 0));
        let refused = answers.remove(2).try_recv().expect("an answer");
        assert!(matches!(refused, Err(EngineError::Backbone(_))));
        let rows: Vec<_> = answers.iter_mut().map(|of| row(of).expect("a row")).collect();
        assert!(rows[0] != rows[1] && rows[1] != rows[2]);
        all.push(rows);
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test]
async fn images_overlap_with_those_before_them_unless_both_are_a_job_s() {
    use Priority::{Background, Interactive};
    for (overlaps, priority, answered) in [
        (false, Interactive, 2),
        (true, Interactive, 1),
        (true, Background, 2),
    ] {
        let mut worker = worker().await;
        worker.works = |_| false;
        worker.overlaps = overlaps;
        let right = worker.bytes();
        // The third ends it all as it is begun.
        let (ended, mut answers) = run(&worker, [right, right, 7, right], priority);
        assert!(ended.is_err());
        let found = answers.iter_mut().map_while(row).count();
        assert_eq!(found, answered, "{priority:?}, overlapping: {overlaps}");
    }
}

#[tokio::test]
async fn no_time_is_taken_for_that_of_two_forwards() {
    for overlaps in [false, true] {
        let mut worker = worker().await;
        worker.overlaps = overlaps;
        let (right, started) = (worker.bytes(), Instant::now());
        let (ended, mut answers) = run(&worker, [right; 4], Priority::Interactive);
        let took = started.elapsed();
        assert!(ended.is_ok());
        let timings = answers.iter_mut().map(|of| output(of).expect("an answer").timing);
        let timings: Vec<_> = timings.collect();
        let encode: Duration = timings.iter().map(|of| of.encode).sum();
        assert!(encode <= took, "{encode:?} of {took:?}");
        for (one, next) in timings.iter().zip(&timings[1..]) {
            assert!(one.encode > Duration::ZERO && one.queue + one.encode <= next.queue);
        }
    }
}

#[tokio::test]
async fn images_are_answered_before_the_texts_of_their_batch_are_begun() {
    for overlaps in [false, true] {
        let mut worker = worker().await;
        worker.works = |_| false;
        worker.overlaps = overlaps;
        let (image, mut of_image) = work(worker.bytes(), 190);
        let (mut text, mut of_text) = work(0, 190);
        // One of no tokens cannot be encoded.
        text.input = Input::Text { tokens: Vec::new() };
        let batch = Batch {
            work: vec![text, image],
            priority: Priority::Interactive,
        };
        assert!(worker.follow(batch, &mut None).is_err());
        assert!(row(&mut of_image).is_some() && row(&mut of_text).is_none());
    }
}

/// Work on an image of a digest, of which something is asked.
fn of_image(worker: &Worker, image: Digest, byte: u8, asked: &Asked) -> (Work, Reply) {
    let (mut work, answer) = work(worker.bytes(), byte);
    let Input::Image(pixels) = &mut work.input else {
        unreachable!("it is an image");
    };
    (pixels.image, pixels.asked) = (Some(image), asked.clone());
    (work, answer)
}

#[tokio::test]
async fn an_image_is_encoded_once_in_a_batch_whoever_asks() {
    for overlaps in [false, true] {
        let mut worker = worker().await;
        worker.overlaps = overlaps;
        let dim = worker.backbone.dim();
        let cache = Arc::new(FeatureCache::new(1 << 20, dim).expect("room"));
        worker.features = Some(Arc::clone(&cache));
        let [known, twice, other] = [b"known", b"twice", b"other"].map(|bytes| Digest::of(bytes));
        cache.insert(known, vec![0.5; dim].into(), Priority::Interactive);
        let head = |shift: f64| {
            let anchors = Tensor::arange(0_f32, 2.0 * dim as f32, &Device::Cpu)
                .and_then(|of| (of + shift)?.sin()?.reshape((2, dim)));
            Arc::new(
                anchors
                    .and_then(|anchors| Head::zero_shot(anchors, 1.0))
                    .expect("a head"),
            )
        };
        let features = Asked::Row(Reads::Features);
        let heads = [head(0.0), head(1.0)];
        let [one, two] = heads
            .each_ref()
            .map(|head| Asked::Probabilities(Arc::clone(head)));
        // Which bytes were encoded shows in the answer.
        let asks = [
            (twice, 60, &features),
            (known, 120, &one),
            (other, 180, &features),
            (twice, 240, &two),
            (other, 180, &one),
            (twice, 240, &features),
            (known, 120, &features),
        ];
        let (mut all, mut answers): (Vec<_>, Vec<_>) = asks
            .map(|(image, byte, asked)| of_image(&worker, image, byte, asked))
            .into_iter()
            .unzip();
        let tokens = || {
            let (mut work, answer) = of_image(&worker, other, 180, &Asked::Row(Reads::Tokens));
            if let Input::Image(pixels) = &mut work.input {
                pixels.image = None;
            }
            (work, answer)
        };
        let (work, answer_beside) = tokens();
        all.push(work);
        answers.push(answer_beside);
        let answer_to = |work: Vec<Work>| {
            let batch = Batch {
                work,
                priority: Priority::Background,
            };
            let mut begun = None;
            assert!(worker.follow(batch, &mut begun).is_ok() && worker.finish(begun).is_ok());
        };
        answer_to(all);
        let (work, mut answer_alone) = tokens();
        answer_to(vec![work]);
        let values: Vec<_> = answers.iter_mut().map(|of| row(of).expect("an answer")).collect();
        assert_eq!(values[6], vec![0.5; dim]);
        assert!(values[0] == values[5] && values[0] != values[2] && values[2] != values[6]);
        let scored = |head: usize, row: &Vec<f32>| {
            let row = Tensor::new(row.as_slice(), &Device::Cpu).and_then(|row| row.unsqueeze(0));
            row.and_then(|row| heads[head].probabilities(&row))
                .expect("scored")
                .concat()
        };
        assert_eq!(values[1], scored(0, &values[6]));
        assert_eq!(values[3], scored(1, &values[0]));
        assert_eq!(values[4], scored(0, &values[2]));
        assert_eq!(
            values[7],
            row(&mut answer_alone).expect("an answer"),
            "tokens beside those that are known"
        );
        let found = [twice, other].map(|image| {
            cache
                .get(&image, Priority::Background)
                .expect("remembered")
                .to_vec()
        });
        assert!(found[0] == values[0] && found[1] == values[2]);

        // All of it is known by now: nothing is encoded, and nothing succeeded again.
        *worker.last_success.lock().expect("nobody panicked") = None;
        let (again, mut answer) = of_image(&worker, twice, 1, &two);
        answer_to(vec![again]);
        assert_eq!(row(&mut answer).expect("an answer"), values[3]);
        assert!(worker.last_success.lock().expect("nobody panicked").is_none());
    }
}
