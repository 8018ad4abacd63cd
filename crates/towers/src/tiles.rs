//! AMX's tile registers.
//!
//! Asks the kernel for them, and writes their instructions out, which Rust has not. Invariants: every address lies in a slice whose
//! length was asserted before; `CONFIGURED` is what the tiles of a thread are configured for.

#![expect(
    unsafe_code,
    reason = "instructions that have no safe form; each block says why it is sound"
)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::marker::PhantomData;

use bytemuck::Pod;

use crate::x86::PAIRS;

/// In a row of a tile: sums, pairs, or whole numbers, four together.
pub(crate) const LANES: usize = PAIRS;
/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Bytes of a row of a tile.
const LINE: usize = LANES * size_of::<u32>();
/// Sums of a row of what is computed at a time, in two tiles, and the most rows of it, in two as well.
pub(crate) const SUMS: usize = 2 * LANES;
pub(crate) const ROWS: usize = 2 * TILE;

/// Whether there are tiles, the kernel lends them, and the processor multiplies what `bit` of CPUID.(7, 0):EDX stands for. In tests
/// a processor without tiles has them carried out.
fn has(bit: u32) -> bool {
    const TILES: u32 = 1 << 24;
    let bits = if __cpuid(0).eax >= 7 {
        __cpuid_count(7, 0).edx
    } else {
        0
    };
    #[cfg(all(test, target_os = "linux"))]
    if bits & TILES == 0 {
        return crate::tests::tiles::emulated();
    }
    bits & TILES != 0 && bits & bit != 0 && tiles_are_lent()
}

/// Asks the kernel for the tiles' state, once for all threads of the process (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn tiles_are_lent() -> bool {
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILE_DATA: i64 = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn tiles_are_lent() -> bool {
    false
}

/// Some rows, and the columns that they are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    /// Panels of `stride` rows.
    left: &'a [[u32; LANES]],
    stride: usize,
    /// A tile's rows of `columns` for each of the panels.
    right: &'a [u32],
    columns: usize,
    /// The first of the rows in each panel.
    first: usize,
    /// The first of the [`SUMS`] columns.
    column: usize,
}

impl<'a> Factors<'a> {
    /// A panel of a right side of `columns` columns, and the panels of `stride` rows that it is multiplied with, so many at a time:
    /// of the first rows and columns.
    ///
    /// # Panics
    /// If the left side has fewer panels.
    pub(crate) fn parts(
        (left, stride): (&'a [u32], usize),
        (right, columns): (&'a [u32], usize),
        panels: usize,
    ) -> impl Iterator<Item = Self> {
        let left = left.as_chunks().0;
        assert!(
            left.len() / stride >= right.len() / columns / TILE,
            "a part for each"
        );
        let parts = left
            .chunks(panels * stride)
            .zip(right.chunks(panels * TILE * columns));
        parts.map(move |(left, right)| Self {
            left,
            stride,
            right,
            columns,
            first: 0,
            column: 0,
        })
    }

    /// From a row and a column on.
    pub(crate) fn starting(self, first: usize, column: usize) -> Self {
        Self {
            first,
            column,
            ..self
        }
    }
}

thread_local! {
    /// Rows of sums that the tiles of this thread are configured for. 0 where they are not.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
}

/// Tiles that multiply operands of one type, whose sums are of type `T`.
pub(crate) struct Tiles<T>(&'static Loops, PhantomData<T>);

impl<T> Clone for Tiles<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Tiles<T> {}

/// The tiles of the thread that has taken them: sums are 0 to 3, the left side is 4 and 5, the right one 6 and 7. They are given
/// back at the end.
pub(crate) struct Taken<T>(&'static Loops, PhantomData<*const T>);

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

impl Tiles<f32> {
    /// Pairs of bfloat16, whose products are added to sums. `None` where the processor has no such tiles, or the kernel does not lend
    /// them.
    pub(crate) fn of_pairs() -> Option<Self> {
        has(1 << 22).then_some(Self(&OF_PAIRS, PhantomData))
    }
}

impl Tiles<i32> {
    /// Whole numbers of 8 bits, unsigned ones on the left and signed ones on the right, whose products' sums are written over what
    /// was there. `None` as above.
    pub(crate) fn of_bytes() -> Option<Self> {
        has(1 << 25).then_some(Self(&OF_BYTES, PhantomData))
    }
}

impl<T: Pod> Tiles<T> {
    /// Those of this thread.
    pub(crate) fn take(self) -> Taken<T> {
        Taken(self.0, PhantomData)
    }
}

impl<T: Pod> Taken<T> {
    /// For products of `rows` rows, 1 to 32: the upper half of the sums are 0 and 1, the lower half are 2 and 3.
    fn configure(rows: usize) {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let upper = rows.min(TILE) as u8;
        // A tile without rows is none; what would be in it is not computed then.
        let lower = (rows.saturating_sub(TILE) as u8).max(1);
        let all = [upper, upper, lower, lower, upper, lower, TILE as u8, TILE as u8];
        for (tile, rows) in all.into_iter().enumerate() {
            bytes[16 + 2 * tile] = LINE as u8;
            bytes[48 + tile] = rows;
        }
        let configuration = Configuration(bytes);
        // SAFETY: 64 bytes that the manual allows: palette 1, at most 16 rows of at most 64 bytes. The processor and the kernel
        // allow tiles, or there would be no value of this type.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const configuration,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        CONFIGURED.set(rows);
    }

    /// Adds the products of a row to each row of `sums` if those are f32, and writes them there otherwise.
    pub(crate) fn multiply(&self, factors: Factors<'_>, sums: &mut [[T; SUMS]]) {
        let Factors {
            left,
            stride,
            first,
            right,
            columns,
            column,
        } = factors;
        const { assert!(size_of::<T>() == size_of::<u32>()) };
        let rows = sums.len();
        assert!((1..=ROWS).contains(&rows) && rows <= stride && first <= stride - rows);
        assert!(SUMS <= columns && column <= columns - SUMS);
        let panels = right.len() / columns / TILE;
        assert!(panels > 0 && panels <= left.len() / stride);
        if rows != CONFIGURED.get() {
            Self::configure(rows);
        }
        let at = At {
            left: left[first..].as_ptr().cast(),
            left_step: stride * LINE,
            right: right[column..].as_ptr().cast(),
            right_line: columns * size_of::<u32>(),
            panels,
            sums: sums.as_mut_ptr().cast(),
        };
        // SAFETY: tiles are configured for the rows. Rows up to `first + rows ≤ stride` of `panels` panels are read, which `left` was
        // asserted to hold, and `TILE · panels` lines of `right`, each from `column ≤ columns − SUMS` on; `sums` has a line for each row.
        unsafe {
            if rows > TILE {
                (self.0.tall)(at);
            } else {
                (self.0.low)(at);
            }
        }
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        CONFIGURED.set(0);
        // SAFETY: gives the tiles back, so that switches between threads need not save them.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
    }
}

/// Where a product's factors and sums are.
#[derive(Clone, Copy)]
struct At {
    left: *const u8,
    /// Bytes from a panel of the left side to the next.
    left_step: usize,
    right: *const u8,
    /// Bytes from a row of the right side to the next.
    right_line: usize,
    panels: usize,
    sums: *mut u8,
}

/// What multiplies operands of a type.
struct Loops {
    /// 17 to 32 rows.
    ///
    /// # Safety
    /// Tiles are configured for the rows. Behind the pointers lie as many panels and rows.
    tall: unsafe fn(At),
    /// 1 to 16 rows.
    ///
    /// # Safety
    /// That of `tall`.
    low: unsafe fn(At),
}

/// A function of [`Loops`]: sums begin, grow with each panel and are stored, those of the upper rows and, if they are named, those of
/// the lower ones.
macro_rules! product {
    ($name:ident, $dot:literal, [$($begin:literal),+], [$($lower:expr),*], [$($store:literal),*]) => {
        unsafe fn $name(at: At) {
            // SAFETY: the caller's.
            unsafe {
                asm!(
                    $($begin,)+
                    "2:",
                    "tileloadd tmm4, [{left} + {line}*1]",
                    "tileloadd tmm6, [{right} + {right_line}*1]",
                    "tileloadd tmm7, [{right} + {right_line}*1 + 64]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    $($lower,)*
                    "add {left}, {left_step}",
                    "add {right}, {right_step}",
                    "dec {panels}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}*2], tmm0",
                    "tilestored [{sums} + {line}*2 + 64], tmm1",
                    $($store,)*
                    left = inout(reg) at.left => _,
                    right = inout(reg) at.right => _,
                    panels = inout(reg) at.panels => _,
                    left_step = in(reg) at.left_step,
                    right_line = in(reg) at.right_line,
                    right_step = in(reg) TILE * at.right_line,
                    sums = in(reg) at.sums,
                    line = in(reg) LINE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// [`Loops`] of an instruction, and how its upper and lower sums begin.
macro_rules! loops {
    ($dot:literal, $upper:literal, $lower:literal) => {{
        product!(low, $dot, [$upper], [], []);
        product!(
            tall,
            $dot,
            [$upper, $lower],
            [
                "tileloadd tmm5, [{left} + {line}*1 + 1024]",
                concat!($dot, " tmm2, tmm5, tmm6"),
                concat!($dot, " tmm3, tmm5, tmm7")
            ],
            [
                "tilestored [{sums} + {line}*2 + 2048], tmm2",
                "tilestored [{sums} + {line}*2 + 2112], tmm3"
            ]
        );
        Loops { tall, low }
    }};
}

const OF_PAIRS: Loops = loops!(
    "tdpbf16ps",
    "tileloadd tmm0, [{sums} + {line}*2]\n tileloadd tmm1, [{sums} + {line}*2 + 64]",
    "tileloadd tmm2, [{sums} + {line}*2 + 2048]\n tileloadd tmm3, [{sums} + {line}*2 + 2112]"
);

const OF_BYTES: Loops = loops!(
    "tdpbusd",
    "tilezero tmm0\n tilezero tmm1",
    "tilezero tmm2\n tilezero tmm3"
);
