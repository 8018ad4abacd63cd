//! Texts to unit embeddings, through the cache.

use std::sync::Arc;

use super::decode::Panicked;
use super::error::because;
use super::{Engine, EngineError, Input, Priority, anchors};

/// Longest text that is taken, in bytes. A context of 77 tokens ends long before, and the tokenizer reads all of a text.
pub const LONGEST_TEXT: usize = 4096;

impl Engine {
    /// Unit-length embeddings of texts as they stand, D values each, from the cache where known.
    ///
    /// Texts go to the device a batch at a time and are remembered batch by batch: many texts find room in a queue that
    /// others use, and who was turned away midway has less to ask for next time.
    ///
    /// # Errors
    /// [`EngineError::TextTooLong`]; [`EngineError::Overloaded`] when the queue has no room for a batch.
    pub async fn embed_texts(
        &self,
        texts: &[String],
        priority: Priority,
    ) -> Result<Vec<Arc<[f32]>>, EngineError> {
        if texts.iter().any(|text| text.len() > LONGEST_TEXT) {
            return Err(EngineError::TextTooLong { limit: LONGEST_TEXT });
        }
        let known = self.shared.texts.get(texts);
        let missing: Vec<String> = texts
            .iter()
            .zip(&known)
            .filter(|(_, row)| row.is_none())
            .map(|(text, _)| text.clone())
            .collect();
        let mut fresh = Vec::with_capacity(missing.len());
        for batch in missing.chunks(self.shared.text_batch) {
            fresh.extend(self.embed_batch(batch, priority).await?);
        }
        let mut fresh = fresh.into_iter();
        Ok(known
            .into_iter()
            .filter_map(|row| row.or_else(|| fresh.next()))
            .collect())
    }

    async fn embed_batch(
        &self,
        texts: &[String],
        priority: Priority,
    ) -> Result<Vec<Arc<[f32]>>, EngineError> {
        let tokens = self.tokenise(texts.to_vec(), priority).await?;
        let inputs = tokens.into_iter().map(|tokens| Input::Text { tokens });
        let outputs = self.run(inputs, priority).await?;
        let remember = |(text, output): (&String, super::Output)| {
            let row: Arc<[f32]> = anchors::normalised(output.values).into();
            self.shared.texts.insert(text.clone(), Arc::clone(&row));
            row
        };
        Ok(texts.iter().zip(outputs).map(remember).collect())
    }

    /// On the decode pool: it is work for a processor, and must not hold up those who wait for the network.
    async fn tokenise(&self, texts: Vec<String>, priority: Priority) -> Result<Vec<Vec<u32>>, EngineError> {
        let tokenizer = self.shared.tokenizer.clone();
        let work = move || -> Result<Vec<Vec<u32>>, String> {
            texts
                .iter()
                .map(|text| tokenizer.encode(text).map_err(|error| because(&error)))
                .collect()
        };
        match self.shared.decode.run(priority, work).await? {
            Ok(tokens) => tokens.map_err(EngineError::Backbone),
            Err(Panicked) => Err(EngineError::Backbone("the tokenizer panicked".to_owned())),
        }
    }

    /// Class anchors: for each class the mean of its words' unit embeddings under every template, made unit length
    /// again (`method.md`'s t_c). D values a class.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    pub async fn anchors(
        &self,
        words: &[String],
        templates: &[String],
        priority: Priority,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let prompts = anchors::prompts(words, templates);
        let rows = self.embed_texts(&prompts, priority).await?;
        Ok(rows.chunks(templates.len()).map(anchors::mean).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An engine whose queue holds two batches of two.
    async fn engine() -> Engine {
        super::super::tests::engine(2, Duration::from_millis(1)).await
    }

    fn texts(numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|n| format!("a photo of {n} cats")).collect()
    }

    #[tokio::test]
    async fn many_texts_never_wait_for_the_device_all_at_once() {
        let engine = engine().await;
        let asked = texts(0..9);
        let mut answer = std::pin::pin!(engine.embed_texts(&asked, Priority::Interactive));
        let mut deepest = 0;
        let rows = loop {
            tokio::select! {
                rows = &mut answer => break rows.expect("embedded"),
                () = tokio::time::sleep(Duration::from_micros(50)) => deepest = deepest.max(engine.queue_depth().0),
            }
        };
        assert!(deepest <= 2, "{deepest} texts waited for the device");
        for (text, row) in asked.iter().zip(&rows) {
            let alone = engine
                .embed_texts(std::slice::from_ref(text), Priority::Background)
                .await;
            assert_eq!(&alone.expect("embedded")[0], row, "{text}");
        }
        engine.stop();
    }

    #[tokio::test]
    async fn a_text_that_is_too_long_is_refused_before_anything_is_encoded() {
        let engine = engine().await;
        let mut asked = texts(0..1);
        asked.push("é".repeat(LONGEST_TEXT / 2));
        assert_eq!(
            engine
                .embed_texts(&asked, Priority::Interactive)
                .await
                .expect("embedded")
                .len(),
            2
        );
        asked.push("a".repeat(LONGEST_TEXT + 1));
        let refused = engine.embed_texts(&asked, Priority::Interactive).await;
        assert!(
            matches!(refused, Err(EngineError::TextTooLong { limit: LONGEST_TEXT })),
            "{refused:?}"
        );
        engine.stop();
    }

    #[tokio::test]
    async fn a_failure_of_the_backbone_is_said_once() {
        let engine = engine().await;
        let run = engine.run([Input::Text { tokens: Vec::new() }], Priority::Interactive);
        let error = run.await.expect_err("a text without tokens").to_string();
        assert!(
            error.starts_with("the backbone failed: text 0 has 0 tokens"),
            "{error}"
        );
        engine.stop();
    }
}
