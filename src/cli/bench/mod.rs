//! `clipkeep bench`: what this build does in a second on this machine.

mod encode;
mod http;
mod photographs;
mod preprocess;
mod timing;

use clap::{Args, Subcommand};

use crate::config::BackboneArgs;

/// Measure this build on this machine.
#[derive(Debug, Clone, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    Encode(encode::Encode),
    Http(http::Http),
    Preprocess(preprocess::Preprocess),
}

impl Bench {
    /// The backbone that it loads, if any.
    pub(super) fn backbone(&self) -> Option<&BackboneArgs> {
        match &self.what {
            What::Encode(encode) => Some(encode.backbone()),
            What::Preprocess(preprocess) => Some(preprocess.backbone()),
            What::Http(_) => None,
        }
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Encode(encode) => encode.run().await,
            What::Http(http) => http.run().await,
            What::Preprocess(preprocess) => preprocess.run().await,
        }
    }
}
