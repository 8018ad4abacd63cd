//! What is asked of a batch, and what the backbone makes of it.
//!
//! Invariant: whatever is encoded at a time is of one kind, images or texts, and has one answer a row.

use std::time::Instant;

use candle_core::{Tensor, bail};
use tokio::sync::oneshot;

use super::{Asked, EngineError, Input, Output, Pixels, Work};
use crate::clip::{Backbone, EncodeError, Pause};
use crate::domain::{Digest, Reads};

/// What is encoded at a time.
pub(super) enum Inputs {
    /// Bytes `(3, image_size, image_size)` each.
    Images(Vec<Vec<u8>>),
    /// Tokens.
    Texts(Vec<Vec<u32>>),
}

impl Inputs {
    pub(super) fn are_images(&self) -> bool {
        matches!(self, Self::Images(_))
    }
}

/// What is asked about an input, and by whom.
pub(super) struct Ask {
    pub(super) asked: Asked,
    /// Of an image whose features are to be remembered.
    pub(super) image: Option<Digest>,
    pub(super) enqueued: Instant,
    pub(super) reply: oneshot::Sender<Result<Output, EngineError>>,
}

/// Images and texts apart, each with what is asked about them in the same order; none of what is not there.
pub(super) fn by_kind(work: Vec<Work>) -> impl Iterator<Item = (Inputs, Vec<Ask>)> {
    let (mut images, mut of_images) = (Vec::new(), Vec::new());
    let (mut texts, mut of_texts) = (Vec::new(), Vec::new());
    for Work {
        input,
        enqueued,
        reply,
    } in work
    {
        let (asks, asked, image) = match input {
            Input::Image {
                pixels: Pixels { bytes, image },
                asked,
            } => {
                images.push(bytes);
                (&mut of_images, asked, image)
            }
            Input::Text { tokens } => {
                texts.push(tokens);
                (&mut of_texts, Asked::Row(Reads::Features), None)
            }
        };
        asks.push(Ask {
            asked,
            image,
            enqueued,
            reply,
        });
    }
    let kinds = [
        (Inputs::Images(images), of_images),
        (Inputs::Texts(texts), of_texts),
    ];
    kinds.into_iter().filter(|(_, asks)| !asks.is_empty())
}

/// The values that answer each input, in order.
pub(super) type Answers = Vec<Vec<f32>>;

/// Things that are asked, each once, and the places of those who ask.
pub(super) type Groups<'a> = Vec<(&'a Asked, Vec<u32>)>;

/// Rows, then what heads are to make of rows.
pub(super) fn grouped(asks: &[Ask]) -> (Groups<'_>, Groups<'_>) {
    let mut groups: Groups<'_> = Vec::new();
    for (place, Ask { asked, .. }) in asks.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known.is_same(asked)) {
            Some((_, places)) => places.push(place as u32),
            None => groups.push((asked, vec![place as u32])),
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
        };
        Ok(Self { features, tokens })
    }

    /// The features, one row an input, once they are there.
    pub(super) fn features(&self) -> candle_core::Result<Vec<Vec<f32>>> {
        self.features.to_vec2()
    }

    /// Fills in the answers to groups, each with one piece of work.
    pub(super) fn answer(&self, groups: &Groups<'_>, answers: &mut Answers) -> candle_core::Result<()> {
        for (asked, places) in groups {
            let rows = match (asked.reads(), &self.tokens) {
                (Reads::Features, _) => &self.features,
                (Reads::Tokens, Some(tokens)) => tokens,
                (Reads::Tokens, None) => bail!("these inputs have no tokens"),
            };
            let index = Tensor::new(places.as_slice(), rows.device())?;
            let rows = rows.index_select(&index, 0)?;
            let values = match asked {
                Asked::Row(_) => rows.to_vec2()?,
                Asked::Rows => Tensor::cat(&[self.features.index_select(&index, 0)?, rows], 1)?.to_vec2()?,
                Asked::Probabilities(head) => head.probabilities(&rows)?,
            };
            for (place, values) in places.iter().zip(values) {
                answers[*place as usize] = values;
            }
        }
        Ok(())
    }
}
