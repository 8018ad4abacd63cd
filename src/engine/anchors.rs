//! Text embeddings: prompts from templates, their mean, and a bounded cache.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

/// The prompts of each class in turn: `words` put into every template.
pub(super) fn prompts(words: &[String], templates: &[String]) -> Vec<String> {
    words
        .iter()
        .flat_map(|words| templates.iter().map(move |t| t.replacen("{}", words, 1)))
        .collect()
}

/// The mean of unit rows, made unit length again.
pub(super) fn mean(rows: &[Arc<[f32]>]) -> Vec<f32> {
    let mut sum = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for row in rows {
        sum.iter_mut()
            .zip(row.iter())
            .for_each(|(sum, value)| *sum += value);
    }
    normalised(sum)
}

/// `row` scaled to unit length; a zero row stays zero.
pub fn normalised(mut row: Vec<f32>) -> Vec<f32> {
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
    if norm > 0.0 {
        for value in &mut row {
            *value /= norm;
        }
    }
    row
}

/// Longest text that is remembered, in bytes: with the number of texts it bounds the cache's memory. A prompt of a label
/// is far shorter.
const LONGEST_REMEMBERED: usize = 1024;

/// The unit embeddings of the texts asked for most recently.
pub(super) struct TextCache {
    rows: Mutex<LruCache<String, Arc<[f32]>>>,
}

impl TextCache {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self {
            rows: Mutex::new(LruCache::new(capacity)),
        }
    }

    pub(super) fn get(&self, texts: &[String]) -> Vec<Option<Arc<[f32]>>> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        texts.iter().map(|text| rows.get(text).cloned()).collect()
    }

    pub(super) fn insert(&self, text: String, row: Arc<[f32]>) {
        if text.len() > LONGEST_REMEMBERED {
            return;
        }
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.put(text, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_grouped_by_class() {
        let words = ["owl".to_owned(), "fox".to_owned()];
        let templates = ["a {}".to_owned(), "{}!".to_owned()];
        assert_eq!(prompts(&words, &templates), ["a owl", "owl!", "a fox", "fox!"]);
    }

    #[test]
    fn long_texts_are_not_remembered() {
        let cache = TextCache::new(4);
        let texts = ["a".repeat(LONGEST_REMEMBERED), "a".repeat(LONGEST_REMEMBERED + 1)];
        for text in &texts {
            cache.insert(text.clone(), vec![1.0].into());
        }
        let found: Vec<bool> = cache.get(&texts).iter().map(Option::is_some).collect();
        assert_eq!(found, [true, false]);
    }

    #[test]
    fn the_mean_has_unit_length() {
        let rows: [Arc<[f32]>; 2] = [vec![1.0, 0.0].into(), vec![0.0, 1.0].into()];
        let mean = mean(&rows);
        assert!(mean.iter().all(|v| (v - 0.5_f32.sqrt()).abs() < 1e-6), "{mean:?}");
        assert_eq!(normalised(vec![0.0, 0.0]), [0.0, 0.0]);
    }
}
