//! How activations and weights lie in memory.
//!
//! Activations are *blocks*, one a sequence (the tokens of an image) or one of several (texts). A block is cut into *panels*
//! of W columns, and a panel lies row by row. So a product reads its left side in order, each panel of its output is one piece of memory that
//! one thread writes:
//!
//! ```text
//! block:  [columns / W] [stride rows] [W]        weights:  [outputs / W] [inputs] [W]
//! ```
//!
//! What a product multiplies may be *pairs* of bfloat16, or whole numbers, two or four together (see [`crate::operand`]): W
//! columns are W / 2 or W / 4 of them, and so are W inputs of a column of weights.
//!
//! Invariants: columns are padded to whole panels, rows to a multiple of W (but for the sums of [`crate::strassen`]), both by zeros
//! that nothing is written over; memory starts at a page.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

use memmap2::MmapMut;
use rayon::prelude::*;

use crate::operand::Operand;

/// Bytes of a page that the processor finds with one entry of its table, where the system has such pages.
const HUGE: usize = 2 << 20;

/// Numbers in memory of their own, which starts at a page, so that no vector of them lies across two cache lines.
///
/// Large ones ask for huge pages on Linux: weights above all, which are read from one end to the other with every batch, and
/// page by page the processor waits for the addresses.
pub(crate) struct Aligned<T = f32> {
    memory: MmapMut,
    /// Bytes before the first number.
    start: usize,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Operand> Aligned<T> {
    /// So many zeros.
    ///
    /// # Panics
    /// When there is no memory for them.
    pub(crate) fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        let spare = if cfg!(target_os = "linux") && bytes >= HUGE {
            HUGE
        } else {
            0
        };
        let memory = MmapMut::map_anon((bytes + spare).max(1)).expect("memory for numbers");
        let start = memory.as_ptr().align_offset(HUGE).min(spare);
        #[cfg(target_os = "linux")]
        if spare > 0 {
            // A system without huge pages says so, and does with small ones.
            let _ = memory.advise_range(memmap2::Advice::HugePage, start, bytes);
        }
        Self {
            memory,
            start,
            len,
            numbers: PhantomData,
        }
    }

    fn bytes(&self) -> Range<usize> {
        self.start..self.start + self.len * size_of::<T>()
    }
}

impl<T: Operand> From<&[T]> for Aligned<T> {
    /// A copy.
    fn from(values: &[T]) -> Self {
        let mut copy = Self::zeros(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

impl<T: Operand> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory[self.bytes()])
    }
}

impl<T: Operand> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.bytes();
        bytemuck::cast_slice_mut(&mut self.memory[bytes])
    }
}

/// The shape of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Operands of a row of a panel: W, or fewer if each holds several values.
    pub(crate) panel: usize,
    /// Rows of a panel, those that pad it included.
    pub(crate) stride: usize,
    /// Panels of a block.
    pub(crate) panels: usize,
}

impl Layout {
    /// For `rows` rows of `columns` values in panels of `width` columns.
    pub(crate) fn new<T: Operand>(width: usize, rows: usize, columns: usize) -> Self {
        Self {
            panel: width / T::VALUES,
            stride: rows.next_multiple_of(width),
            panels: columns.div_ceil(width),
        }
    }

    /// Operands of a panel.
    pub(crate) fn panel_len(self) -> usize {
        self.stride * self.panel
    }

    /// Operands of a block.
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
    /// Threads that compute it together.
    pub(crate) threads: usize,
}

impl Extent {
    /// For all threads.
    pub(crate) fn new(blocks: usize, rows: usize) -> Self {
        Self {
            blocks,
            rows,
            threads: rayon::current_num_threads(),
        }
    }

    /// Blocks that a thread computes, at least one.
    pub(crate) fn of_a_thread(self) -> usize {
        (self.blocks / self.threads).max(1)
    }
}

/// Where a piece of some blocks is: one or several of its panels, one after another.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) block: usize,
    /// Which one of the block's pieces it is.
    pub(crate) number: usize,
    /// Which one it is of those that are this piece of their blocks and are computed one after another.
    pub(crate) turn: usize,
    pub(crate) turns: usize,
}

/// Blocks of one layout, one after another.
pub(crate) struct Blocks<T = f32> {
    pub(crate) layout: Layout,
    pub(crate) values: Aligned<T>,
}

impl<T: Operand> Blocks<T> {
    /// `count` of zeros, each of `rows` rows and `columns` values in panels of `width` columns.
    pub(crate) fn zeros(width: usize, rows: usize, columns: usize, count: usize) -> Self {
        Self::of(Layout::new::<T>(width, rows, columns), count)
    }

    /// `count` of zeros.
    pub(crate) fn of(layout: Layout, count: usize) -> Self {
        Self {
            layout,
            values: Aligned::zeros(layout.len() * count),
        }
    }

    /// One of them.
    pub(crate) fn block(&self, index: usize) -> &[T] {
        &self.values[index * self.layout.len()..(index + 1) * self.layout.len()]
    }

    /// A panel of one of them.
    pub(crate) fn panel(&self, block: usize, panel: usize) -> &[T] {
        &self.block(block)[panel * self.layout.panel_len()..][..self.layout.panel_len()]
    }

    /// The columns of a row of a block, panel by panel.
    pub(crate) fn row(&self, block: usize, row: usize) -> impl Iterator<Item = &[T]> {
        let panels = self.block(block).chunks_exact(self.layout.panel_len());
        panels.map(move |panel| &panel[self.layout.row(row)])
    }

    /// Computes blocks in pieces of so many panels, on threads that are free: one by one, so that a thread that is held up has the
    /// others wait for a piece at most. A thread does the same piece of `together` blocks in turn: what is read for it is read once.
    pub(crate) fn fill(
        &mut self,
        extent: Extent,
        panels: usize,
        together: usize,
        piece: impl Fn(Place, &mut [T]) + Sync,
    ) {
        let (len, piece_len) = (self.layout.len(), panels * self.layout.panel_len());
        let blocks = self.values[..extent.blocks * len].par_chunks_mut(together * len);
        blocks.enumerate().for_each(|(first, blocks)| {
            let turns = blocks.len() / len;
            let at = |turn, number| Place {
                block: first * together + turn,
                number,
                turn,
                turns,
            };
            if turns == 1 {
                let pieces = blocks.par_chunks_mut(piece_len).enumerate();
                return pieces
                    .with_max_len(1)
                    .for_each(|(number, output)| piece(at(0, number), output));
            }
            for number in 0..len / piece_len {
                for (turn, block) in blocks.chunks_exact_mut(len).enumerate() {
                    piece(at(turn, number), &mut block[number * piece_len..][..piece_len]);
                }
            }
        });
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

/// Copies `values` into a row of a block, from column `first` on.
pub(crate) fn copy_columns<T: Operand>(
    block: &mut [T],
    layout: Layout,
    row: usize,
    first: usize,
    values: &[f32],
) {
    let width = layout.panel * T::VALUES;
    let (mut column, mut rest) = (first, values);
    while !rest.is_empty() {
        let within = column % width;
        let (piece, after) = rest.split_at(rest.len().min(width - within));
        let start = column / width * layout.panel_len();
        T::put(&mut block[start..][layout.row(row)], within, piece);
        column += piece.len();
        rest = after;
    }
}

/// Reads the panels of a row, as far as `values` reach.
pub(crate) fn read_row<'a>(values: &mut [f32], panels: impl Iterator<Item = &'a [f32]>) {
    values
        .iter_mut()
        .zip(panels.flatten())
        .for_each(|(to, from)| *to = *from);
}

/// Rows of `width` values as a block.
pub(crate) fn in_panels<T: Operand>(values: &[f32], width: usize, panel: usize) -> Blocks<T> {
    let mut blocks = Blocks::zeros(panel, values.len() / width, width, 1);
    let layout = blocks.layout;
    for (row, values) in values.chunks_exact(width).enumerate() {
        copy_columns(&mut blocks.values, layout, row, 0, values);
    }
    blocks
}
