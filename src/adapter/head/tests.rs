//! What heads make of rows, alone and together.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::whitening::Whitening;
use super::*;
use crate::domain::Initialisation;

fn random(rows: usize, dim: usize, seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = Linear::initial(Initialisation::Kaiming, rows.max(dim), &mut rng, &Device::Cpu)?.weight;
    values.narrow(0, 0, rows)?.narrow(1, 0, dim)?.contiguous()
}

fn linear(dim: usize) -> Result<Adapter> {
    Ok(Adapter::Linear(Linear {
        weight: random(dim, dim, 3)?,
        bias: random(1, dim, 4)?.squeeze(0)?,
    }))
}

fn bits(tensor: &Tensor) -> Result<Vec<Vec<u32>>> {
    let rows = tensor.to_vec2::<f32>()?;
    Ok(rows
        .into_iter()
        .map(|row| row.into_iter().map(f32::to_bits).collect())
        .collect())
}

#[test]
fn a_rows_scores_are_the_same_bits_in_any_company() -> Result<()> {
    for (dim, columns) in [(512, 1000), (512, 3), (64, 17), (7, 1)] {
        let features = random(70, dim, 1)?;
        let head = Head::new(linear(dim)?, normalise(&random(columns, dim, 2)?)?, 100.0)?;
        let alone: Vec<Vec<u32>> = (0..70)
            .map(|row| Ok(bits(&head.logits(&features.narrow(0, row, 1)?)?)?.remove(0)))
            .collect::<Result<_>>()?;
        for (start, rows) in [(0, 70), (3, 2), (5, 16), (1, 17), (20, 33)] {
            let together = bits(&head.logits(&features.narrow(0, start, rows)?)?)?;
            assert_eq!(
                together,
                alone[start..start + rows],
                "{rows} rows of {dim} against {columns}"
            );
        }
    }
    Ok(())
}

#[test]
fn so_they_are_whatever_scores() -> Result<()> {
    const DIM: usize = 24;
    let Adapter::Linear(adapter) = linear(DIM)? else {
        candle_core::bail!("another adapter")
    };
    let square = random(DIM, DIM, 5)?;
    let whitening = Whitening {
        centre: random(1, DIM, 6)?,
        transform: (&square + square.t()?)?,
    };
    let scorers = [
        Scorer::Prototypes(Prototypes {
            whitening,
            adapter,
            rows: normalise(&random(5, DIM, 7)?)?,
        }),
        Scorer::Affine(Affine {
            weight: random(5, DIM, 8)?,
            bias: random(1, 5, 9)?.squeeze(0)?,
        }),
        Scorer::Prompts(Prompted {
            context: random(2, DIM, 10)?,
            rows: random(5, DIM, 11)?,
        }),
        Scorer::Ridge(Ridge {
            projection: random(70, DIM, 12)?,
            weight: random(5, 70, 13)?,
            lambda: 1.0,
        }),
    ];
    let terms = scorers.map(|scorer| Term { weight: 0.7, scorer });
    let head = Head::of_terms(terms.to_vec(), random(5, DIM, 14)?, 1.0)?;
    let features = random(150, DIM, 15)?;
    let together = bits(&head.logits(&features)?)?;
    for row in [0, 3, 63, 64, 149] {
        let alone = bits(&head.logits(&features.narrow(0, row, 1)?)?)?;
        assert_eq!(together[row], alone[0], "row {row}");
    }
    Ok(())
}

#[test]
fn an_untrained_adapter_is_zero_shot_and_length_does_not_matter() -> Result<()> {
    let features = random(9, 64, 5)?;
    let anchors = normalise(&random(11, 64, 6)?)?;
    let zero_shot = Head::zero_shot(anchors.clone(), 100.0)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let identity = Linear::initial(Initialisation::Identity, 64, &mut rng, &Device::Cpu)?;
    let untrained = Head::new(Adapter::Linear(identity), anchors, 100.0)?;
    let expected = zero_shot.logits(&features)?;
    for other in [
        untrained.logits(&features)?,
        zero_shot.logits(&(features * 12.5)?)?,
    ] {
        let apart = (&other - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(apart < 1e-4, "{apart}");
    }
    Ok(())
}

#[test]
fn probabilities_are_a_stable_softmax() -> Result<()> {
    let anchors = Tensor::new(&[[1.0_f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
    let head = Head::zero_shot(anchors, 1000.0)?;
    let features = Tensor::new(&[[2.0_f32, 2.0], [5.0, 0.0]], &Device::Cpu)?;
    assert_eq!(
        head.probabilities(&features)?,
        vec![vec![0.5, 0.5], vec![1.0, 0.0]]
    );
    assert_eq!(
        head.probabilities(&features.narrow(0, 0, 0)?)?,
        Vec::<Vec<f32>>::new()
    );
    Ok(())
}

#[test]
fn widths_must_match() -> Result<()> {
    assert!(Head::new(linear(4)?, random(3, 5, 1)?, 1.0).is_err());
    Ok(())
}
