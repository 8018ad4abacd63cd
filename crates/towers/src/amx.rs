//! Products in bfloat16 by AMX's tiles.
//!
//! Asks the kernel for the tile registers, and writes their instructions out, which Rust has not. Invariant: every address lies in a
//! slice whose length was asserted before.

#![expect(
    unsafe_code,
    reason = "instructions that have no safe form; each block says why it is sound"
)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use crate::kernel::{Multiply, Product, groups};
use crate::operand::Pair;
use crate::x86::{COLUMNS, PAIRS};

/// By AMX's tiles.
pub(crate) struct Amx(());

impl Amx {
    /// `None` where the processor has none, or the kernel does not lend them.
    pub(crate) fn try_new() -> Option<Self> {
        // CPUID.(7, 0):EDX, bits 22 (AMX-BF16) and 24 (AMX-TILE).
        const BITS: u32 = 1 << 22 | 1 << 24;
        let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS;
        (has && tiles_are_lent()).then_some(Self(()))
    }
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

/// Rows of a tile.
const TILE: usize = 16;
/// Bytes of a row of a panel of pairs, of two rows of a tile of the right side, and of a row of the output.
const LINE: usize = PAIRS * size_of::<Pair>();
const TWO_LINES: usize = COLUMNS * size_of::<Pair>();

/// What `ldtilecfg` reads: a row has 64 bytes in each of eight tiles, of which 0 to 3 are sums, 4 and 5 the left side, 6 and 7
/// the right one.
#[repr(C, align(64))]
struct Tiles([u8; 64]);

impl Tiles {
    /// For products of `rows` rows, 32 at most: the upper half of the sums are 0 and 1, the lower half are 2 and 3.
    fn new(rows: usize) -> Self {
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
        Self(bytes)
    }
}

impl Multiply<Pair> for Amx {
    fn multiply(&self, mut product: Product<'_, Pair>) {
        product.begin();
        let Product {
            left,
            stride,
            rows,
            panel,
            output,
            ..
        } = product;
        let count = rows.len();
        if count == 0 {
            return;
        }
        let panels = panel.len() / (COLUMNS * PAIRS);
        assert!(panels > 0 && rows.end <= stride);
        assert!(left.len() >= panels * stride * PAIRS && output.len() >= count * COLUMNS);
        let mut configured = 0;
        for group in groups(count, 2 * TILE) {
            let rows_of_group = group.len();
            if rows_of_group != configured {
                let tiles = Tiles::new(rows_of_group);
                // SAFETY: 64 bytes that the manual allows: palette 1, at most 16 rows of at most 64 bytes. The processor and
                // the kernel allow tiles, or there would be no value of this type.
                unsafe {
                    asm!(
                        "ldtilecfg [{}]",
                        in(reg) &raw const tiles,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
                configured = rows_of_group;
            }
            let left = &left[(rows.start + group.start) * PAIRS..];
            let output = &mut output[group.start * COLUMNS..group.end * COLUMNS];
            // SAFETY: rows up to `rows.end ≤ stride` of `panels` panels are read, which `left` was asserted to hold; all of
            // `panel` is; and `output` has a line for each row of the group.
            unsafe {
                if rows_of_group > TILE {
                    tall(
                        left.as_ptr(),
                        stride * LINE,
                        panel.as_ptr(),
                        panels,
                        output.as_mut_ptr(),
                    );
                } else {
                    low(
                        left.as_ptr(),
                        stride * LINE,
                        panel.as_ptr(),
                        panels,
                        output.as_mut_ptr(),
                    );
                }
            }
        }
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

/// Adds a product of 17 to 32 rows.
///
/// # Safety
/// Tiles are configured for the rows. Behind `left`, which steps by `panel_bytes`, `right` and `output` lie as many panels and
/// rows.
unsafe fn tall(left: *const Pair, panel_bytes: usize, right: *const Pair, panels: usize, output: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tileloadd tmm0, [{out} + {two}*1]",
            "tileloadd tmm1, [{out} + {two}*1 + 64]",
            "tileloadd tmm2, [{low_out} + {two}*1]",
            "tileloadd tmm3, [{low_out} + {two}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{left} + {line}*1]",
            "tileloadd tmm6, [{right} + {two}*1]",
            "tileloadd tmm7, [{right} + {two}*1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{low_left} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, {step}",
            "add {low_left}, {step}",
            "add {right}, 2048",
            "dec {panels}",
            "jnz 2b",
            "tilestored [{out} + {two}*1], tmm0",
            "tilestored [{out} + {two}*1 + 64], tmm1",
            "tilestored [{low_out} + {two}*1], tmm2",
            "tilestored [{low_out} + {two}*1 + 64], tmm3",
            left = inout(reg) left => _,
            low_left = inout(reg) left.wrapping_byte_add(TILE * LINE) => _,
            right = inout(reg) right => _,
            panels = inout(reg) panels => _,
            step = in(reg) panel_bytes,
            out = in(reg) output,
            low_out = in(reg) output.wrapping_byte_add(TILE * TWO_LINES),
            line = in(reg) LINE,
            two = in(reg) TWO_LINES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Adds a product of 1 to 16 rows.
///
/// # Safety
/// That of [`tall`].
unsafe fn low(left: *const Pair, panel_bytes: usize, right: *const Pair, panels: usize, output: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tileloadd tmm0, [{out} + {two}*1]",
            "tileloadd tmm1, [{out} + {two}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{left} + {line}*1]",
            "tileloadd tmm6, [{right} + {two}*1]",
            "tileloadd tmm7, [{right} + {two}*1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {left}, {step}",
            "add {right}, 2048",
            "dec {panels}",
            "jnz 2b",
            "tilestored [{out} + {two}*1], tmm0",
            "tilestored [{out} + {two}*1 + 64], tmm1",
            left = inout(reg) left => _,
            right = inout(reg) right => _,
            panels = inout(reg) panels => _,
            step = in(reg) panel_bytes,
            out = in(reg) output,
            line = in(reg) LINE,
            two = in(reg) TWO_LINES,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
