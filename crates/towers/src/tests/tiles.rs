//! AMX's tiles on processors that have none.
//!
//! Their instructions are no instructions there, which the process is told by a signal (SIGILL). Its handler does what they do (Intel's
//! manual, volume 2), and goes on behind them. So what is written for AMX runs, and is tested, wherever the vectors beside it do:
//! whether it is right, not how fast it is. What would fault with tiles ends the process here, too. It differs in that products in
//! bfloat16 are summed in another order, that numbers near zero are not taken for it, and that the system has no tiles to keep where it
//! switches between threads.

#![expect(
    unsafe_code,
    reason = "a handler of signals reads registers, instructions and what they point at"
)]

use std::cell::RefCell;
use std::sync::LazyLock;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// Has the instructions carried out from now on, on every thread. `false` where the system will not.
pub(crate) fn emulated() -> bool {
    static IS: LazyLock<bool> = LazyLock::new(|| {
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = carry_out;
        // SAFETY: all zeros are an action, whose handler is one that takes three arguments, as the flag says.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0
        }
    });
    *IS
}

/// Rows of a tile, at most, and bytes of one.
const TILE: usize = 16;
const LINE: usize = 64;

/// A tile register, and what of it is configured.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    bytes: usize,
    lines: [[u8; LINE]; TILE],
}

impl Tile {
    const NONE: Self = Self {
        rows: 0,
        bytes: 0,
        lines: [[0; LINE]; TILE],
    };

    /// A number of a row.
    fn lane(&self, row: usize, lane: usize) -> [u8; 4] {
        self.lines[row].as_chunks().0[lane]
    }

    /// Adds to each number what `dot` makes of it and of numbers of a row of `left` and a column of `right`.
    fn multiply(&mut self, left: &Self, right: &Self, dot: impl Fn([u8; 4], [u8; 4], [u8; 4]) -> [u8; 4]) {
        let lanes = left.bytes / 4;
        assert!(self.rows > 0 && left.rows == self.rows && right.rows == lanes && right.bytes == self.bytes);
        for row in 0..self.rows {
            for k in 0..lanes {
                let one = left.lane(row, k);
                let sums = self.lines[row].as_chunks_mut().0.iter_mut();
                for (sum, other) in sums.zip(right.lines[k].as_chunks().0).take(self.bytes / 4) {
                    *sum = dot(*sum, one, *other);
                }
            }
        }
    }
}

thread_local! {
    static TILES: RefCell<[Tile; 8]> = const { RefCell::new([Tile::NONE; 8]) };
}

/// Two products of bfloat16, added to f32.
fn of_pairs(sum: [u8; 4], one: [u8; 4], other: [u8; 4]) -> [u8; 4] {
    let [one, other] = [one, other].map(u32::from_le_bytes);
    let product = |of: fn(u32) -> u32| f32::from_bits(of(one)) * f32::from_bits(of(other));
    let sum = f32::from_le_bytes(sum) + product(|pair| pair << 16);
    (sum + product(|pair| pair & 0xffff_0000)).to_le_bytes()
}

/// Four products of unsigned and signed numbers, added to one of 32 bits.
fn of_bytes(sum: [u8; 4], one: [u8; 4], other: [u8; 4]) -> [u8; 4] {
    let products = one
        .iter()
        .zip(other)
        .map(|(u, s)| i32::from(*u) * i32::from(s.cast_signed()));
    products
        .fold(i32::from_le_bytes(sum), i32::wrapping_add)
        .to_le_bytes()
}

/// Carries out an instruction for tiles, and says where the one behind it is. `None` where it is another one, or would fault.
fn next(registers: &[i64; 23], tiles: &mut [Tile; 8]) -> Option<i64> {
    let at = registers[libc::REG_RIP as usize];
    // SAFETY: an instruction lies there, and behind it the rest of the function.
    let code = unsafe { std::slice::from_raw_parts(at as *const u8, 10) };
    let found = Instruction::read(code, registers)?;
    found.carry_out(tiles)?;
    at.checked_add_unsigned(found.len)
}

/// Carries out the instruction that the signal came for, or has the process end as it would have.
extern "C" fn carry_out(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with this flag the system passes what it goes on with; nobody else holds it.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let first = registers[libc::REG_RIP as usize];
    // A signal costs more than most of them, so those that follow are carried out with it.
    while let Some(after) = TILES.with_borrow_mut(|tiles| next(registers, tiles)) {
        registers[libc::REG_RIP as usize] = after;
    }
    if registers[libc::REG_RIP as usize] == first {
        // SAFETY: by default the process ends, when the instruction is met again.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// An instruction with the prefix of three bytes (VEX), of the map 0F 38.
struct Instruction {
    /// 0 for none, 1 for 66, 2 for F3 and 3 for F2.
    prefix: u8,
    code: u8,
    /// The register that `reg` names, and that of `vvvv`.
    register: usize,
    other: usize,
    operand: Place,
    /// Its bytes.
    len: u64,
}

/// What `rm` names.
enum Place {
    Register(usize),
    /// An address, and the bytes from a row to the next.
    Memory(usize, usize),
}

impl Instruction {
    /// `None` where it is another one, or of a form that a compiler does not choose for tiles.
    fn read(code: &[u8], registers: &[i64; 23]) -> Option<Self> {
        let [0xc4, first, second, operation, modes, rest @ ..] = code else {
            return None;
        };
        let extended = |bit: u8| if first & bit == 0 { 8 } else { 0 };
        let (mode, rm) = (modes >> 6, usize::from(modes & 7));
        let is_of_map = first & 0x1f == 2 && second & 0x84 == 0;
        if !is_of_map || (mode == 0 && rm == 5) {
            return None;
        }
        let mut len = 5;
        let operand = if mode == 3 {
            Place::Register(rm + extended(0x20))
        } else {
            let (mut base, mut stride) = (rm + extended(0x20), 0);
            if rm == 4 {
                let [scales, ..] = rest else { return None };
                len += 1;
                base = usize::from(scales & 7) + extended(0x20);
                let index = usize::from(scales >> 3 & 7) + extended(0x40);
                if scales & 7 == 5 && mode == 0 {
                    return None;
                }
                if index != 4 {
                    stride = general(registers, index) << (scales >> 6);
                }
            }
            let displacement = match mode {
                0 => 0,
                1 => i64::from(code[len].cast_signed()),
                _ => i64::from(i32::from_le_bytes(code[len..len + 4].try_into().ok()?)),
            };
            len += [0, 1, 4][usize::from(mode)];
            Place::Memory(
                general(registers, base).wrapping_add_signed(displacement as isize),
                stride,
            )
        };
        Some(Self {
            prefix: second & 3,
            code: *operation,
            register: usize::from(modes >> 3 & 7),
            other: usize::from(!second >> 3 & 15),
            operand,
            len: len as u64,
        })
    }

    /// `None` where it is another one, or would fault.
    fn carry_out(&self, tiles: &mut [Tile; 8]) -> Option<()> {
        let is_configured = |tile: usize| tiles.get(tile).is_some_and(|tile| tile.rows > 0);
        match (self.prefix, self.code, self.register, &self.operand) {
            // ldtilecfg, which sets all to zero
            (0, 0x49, 0, Place::Memory(at, _)) => {
                // SAFETY: who runs the instruction has it read 64 bytes there.
                let wanted = unsafe { &*(*at as *const [u8; 64]) };
                for (number, tile) in tiles.iter_mut().enumerate() {
                    let bytes = u16::from_le_bytes([wanted[16 + 2 * number], wanted[17 + 2 * number]]);
                    *tile = Tile {
                        rows: usize::from(wanted[48 + number]),
                        bytes: usize::from(bytes),
                        ..Tile::NONE
                    };
                    let is_none = tile.rows == 0 && tile.bytes == 0;
                    let is_one = (1..=TILE).contains(&tile.rows) && (1..=LINE).contains(&tile.bytes);
                    (is_none || is_one).then_some(())?;
                }
                let reserved = [&wanted[2..16], &wanted[32..48], &wanted[56..]].concat();
                (wanted[..2] == [1, 0] && reserved.iter().all(|byte| *byte == 0)).then_some(())
            }
            // tilerelease
            (0, 0x49, 0, Place::Register(0)) => {
                *tiles = [Tile::NONE; 8];
                Some(())
            }
            // tilezero
            (3, 0x49, tile, Place::Register(0)) if is_configured(tile) => {
                tiles[tile].lines = [[0; LINE]; TILE];
                Some(())
            }
            // tileloadd
            (3, 0x4b, tile, Place::Memory(at, stride)) if is_configured(tile) => {
                let tile = &mut tiles[tile];
                tile.lines = [[0; LINE]; TILE];
                for (row, line) in tile.lines[..tile.rows].iter_mut().enumerate() {
                    let from = (at + row * stride) as *const u8;
                    // SAFETY: who runs the instruction has it read so many bytes of each row.
                    unsafe { from.copy_to(line.as_mut_ptr(), tile.bytes) };
                }
                Some(())
            }
            // tilestored
            (2, 0x4b, tile, Place::Memory(at, stride)) if is_configured(tile) => {
                let tile = &tiles[tile];
                for (row, line) in tile.lines[..tile.rows].iter().enumerate() {
                    let to = (at + row * stride) as *mut u8;
                    // SAFETY: who runs the instruction has it write so many bytes of each row.
                    unsafe { to.copy_from(line.as_ptr(), tile.bytes) };
                }
                Some(())
            }
            // tdpbf16ps and tdpbusd
            (prefix @ (1 | 2), code @ (0x5c | 0x5e), sums, Place::Register(left)) => {
                let all = [sums, *left, self.other];
                let are_three = sums != *left && sums != self.other && *left != self.other;
                (are_three && all.into_iter().all(is_configured)).then_some(())?;
                let [left, right] = [*left, self.other].map(|tile| tiles[tile]);
                match (prefix, code) {
                    (2, 0x5c) => tiles[sums].multiply(&left, &right, of_pairs),
                    (1, 0x5e) => tiles[sums].multiply(&left, &right, of_bytes),
                    _ => return None,
                }
                Some(())
            }
            _ => None,
        }
    }
}

/// What a general register holds.
fn general(registers: &[i64; 23], number: usize) -> usize {
    const ALL: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[ALL[number] as usize] as usize
}
