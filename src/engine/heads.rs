//! Heads over labels that came with requests: made once, and found again while they are asked for. Requests with the same labels
//! share one, and so their images are answered together.
//!
//! Invariant: what is remembered is bounded, in heads and in the size of each.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use lru::LruCache;

use super::error::because;
use super::{Engine, EngineError, Priority};
use crate::adapter::Head;

/// Heads that are remembered.
const HEADS: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// Values of the largest one that is: a MiB.
const LARGEST: usize = 1 << 18;

/// Labels and templates.
type Prompts = (Vec<String>, Vec<String>);

/// The heads asked for most recently.
pub(super) struct HeadCache {
    heads: Mutex<LruCache<Prompts, Arc<Head>>>,
}

impl HeadCache {
    pub(super) fn new() -> Self {
        Self {
            heads: Mutex::new(LruCache::new(HEADS)),
        }
    }

    fn get(&self, prompts: &Prompts) -> Option<Arc<Head>> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.get(prompts).cloned()
    }

    /// Remembers a head of so many values, if it is not too large.
    fn insert(&self, prompts: Prompts, head: &Arc<Head>, values: usize) {
        if values <= LARGEST {
            let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
            heads.put(prompts, Arc::clone(head));
        }
    }
}

impl Engine {
    /// The head without an adapter that chooses among `words`, each put into every template: see [`Self::anchors`].
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    pub async fn zero_shot(
        &self,
        words: Vec<String>,
        templates: Vec<String>,
        priority: Priority,
    ) -> Result<Arc<Head>, EngineError> {
        let prompts = (words, templates);
        if let Some(head) = self.shared.heads.get(&prompts) {
            return Ok(head);
        }
        let anchors = self.anchors(&prompts.0, &prompts.1, priority).await?;
        let values = anchors.len() * self.shared.info.dim;
        let made = || {
            let anchors = Tensor::new(anchors, &self.shared.target)?;
            Head::zero_shot(anchors, self.shared.info.logit_scale)
        };
        let head = Arc::new(made().map_err(|error| EngineError::Backbone(because(&error)))?);
        self.shared.heads.insert(prompts, &head, values);
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn heads_are_found_by_all_their_prompts_unless_they_are_large() -> candle_core::Result<()> {
        let cache = HeadCache::new();
        let head = Arc::new(Head::zero_shot(
            Tensor::new(&[[1.0_f32, 0.0]], &Device::Cpu)?,
            100.0,
        )?);
        let prompts = |words: &str, template: &str| (vec![words.to_owned()], vec![template.to_owned()]);
        cache.insert(prompts("owl", "{}"), &head, 2);
        cache.insert(prompts("fox", "{}"), &head, LARGEST + 1);
        let found = |words, template| cache.get(&prompts(words, template)).is_some();
        assert!(found("owl", "{}"));
        assert!(!found("owl", "a {}") && !found("fox", "{}"));
        for number in 0..HEADS.get() {
            cache.insert(prompts(&number.to_string(), "{}"), &head, 2);
        }
        assert!(!found("owl", "{}"), "others were asked for since");
        Ok(())
    }
}
