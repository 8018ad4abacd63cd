//! Scores of images that are known: who asks a head while a thread is at it waits, and all who wait are scored together, by one
//! product of the head and their rows. So a large head, which is read from memory for every product, is read once for many.
//!
//! Invariants: whoever asks is answered, or sees that nothing will come; a product has no more than [`ROWS`] rows, unless one request
//! alone does; a turn is one product, so that a thread which took it up while it waited for others is back at theirs after it. How
//! many wait is bounded by how many may ask at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{EngineError, Output, Timing};
use crate::adapter::Head;
use crate::metrics;

/// Rows of a product, whose probabilities are in memory until they are answered with.
const ROWS: usize = 64;

/// Features, one row an image.
pub(super) type Rows = Vec<Arc<[f32]>>;

/// One answer a row.
pub(super) type Scored = Result<Vec<Output>, EngineError>;

/// Heads that somebody is at, and who waits for which.
#[derive(Default)]
pub(super) struct Scoring {
    /// By a head's address, as long as somebody is.
    underway: Mutex<HashMap<usize, Vec<Asking>>>,
}

/// A request's known images.
struct Asking {
    rows: Rows,
    asked: Instant,
    reply: oneshot::Sender<Scored>,
}

impl Scoring {
    /// Has rows wait for a head; the answer comes of a [`Self::turn`], and whether the caller is to take one: otherwise somebody else
    /// is at that head.
    pub(super) fn ask(&self, head: &Arc<Head>, rows: Rows) -> (oneshot::Receiver<Scored>, bool) {
        let (reply, answer) = oneshot::channel();
        let asked = Instant::now();
        let asking = Asking { rows, asked, reply };
        let mut underway = self.underway();
        let is_first = match underway.entry(address(head)) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(asking);
                false
            }
            Entry::Vacant(place) => {
                place.insert(vec![asking]);
                true
            }
        };
        (answer, is_first)
    }

    /// Answers some who wait for a head, by one product: `probabilities` of rows are what it gives, or why it gives none. Whether
    /// others wait by then, and the caller is to take another turn, or have it taken.
    pub(super) fn turn(
        &self,
        head: &Arc<Head>,
        probabilities: impl Fn(&[Arc<[f32]>]) -> Result<Vec<Vec<f32>>, String>,
    ) -> bool {
        let turn = Turn {
            scoring: self,
            address: address(head),
        };
        score(turn.begin(), probabilities);
        turn.end()
    }

    fn underway(&self) -> MutexGuard<'_, HashMap<usize, Vec<Asking>>> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No other head has it while this one is held, as it is by whoever is at it.
fn address(head: &Arc<Head>) -> usize {
    Arc::as_ptr(head) as usize
}

/// A thread's, at the head with an address.
struct Turn<'a> {
    scoring: &'a Scoring,
    address: usize,
}

impl Turn<'_> {
    /// The first of those who wait, as many as a product has rows for.
    fn begin(&self) -> Vec<Asking> {
        let mut underway = self.scoring.underway();
        let Some(waiting) = underway.get_mut(&self.address) else {
            return Vec::new();
        };
        waiting.retain(|asking| !asking.reply.is_closed());
        let mut rows = 0;
        let fitting = waiting.iter().take_while(|asking| {
            rows += asking.rows.len();
            rows <= ROWS
        });
        let count = fitting.count().max(1).min(waiting.len());
        waiting.drain(..count).collect()
    }

    /// Whether others wait.
    fn end(self) -> bool {
        let mut underway = self.scoring.underway();
        let is_over = underway.get(&self.address).is_none_or(Vec::is_empty);
        if is_over {
            underway.remove(&self.address);
        }
        !is_over
    }
}

impl Drop for Turn<'_> {
    /// Where a head panicked, nobody waits for it any longer.
    fn drop(&mut self) {
        if thread::panicking() {
            self.scoring.underway().remove(&self.address);
        }
    }
}

/// Answers all of them by one product. Each has errors of its own.
fn score(asked: Vec<Asking>, probabilities: impl Fn(&[Arc<[f32]>]) -> Result<Vec<Vec<f32>>, String>) {
    if asked.is_empty() {
        return;
    }
    let started = Instant::now();
    let rows: Rows = asked
        .iter()
        .flat_map(|asking| asking.rows.iter().cloned())
        .collect();
    let scores = probabilities(&rows);
    let head = started.elapsed();
    if scores.is_ok() {
        metrics::known_scored(head);
    }
    let mut scores = scores.map(Vec::into_iter);
    for Asking { rows, asked, reply } in asked {
        let timing = Timing {
            queue: started.saturating_duration_since(asked),
            head,
            ..Timing::default()
        };
        metrics::known_waited(timing.queue);
        let scored = match &mut scores {
            Ok(scores) => {
                // All of its own, whatever becomes of one of them: what is left are others'.
                let own: Vec<_> = scores.take(rows.len()).collect();
                own.into_iter()
                    .map(|values| Output::finite(values, timing))
                    .collect()
            }
            Err(reason) => Err(EngineError::Backbone(reason.clone())),
        };
        let _ = reply.send(scored);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use candle_core::{Device, Tensor};

    use super::*;

    fn a_head() -> Arc<Head> {
        let anchors = Tensor::new(&[[1.0_f32]], &Device::Cpu);
        let head = anchors.and_then(|anchors| Head::zero_shot(anchors, 100.0));
        Arc::new(head.expect("a head"))
    }

    /// So many rows of one value.
    fn rows(count: usize, value: f32) -> Rows {
        vec![Arc::from([value]); count]
    }

    /// What a head gives that gives what it is given.
    fn given(rows: &[Arc<[f32]>]) -> Vec<Vec<f32>> {
        rows.iter().map(|row| row.to_vec()).collect()
    }

    /// Takes turns at a head until nobody waits: how many rows each of its products has.
    fn products(scoring: &Scoring, head: &Arc<Head>) -> Vec<usize> {
        let products = Mutex::new(Vec::new());
        while scoring.turn(head, |rows| {
            products.lock().expect("no panic").push(rows.len());
            Ok(given(rows))
        }) {}
        assert!(scoring.underway().is_empty());
        products.into_inner().expect("no panic")
    }

    fn scored(mut answer: oneshot::Receiver<Scored>) -> Result<Vec<f32>, EngineError> {
        let outputs = answer.try_recv().expect("an answer")?;
        Ok(outputs.into_iter().flat_map(|output| output.values).collect())
    }

    #[test]
    fn all_who_wait_for_a_head_are_scored_by_one_product() {
        let (scoring, [head, other]) = (Scoring::default(), [a_head(), a_head()]);
        let wrong = [rows(1, f32::NAN), rows(1, 5.0)].concat();
        let asked = [rows(2, 1.0), wrong, rows(1, 2.0)].map(|rows| scoring.ask(&head, rows));
        let (of_other, is_first) = scoring.ask(&other, rows(1, 9.0));
        assert!(is_first, "another head waits for nobody");
        let (answers, firsts): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        assert_eq!(firsts, [true, false, false]);
        assert!(!scoring.turn(&head, |rows| {
            assert_eq!(rows.len(), 5);
            Ok(given(rows))
        }));
        let mut found = answers.into_iter().map(scored);
        assert_eq!(found.next().expect("an answer").expect("scored"), [1.0, 1.0]);
        let wrong = found.next().expect("an answer");
        assert!(matches!(wrong, Err(EngineError::NotFinite)), "its own alone");
        assert_eq!(found.next().expect("an answer").expect("scored"), [2.0]);
        assert_eq!(products(&scoring, &other), [1]);
        assert_eq!(scored(of_other).expect("scored"), [9.0]);
    }

    #[test]
    fn who_asks_while_a_head_scores_is_scored_in_its_next_turn() {
        let (scoring, head) = (Scoring::default(), a_head());
        let (first, is_first) = scoring.ask(&head, rows(1, 1.0));
        assert!(is_first);
        let next = Mutex::new(None);
        let goes_on = scoring.turn(&head, |asked| {
            let (answer, is_first) = scoring.ask(&head, rows(2, 3.0));
            assert!(!is_first, "somebody is at it");
            *next.lock().expect("no panic") = Some(answer);
            Ok(given(asked))
        });
        assert!(goes_on);
        assert_eq!(scored(first).expect("scored"), [1.0]);
        assert_eq!(products(&scoring, &head), [2]);
        let next = next.into_inner().expect("no panic").expect("asked");
        assert_eq!(scored(next).expect("scored"), [3.0, 3.0]);
    }

    #[test]
    fn a_product_has_so_many_rows_and_a_request_is_in_one() {
        let (scoring, head) = (Scoring::default(), a_head());
        let sizes = [ROWS / 2, ROWS / 2, 1, ROWS + 1, 1];
        let asked = sizes.map(|count| scoring.ask(&head, rows(count, 1.0)).0);
        assert_eq!(products(&scoring, &head), [ROWS, 1, ROWS + 1, 1]);
        assert_eq!(asked.map(|answer| scored(answer).expect("scored").len()), sizes);
    }

    #[test]
    fn who_has_gone_away_is_not_scored() {
        let (scoring, head) = (Scoring::default(), a_head());
        let [gone, stays] = [2, 1].map(|count| scoring.ask(&head, rows(count, 1.0)).0);
        drop(gone);
        assert_eq!(products(&scoring, &head), [1]);
        assert_eq!(scored(stays).expect("scored"), [1.0]);
        drop(scoring.ask(&head, rows(1, 1.0)));
        assert!(products(&scoring, &head).is_empty(), "nobody is left");
    }

    #[test]
    fn a_head_that_fails_tells_all_who_wait_and_scores_again() {
        let (scoring, head) = (Scoring::default(), a_head());
        let asked = [1, ROWS].map(|count| scoring.ask(&head, rows(count, 1.0)).0);
        let panics = || scoring.turn(&head, |_| panic!("a tensor library"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        for mut answer in asked {
            assert!(answer.try_recv().is_err(), "nothing will come");
        }
        let (failed, is_first) = scoring.ask(&head, rows(1, 1.0));
        assert!(is_first);
        assert!(!scoring.turn(&head, |_| Err("no memory".to_owned())));
        assert!(matches!(scored(failed), Err(EngineError::Backbone(reason)) if reason == "no memory"));
        let (answer, _) = scoring.ask(&head, rows(1, 3.0));
        assert_eq!(products(&scoring, &head), [1]);
        assert_eq!(scored(answer).expect("scored"), [3.0]);
    }
}
