//! What a fit may hold of the backbone while the device thread serves: the end of the image tower and the text tower,
//! frozen. Nobody who holds them can change them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::ops;

use super::decode::Panicked;
use super::error::because;
use super::{Engine, EngineError, LONGEST_TEXT, Priority};
use crate::adapter::{Prompts, Readout};
use crate::clip::{ClassPrompts, ImageReadout, PromptTower};
use crate::domain::Reads;

impl Engine {
    /// The end of the image tower: how the tokens of its last layer become features.
    pub fn readout(&self) -> &Readout {
        &self.shared.readout
    }

    /// Values of a row that is read of an image.
    pub fn row_width(&self, reads: Reads) -> usize {
        let readout = &self.shared.readout;
        match reads {
            Reads::Features => self.shared.info.dim,
            Reads::Tokens => readout.tokens * readout.norm_weight.elem_count(),
        }
    }

    /// The text tower before classes whose `words` stand in `template`, for a fit that trains what comes before them. On
    /// the decode pool, at low priority.
    ///
    /// # Errors
    /// [`EngineError::TextTooLong`], [`EngineError::Template`].
    pub async fn prompts(
        &self,
        words: Vec<String>,
        template: String,
    ) -> std::result::Result<Arc<dyn Prompts>, EngineError> {
        let longest = words.iter().map(String::len).max().unwrap_or(0);
        if longest + template.len() > LONGEST_TEXT {
            return Err(EngineError::TextTooLong { limit: LONGEST_TEXT });
        }
        let tower = self.shared.prompt_tower.clone();
        let split = move || split(&tower, &words, template);
        match self.shared.decode.run(Priority::Background, split).await? {
            Ok(prompts) => Ok(Arc::new(prompts?)),
            Err(Panicked) => Err(EngineError::Backbone("the tokenizer panicked".to_owned())),
        }
    }

    /// Whether a name has room in a template: the tokenizer cuts off what does not.
    ///
    /// # Errors
    /// [`EngineError::Template`].
    pub fn check_template(&self, template: &str) -> std::result::Result<(), EngineError> {
        split(&self.shared.prompt_tower, &[], template.to_owned()).map(drop)
    }
}

/// Prompts of classes whose `words` stand in `template`.
fn split(
    tower: &PromptTower,
    words: &[String],
    template: String,
) -> std::result::Result<ClassPrompts, EngineError> {
    tower
        .prompts(words, &template)
        .map_err(|error| EngineError::Template {
            template,
            reason: because(&error),
        })
}

/// Features (n, D) of tokens (n, t · w), as the backbone makes them: what scores features can then score tokens.
///
/// # Errors
/// When a row has fewer values than a token.
pub fn read_out(readout: &Readout, tokens: &Tensor) -> Result<Tensor> {
    let class = tokens
        .narrow(1, 0, readout.norm_weight.elem_count())?
        .contiguous()?;
    let epsilon = readout.norm_epsilon as f32;
    ops::layer_norm_slow(&class, &readout.norm_weight, &readout.norm_bias, epsilon)?
        .matmul(&readout.projection)
}

/// The adapter's words for what the tower gives.
pub fn readout(of: ImageReadout) -> Readout {
    Readout {
        tokens: of.tokens,
        heads: of.heads,
        norm_weight: of.norm_weight,
        norm_bias: of.norm_bias,
        norm_epsilon: f64::from(of.norm_epsilon),
        projection: of.projection,
    }
}

impl Prompts for ClassPrompts {
    fn classes(&self) -> usize {
        self.classes()
    }

    fn template(&self) -> Result<Tensor> {
        self.template()
    }

    fn encode(&self, context: &Tensor, classes: Range<usize>) -> Result<Tensor> {
        self.encode(context, classes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use candle_core::Device;

    use super::super::Asked;
    use super::super::tests::{head, pictures, values};
    use super::*;

    /// An engine that waits for a whole batch of `max_batch` images.
    async fn engine(max_batch: usize) -> Engine {
        super::super::tests::engine(max_batch, Duration::from_mins(1)).await
    }

    /// Of two pictures.
    async fn rows(engine: &Engine, asked: Asked) -> Vec<Vec<f32>> {
        values(engine, pictures(engine, &asked)).await
    }

    #[tokio::test]
    async fn one_batch_answers_with_tokens_features_and_probabilities() {
        let engine = engine(8).await;
        let head = head(&engine);
        let (tokens, features, both, probabilities) = tokio::join!(
            rows(&engine, Asked::Row(Reads::Tokens)),
            rows(&engine, Asked::Row(Reads::Features)),
            rows(&engine, Asked::Rows),
            rows(&engine, Asked::Probabilities(Arc::clone(&head))),
        );
        engine.stop();
        let end_to_end = features
            .iter()
            .zip(&tokens)
            .map(|(one, other)| [one.as_slice(), other].concat());
        assert!(end_to_end.eq(both), "the same bits");
        let matrix = |rows: Vec<Vec<f32>>| Tensor::new(rows, &Device::Cpu).expect("rows of one length");
        let (tokens, features) = (matrix(tokens), matrix(features));
        assert_eq!(tokens.dims(), [2, engine.row_width(Reads::Tokens)]);
        assert_eq!(features.dims(), [2, engine.row_width(Reads::Features)]);
        let apart =
            (read_out(engine.readout(), &tokens).expect("features") - &features).expect("of one shape");
        let apart = apart.abs().and_then(|apart| apart.max_all()?.to_scalar::<f32>());
        assert!(apart.expect("a number") < 1e-5);
        assert_eq!(head.probabilities(&features).expect("scored"), probabilities);
    }

    #[tokio::test]
    async fn features_do_not_depend_on_who_asks_for_tokens() {
        let alone = engine(2).await;
        let features = rows(&alone, Asked::Row(Reads::Features)).await;
        alone.stop();
        let together = engine(4).await;
        let (beside_tokens, _) = tokio::join!(
            rows(&together, Asked::Row(Reads::Features)),
            rows(&together, Asked::Row(Reads::Tokens)),
        );
        together.stop();
        assert_eq!(features, beside_tokens);
    }

    #[tokio::test]
    async fn prompts_behind_their_own_words_are_the_texts() {
        let engine = engine(2).await;
        let words = ["cat", "pickup truck"].map(str::to_owned);
        let prompts = engine
            .prompts(words.to_vec(), "a photo of a {}.".to_owned())
            .await
            .expect("prompts");
        let template = prompts.template().expect("a context");
        let ours = prompts.encode(&template, 0..prompts.classes()).expect("features");
        let texts = words.map(|words| format!("a photo of a {words}."));
        let theirs = engine
            .embed_texts(&texts, Priority::Interactive)
            .await
            .expect("embedded");
        engine.stop();
        for (ours, theirs) in ours.to_vec2::<f32>().expect("rows").into_iter().zip(theirs) {
            let cosine: f32 = super::super::normalised(ours)
                .iter()
                .zip(theirs.iter())
                .map(|(a, b)| a * b)
                .sum();
            assert!(cosine > 0.99999, "{cosine}");
        }
    }

    #[tokio::test]
    async fn a_template_without_room_is_refused() {
        let engine = engine(2).await;
        let wordy = "so very ".repeat(20) + "{}";
        let refused = engine.prompts(vec!["cat".to_owned()], wordy).await.err();
        let refused = refused.expect("no room").to_string();
        assert!(
            refused.contains("leaves no room for a name among 32"),
            "{refused}"
        );
        let long = engine
            .prompts(vec!["a".repeat(LONGEST_TEXT)], "{}".to_owned())
            .await
            .err();
        assert!(matches!(long, Some(EngineError::TextTooLong { .. })));
        engine.stop();
    }
}
