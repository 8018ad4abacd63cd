//! The text tower in tensors, token ids to features: on a GPU, for gradients, and where [`clipkeep_towers`] does not suit its
//! shape.
//!
//! Owner: the backbone, and whoever holds a [`super::PromptTower`]. Source: `transformers`' `CLIPTextModel` with
//! `text_projection`. Invariants: weights never change; attention is causal, so what follows the pooled token cannot
//! change the result, and padding needs no mask of its own.

use candle_core::{DType, Device, Result, Tensor};

use super::config::{ClipConfig, Pooling, TextConfig};
use super::encoder::{Encoder, LayerNorm};
use super::error::{BackboneError, EncodeError};
use super::weights::Weights;
use super::{frozen, fused};

/// The text tower's weights.
pub(super) struct TextTower {
    config: TextConfig,
    /// `(vocabulary, width)`.
    tokens: Tensor,
    /// `(context_length, width)`.
    positions: Tensor,
    /// `(context_length, context_length)`: zero up to the diagonal, minus infinity above.
    mask: Tensor,
    encoder: Encoder,
    final_norm: LayerNorm,
    /// `(width, dim)`.
    projection: Tensor,
}

impl TextTower {
    /// Takes `text_model.…` and `text_projection`.
    pub(super) fn load(weights: &mut Weights, clip: &ClipConfig) -> std::result::Result<Self, BackboneError> {
        let config = clip.text;
        let (width, context) = (config.encoder.width, config.context_length);
        let tokens = weights.take(
            "text_model.embeddings.token_embedding.weight",
            &[config.vocabulary, width],
        )?;
        let positions = weights.take(
            "text_model.embeddings.position_embedding.weight",
            &[context, width],
        )?;
        let projection = weights.take("text_projection.weight", &[clip.projection_dim, width])?;
        Ok(Self {
            config,
            mask: causal_mask(context, tokens.device())?.to_dtype(tokens.dtype())?,
            tokens,
            positions,
            encoder: Encoder::load(weights, "text_model.encoder", &config.encoder)?,
            final_norm: LayerNorm::load(weights, "text_model.final_layer_norm", &config.encoder)?,
            projection: projection.t()?,
        })
    }

    /// Checks text number `row` of a batch and returns the position that stands for it.
    pub(super) fn pooled_position(&self, row: usize, ids: &[u32]) -> std::result::Result<usize, EncodeError> {
        let TextConfig {
            context_length: limit,
            vocabulary,
            pooling,
            ..
        } = self.config;
        if ids.is_empty() || ids.len() > limit {
            return Err(EncodeError::TokenCount {
                row,
                found: ids.len(),
                limit,
            });
        }
        if let Some(id) = ids.iter().copied().find(|id| *id as usize >= vocabulary) {
            return Err(EncodeError::UnknownToken { row, id, vocabulary });
        }
        let end = match pooling {
            Pooling::FirstOf(end) => Some(end),
            Pooling::LargestId => ids.iter().max().copied(),
        };
        ids.iter()
            .position(|id| Some(*id) == end)
            .ok_or(EncodeError::NoEnd(row))
    }

    /// Texts and their pooled positions to `(n, dim)` features. All are padded to the longest of them.
    pub(super) fn forward(&self, texts: &[&[u32]], pooled: &[usize]) -> Result<Tensor> {
        self.read(self.embed(texts)?, pooled)
    }

    /// The embeddings `(n, t, width)` of texts, without positions, padded to the longest of them.
    pub(super) fn embed(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let longest = texts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        // Any id will do as padding: no pooled token sees it.
        let padded = texts
            .iter()
            .flat_map(|ids| ids.iter().copied().chain(std::iter::repeat(0)).take(longest));
        let padded: Vec<u32> = padded.collect();
        self.embeddings(&padded)?
            .reshape((texts.len(), longest, self.width()))
    }

    /// Embeddings of tokens from all over the vocabulary, as many as the longest text has.
    pub(super) fn spread_embeddings(&self) -> Result<Tensor> {
        let TextConfig {
            context_length: count,
            vocabulary,
            ..
        } = self.config;
        let ids: Vec<u32> = (0..count)
            .map(|place| (place * vocabulary / count) as u32)
            .collect();
        self.embeddings(&ids)
    }

    /// The embeddings of tokens, without positions, `(n, width)`.
    pub(super) fn embeddings(&self, ids: &[u32]) -> Result<Tensor> {
        self.tokens
            .index_select(&Tensor::new(ids, self.tokens.device())?, 0)
    }

    /// Embeddings `(n, t, width)` and pooled positions to `(n, dim)` features, with a gradient where the embeddings have
    /// one. Takes the embeddings, which must be nobody else's.
    pub(super) fn read(&self, embeddings: Tensor, pooled: &[usize]) -> Result<Tensor> {
        let longest = embeddings.dim(1)?;
        let states = fused::add_repeated(embeddings, &self.positions.narrow(0, 0, longest)?)?;
        let mask = self
            .mask
            .narrow(0, 0, longest)?
            .narrow(1, 0, longest)?
            .contiguous()?;
        let states = self.encoder.forward(states, Some(&mask))?;
        let rows = pooled
            .iter()
            .enumerate()
            .map(|(row, position)| (row * longest + position) as u32);
        let rows = Tensor::from_iter(rows, states.device())?;
        let pooled = states.flatten(0, 1)?.index_select(&rows, 0)?;
        frozen::product(&self.final_norm.forward(&pooled)?, &self.projection)
    }

    /// Values of a token's embedding.
    pub(super) fn width(&self) -> usize {
        self.config.encoder.width
    }

    /// Longest text in tokens, start and end included.
    pub(super) fn context_length(&self) -> usize {
        self.config.context_length
    }

    /// Values of a feature row.
    pub(super) fn dim(&self) -> Result<usize> {
        self.projection.dim(1)
    }

    /// Where it computes.
    pub(super) fn device(&self) -> &Device {
        self.tokens.device()
    }

    /// What it computes in.
    pub(super) fn dtype(&self) -> DType {
        self.tokens.dtype()
    }
}

fn causal_mask(length: usize, device: &Device) -> Result<Tensor> {
    let values = (0..length * length).map(|i| {
        if i % length > i / length {
            f32::NEG_INFINITY
        } else {
            0.0
        }
    });
    Tensor::from_iter(values, device)?.reshape((length, length))
}

#[cfg(test)]
mod tests {
    use clipkeep_towers::{Instructions, Precision};

    use super::*;
    use crate::clip::source::BackboneFiles;

    #[test]
    fn packed_towers_give_what_tensors_give() -> Result<()> {
        let files = BackboneFiles::embedded();
        let config = ClipConfig::parse(&files.config).expect("a configuration");
        let mut weights = files.tensors(&Device::Cpu).expect("weights");
        let reference = TextTower::load(&mut weights, &config).expect("a tower");
        let longest = reference.context_length();
        let texts: Vec<Vec<u32>> = [3, longest, 1, 17]
            .map(|length| (0..length as u32).map(|place| 5 + place * 37 % 400).collect())
            .to_vec();
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let ids: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let ends: Vec<usize> = lengths.iter().map(|length| length - 1).collect();
        let wanted: Vec<f32> = reference.forward(&ids, &ends)?.flatten_all()?.to_vec1()?;
        let largest = wanted.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let embeddings = reference.embeddings(&texts.concat())?;
        let embeddings: Vec<f32> = embeddings.flatten_all()?.to_vec1()?;
        let shape = config.text_shape();
        let precisions = [
            (Precision::F32, 1e-5),
            (Precision::Bf16, 2e-2),
            (Precision::Int16, 1e-2),
            (Precision::Int8, 0.1),
        ];
        for (precision, most) in precisions {
            for instructions in Instructions::suiting(&shape.transformer, precision) {
                let name = instructions.to_string();
                let mut take = |key: &str, shape: &[usize]| weights.values(key, shape);
                let tower =
                    clipkeep_towers::TextTower::load(shape, instructions, &mut take).expect("a tower");
                let found = tower.forward(&embeddings, &lengths);
                assert_eq!(found.len(), wanted.len());
                for (found, wanted) in found.iter().zip(&wanted) {
                    let apart = (found - wanted).abs() / largest;
                    assert!(apart < most, "{name}: {apart}");
                }
            }
        }
        Ok(())
    }
}
