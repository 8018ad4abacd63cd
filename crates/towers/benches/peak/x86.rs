//! The instructions of x86 that towers multiply by, each in a loop of nothing else.
//!
//! Invariants: a loop is given out only where the processor has its instruction; before it begins it reads `MEMORY`, and then nothing.

#![expect(
    unsafe_code,
    reason = "what is measured are instructions, one by one; each block says why it is sound"
)]

use std::arch::asm;
use std::arch::is_x86_feature_detected as has;
use std::mem::offset_of;

use clipkeep_towers::{Activation, Instructions, Precision, Transformer};

use crate::Instruction;

/// Rounds of a loop between two looks at the clock: tens of microseconds, with tiles hundreds.
const ROUNDS: usize = 10_000;

/// Bytes of a row of a tile, and its rows.
const LINE: usize = 64;
const TILE: usize = 16;

/// What registers hold, and behind it what `ldtilecfg` reads: palette 1, eight whole tiles.
#[repr(C, align(64))]
struct Memory {
    numbers: [u32; TILE * LINE / 4],
    configuration: [u8; 64],
}

static MEMORY: Memory = Memory::new();

impl Memory {
    const fn new() -> Self {
        let mut memory = Self {
            numbers: [0; _],
            configuration: [0; 64],
        };
        // Without a pattern that would save the processor work: from one to two in bfloat16, and so in f32; as bytes, any.
        let mut at = 0;
        while at < memory.numbers.len() {
            let number = 0x3f80 + at as u32 * 37 % 128;
            memory.numbers[at] = number << 16 | number;
            at += 1;
        }
        memory.configuration[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            memory.configuration[16 + 2 * tile] = LINE as u8;
            memory.configuration[48 + tile] = TILE as u8;
            tile += 1;
        }
        memory
    }
}

/// An [`Instruction`], if it is `here`: its name, the operations of one, the registers of the sums, one after another, and of the
/// factors, how they are filled, and what stands before and behind the loop. The sums are so many that none is waited for.
macro_rules! instruction {
    (
        $name:literal, $here:expr, $operations:literal, $dot:literal,
        $register:literal, [$($sum:literal)+], [$left:literal $right:literal], $fill:literal, $before:literal, $behind:literal
    ) => {{
        const SUMS: usize = [$($sum),+].len();
        let repeat: fn() = || {
            // SAFETY: it is called only where the instruction is `here`. Whatever vectors and tiles held is clobbered; read are one
            // or sixteen lines of `MEMORY`'s numbers, and its configuration.
            unsafe {
                asm!(
                    $before,
                    $(concat!($fill, " ", $register, $sum, ", [{memory} + {line}*1]"),)+
                    concat!($fill, " ", $register, $left, ", [{memory} + {line}*1]"),
                    concat!($fill, " ", $register, $right, ", [{memory} + {line}*1]"),
                    "2:",
                    $(concat!($dot, " ", $register, $sum, ", ", $register, $left, ", ", $register, $right),)+
                    "dec rcx",
                    "jnz 2b",
                    $behind,
                    memory = in(reg) &raw const MEMORY,
                    line = in(reg) LINE,
                    inout("rcx") ROUNDS => _,
                    clobber_abi("sysv64"),
                    options(nostack, readonly),
                );
            }
        };
        Instruction {
            name: $name,
            operations: (ROUNDS * SUMS * $operations) as f64,
            repeat: $here.then_some(repeat),
        }
    }};
}

/// Of vectors, which AVX-512 has thirty-two of.
macro_rules! of_vectors {
    ($name:literal, $here:expr, $operations:literal, $dot:literal) => {
        instruction!(
            $name, $here, $operations, $dot, "zmm", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23], [30 31],
            "vmovups", "", "vzeroupper"
        )
    };
}

/// Of whole tiles: sixteen rows of sixteen sums, each of so many products as a row has numbers.
macro_rules! of_tiles {
    ($dot:literal, $here:expr, $operations:literal) => {
        instruction!(
            $dot, $here, $operations, $dot, "tmm", [0 1 2 3 4 5], [6 7],
            "tileloadd", "ldtilecfg [{memory} + 1024]", "tilerelease"
        )
    };
}

/// Those that are measured.
pub(crate) fn all() -> Vec<Instruction> {
    const { assert!(offset_of!(Memory, configuration) == 1024, "as of_tiles says") };
    let avx512 = has!("avx512f");
    vec![
        instruction!(
            "vfmadd231ps-ymm", has!("fma") && has!("avx2"), 16, "vfmadd231ps", "ymm", [0 1 2 3 4 5 6 7 8 9 10 11], [14 15],
            "vmovups", "", "vzeroupper"
        ),
        of_vectors!("vfmadd231ps-zmm", avx512, 32, "vfmadd231ps"),
        of_vectors!("vdpbf16ps", avx512 && has!("avx512bf16"), 64, "vdpbf16ps"),
        of_vectors!("vpdpwssd", avx512 && has!("avx512vnni"), 64, "vpdpwssd"),
        of_vectors!("vpdpbusd", avx512 && has!("avx512vnni"), 128, "vpdpbusd"),
        of_tiles!("tdpbf16ps", has_tiles(Precision::Bf16), 16384),
        of_tiles!("tdpbusd", has_tiles(Precision::Int8), 32768),
    ]
}

/// Whether towers of this precision are computed on tiles here: then the processor has them, and the kernel lends them to the process.
fn has_tiles(precision: Precision) -> bool {
    let best = Instructions::made_for(&TOWER, precision);
    best.iter()
        .any(|instructions| instructions.to_string().contains("amx"))
}

/// One that all instructions suit.
const TOWER: Transformer = Transformer {
    width: 768,
    mlp_width: 3072,
    layers: 1,
    heads: 12,
    activation: Activation::QuickGelu,
    layer_norm_epsilon: 1e-5,
};
