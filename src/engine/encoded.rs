//! What is asked of a batch, and what the backbone makes of it.
//!
//! Images with the same bytes are one row for all who ask, and none for the backbone where it has become known since they were
//! looked at. Invariant: whatever is encoded at a time is of one kind, and has one row an input.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Tensor, bail};
use tokio::sync::oneshot;

use super::features::FeatureCache;
use super::{Asked, EngineError, Input, Output, Pixels, Work};
use crate::clip::{Backbone, EncodeError, Pause};
use crate::domain::{Digest, Reads};

/// What is encoded at a time.
pub(super) enum Inputs {
    /// Features that are known already.
    Known(Vec<Arc<[f32]>>),
    /// Bytes `(3, image_size, image_size)` each.
    Images(Vec<Vec<u8>>),
    /// Tokens.
    Texts(Vec<Vec<u32>>),
}

/// What inputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Known,
    Images,
    Texts,
}

impl Inputs {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Known(_) => Kind::Known,
            Self::Images(_) => Kind::Images,
            Self::Texts(_) => Kind::Texts,
        }
    }
}

/// What is asked about an input, and by whom.
pub(super) struct Ask {
    pub(super) asked: Asked,
    /// Which of the inputs.
    pub(super) row: u32,
    /// Of an image whose features are to be remembered.
    pub(super) image: Option<Digest>,
    pub(super) enqueued: Instant,
    pub(super) reply: oneshot::Sender<Result<Output, EngineError>>,
}

/// Inputs of one kind, and what is asked about them.
struct Pile<T> {
    inputs: Vec<T>,
    asks: Vec<Ask>,
}

impl<T> Pile<T> {
    fn new() -> Self {
        let (inputs, asks) = (Vec::new(), Vec::new());
        Self { inputs, asks }
    }

    /// The row of one more input.
    fn add(&mut self, input: T) -> u32 {
        self.inputs.push(input);
        self.inputs.len() as u32 - 1
    }
}

/// Each kind apart, with what is asked about it; none of what is not there.
pub(super) fn by_kind(
    work: Vec<Work>,
    features: Option<&FeatureCache>,
) -> impl Iterator<Item = (Inputs, Vec<Ask>)> + use<> {
    let (mut known, mut images, mut texts) = (Pile::new(), Pile::new(), Pile::new());
    let mut rows: HashMap<Digest, u32> = HashMap::new();
    for work in work {
        let Work {
            input,
            enqueued,
            reply,
        } = work;
        let ask = |asked, row, image| Ask {
            asked,
            row,
            image,
            enqueued,
            reply,
        };
        match input {
            Input::Text { tokens } => {
                let row = texts.add(tokens);
                texts.asks.push(ask(Asked::Row(Reads::Features), row, None));
            }
            Input::Image {
                pixels: Pixels { bytes, image },
                asked,
            } => {
                if let Some(features) = image.and_then(|image| features?.known_since(&image)) {
                    let row = known.add(features);
                    known.asks.push(ask(asked, row, None));
                    continue;
                }
                let row = match image {
                    Some(image) => *rows.entry(image).or_insert_with(|| images.add(bytes)),
                    None => images.add(bytes),
                };
                images.asks.push(ask(asked, row, image));
            }
        }
    }
    let kinds = [
        (Inputs::Known(known.inputs), known.asks),
        (Inputs::Images(images.inputs), images.asks),
        (Inputs::Texts(texts.inputs), texts.asks),
    ];
    kinds.into_iter().filter(|(_, asks)| !asks.is_empty())
}

/// The values that answer those who ask, in order.
pub(super) type Answers = Vec<Vec<f32>>;

/// Things that are asked, each once, and the places of those who ask among all who do.
pub(super) type Groups<'a> = Vec<(&'a Asked, Vec<usize>)>;

/// Rows, then what heads are to make of rows.
pub(super) fn grouped(asks: &[Ask]) -> (Groups<'_>, Groups<'_>) {
    let mut groups: Groups<'_> = Vec::new();
    for (place, Ask { asked, .. }) in asks.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known.is_same(asked)) {
            Some((_, places)) => places.push(place),
            None => groups.push((asked, vec![place])),
        }
    }
    groups
        .into_iter()
        .partition(|(asked, _)| matches!(asked, Asked::Row(_) | Asked::Rows))
}

/// What the backbone made of inputs, one row each. A GPU may be at it still.
pub(super) struct Encoded {
    features: Tensor,
    /// `None` unless somebody reads them.
    tokens: Option<Tensor>,
}

impl Encoded {
    /// With a `pause` now and then, if there is one, where packed weights compute.
    pub(super) fn of(
        backbone: &Backbone,
        inputs: &Inputs,
        asks: &[Ask],
        pause: Option<Pause<'_>>,
    ) -> Result<Self, EncodeError> {
        let (features, tokens) = match inputs {
            Inputs::Images(images) => {
                let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
                let are_tokens_read = asks.iter().any(|ask| ask.asked.reads() == Reads::Tokens);
                let reads = if are_tokens_read {
                    Reads::Tokens
                } else {
                    Reads::Features
                };
                backbone.encode_pixels(&images, reads, pause)?
            }
            Inputs::Texts(tokens) => (backbone.encode_tokens_pausing(tokens, pause)?, None),
            Inputs::Known(rows) => {
                let shape = (rows.len(), backbone.dim());
                (Tensor::from_vec(rows.concat(), shape, backbone.device())?, None)
            }
        };
        Ok(Self { features, tokens })
    }

    pub(super) fn rows(&self) -> usize {
        self.features.dims()[0]
    }

    /// The features, one row an input, once they are there.
    pub(super) fn features(&self) -> candle_core::Result<Vec<Vec<f32>>> {
        self.features.to_vec2()
    }

    /// Fills in the answers to groups of some asks, each with one piece of work.
    pub(super) fn answer(
        &self,
        asks: &[Ask],
        groups: &Groups<'_>,
        answers: &mut Answers,
    ) -> candle_core::Result<()> {
        for (asked, places) in groups {
            let rows = match (asked.reads(), &self.tokens) {
                (Reads::Features, _) => &self.features,
                (Reads::Tokens, Some(tokens)) => tokens,
                (Reads::Tokens, None) => bail!("these inputs have no tokens"),
            };
            let index: Vec<u32> = places.iter().map(|place| asks[*place].row).collect();
            let index = Tensor::new(index, rows.device())?;
            let rows = rows.index_select(&index, 0)?;
            let values = match asked {
                Asked::Row(_) => rows.to_vec2()?,
                Asked::Rows => Tensor::cat(&[self.features.index_select(&index, 0)?, rows], 1)?.to_vec2()?,
                Asked::Probabilities(head) => head.probabilities(&rows)?,
            };
            for (place, values) in places.iter().zip(values) {
                answers[*place] = values;
            }
        }
        Ok(())
    }
}
