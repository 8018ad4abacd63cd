//! A few rows of what is known, by which closed forms choose what is in no closed form: λ, and how much scores count.
//!
//! Which rows these are depends on the classes alone. Neither the order in which they were learned matters nor what was
//! learned in between and unlearned again, so nothing that is chosen by them does.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use crate::domain::Digest;

/// Most classes: those whose rows have the smallest digests.
const CLASSES: usize = 128;
/// Most rows of a class, evenly spaced among its own. With 512 values a row, a sample is 32 MiB at most.
const ROWS: usize = 128;

/// Rows of some classes, of each at least two: a single one says nothing about its class when it is left out.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// By the digest of the rows. Classes that were taught with the same ones stand together.
    classes: BTreeMap<Digest, Vec<SampledClass>>,
}

#[derive(Debug, Clone)]
struct SampledClass {
    column: usize,
    /// (k, D).
    rows: Tensor,
}

impl Sample {
    /// From all rows (n, D) of classes in column order, the first of which has the column `first`.
    pub(super) fn of<'a>(classes: impl IntoIterator<Item = &'a Tensor>, first: usize) -> Result<Self> {
        let mut sample = Self::default();
        for (column, rows) in (first..).zip(classes) {
            let count = rows.dim(0)?;
            if count < 2 {
                continue;
            }
            let rows = spread(rows, count.min(ROWS))?;
            let values = rows.flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let class = SampledClass { column, rows };
            sample.classes.entry(Digest::of(&bytes)).or_default().push(class);
            sample.trim();
        }
        Ok(sample)
    }

    /// Adds that of classes behind the first `known` ones.
    pub(super) fn merge(&mut self, next: Self, known: usize) {
        for (digest, classes) in next.classes {
            let moved = classes
                .into_iter()
                .map(|SampledClass { column, rows }| SampledClass {
                    column: column + known,
                    rows,
                });
            self.classes.entry(digest).or_default().extend(moved);
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.classes.len() > CLASSES {
            self.classes.pop_last();
        }
    }

    /// Rows class by class, each with its column: of a class's k rows as many as `of` says, but no more than its share of
    /// `most`.
    pub(super) fn by_class(&self, most: usize, of: impl Fn(usize) -> usize) -> Result<Vec<(usize, Tensor)>> {
        let classes: Vec<&SampledClass> = self.classes.values().flatten().collect();
        let share = (most / classes.len().max(1)).max(1);
        classes
            .into_iter()
            .map(|SampledClass { column, rows }| Ok((*column, spread(rows, of(rows.dim(0)?).min(share))?)))
            .collect()
    }
}

/// So many of some rows, evenly spaced.
fn spread(rows: &Tensor, few: usize) -> Result<Tensor> {
    let count = rows.dim(0)?;
    let places: Vec<u32> = (0..few).map(|place| (place * count / few) as u32).collect();
    rows.index_select(&Tensor::new(places, rows.device())?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::rehearsal::tests::features;

    /// 300 classes of one to nine rows.
    fn classes() -> Vec<Tensor> {
        let class = |number: usize| {
            let rows = features(number % 9 + 1, 4);
            (rows + number as f64).expect("moved")
        };
        (0..300).map(class).collect()
    }

    fn by_class(sample: &Sample, of: fn(usize) -> usize) -> Vec<(usize, Tensor)> {
        sample.by_class(usize::MAX, of).expect("rows")
    }

    fn columns(sample: &Sample) -> Vec<usize> {
        let classes = by_class(sample, |_| 1);
        classes.into_iter().map(|(column, _)| column).collect()
    }

    fn rows(sample: &Sample) -> Vec<Vec<f32>> {
        let classes = by_class(sample, |count| count).into_iter();
        classes
            .flat_map(|(_, rows)| rows.to_vec2::<f32>().expect("values"))
            .collect()
    }

    #[test]
    fn it_is_the_same_in_any_order_of_learning() {
        let all = classes();
        let joint = Sample::of(&all, 0).expect("a sample");
        assert_eq!(joint.classes.len(), CLASSES);
        let backwards: Vec<Tensor> = all.iter().rev().cloned().collect();
        let mut apart = Sample::default();
        for (task, classes) in backwards.chunks(70).enumerate() {
            apart.merge(Sample::of(classes, 0).expect("a sample"), task * 70);
        }
        assert_eq!(rows(&apart), rows(&joint));
        for (one, other) in columns(&joint).into_iter().zip(columns(&apart)) {
            assert_eq!(one, 299 - other, "the column that its class has there");
            assert!(one % 9 > 0, "a class of one row is not in it");
        }
    }

    #[test]
    fn classes_of_the_same_rows_stand_together() {
        let (one, other) = (features(4, 4), (features(4, 4) + 1.0).expect("moved"));
        let joint = Sample::of([&one, &other, &one], 0).expect("a sample");
        let mut apart = Sample::of([&one], 0).expect("a sample");
        apart.merge(Sample::of([&one, &other], 0).expect("a sample"), 1);
        assert_eq!(rows(&apart), rows(&joint));
        let sorted = |sample: &Sample| {
            let mut columns = columns(sample);
            columns.sort_unstable();
            columns
        };
        assert_eq!((sorted(&joint), sorted(&apart)), (vec![0, 1, 2], vec![0, 1, 2]));
    }

    #[test]
    fn rows_are_spread_over_their_class() {
        let class = features(400, 4);
        let sample = Sample::of([&class], 5).expect("a sample");
        let at = |places: [u32; 3]| {
            let places = Tensor::new(&places, class.device()).expect("places");
            class
                .index_select(&places, 0)
                .and_then(|rows| rows.to_vec2::<f32>())
                .expect("rows")
        };
        assert_eq!(
            (rows(&sample).len(), &rows(&sample)[..3]),
            (ROWS, &at([0, 3, 6])[..])
        );
        let some = |most, of: fn(usize) -> usize| {
            let classes = sample.by_class(most, of).expect("rows");
            let [(5, rows)] = classes.as_slice() else {
                panic!("{classes:?}")
            };
            rows.to_vec2::<f32>().expect("values")
        };
        assert_eq!(some(3, |count| count), at([0, 131, 265]));
        assert_eq!(some(1000, |count| count.div_ceil(4)).len(), ROWS / 4);
        assert_eq!(some(0, |count| count).len(), 1, "every class has a say");
        assert!(by_class(&Sample::default(), |count| count).is_empty());
    }
}
