//! From bytes to pixels, or, where the image was seen lately, at once to the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use candle_core::Tensor;
use tokio::sync::oneshot;

use super::decode::Panicked;
use super::error::because;
use super::scoring::{Rows, Scored};
use super::underway::Decoded;
use super::{Asked, Engine, EngineError, Output, Priority, Shared, Timing};
use crate::adapter::Head;
use crate::clip::ImageError;
use crate::domain::{Digest, Reads};
use crate::metrics;

/// A decoded and resized image, and what is asked about it.
pub struct Pixels {
    /// Shared with others who sent the image.
    pub(super) decoded: Arc<Decoded>,
    /// Of the image's bytes, where its features are to be remembered: they are all that is read for the answer.
    pub(super) image: Option<Digest>,
    pub(super) asked: Asked,
}

/// What became of an image that was asked about.
pub enum Looked {
    /// It was seen lately: here is the answer.
    Known(Output),
    /// It is to be encoded.
    Fresh(Pixels),
}

/// What is there of an image before it is answered.
enum Found {
    Features(Arc<[f32]>),
    Pixels(Pixels),
}

/// Images that were looked at, of which those that are known are answered: they are, or will be as soon as a head is done with others.
struct Begun {
    found: Vec<Result<Found, EngineError>>,
    /// One a known image, if there are any.
    answers: Option<oneshot::Receiver<Scored>>,
}

/// Images of a request that were looked at.
pub struct LookedAll {
    /// One result an image, in order.
    pub images: Vec<Result<Looked, EngineError>>,
    /// From the call until the last one was found or decoded, before any was answered.
    pub decode: Duration,
}

impl Engine {
    /// Looks at an image of a job, on the CPU pool, once there is a thread for it: answers what is asked where its features are
    /// remembered, and else decodes and resizes it.
    ///
    /// # Errors
    /// [`EngineError::Image`]; where a head fails, [`EngineError::Backbone`].
    pub async fn look(&self, bytes: Bytes, asked: &Asked) -> Result<Looked, EngineError> {
        let find = self.finding(bytes, asked, Priority::Background);
        let (shared, asked) = (Arc::clone(&self.shared), asked.clone());
        let look = move || shared.begun(vec![find()], &asked);
        let begun = self.shared.decode.run(Priority::Background, look).await?;
        let begun = begun.map_err(|Panicked| EngineError::Image(ImageError::Panicked))?;
        begun.looked().await?.remove(0)
    }

    /// Looks at all images of an interactive request, and answers those that are known, all of them together.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the pool has no room for all of them and is not idle.
    pub async fn look_at_all(&self, images: Vec<Bytes>, asked: &Asked) -> Result<LookedAll, EngineError> {
        let started = Instant::now();
        let finding = |bytes| self.finding(bytes, asked, Priority::Interactive);
        let works = images.into_iter().map(finding).collect();
        let (shared, asked) = (Arc::clone(&self.shared), asked.clone());
        let begin = move |found: Vec<_>| {
            let decode = started.elapsed();
            let begun = shared.begun(found.into_iter().map(of_image).collect(), &asked);
            (decode, begun)
        };
        let begun = self.shared.decode.run_all(works, begin).await?;
        let (decode, begun) = begun.map_err(|Panicked| a_head_panicked())?;
        let images = begun.looked().await?;
        Ok(LookedAll { images, decode })
    }

    /// Work for the decode pool.
    fn finding(
        &self,
        bytes: Bytes,
        asked: &Asked,
        priority: Priority,
    ) -> impl FnOnce() -> Result<Found, EngineError> + use<> {
        let (shared, asked, sent) = (Arc::clone(&self.shared), asked.clone(), Instant::now());
        move || shared.find(&bytes, asked, (priority, sent))
    }
}

impl Shared {
    /// Looks up an image that was sent at a time, and tells how long it waited for a thread to hash it and to decode it, or for another
    /// one that decodes it.
    fn find(
        &self,
        bytes: &[u8],
        asked: Asked,
        (priority, sent): (Priority, Instant),
    ) -> Result<Found, EngineError> {
        let waited = || metrics::decode_waited(priority.as_str(), sent.elapsed());
        let cache = self
            .features
            .as_ref()
            .filter(|_| asked.reads() == Reads::Features);
        let image = cache.map(|_| Digest::of(bytes));
        let known = cache
            .zip(image)
            .and_then(|(cache, image)| cache.look_up(&image, priority));
        if let Some(features) = known {
            waited();
            return Ok(Found::Features(features));
        }
        let mut is_shared = true;
        let mut decode = || {
            is_shared = false;
            waited();
            let started = Instant::now();
            let pixels = self.processor.process(bytes, self.limits);
            metrics::image_decoded(priority.as_str(), started.elapsed());
            pixels
        };
        let decoded = match image {
            Some(image) => self.underway.decoded(image, decode),
            None => decode().map(Decoded::new),
        };
        if is_shared {
            waited();
        }
        let decoded = decoded?;
        Ok(Found::Pixels(Pixels {
            decoded,
            image,
            asked,
        }))
    }

    /// Has those that are known answered.
    fn begun(self: &Arc<Self>, found: Vec<Result<Found, EngineError>>, asked: &Asked) -> Begun {
        let features = |found: &Result<Found, EngineError>| match found {
            Ok(Found::Features(row)) => Some(Arc::clone(row)),
            _ => None,
        };
        let known: Rows = found.iter().filter_map(features).collect();
        let answers = (!known.is_empty()).then(|| self.answers(known, asked));
        Begun { found, answers }
    }

    /// What is asked about rows of features, one answer a row: perhaps by a thread that answers others, too.
    fn answers(self: &Arc<Self>, rows: Rows, asked: &Asked) -> oneshot::Receiver<Scored> {
        let Asked::Probabilities(head) = asked else {
            let (reply, answers) = oneshot::channel();
            let answer = |row: &Arc<[f32]>| Output::finite(row.to_vec(), Timing::default());
            let _ = reply.send(rows.iter().map(answer).collect());
            return answers;
        };
        let (answers, is_first) = self.scoring.ask(head, rows);
        if is_first {
            self.take_turn(head);
        }
        answers
    }

    /// Scores those who wait for a head; who comes meanwhile has the next turn.
    fn take_turn(self: &Arc<Self>, head: &Arc<Head>) {
        let others_wait = self.scoring.turn(head, |rows| {
            let features = Tensor::from_vec(rows.concat(), (rows.len(), self.info.dim), &self.target);
            let scored = features.and_then(|features| head.probabilities(&features));
            scored.map_err(|error| because(&error))
        });
        if others_wait {
            let (shared, head) = (Arc::clone(self), Arc::clone(head));
            self.decode.go_on(move || shared.take_turn(&head));
        }
    }
}

impl Begun {
    /// With the answers about those that are known.
    async fn looked(self) -> Result<Vec<Result<Looked, EngineError>>, EngineError> {
        let answers = match self.answers {
            Some(answers) => answers.await.map_err(|_| a_head_panicked())??,
            None => Vec::new(),
        };
        let mut answers = answers.into_iter();
        let looked = self.found.into_iter().filter_map(|found| match found {
            Ok(Found::Features(_)) => answers.next().map(|answer| Ok(Looked::Known(answer))),
            Ok(Found::Pixels(pixels)) => Some(Ok(Looked::Fresh(pixels))),
            Err(error) => Some(Err(error)),
        });
        Ok(looked.collect())
    }
}

fn a_head_panicked() -> EngineError {
    EngineError::Backbone("a head panicked".to_owned())
}

/// What became of work on an image.
fn of_image<T>(done: Result<Result<T, EngineError>, Panicked>) -> Result<T, EngineError> {
    done.unwrap_or(Err(EngineError::Image(ImageError::Panicked)))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::super::tests::{engine, head, values};
    use super::*;

    /// Pictures of one colour each, as files.
    fn files<const N: usize>(colours: [u8; N]) -> Vec<Bytes> {
        let file = |colour| {
            let mut file = std::io::Cursor::new(Vec::new());
            let picture = image::RgbImage::from_pixel(40, 30, image::Rgb([colour, 90, 200]));
            picture
                .write_to(&mut file, image::ImageFormat::Png)
                .expect("written");
            Bytes::from(file.into_inner())
        };
        colours.into_iter().map(file).collect()
    }

    async fn looked(engine: &Engine, files: Vec<Bytes>, asked: &Asked) -> Vec<Looked> {
        timed(engine, files, asked).await.0
    }

    /// And how long decoding took.
    async fn timed(engine: &Engine, files: Vec<Bytes>, asked: &Asked) -> (Vec<Looked>, Duration) {
        let LookedAll { images, decode } = engine.look_at_all(files, asked).await.expect("an idle pool");
        let images = images.into_iter().collect::<Result<_, _>>();
        (images.expect("all are images"), decode)
    }

    #[tokio::test]
    async fn an_image_sent_twice_at_a_time_is_decoded_once() {
        let engine = engine(1, Duration::ZERO).await;
        let row = Asked::Row(Reads::Features);
        let of_job = engine.look(files([10]).remove(0), &row).await;
        let mut looked = looked(&engine, files([10, 10, 250]), &row).await;
        looked.push(of_job.expect("an image"));
        let pixels = looked.iter().map(|of| match of {
            Looked::Fresh(pixels) => &pixels.decoded,
            Looked::Known(_) => panic!("nothing was encoded"),
        });
        let pixels: Vec<_> = pixels.collect();
        let same = |other| Arc::ptr_eq(pixels[0], pixels[other]);
        assert_eq!([1, 2, 3].map(same), [true, false, true]);
        engine.stop();
    }

    #[tokio::test]
    async fn who_asks_a_head_that_is_busy_has_its_next_turn() {
        let engine = engine(1, Duration::ZERO).await;
        let (row, head) = (Asked::Row(Reads::Features), head(&engine));
        let known = looked(&engine, files([10]), &row).await;
        values(&engine, known).await;
        let asked = Asked::Probabilities(Arc::clone(&head));
        let wanted = looked(&engine, files([10]), &asked).await;
        let wanted = values(&engine, wanted).await;

        // Somebody is at it, with more rows than a product has besides.
        let rows = vec![Arc::from(vec![1.0; engine.info().dim]); 65];
        let (first, is_first) = engine.shared.scoring.ask(&head, rows);
        assert!(is_first);
        let started = Instant::now();
        let mut waiting = pin!(timed(&engine, files([10]), &asked));
        let early = tokio::time::timeout(Duration::from_millis(200), waiting.as_mut()).await;
        assert!(early.is_err(), "it waits for its turn");
        let (shared, of_first) = (Arc::clone(&engine.shared), Arc::clone(&head));
        engine.shared.decode.go_on(move || shared.take_turn(&of_first));
        let answered = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        let (answered, decode) = answered.expect("the turn after that one is its own");
        let Looked::Known(Output { timing, .. }) = &answered[0] else {
            panic!("it was seen");
        };
        let stages = decode + timing.queue + timing.head;
        assert!(
            timing.queue > Duration::ZERO && stages <= started.elapsed(),
            "{stages:?}"
        );
        assert_eq!(values(&engine, answered).await, wanted);
        assert_eq!(first.await.expect("an answer").expect("scored").len(), 65);
        engine.stop();
    }

    #[tokio::test]
    async fn known_images_and_others_are_answered_in_order() {
        let engine = engine(1, Duration::ZERO).await;
        let (row, head) = (Asked::Row(Reads::Features), head(&engine));
        let known = looked(&engine, files([10, 250]), &row).await;
        values(&engine, known).await;

        let colours = [250, 130, 10];
        let mixed = looked(&engine, files(colours), &Asked::Probabilities(Arc::clone(&head))).await;
        let known = mixed.iter().map(|of| matches!(of, Looked::Known(_)));
        assert_eq!(known.collect::<Vec<_>>(), [true, false, true]);
        let scored = values(&engine, mixed).await;

        let rows = looked(&engine, files(colours), &row).await;
        assert!(rows.iter().all(|of| matches!(of, Looked::Known(_))));
        let rows = values(&engine, rows).await;
        assert!(rows[0] != rows[1] && rows[1] != rows[2]);
        let rows = Tensor::new(rows, engine.device()).and_then(|rows| head.probabilities(&rows));
        assert_eq!(scored, rows.expect("scored"));

        let tokens = looked(&engine, files([10]), &Asked::Row(Reads::Tokens)).await;
        assert!(
            matches!(tokens[..], [Looked::Fresh(_)]),
            "of tokens nothing is known"
        );
        engine.stop();
    }
}
