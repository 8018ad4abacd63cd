//! What can go wrong with a backbone. Owner: this module's callers match on it; nothing here is text to parse.

use std::io;
use std::path::PathBuf;

use candle_core::DType;
use thiserror::Error;

use super::hub::HubError;

/// A backbone that cannot be loaded.
#[derive(Debug, Error)]
pub enum BackboneError {
    /// The directory named by `--backbone` is not there.
    #[error(
        "there is no directory {}; --backbone takes a directory holding config.json, model.safetensors, \
         tokenizer.json and preprocessor_config.json, or the id of a Hugging Face repository (owner/name)",
        .0.display()
    )]
    NoDirectory(PathBuf),
    /// A file that the directory must hold is not there.
    #[error("{} holds no {file}{hint}", .directory.display())]
    MissingFile {
        /// The backbone's directory.
        directory: PathBuf,
        /// The absent file.
        file: &'static str,
        /// What to do about it, starting with a separator; may be empty.
        hint: &'static str,
    },
    /// A file exists but cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A weights file was written to while it was read.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// Whole numbers were asked for on a device that is no processor.
    #[error("--dtype int16 and int8 are for --device cpu: on a GPU there are f32 and bf16")]
    WholeNumbers,
    /// A JSON file is damaged, or a field has a value of the wrong kind.
    #[error("cannot parse {file}")]
    Json {
        /// The file.
        file: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file parses but says something that cannot be, or that is not supported.
    #[error("{file}: {reason}")]
    Invalid {
        /// The file.
        file: &'static str,
        /// Which field, its value, and what is wrong with it.
        reason: String,
    },
    /// `tokenizer.json` cannot be used.
    #[error("cannot load tokenizer.json")]
    Tokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The header of a weights file is damaged.
    #[error("the header of {file} is damaged")]
    WeightsHeader {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A weights file is not as long as its header says.
    #[error("{file} is truncated: tensor `{tensor}` ends at byte {needed}, the file at byte {available}")]
    Truncated {
        /// The file's name.
        file: String,
        /// The first tensor whose bytes are incomplete.
        tensor: String,
        /// Where the tensor ends, in bytes from the start of the file.
        needed: u64,
        /// The file's length in bytes.
        available: u64,
    },
    /// A tensor that the configuration calls for is in no weights file.
    #[error("tensor `{0}` is missing from the weights")]
    MissingTensor(String),
    /// A tensor's shape contradicts the configuration.
    #[error("tensor `{tensor}` has shape {found:?}, but config.json calls for {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
        /// Its shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type other than float32, float16 or bfloat16.
    #[error("tensor `{tensor}` is stored as {dtype}; F32, F16 and BF16 are supported")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type, as safetensors names it.
        dtype: String,
    },
    /// A tensor holds an infinity or a NaN.
    #[error("tensor `{0}` holds a value that is not finite: the file is damaged")]
    NotFinite(String),
    /// The exponential of `logit_scale` cannot scale anything.
    #[error(
        "tensor `logit_scale` is {0}: its exponential must be a finite number above 0, but the file is damaged"
    )]
    LogitScale(f32),
    /// The weights hold a layer that the configuration does not know of.
    #[error("tensor `{0}` belongs to a layer beyond num_hidden_layers in config.json")]
    ExtraLayer(String),
    /// The Hugging Face hub did not give the files.
    #[error(
        "cannot fetch {id} from the Hugging Face hub; without a network, pass --backbone with a local directory \
         holding config.json, model.safetensors, tokenizer.json and preprocessor_config.json"
    )]
    Hub {
        /// The repository.
        id: String,
        /// Why.
        source: HubError,
    },
    /// A tensor could not be placed on the device.
    #[error("cannot place the weights on the device")]
    Device(#[from] candle_core::Error),
    /// The loading thread ended early.
    #[error("loading was cut off")]
    Cancelled,
}

/// An input that a backbone cannot encode.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The pixel tensor has the wrong shape.
    #[error("pixels have shape {found:?}; (n, 3, {size}, {size}) is needed")]
    PixelShape {
        /// The tensor's shape.
        found: Vec<usize>,
        /// The backbone's image size.
        size: usize,
    },
    /// The pixel tensor is not of bytes.
    #[error("pixels are {0:?}; bytes are needed")]
    PixelType(DType),
    /// A text is empty or longer than the context.
    #[error("text {row} has {found} tokens; 1 to {limit} can be encoded")]
    TokenCount {
        /// Position of the text in the batch.
        row: usize,
        /// Its tokens.
        found: usize,
        /// The context length.
        limit: usize,
    },
    /// A token id lies outside the vocabulary.
    #[error("text {row} holds token {id}; the vocabulary ends before {vocabulary}")]
    UnknownToken {
        /// Position of the text in the batch.
        row: usize,
        /// The token's id.
        id: u32,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// A text has no end token, so there is nothing to pool.
    #[error("text {0} has no end token")]
    NoEnd(usize),
    /// A prompt's template has no `{}`.
    #[error("the template holds no {{}}")]
    NoPlace,
    /// A context takes the whole text.
    #[error("a context of {context} tokens leaves no room for a name among {limit}")]
    NoRoom {
        /// Its vectors or tokens.
        context: usize,
        /// The context length, start and end included.
        limit: usize,
    },
    /// The text could not be split into tokens.
    #[error("the text cannot be split into tokens")]
    Tokenize(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The device failed.
    #[error("the device failed")]
    Device(#[from] candle_core::Error),
}
