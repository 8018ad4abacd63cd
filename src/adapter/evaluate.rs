//! How often a head is right.

use candle_core::{D, Result, Tensor};

use super::head::Head;
use crate::domain::Tally;

/// Rows scored before their scores are dropped: bounds the memory to this many rows of C logits.
const CHUNK: usize = 1024;

/// Counts the features (n, D) whose best-scoring column is their label's. Of equal scores the first column wins.
pub fn correct(head: &Head, features: &Tensor, labels: &[u32]) -> Result<Tally> {
    let mut correct = 0;
    for (index, labels) in labels.chunks(CHUNK).enumerate() {
        let rows = features.narrow(0, index * CHUNK, labels.len())?;
        let best = head.logits(&rows)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        correct += best
            .iter()
            .zip(labels)
            .filter(|(best, label)| best == label)
            .count();
    }
    Ok(Tally {
        correct: correct as u32,
        total: labels.len() as u32,
    })
}
