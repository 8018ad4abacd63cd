//! Attention against plain sums in f64.

use proptest::prelude::*;

use super::further;
use super::kernels::{block, matrix, nearest, rows, unpaired};
use crate::attention::{Asked, Attention, Sequences, Sight};
use crate::blocks::{Blocks, Layout};
use crate::kernel::Kernel;
use crate::operand::Operand;
use crate::processor::{all, all_bf16};

/// Sequences of so many tokens, one under another in a block, and heads of so many panels.
#[derive(Debug, Clone)]
struct Case {
    lengths: Vec<usize>,
    heads: usize,
    panels: usize,
    sight: Sight,
    asked: Asked,
    seed: usize,
}

prop_compose! {
    fn cases()(
        lengths in prop::collection::vec(1_usize..90, 1..4),
        heads in 1_usize..4,
        panels in 1_usize..3,
        sight in prop_oneof![Just(Sight::All), Just(Sight::Causal)],
        asked in prop_oneof![Just(Asked::All), Just(Asked::First), Just(Asked::Last)],
        seed in 0_usize..1000,
    ) -> Case {
        Case { lengths, heads, panels, sight, asked, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn attention_is_that_of_plain_sums(case in cases()) {
        for kernel in all() {
            let wrong = furthest(&kernel, &case, rows);
            prop_assert!(wrong < 1e-5, "{kernel}: {wrong}");
        }
        for kernel in all_bf16() {
            let wrong = furthest(&kernel, &case, unpaired);
            // Weights are rounded by a 256th at most, and so is what comes out.
            prop_assert!(wrong < 1.01 / 128.0, "{kernel}: {wrong}");
        }
    }
}

/// How far attention is from what it should be, where it is read as `rows`. Infinitely, where rows that nobody asked for change.
fn furthest<T: Operand>(
    kernel: &Kernel<T>,
    case: &Case,
    rows: impl Fn(&Blocks<T::Piece>, usize, usize) -> Vec<Vec<f32>>,
) -> f64 {
    let panel = kernel.columns();
    let (count, depth) = (case.lengths.iter().sum(), case.panels * panel);
    let width = case.heads * depth;
    let mut sequences = Sequences::none(1);
    for length in &case.lengths {
        sequences.push(*length, count).expect("room for all");
    }
    let tokens = in_bf16(matrix(case.seed, count, 3 * width));
    let before = in_bf16(matrix(case.seed + 1, count, width));
    let mut out = block(&before, panel);
    let layout = Layout::new::<T::Piece>(panel, count, width);
    let mut attending = Attention::new(layout, case.heads, case.sight, 1);
    attending.attend(
        kernel,
        &block(&tokens, panel),
        (&sequences, 1),
        case.asked,
        &mut out,
    );
    let asked: Vec<usize> = sequences.tokens(1, case.asked).map(|(_, row)| row).collect();
    let found = rows(&out, count, width);
    let mut furthest = 0.0_f64;
    let mut first = 0;
    for length in &case.lengths {
        for row in first..first + length {
            if !asked.contains(&row) {
                if found[row] != before[row] {
                    return f64::INFINITY;
                }
                continue;
            }
            let seen = match case.sight {
                Sight::All => first..first + length,
                Sight::Causal => first..row + 1,
            };
            for head in 0..case.heads {
                let part = |row: usize, which: usize| &tokens[row][which * width + head * depth..][..depth];
                let [keys, values] =
                    [1, 2].map(|which| seen.clone().map(|row| part(row, which)).collect::<Vec<_>>());
                let wanted = attention(part(row, 0), &keys, &values);
                for (wanted, found) in wanted.iter().zip(&found[row][head * depth..]) {
                    let apart = (wanted - f64::from(*found)).abs();
                    furthest = further(furthest, apart);
                }
            }
        }
        first += length;
    }
    furthest
}

/// `softmax(query · keysᵀ) · values`.
fn attention(query: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
    let dot = |key: &&[f32]| {
        let products = query.iter().zip(*key).map(|(q, k)| f64::from(*q) * f64::from(*k));
        products.sum::<f64>()
    };
    let weights: Vec<f64> = keys.iter().map(|key| dot(key).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let weighted = |column: usize| {
        let values = weights.iter().zip(values);
        values
            .map(|(weight, value)| weight * f64::from(value[column]))
            .sum::<f64>()
            / sum
    };
    (0..query.len()).map(weighted).collect()
}

fn in_bf16(rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let rounded = |row: Vec<f32>| row.into_iter().map(nearest).collect();
    rows.into_iter().map(rounded).collect()
}
