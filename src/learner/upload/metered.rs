//! A reader that stops after a number of bytes: what is not the content of a file in an archive must not take
//! more memory than the archive's limits allow, whatever the archive claims.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that may still be read; shared between a reader and whoever watches it. Seeking costs nothing.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<AtomicU64>);

/// A reader with a budget.
#[derive(Debug)]
pub(super) struct Metered<R> {
    inner: R,
    budget: Budget,
}

impl Budget {
    pub(super) const UNLIMITED: u64 = u64::MAX;

    pub(super) fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// Allows `bytes` from now on.
    pub(super) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// Whether nothing is left: a failure of the reader is then the budget's doing.
    pub(super) fn is_spent(&self) -> bool {
        self.left() == 0
    }

    fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<R> Metered<R> {
    pub(super) fn new(inner: R, budget: &Budget) -> Self {
        Self {
            inner,
            budget: budget.clone(),
        }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.left();
        if left == Budget::UNLIMITED {
            return self.inner.read(into);
        }
        if left == 0 && !into.is_empty() {
            return Err(io::Error::other("more was read than is allowed"));
        }
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut into[..most])?;
        self.budget.set(left - read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_where_the_budget_does() {
        let budget = Budget::new(5);
        let mut reader = Metered::new(io::Cursor::new(vec![7; 100]), &budget);
        let mut bytes = Vec::new();
        assert!(reader.read_to_end(&mut bytes).is_err());
        assert_eq!((bytes.len(), budget.is_spent()), (5, true));
        budget.set(Budget::UNLIMITED);
        assert_eq!(reader.read_to_end(&mut bytes).expect("unlimited"), 95);
    }
}
