//! Which instructions suit a tower, and what they multiply.

use std::fmt;

use crate::integer::{Bytes, Shorts};
use crate::kernel::Kernel;
use crate::operand::Pair;
use crate::{Transformer, processor};

/// The type that weights are multiplied in, and, of the first two, what attention mixes. What is between the products, and their
/// sums, is f32 in any case, and so is attention beside whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// bfloat16: 16 bits, of which 8 are the exponent, as in f32.
    Bf16,
    /// Whole numbers of 16 bits, of which 12 are used, times a scale for each column of weights and each token.
    Int16,
    /// As `Int16`, of 8 bits.
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        })
    }
}

/// Instructions of this processor, and how wide the panels are that they multiply.
pub struct Instructions(pub(crate) By);

pub(crate) enum By {
    F32(Kernel<f32>),
    Bf16(Kernel<Pair>),
    Int16(Kernel<Shorts>),
    Int8(Kernel<Bytes>),
}

impl Instructions {
    /// Those that suit a tower, the best first. None do where its heads or its MLP are no multiple of eight values wide.
    pub fn suiting(tower: &Transformer, precision: Precision) -> Vec<Self> {
        match precision {
            Precision::F32 => suiting(tower, processor::all(), By::F32),
            Precision::Bf16 => suiting(tower, processor::all_bf16(), By::Bf16),
            Precision::Int16 => suiting(tower, processor::all_int16(), By::Int16),
            Precision::Int8 => suiting(tower, processor::all_int8(), By::Int8),
        }
    }

    /// Those that suit a tower and that the processor has for this precision, the best first: where there are none, there is
    /// no gain in it.
    pub fn made_for(tower: &Transformer, precision: Precision) -> Vec<Self> {
        match precision {
            Precision::F32 => Self::suiting(tower, precision),
            Precision::Bf16 => suiting(tower, processor::made_for_bf16(), By::Bf16),
            Precision::Int16 => suiting(tower, processor::made_for_int16(), By::Int16),
            Precision::Int8 => suiting(tower, processor::made_for_int8(), By::Int8),
        }
    }

    /// As [`Self::made_for`], for a text tower: its rows are tokens of several texts, and so its products are whole.
    pub fn made_for_texts(tower: &Transformer, precision: Precision) -> Vec<Self> {
        let all = Self::made_for(tower, precision).into_iter();
        all.filter(|found| !found.are_in_halves()).collect()
    }

    /// Whether an image tower's large products are of halves: faster and less exact than whole ones, by the same instructions,
    /// which are listed next.
    pub fn are_in_halves(&self) -> bool {
        matches!(&self.0, By::Bf16(kernel) if kernel.halves_from.is_some())
    }

    /// Those of whole products.
    pub(crate) fn whole(mut self) -> Self {
        if let By::Bf16(kernel) = &mut self.0 {
            kernel.halves_from = None;
        }
        self
    }

    /// What its products are in.
    pub fn precision(&self) -> Precision {
        match self.0 {
            By::F32(_) => Precision::F32,
            By::Bf16(_) => Precision::Bf16,
            By::Int16(_) => Precision::Int16,
            By::Int8(_) => Precision::Int8,
        }
    }
}

fn suiting<T>(tower: &Transformer, kernels: Vec<Kernel<T>>, by: fn(Kernel<T>) -> By) -> Vec<Instructions> {
    let columns = [tower.width / tower.heads, tower.mlp_width];
    let suits = |found: &Kernel<T>| {
        columns.iter().all(|of| of.is_multiple_of(found.columns()))
            && (found.halves_from.is_none() || found.cuts(tower.width, tower.mlp_width))
    };
    let kernels = kernels.into_iter().filter(suits);
    kernels.map(|kernel| Instructions(by(kernel))).collect()
}

impl fmt::Display for Instructions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            By::F32(kernel) => kernel.fmt(out),
            By::Bf16(kernel) => kernel.fmt(out),
            By::Int16(kernel) => kernel.fmt(out),
            By::Int8(kernel) => kernel.fmt(out),
        }?;
        write!(out, " {}", self.precision())
    }
}
