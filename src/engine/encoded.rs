//! What is asked of a batch, and what the backbone makes of it.
//!
//! Images with the same digest are encoded as one row for all who ask; one whose features have become known since it was looked at is
//! not encoded. Invariant: whatever is encoded at a time is of one kind, images or texts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Tensor, bail};
use tokio::sync::oneshot;

use super::features::FeatureCache;
use super::queue::Batch;
use super::underway::Decoded;
use super::{Asked, EngineError, Input, Output, Pixels, Work};
use crate::clip::{Backbone, EncodeError, Pause};
use crate::domain::{Digest, Reads};

/// What is encoded at a time.
pub(super) enum Inputs {
    /// Bytes `(3, image_size, image_size)` each. The features of other images are `known` and come behind theirs.
    Images {
        fresh: Vec<Arc<Decoded>>,
        known: Vec<Arc<[f32]>>,
    },
    /// Tokens.
    Texts(Vec<Vec<u32>>),
}

impl Inputs {
    pub(super) fn are_images(&self) -> bool {
        matches!(self, Self::Images { .. })
    }

    /// How many the backbone encodes.
    pub(super) fn encoded(&self) -> usize {
        match self {
            Self::Images { fresh, .. } => fresh.len(),
            Self::Texts(texts) => texts.len(),
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

/// Images and texts apart, with what is asked about them; none of what is not there.
pub(super) fn by_kind(
    batch: Batch,
    features: Option<&FeatureCache>,
) -> impl Iterator<Item = (Inputs, Vec<Ask>)> + use<> {
    let (mut fresh, mut known, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut of_fresh, mut of_known, mut of_texts) = (Vec::new(), Vec::new(), Vec::new());
    let mut rows: HashMap<Digest, u32> = HashMap::new();
    let Batch { work, priority } = batch;
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
                let row = added(&mut texts, tokens);
                of_texts.push(ask(Asked::Row(Reads::Features), row, None));
            }
            Input::Image(Pixels {
                decoded,
                image,
                asked,
            }) => {
                if let Some(features) = image.and_then(|image| features?.get(&image, priority)) {
                    let row = added(&mut known, features);
                    of_known.push(ask(asked, row, None));
                } else {
                    let row = match image {
                        Some(image) => *rows.entry(image).or_insert_with(|| added(&mut fresh, decoded)),
                        None => added(&mut fresh, decoded),
                    };
                    of_fresh.push(ask(asked, row, image));
                }
            }
        }
    }
    let before = fresh.len() as u32;
    of_fresh.extend(of_known.into_iter().map(|ask: Ask| Ask {
        row: before + ask.row,
        ..ask
    }));
    let kinds = [
        (Inputs::Images { fresh, known }, of_fresh),
        (Inputs::Texts(texts), of_texts),
    ];
    kinds.into_iter().filter(|(_, asks)| !asks.is_empty())
}

/// The place of one more.
fn added<T>(all: &mut Vec<T>, one: T) -> u32 {
    all.push(one);
    all.len() as u32 - 1
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

/// What the backbone made of inputs. A GPU may be at it still, and nothing here makes it wait.
pub(super) struct Encoded {
    /// Features, one row an input that was encoded; `None` where none was.
    fresh: Option<Tensor>,
    /// Those of images that are known.
    known: Option<Tensor>,
    /// `None` unless somebody reads them.
    tokens: Option<Tensor>,
}

/// What is answered with, as soon as it is there.
pub(super) struct Rows<'a> {
    /// Features, one row an input.
    features: Tensor,
    /// One row an input that was encoded.
    tokens: Option<&'a Tensor>,
}

impl Encoded {
    /// With a `pause` now and then, if there is one, where packed weights compute.
    pub(super) fn of(
        backbone: &Backbone,
        inputs: &Inputs,
        asks: &[Ask],
        pause: Option<Pause<'_>>,
    ) -> Result<Self, EncodeError> {
        match inputs {
            Inputs::Images { fresh, known } => {
                let images: Vec<&[u8]> = fresh.iter().map(|image| image.pixels()).collect();
                let are_tokens_read = asks.iter().any(|ask| ask.asked.reads() == Reads::Tokens);
                let reads = if are_tokens_read {
                    Reads::Tokens
                } else {
                    Reads::Features
                };
                let encode = || backbone.encode_pixels(&images, reads, pause);
                let (fresh, tokens) = (!images.is_empty()).then(encode).transpose()?.unzip();
                let shape = (known.len(), backbone.dim());
                let upload = || Tensor::from_vec(known.concat(), shape, backbone.device());
                Ok(Self {
                    fresh,
                    known: (!known.is_empty()).then(upload).transpose()?,
                    tokens: tokens.flatten(),
                })
            }
            Inputs::Texts(tokens) => Ok(Self {
                fresh: Some(backbone.encode_tokens_pausing(tokens, pause)?),
                known: None,
                tokens: None,
            }),
        }
    }

    /// The rows of all inputs: what is done with them waits for a device that is at them still.
    pub(super) fn rows(&self) -> candle_core::Result<Rows<'_>> {
        let parts: Vec<&Tensor> = self.fresh.iter().chain(&self.known).collect();
        let features = match parts[..] {
            [all] => all.clone(),
            _ => Tensor::cat(&parts, 0)?,
        };
        let tokens = self.tokens.as_ref();
        Ok(Rows { features, tokens })
    }
}

impl Rows<'_> {
    /// The features' values.
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
            let rows = match (asked.reads(), self.tokens) {
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
