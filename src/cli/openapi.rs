//! `clipkeep openapi`: the description that `openapi.yaml` in the repository is a copy of.

use std::io::Write as _;

pub(super) fn run() -> anyhow::Result<()> {
    std::io::stdout().write_all(crate::http::openapi::yaml().as_bytes())?;
    Ok(())
}
