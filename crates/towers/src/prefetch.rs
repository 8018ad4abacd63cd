//! Memory that is asked for before it is read.
//!
//! Where a matrix is larger than the caches and few rows are multiplied with it, the processor reads it no faster than memory
//! gives it, and its own guesses end with every page. Told in time, it fetches what comes next while it computes.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Has the cache lines of `values` fetched into the second cache. Changes no result.
#[inline]
pub(crate) fn prefetch<T>(values: &[T]) {
    const { assert!(size_of::<T>() <= LINE) };
    for line in values.chunks(LINE / size_of::<T>()) {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the instruction has no safe form")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

            // SAFETY: every x86-64 processor has it, and whatever the address, it neither faults nor changes anything.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// What is fetched in each of so many steps, until there is nothing left: whole cache lines of what starts with one.
#[inline]
pub(crate) fn spread<T>(values: &[T], steps: usize) -> impl Iterator<Item = &[T]> {
    let share = values.len().div_ceil(steps.max(1)).max(1);
    values.chunks(share.next_multiple_of((LINE / size_of::<T>()).max(1)))
}
