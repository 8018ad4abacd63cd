//! Products in halves against plain sums in f64.

use proptest::prelude::*;

use super::further;
use super::kernels::{block, furthest_product, matrix, rows};
use crate::blocks::{Blocks, Extent};
use crate::kernel::Kernel;
use crate::matrix::{Output, Start};
use crate::operand::{Left, Operand};
use crate::processor::{all, all_bf16};
use crate::strassen::Halves;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_in_halves_are_those_of_plain_sums(
        count in 1_usize..40,
        [inputs, outputs] in [1_usize..4, 1_usize..4],
        seed in 0_usize..1000,
    ) {
        for kernel in all() {
            let sizes = (count, 2 * inputs * kernel.columns(), 2 * outputs * kernel.columns());
            let wrong = furthest_in_halves(&kernel, sizes, seed);
            prop_assert!(wrong == 0.0, "{kernel}: {wrong}");
        }
        for kernel in all_bf16() {
            let sizes = (count, 2 * inputs * kernel.columns(), 2 * outputs * kernel.columns());
            let wrong = furthest_in_halves(&kernel, sizes, seed);
            prop_assert!(wrong == 0.0, "{kernel}: {wrong}");
        }
    }
}

/// How far products in halves are from what they should be: of so many rows, inputs and outputs, with the bias, and onto what
/// is there. All are small whole numbers, whose sums and products are not rounded. Infinitely, where other rows than those
/// asked for change.
fn furthest_in_halves<T: Operand>(
    kernel: &Kernel<T>,
    (count, inputs, outputs): (usize, usize, usize),
    seed: usize,
) -> f64 {
    let panel = kernel.columns();
    let whole = |seed, rows, columns| {
        let whole = |row: Vec<f32>| row.into_iter().map(|x| (8.0 * x).round()).collect();
        matrix(seed, rows, columns)
            .into_iter()
            .map(whole)
            .collect::<Vec<Vec<f32>>>()
    };
    let (left, right) = (whole(seed, count, inputs), whole(seed + 7, outputs, inputs));
    let bias = whole(seed + 3, 1, outputs).concat();
    let before = whole(seed + 5, count + 1, outputs);
    let halves = Halves::pack(&right.concat(), inputs, &bias, panel);
    let mut of_rows = Left::<T>::zeros(panel, count + 1, inputs, 1);
    let padded = [left.as_slice(), &[vec![0.0; inputs]]].concat();
    of_rows.pieces = block(&padded, panel);
    let mut furthest = 0.0;
    for start in [Start::Bias, Start::Residual] {
        let mut out: Blocks = block(&before, panel);
        let output = Output {
            start,
            ..Output::new(&mut out)
        };
        halves.product(kernel, &mut of_rows, Extent::new(1, count), output);
        let found = rows(&out, count + 1, outputs);
        if found[count] != before[count] {
            return f64::INFINITY;
        }
        for (row, found) in found[..count].iter().enumerate() {
            let begin: Vec<f32> = match start {
                Start::Bias => bias.clone(),
                Start::Residual => before[row].iter().zip(&bias).map(|(x, b)| x + b).collect(),
            };
            let wrong = furthest_product(&left[row..=row], &right, &begin, std::slice::from_ref(found));
            furthest = further(furthest, wrong);
        }
    }
    furthest
}
