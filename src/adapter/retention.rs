//! Which of the weights that a task moved stay moved.
//!
//! Applied once, when a task's training ends, from the second task on (arXiv 2310.20348).

use candle_core::{DType, Result, Tensor};
use rand::Rng;
use rand::seq::SliceRandom as _;

use super::trainable::Trainable;
use crate::domain::Retention;

/// The adapter after a task, from the one before it and the trained one. The rule is applied to each matrix by itself;
/// vectors, such as biases, stay new.
pub(super) fn apply<A: Trainable>(rule: Retention, old: &A, new: &A, rng: &mut impl Rng) -> Result<A> {
    let mut kept = Vec::new();
    for (old, new) in old.parameters().into_iter().zip(new.parameters()) {
        kept.push(match rule {
            _ if new.rank() < 2 => new.clone(),
            // The penalty has done its work while it was trained.
            Retention::None | Retention::Penalty { .. } => new.clone(),
            Retention::Importance { ratio } => keep_furthest(old, new, ratio)?,
            Retention::Random { ratio } => keep_random(old, new, ratio, rng)?,
            Retention::Svd { bias } => keep_along(old, new, bias)?,
        });
    }
    Ok(new.with(kept))
}

/// Takes `new` where it moved at least as far as the k-th furthest entry, k = ⌊ratio · entries⌋, and `old` elsewhere.
/// Entries that tie with the k-th are all taken.
fn keep_furthest(old: &Tensor, new: &Tensor, ratio: f64) -> Result<Tensor> {
    let before = old.flatten_all()?.to_vec1::<f32>()?;
    let after = new.flatten_all()?.to_vec1::<f32>()?;
    let moved: Vec<f32> = before
        .iter()
        .zip(&after)
        .map(|(old, new)| (new - old).abs())
        .collect();
    let Some(threshold) = kth_largest(&moved, (ratio * moved.len() as f64) as usize) else {
        return Ok(old.clone());
    };
    let pairs = before.iter().zip(&after).zip(&moved);
    let kept: Vec<f32> = pairs
        .map(|((&old, &new), &far)| if far >= threshold { new } else { old })
        .collect();
    Tensor::from_vec(kept, new.shape(), new.device())
}

/// Takes `new` in ⌊ratio · entries⌋ entries drawn by `rng`, and `old` elsewhere.
fn keep_random(old: &Tensor, new: &Tensor, ratio: f64, rng: &mut impl Rng) -> Result<Tensor> {
    let mut kept = old.flatten_all()?.to_vec1::<f32>()?;
    let after = new.flatten_all()?.to_vec1::<f32>()?;
    let mut places: Vec<usize> = (0..kept.len()).collect();
    let share = (ratio * kept.len() as f64) as usize;
    let (chosen, _) = places.partial_shuffle(rng, share);
    for &place in &*chosen {
        kept[place] = after[place];
    }
    Tensor::from_vec(kept, new.shape(), new.device())
}

/// RAPF's fusion (arXiv 2407.14143, section 3.3). With `old` = U S Vᵀ and both matrices turned by Uᵀ, an entry takes
/// the share M = min(1, moved / max moved + `bias`) of the new value and the rest of the old one.
fn keep_along(old: &Tensor, new: &Tensor, bias: f64) -> Result<Tensor> {
    let rows = old.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let (height, width) = old.dims2()?;
    let svd = faer::Mat::from_fn(height, width, |i, j| rows[i][j])
        .svd()
        .map_err(|error| candle_core::Error::msg(format!("singular vectors of an adapter: {error:?}")))?;
    let turn: Vec<f64> = (0..height)
        .flat_map(|i| (0..height).map(move |j| (i, j)))
        .map(|(i, j)| svd.U()[(i, j)])
        .collect();
    let turn = Tensor::from_vec(turn, (height, height), old.device())?;
    let back = turn.t()?.contiguous()?;
    let before = back.matmul(&old.to_dtype(DType::F64)?)?;
    let after = back.matmul(&new.to_dtype(DType::F64)?)?;
    let moved = (&after - &before)?;
    let furthest = moved.abs()?.max_all()?.to_scalar::<f64>()?;
    if furthest == 0.0 {
        return Ok(old.clone());
    }
    let share = ((moved.abs()? / furthest)? + bias)?.minimum(1.0)?;
    turn.matmul(&(before + (moved * share)?)?)?.to_dtype(old.dtype())
}

/// `None` for k = 0.
fn kth_largest(values: &[f32], k: usize) -> Option<f32> {
    let mut values = values.to_vec();
    let (_, kth, _) = values.select_nth_unstable_by(k.checked_sub(1)?, |a, b| b.total_cmp(a));
    Some(*kth)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    fn kept(old: &[f32], new: &[f32], ratio: f64) -> Vec<f32> {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).expect("a tensor");
        keep_furthest(&tensor(old), &tensor(new), ratio)
            .expect("kept")
            .to_vec1()
            .expect("values")
    }

    #[test]
    fn the_furthest_share_is_new_and_ties_are_taken() {
        assert_eq!(
            kept(&[0.0; 5], &[5.0, -4.0, 3.0, 2.0, 1.0], 0.4),
            [5.0, -4.0, 0.0, 0.0, 0.0]
        );
        assert_eq!(
            kept(&[0.0; 5], &[1.0, -1.0, 1.0, 0.5, 2.0], 0.4),
            [1.0, -1.0, 1.0, 0.0, 2.0]
        );
        assert_eq!(
            kept(&[7.0, 7.0], &[8.0, 9.0], 0.3),
            [7.0, 7.0],
            "less than one entry"
        );
    }

    /// Often one of a few, so that entries tie and stand still.
    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![-9.0_f32..9.0, (-3_i8..=3).prop_map(f32::from)]
    }

    proptest! {
        #[test]
        fn every_entry_is_old_or_new_and_the_new_ones_moved_further(
            pairs in prop::collection::vec((value(), value()), 1..200),
            ratio in 0.001..=1.0_f64,
        ) {
            let (old, new): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let result = kept(&old, &new, ratio);
            let k = (ratio * old.len() as f64) as usize;
            let moved = |i: usize| (new[i] - old[i]).abs();
            // An entry that did not move is old and new at once, and says nothing.
            let (taken, left): (Vec<usize>, Vec<usize>) =
                (0..old.len()).filter(|&i| moved(i) > 0.0).partition(|&i| result[i].to_bits() == new[i].to_bits());
            prop_assert!(left.iter().all(|&i| result[i].to_bits() == old[i].to_bits()));
            prop_assert!(left.is_empty() || taken.len() >= k);
            let nearest_taken = taken.iter().map(|&i| moved(i)).fold(f32::INFINITY, f32::min);
            prop_assert!(left.iter().all(|&i| moved(i) < nearest_taken), "ties are all taken");
            // And not one more than the ties.
            let tied = taken.iter().filter(|&&i| moved(i).total_cmp(&nearest_taken).is_eq()).count();
            prop_assert!(taken.len() - tied < k.max(1));
        }

        #[test]
        fn a_ratio_of_one_takes_everything(new in prop::collection::vec(-9.0_f32..9.0, 1..100)) {
            prop_assert_eq!(kept(&vec![0.5; new.len()], &new, 1.0), new);
        }
    }
}
