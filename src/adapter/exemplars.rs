//! Which examples stand for their class.

use candle_core::{D, DType, Result, Tensor};
use rand::Rng;
use rand::seq::index::sample;

use crate::domain::Choice;

/// At most `count` of a class's rows (n, D), as (k, D); all of them where there are no more.
pub(super) fn choose(rows: &Tensor, count: usize, choice: Choice, rng: &mut impl Rng) -> Result<Tensor> {
    let all = rows.dim(0)?;
    if all <= count {
        return Ok(rows.clone());
    }
    let chosen: Vec<u32> = match choice {
        Choice::Herding => herd(rows, count)?,
        Choice::Random => {
            let mut chosen: Vec<u32> = sample(rng, all, count).iter().map(|row| row as u32).collect();
            chosen.sort_unstable();
            chosen
        }
    };
    rows.index_select(&Tensor::new(chosen, rows.device())?, 0)
}

/// Herding (Welling 2009; algorithm 4 of iCaRL, arXiv 1611.07725): each row in turn is the one whose addition brings the
/// mean of those chosen nearest to the mean μ of all.
///
/// With S the sum of the t − 1 chosen, |t μ − S − x|² is least where 2 (t μ − S) · x − |x|² is greatest.
fn herd(rows: &Tensor, count: usize) -> Result<Vec<u32>> {
    let rows = rows.to_dtype(DType::F64)?;
    let mean = rows.mean_keepdim(0)?;
    let squares = rows.sqr()?.sum(D::Minus1)?.to_vec1::<f64>()?;
    let mut missing = mean.clone();
    let mut chosen: Vec<u32> = Vec::with_capacity(count);
    while chosen.len() < count {
        let along = rows.matmul(&missing.t()?)?.flatten_all()?.to_vec1::<f64>()?;
        let gain = |row: usize| 2.0 * along[row] - squares[row];
        let left = (0..squares.len()).filter(|row| !chosen.contains(&(*row as u32)));
        let Some(best) = left.reduce(|best, row| if gain(row) > gain(best) { row } else { best }) else {
            break;
        };
        chosen.push(best as u32);
        missing = (missing + &mean)?.sub(&rows.narrow(0, best, 1)?)?;
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::rehearsal::tests::features;

    #[test]
    fn herding_takes_the_nearest_to_the_mean_in_turn() -> Result<()> {
        let rows = Tensor::new(&[[0.0_f32], [10.0], [4.0], [1.0], [5.0]], &Device::Cpu)?;
        // μ = 4: first 4 itself, then 5 and 1 make means of 4.5 and 3.33, where 0 and 10 would be further off.
        let chosen = herd(&rows, 3)?;
        assert_eq!(chosen[..2], [2, 4]);
        let mean_with = |last: f64| (4.0 + 5.0 + last) / 3.0 - 4.0;
        assert!(mean_with(1.0).abs() < mean_with(0.0).abs() && mean_with(1.0).abs() < mean_with(10.0).abs());
        assert_eq!(chosen[2], 3);
        Ok(())
    }

    #[test]
    fn herded_exemplars_have_a_nearer_mean_than_random_ones() -> Result<()> {
        let rows = features(60, 8);
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut off = |choice| -> Result<f32> {
            let chosen = choose(&rows, 6, choice, &mut rng)?;
            assert_eq!(chosen.dims(), [6, 8]);
            (chosen.mean(0)? - rows.mean(0)?)?.sqr()?.sum_all()?.to_scalar()
        };
        assert!(off(Choice::Herding)? < off(Choice::Random)? / 4.0);
        Ok(())
    }

    #[test]
    fn a_small_class_is_kept_whole() -> Result<()> {
        let rows = features(3, 4);
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let kept = choose(&rows, 5, Choice::Random, &mut rng)?;
        assert_eq!(kept.to_vec2::<f32>()?, rows.to_vec2::<f32>()?);
        Ok(())
    }
}
