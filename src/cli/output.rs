//! What goes to standard output.
//!
//! Whoever reads it may have seen enough, as in `clipkeep … | head`: that is the end of what is written and no failure.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// Writes a text as it is.
pub(super) fn text(text: impl Display) -> io::Result<()> {
    match write!(io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Writes a text and ends the line.
pub(super) fn line(line: impl Display) -> io::Result<()> {
    text(format_args!("{line}\n"))
}
