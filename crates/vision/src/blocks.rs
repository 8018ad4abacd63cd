//! How activations and weights lie in memory.
//!
//! Activations are *blocks*, one a sequence (the tokens of an image). A block is cut into *panels* of W columns, and a
//! panel lies row by row. So a product reads its left side in order, each panel of its output is one piece of memory that
//! one thread writes, and the values of a head, as they come out of the product that makes them, are the right side of the
//! product that mixes them:
//!
//! ```text
//! block:  [columns / W] [stride rows] [W]        weights:  [outputs / W] [inputs] [W]
//! ```
//!
//! Invariants: columns are padded to whole panels, rows to a multiple of W, with zeros that nobody overwrites where tokens are
//! summed over; memory starts at a cache line.

use std::ops::{Deref, DerefMut, Range};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers that start at a cache line, so that no vector of them lies across two.
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + LINE / size_of::<f32>()];
        let start = values.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        Self { values, start, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

/// The shape of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// W.
    pub(crate) panel: usize,
    /// Rows of a panel, those that pad it included.
    pub(crate) stride: usize,
    /// Panels of a block.
    pub(crate) panels: usize,
}

impl Layout {
    /// For `rows` rows of `columns` values.
    pub(crate) fn new(panel: usize, rows: usize, columns: usize) -> Self {
        Self {
            panel,
            stride: rows.next_multiple_of(panel),
            panels: columns.div_ceil(panel),
        }
    }

    /// Values of a panel.
    pub(crate) fn panel_len(self) -> usize {
        self.stride * self.panel
    }

    /// Values of a block.
    pub(crate) fn len(self) -> usize {
        self.panels * self.panel_len()
    }

    /// Where `row` lies in a panel.
    pub(crate) fn row(self, row: usize) -> Range<usize> {
        row * self.panel..(row + 1) * self.panel
    }
}

/// The part of some blocks that is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// The first so many blocks.
    pub(crate) blocks: usize,
    /// The first so many rows of each.
    pub(crate) rows: usize,
}

/// Blocks of one layout, one after another.
pub(crate) struct Blocks {
    pub(crate) layout: Layout,
    pub(crate) values: Aligned,
}

impl Blocks {
    /// Of zeros.
    pub(crate) fn zeros(layout: Layout, count: usize) -> Self {
        Self {
            layout,
            values: Aligned::zeros(layout.len() * count),
        }
    }

    /// One of them.
    pub(crate) fn block(&self, index: usize) -> &[f32] {
        &self.values[index * self.layout.len()..(index + 1) * self.layout.len()]
    }

    /// The columns of a row of a block, panel by panel.
    pub(crate) fn row(&self, block: usize, row: usize) -> impl Iterator<Item = &[f32]> {
        let panels = self.block(block).chunks_exact(self.layout.panel_len());
        panels.map(move |panel| &panel[self.layout.row(row)])
    }

    /// Copies row `from` of a block of `other`, of as many columns, to row `to` of the first block.
    pub(crate) fn copy_row(&mut self, to: usize, other: &Self, block: usize, from: usize) {
        let layout = self.layout;
        let panels = self.values.chunks_exact_mut(layout.panel_len());
        for (panel, piece) in panels.zip(other.row(block, from)) {
            panel[layout.row(to)].copy_from_slice(piece);
        }
    }
}
