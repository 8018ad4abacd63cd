//! Answers about images whose features are remembered: without the device thread, and so without waiting for its batches.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;

use super::decode::Panicked;
use super::error::because;
use super::{Asked, Engine, EngineError, Output, Timing};
use crate::adapter::Head;
use crate::domain::Reads;

impl Engine {
    /// What is asked about rows of features, one answer a row.
    pub(super) async fn answer_known(
        &self,
        rows: Vec<Arc<[f32]>>,
        asked: &Asked,
    ) -> Result<Vec<Output>, EngineError> {
        match asked {
            _ if rows.is_empty() => Ok(Vec::new()),
            _ if asked.reads() == Reads::Tokens => Err(EngineError::Backbone(
                "these images were looked at for their features alone".to_owned(),
            )),
            Asked::Probabilities(head) => self.score_known(rows, Arc::clone(head)).await,
            Asked::Row(_) | Asked::Rows => {
                let timing = Timing::default();
                let answers = rows.iter().map(|row| Output::finite(row.to_vec(), timing));
                answers.collect()
            }
        }
    }

    /// All by one product, on the decode pool.
    async fn score_known(&self, rows: Vec<Arc<[f32]>>, head: Arc<Head>) -> Result<Vec<Output>, EngineError> {
        let shared = Arc::clone(&self.shared);
        let score = move || {
            let started = Instant::now();
            let rows = Tensor::from_vec(rows.concat(), (rows.len(), shared.info.dim), &shared.target)
                .and_then(|rows| head.probabilities(&rows))
                .map_err(|error| EngineError::Backbone(because(&error)))?;
            let timing = Timing {
                head: started.elapsed(),
                ..Timing::default()
            };
            let answers = rows.into_iter().map(|values| Output::finite(values, timing));
            answers.collect()
        };
        let scored = self.shared.decode.go_on(score).await?;
        scored.unwrap_or_else(|Panicked| Err(EngineError::Backbone("a head panicked".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{engine, head, picture, values};
    use super::super::{Looked, Priority};
    use super::*;

    #[tokio::test]
    async fn known_images_and_others_are_answered_in_order() {
        let engine = engine(1, Duration::ZERO).await;
        let dim = engine.info().dim;
        let row = |hot: usize| (0..dim).map(|n| f32::from(n == hot)).collect::<Arc<[f32]>>();
        let images = || vec![Looked::Known(row(1)), picture(&engine, 3), Looked::Known(row(0))];
        let rows = values(&engine, images(), Asked::Row(Reads::Features)).await;
        assert!(rows[0] == *row(1) && rows[2] == *row(0));
        assert!(rows[1] != rows[0] && rows[1].len() == dim);

        let head = head(&engine);
        let scored = values(&engine, images(), Asked::Probabilities(Arc::clone(&head))).await;
        let rows = Tensor::new(rows, engine.device()).and_then(|rows| head.probabilities(&rows));
        for (one, other) in scored
            .iter()
            .flatten()
            .zip(rows.expect("scored").iter().flatten())
        {
            assert!((one - other).abs() < 1e-6, "{one} and {other}");
        }
        assert!(scored[0][1] > 0.99 && scored[2][0] > 0.99, "{scored:?}");
        engine.stop();
    }

    #[tokio::test]
    async fn tokens_are_not_known() {
        let engine = engine(1, Duration::ZERO).await;
        let known = vec![Looked::Known(vec![0.0; engine.info().dim].into())];
        let asked = Asked::Row(Reads::Tokens);
        let refused = engine.encode(known, asked, Priority::Interactive).await;
        assert!(matches!(refused, Err(EngineError::Backbone(_))));
        engine.stop();
    }
}
