//! The loss of a batch and its gradient, written out by hand: nothing but the products is kept, which automatic
//! differentiation would not know. What comes before the cosines is each adapter's own. On the CPU, the linear adapter without
//! a hinge has a faster way: [`clipkeep_towers::LinearObjective`].
//!
//! ```text
//! u = y / |y|,  cos = u Tᵀ,  loss = mean cross-entropy of s · cos  +  w / n · Σ max(0, cos_j − cos_i + m)
//! ∂cos = s · (softmax(s · cos) − onehot) / n  +  w / n · (onehot_j − onehot_i) where the hinge is open
//! ∂u = ∂cos T,   ∂y = (∂u − (∂u·u) u) / |y|,   ∂T = ∂cosᵀ u
//! ```

use candle_core::{D, DType, Result, Tensor};

use super::embedding::lengths;
use crate::domain::Hinge;

/// What a batch is compared with.
#[derive(Clone, Copy)]
pub(super) struct Targets<'a> {
    /// T, (C, D), unit rows.
    pub(super) anchors: &'a Tensor,
    /// s.
    pub(super) scale: f64,
    /// The classes that are to be kept apart.
    pub(super) pairs: Option<&'a Pairs>,
}

/// A batch's loss, and its gradient up to the cosines.
pub(super) struct Slope {
    /// In nats.
    pub(super) loss: f64,
    /// u, (n, D).
    unit: Tensor,
    /// |y|, (n, 1).
    lengths: Tensor,
    /// ∂cos, (n, C).
    cosines: Tensor,
}

impl Targets<'_> {
    /// The loss of outputs y (n, D), whose classes are the `columns` (n).
    pub(super) fn slope(&self, y: &Tensor, columns: &[u32]) -> Result<Slope> {
        let lengths = lengths(y)?;
        let unit = y.broadcast_div(&lengths)?;
        let cosines = unit.matmul(&self.anchors.t()?)?;
        let hinge = match self.pairs {
            Some(pairs) => pairs.open(&cosines, columns)?,
            None => None,
        };
        let (loss, cosines) = self.cross_entropy(&cosines, columns)?;
        let slope = Slope {
            loss,
            unit,
            lengths,
            cosines,
        };
        match hinge {
            Some(hinge) => slope.with(hinge, columns),
            None => Ok(slope),
        }
    }

    /// The mean cross-entropy of cosines (n, C), and its slope by them.
    fn cross_entropy(&self, cosines: &Tensor, columns: &[u32]) -> Result<(f64, Tensor)> {
        let index = Tensor::new(columns, cosines.device())?.unsqueeze(1)?;
        let logits = (cosines * self.scale)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let exponentials = shifted.exp()?;
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        let loss = (sums.log()? - shifted.gather(&index, 1)?)?
            .mean_all()?
            .to_dtype(DType::F64)?
            .to_scalar()?;
        let minus_one = (index.ones_like()?.to_dtype(cosines.dtype())? * -1.0)?;
        let slope = exponentials
            .broadcast_div(&sums)?
            .scatter_add(&index, &minus_one, 1)?;
        Ok((loss, (slope * (self.scale / columns.len() as f64))?))
    }
}

impl Slope {
    /// ∂y, (n, D), for the `anchors` it was measured against.
    pub(super) fn by_outputs(&self, anchors: &Tensor) -> Result<Tensor> {
        let by_unit = self.cosines.matmul(anchors)?;
        let along = (&by_unit * &self.unit)?.sum_keepdim(D::Minus1)?;
        (by_unit - self.unit.broadcast_mul(&along)?)?.broadcast_div(&self.lengths)
    }

    /// ∂T, (C, D), as if the anchors were free to have any length.
    pub(super) fn by_anchors(&self) -> Result<Tensor> {
        self.cosines.t()?.matmul(&self.unit)
    }

    /// With the hinge added.
    fn with(self, hinge: OpenHinge, columns: &[u32]) -> Result<Self> {
        let OpenHinge { shortfall, open } = hinge;
        let index = Tensor::new(columns, open.device())?.unsqueeze(1)?;
        let own = (open.sum_keepdim(D::Minus1)? * -1.0)?;
        let cosines = (self.cosines + &open)?.scatter_add(&index, &own, 1)?;
        Ok(Self {
            loss: self.loss + shortfall,
            cosines,
            ..self
        })
    }
}

/// For each old class the new ones that it is easily confused with.
pub(super) struct Pairs {
    /// New columns by old column.
    near: Vec<Vec<u32>>,
    margin: f64,
    weight: f64,
}

/// Where the hinge acts in a batch.
struct OpenHinge {
    /// Its part of the loss.
    shortfall: f64,
    /// w / n where a pair's shortfall is above zero, (n, C).
    open: Tensor,
}

impl Pairs {
    /// Among unit `anchors` (C, D), of which the first `old` are rehearsed.
    pub(super) fn among(anchors: &Tensor, old: usize, hinge: Hinge) -> Result<Self> {
        let new = anchors.dim(0)? - old;
        let near = if old == 0 || new == 0 {
            vec![Vec::new(); old]
        } else {
            // |a − b|² = 2 − 2 a·b for unit vectors.
            let nearest = 1.0 - hinge.threshold * hinge.threshold / 2.0;
            let cosines = anchors
                .narrow(0, 0, old)?
                .matmul(&anchors.narrow(0, old, new)?.t()?)?
                .to_dtype(DType::F64)?;
            let near = |row: Vec<f64>| {
                let columns = (old as u32..).zip(row);
                columns
                    .filter(|(_, cosine)| *cosine > nearest)
                    .map(|(column, _)| column)
                    .collect()
            };
            cosines.to_vec2::<f64>()?.into_iter().map(near).collect()
        };
        Ok(Self {
            near,
            margin: hinge.margin,
            weight: hinge.weight,
        })
    }

    /// Where the pairs of a batch fall short, given its cosines (n, C); `None` where no row has a pair.
    fn open(&self, cosines: &Tensor, columns: &[u32]) -> Result<Option<OpenHinge>> {
        let pairs = |column: &u32| self.near.get(*column as usize).map_or(&[][..], Vec::as_slice);
        if columns.iter().all(|column| pairs(column).is_empty()) {
            return Ok(None);
        }
        let (rows, width) = cosines.dims2()?;
        let share = self.weight / rows as f64;
        let values = cosines.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let mut open = vec![0.0; rows * width];
        let mut shortfall = 0.0;
        for (row, column) in columns.iter().enumerate() {
            for &other in pairs(column) {
                let short = values[row][other as usize] - values[row][*column as usize] + self.margin;
                if short > 0.0 {
                    shortfall += share * short;
                    open[row * width + other as usize] = share;
                }
            }
        }
        let open = Tensor::from_vec(open, (rows, width), cosines.device())?.to_dtype(cosines.dtype())?;
        Ok(Some(OpenHinge { shortfall, open }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;
    use crate::adapter::linear::Linear;
    use crate::domain::Initialisation;

    const DIM: usize = 12;
    const COLUMNS: [u32; 5] = [0, 3, 6, 3, 2];

    fn random(seed: u64, rows: usize) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let linear = Linear::initial(Initialisation::Kaiming, DIM, &mut rng, &Device::Cpu)?;
        linear.weight.narrow(0, 0, rows)?.to_dtype(DType::F64)
    }

    fn furthest(a: &Tensor, b: &Tensor) -> Result<f64> {
        (a - b)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar()
    }

    #[test]
    fn the_gradient_is_that_of_automatic_differentiation() -> Result<()> {
        let y = Var::from_tensor(&random(2, COLUMNS.len())?)?;
        let anchors = Var::from_tensor(&normalise(&random(3, 7)?)?)?;
        let logits = (normalise(&y)?.matmul(&anchors.t()?)? * 5.0)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
        let index = Tensor::new(&COLUMNS, &Device::Cpu)?.unsqueeze(1)?;
        let loss = (shifted.exp()?.sum_keepdim(1)?.log()? - shifted.gather(&index, 1)?)?.mean_all()?;
        let gradients = loss.backward()?;

        let targets = Targets {
            anchors: &anchors,
            scale: 5.0,
            pairs: None,
        };
        let slope = targets.slope(&y, &COLUMNS)?;
        assert!((slope.loss - loss.to_scalar::<f64>()?).abs() < 1e-12);
        let found = |var: &Var| gradients.get(var).cloned().expect("a gradient");
        assert!(furthest(&slope.by_outputs(&anchors)?, &found(&y))? < 1e-12);
        assert!(furthest(&slope.by_anchors()?, &found(&anchors))? < 1e-12);
        Ok(())
    }

    #[test]
    fn the_hinge_agrees_with_finite_differences() -> Result<()> {
        let anchors = normalise(&random(3, 7)?)?;
        let y = random(2, COLUMNS.len())?;
        let hinge = Hinge {
            threshold: 1.5,
            margin: 0.3,
            weight: 2.0,
        };
        let pairs = Pairs::among(&anchors, 4, hinge)?;
        let loss = |y: &Tensor, pairs| -> Result<Slope> {
            let targets = Targets {
                anchors: &anchors,
                scale: 5.0,
                pairs,
            };
            targets.slope(y, &COLUMNS)
        };
        let (with, without) = (loss(&y, Some(&pairs))?, loss(&y, None)?);
        assert!(with.loss > without.loss + 0.01, "some pair falls short");
        let exact = with.by_outputs(&anchors)?.to_vec2::<f64>()?;
        let step = 1e-6;
        for (row, column) in [(0, 0), (1, 7), (3, 2), (4, 11)] {
            let moved = |offset: f64| {
                let mut values = y.to_vec2::<f64>()?;
                values[row][column] += offset;
                loss(&Tensor::new(values, &Device::Cpu)?, Some(&pairs)).map(|slope| slope.loss)
            };
            let slope = (moved(step)? - moved(-step)?) / (2.0 * step);
            assert!((slope - exact[row][column]).abs() < 1e-7);
        }
        Ok(())
    }

    #[test]
    fn only_an_old_class_and_a_near_new_one_are_a_pair() -> Result<()> {
        let anchors = Tensor::new(
            &[[1.0_f64, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]],
            &Device::Cpu,
        )?;
        let hinge = |threshold| Hinge {
            threshold,
            margin: 0.1,
            weight: 1.0,
        };
        // Distances from the first: √0.4 ≈ 0.632 and 2; from the second: √0.8 ≈ 0.894 and √2.
        assert_eq!(
            Pairs::among(&anchors, 2, hinge(0.65))?.near,
            [vec![2], Vec::new()]
        );
        assert_eq!(Pairs::among(&anchors, 2, hinge(0.9))?.near, [vec![2], vec![2]]);
        assert!(Pairs::among(&anchors, 0, hinge(0.9))?.near.is_empty());
        Ok(())
    }
}
