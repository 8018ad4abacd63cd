//! Text to token ids, as CLIP's `tokenizer.json` says.
//!
//! Owner: the backbone; clones are cheap and go to whoever parses prompts. Invariant: ids start with the start token,
//! end with the end token, and are never more than the context length.

use std::sync::Arc;

use tokenizers::{Tokenizer, TruncationParams};

use super::config::{Pooling, TextConfig};
use super::error::{BackboneError, EncodeError};

/// The file this module parses, as messages name it.
pub(super) const FILE: &str = "tokenizer.json";

/// CLIP's byte-pair tokenizer with its truncation.
#[derive(Clone)]
pub struct ClipTokenizer {
    inner: Arc<Tokenizer>,
    context_length: usize,
}

impl ClipTokenizer {
    /// Parses a `tokenizer.json`, for texts of at most `context_length` tokens (3 or more).
    pub fn from_json(bytes: &[u8], context_length: usize) -> Result<Self, BackboneError> {
        let mut inner = Tokenizer::from_bytes(bytes).map_err(BackboneError::Tokenizer)?;
        // Room for start, end and one token: the crate subtracts the two unchecked.
        if context_length < 3 {
            return Err(invalid(format!(
                "a context of {context_length} tokens has no room for a text"
            )));
        }
        // Files come with the padding and truncation that somebody last used; ours is the text tower's.
        inner.with_padding(None);
        let truncation = TruncationParams {
            max_length: context_length,
            ..Default::default()
        };
        inner
            .with_truncation(Some(truncation))
            .map_err(BackboneError::Tokenizer)?;
        Ok(Self {
            inner: Arc::new(inner),
            context_length,
        })
    }

    /// Parses `tokenizer.json` and checks it against the text tower: the tokenizer of another model would have
    /// nonsense pooled, or index outside the embedding.
    pub(super) fn parse(bytes: &[u8], text: &TextConfig) -> Result<Self, BackboneError> {
        let tokenizer = Self::from_json(bytes, text.context_length)?;
        tokenizer.check(text)?;
        Ok(tokenizer)
    }

    /// Token ids of `text`, start and end included; what does not fit into the context is cut off before the end.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(EncodeError::Tokenize)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Longest sequence of ids, start and end included.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    fn check(&self, text: &TextConfig) -> Result<(), BackboneError> {
        let vocabulary = self.inner.get_vocab(true);
        if let Some((token, id)) = vocabulary.iter().max_by_key(|(_, id)| **id)
            && *id as usize >= text.vocabulary
        {
            return Err(invalid(format!(
                "token `{token}` has id {id}, but text_config.vocab_size in config.json is {}",
                text.vocabulary
            )));
        }
        let empty = self
            .encode("")
            .map_err(|error| BackboneError::Tokenizer(Box::new(error)))?;
        match (text.pooling, empty.last()) {
            (_, None) => Err(invalid(
                "an empty text has no tokens: the start and end tokens are not added".to_owned(),
            )),
            (Pooling::FirstOf(end), Some(last)) if *last != end => Err(invalid(format!(
                "texts end with id {last}, but text_config.eos_token_id in config.json is {end}"
            ))),
            _ => Ok(()),
        }
    }
}

fn invalid(reason: String) -> BackboneError {
    BackboneError::Invalid { file: FILE, reason }
}
