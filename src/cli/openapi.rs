//! `clipkeep openapi`: the description that `openapi.yaml` in the repository is a copy of.

use super::output;

pub(super) fn run() -> anyhow::Result<()> {
    Ok(output::text(crate::http::openapi::yaml())?)
}
