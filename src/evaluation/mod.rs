//! Class-incremental protocols, offline: what would a strategy have reached on these images or features, in this order?
//!
//! The same [`fit`](crate::adapter::fit) that learns behind the server learns here, version by version, and every
//! version is scored on the held-out rows of every task so far. Owner: the command line. What must not happen: a test
//! row that takes part in a fit, or in a choice.

mod arrays;
mod contender;
mod data;
mod encoding;
mod order;
mod pictures;
mod plots;
mod protocol;
mod report;

pub use contender::Contender;
pub use data::{Data, DataError};
pub use encoding::{Encoded, EncodingError, Wanted, encode, prompts};
pub use order::{ClassOrder, Tasks};
pub use pictures::{PictureSource, Pictures, PicturesError};
pub use plots::{PlotError, draw};
pub use protocol::{Protocol, Run};
pub use report::Report;
