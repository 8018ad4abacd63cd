//! The backbone: a frozen CLIP with its tokenizer and image processor.
//!
//! Owner: one device thread owns the [`Backbone`]; [`ClipTokenizer`] and [`ImageProcessor`] are handed out and used
//! anywhere, and so are two parts of the frozen weights for those who train in front of them or behind them:
//! [`PromptTower`] and [`ImageReadout`]. Loading: [`BackboneSource`] names an embedded model, a Hugging Face directory or a hub repository; its
//! files are read and hashed, checked field by field and tensor by tensor, and only then is there a backbone.
//!
//! ```text
//! image file ─ decode ─ resize ─ crop ─ bytes ─┐            ┌─ vision ─ features (n, dim)
//!             └─────── ImageProcessor ────────┘  Backbone ─┤
//! prompt ────────────── ClipTokenizer ─────────           └─ text ─── features (n, dim)
//! ```
//!
//! Invariants: nothing is silently initialised; every error names the file, field or tensor; weights never change;
//! features are not normalised here; on the CPU a row of output depends on its input alone, bit for bit.

mod backbone;
mod config;
mod cuda;
mod decode;
mod dtype;
mod encoder;
mod error;
mod folded;
mod frozen;
mod fused;
mod hub;
mod image_processor;
mod images;
mod jpeg;
mod prompt;
mod random;
mod resize;
mod rows;
mod source;
mod text;
mod tokenizer;
mod vision;
mod weights;
mod weights_file;

pub use backbone::{Backbone, ImageStates};
pub use clipkeep_towers::Pause;
pub use decode::{ImageError, Limits};
pub use dtype::Dtype;
pub use error::{BackboneError, EncodeError};
pub use hub::HubError;
pub use image_processor::ImageProcessor;
pub use prompt::{ClassPrompts, PromptTower};
pub use random::Shape;
pub use source::BackboneSource;
pub use tokenizer::ClipTokenizer;
pub use vision::ImageReadout;
