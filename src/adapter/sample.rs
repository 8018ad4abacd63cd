//! A few rows of what is known, by which closed forms choose what is in no closed form: λ, and how much scores count.
//!
//! Which rows these are depends on the classes alone. Neither the order in which they were learned matters nor what was
//! learned in between and unlearned again, so nothing that is chosen by them does.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use crate::domain::Digest;

/// Most classes: those whose rows have the smallest digests.
const CLASSES: usize = 128;
/// Most rows of a class, evenly spaced among its own.
const ROWS: usize = 8;

/// Rows of some classes, of each at least two: a single one says nothing about its class when it is left out.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    classes: BTreeMap<Digest, SampledClass>,
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
            let few = count.min(ROWS);
            let places: Vec<u32> = (0..few).map(|place| (place * count / few) as u32).collect();
            let rows = rows.index_select(&Tensor::new(places, rows.device())?, 0)?;
            let values = rows.flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let class = SampledClass { column, rows };
            sample.classes.insert(Digest::of(&bytes), class);
            sample.trim();
        }
        Ok(sample)
    }

    /// Adds that of classes behind the first `known` ones.
    pub(super) fn merge(&mut self, next: Self, known: usize) {
        for (digest, SampledClass { column, rows }) in next.classes {
            let column = column + known;
            self.classes.insert(digest, SampledClass { column, rows });
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.classes.len() > CLASSES {
            self.classes.pop_last();
        }
    }

    /// The first rows (n, D) of each class, as many of its k as `of` says, and their columns. `None` where there are none.
    pub(super) fn first(&self, of: impl Fn(usize) -> usize) -> Result<Option<(Tensor, Vec<u32>)>> {
        let (mut rows, mut columns) = (Vec::new(), Vec::new());
        for class in self.classes.values() {
            let count = of(class.rows.dim(0)?);
            rows.push(class.rows.narrow(0, 0, count)?);
            columns.extend(std::iter::repeat_n(class.column as u32, count));
        }
        Ok(match rows.as_slice() {
            [] => None,
            rows => Some((Tensor::cat(rows, 0)?, columns)),
        })
    }

    /// Of each class its column and its first rows (n, D) in f64, as many of its k as `of` says.
    pub(super) fn each(&self, of: impl Fn(usize) -> usize) -> Result<Vec<(usize, Tensor)>> {
        let classes = self.classes.values();
        classes
            .map(|class| {
                let rows = class.rows.narrow(0, 0, of(class.rows.dim(0)?))?;
                Ok((class.column, rows.to_dtype(DType::F64)?))
            })
            .collect()
    }
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

    fn rows(sample: &Sample) -> Vec<Vec<f32>> {
        let (rows, _) = sample.first(|count| count).expect("rows").expect("some");
        rows.to_vec2().expect("values")
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
        let (_, columns) = joint.first(|_| 1).expect("rows").expect("some");
        let (_, others) = apart.first(|_| 1).expect("rows").expect("some");
        for (one, other) in columns.iter().zip(others) {
            assert_eq!(*one, 299 - other, "the column that its class has there");
            assert!(one % 9 > 0, "a class of one row is not in it");
        }
    }

    #[test]
    fn rows_are_spread_over_their_class() {
        let class = features(80, 4);
        let sample = Sample::of([&class], 5).expect("a sample");
        let expected = class
            .index_select(&Tensor::new(&[0_u32, 10, 20], class.device()).expect("places"), 0)
            .and_then(|rows| rows.to_vec2::<f32>())
            .expect("rows");
        assert_eq!(rows(&sample)[..3], expected);
        let (few, columns) = sample
            .first(|count| count.div_ceil(4))
            .expect("rows")
            .expect("some");
        assert_eq!((few.dims(), columns), (&[2, 4][..], vec![5, 5]));
        assert!(Sample::default().first(|count| count).expect("no rows").is_none());
    }
}
