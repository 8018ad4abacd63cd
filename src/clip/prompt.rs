//! Prompts whose first words are vectors: the text tower for whoever trains what stands before a class's name (CoOp,
//! arXiv 2109.01134).
//!
//! ```text
//! [start] [context: k vectors] [name and what the template puts behind it] [end]
//! ```
//!
//! Owner: a fit, on threads of its own, while the device thread serves: the tower is shared, and neither changes it.
//! Invariants: behind the template's own words every class has the features that [`super::Backbone::encode_tokens`]
//! gives its whole prompt, up to how either rounds; a gradient flows to the context, and no weight ever changes.
//!
//! Where the context ends is a question to the tokenizer. A prompt is split whole, and if it begins with the tokens that
//! the template's words have alone, the rest is the name's. Pairs of bytes may merge across the border (`un{}`), and then
//! the name and what follows it are split alone: the features are those of the two parts side by side, not of the prompt.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Error, Tensor, bail};

use super::error::EncodeError;
use super::text::TextTower;
use super::tokenizer::ClipTokenizer;

/// The frozen text tower and its tokenizer; clones share them.
#[derive(Clone)]
pub struct PromptTower {
    tower: Arc<TextTower>,
    tokenizer: ClipTokenizer,
}

impl PromptTower {
    pub(super) fn new(tower: Arc<TextTower>, tokenizer: ClipTokenizer) -> Self {
        Self { tower, tokenizer }
    }

    /// Prompts of classes: each one's `words` in the place of `{}`. What does not fit into the context length is cut off,
    /// as the tokenizer does.
    ///
    /// # Errors
    /// [`EncodeError::NoPlace`], [`EncodeError::NoRoom`] when the template's words leave none, or why a text has no
    /// tokens.
    pub fn prompts(&self, words: &[String], template: &str) -> Result<ClassPrompts, EncodeError> {
        let (before, after) = template.split_once("{}").ok_or(EncodeError::NoPlace)?;
        let limit = self.tower.context_length();
        let Split {
            start,
            words: context,
            ..
        } = self.split(0, before)?;
        if context.len() > most_context(limit) {
            return Err(EncodeError::NoRoom {
                context: context.len(),
                limit,
            });
        }
        let tail = |(row, words): (usize, &String)| -> Result<Tail, EncodeError> {
            let whole = self.split(row, &format!("{before}{words}{after}"))?;
            let name = match whole.words.strip_prefix(context.as_slice()) {
                Some(name) => name.to_vec(),
                None => self.split(row, &format!("{words}{after}"))?.words,
            };
            Ok(Tail { name, end: whole.end })
        };
        let tails = words.iter().enumerate().map(tail).collect::<Result<_, _>>()?;
        Ok(ClassPrompts {
            tower: Arc::clone(&self.tower),
            start,
            context,
            tails,
        })
    }

    /// The tokens of text number `row`.
    fn split(&self, row: usize, text: &str) -> Result<Split, EncodeError> {
        let ids = self.tokenizer.encode(text)?;
        self.tower.pooled_position(row, &ids)?;
        match ids.as_slice() {
            [start, words @ .., end] => Ok(Split {
                start: *start,
                words: words.to_vec(),
                end: *end,
            }),
            _ => Err(EncodeError::NoEnd(row)),
        }
    }
}

/// A text's tokens.
struct Split {
    start: u32,
    words: Vec<u32>,
    end: u32,
}

/// What follows the context.
struct Tail {
    name: Vec<u32>,
    end: u32,
}

/// Most vectors before a name of which at least one token is read.
fn most_context(context_length: usize) -> usize {
    context_length.saturating_sub(3)
}

/// The text tower before a list of classes.
pub struct ClassPrompts {
    tower: Arc<TextTower>,
    start: u32,
    /// The template's words before the name.
    context: Vec<u32>,
    tails: Vec<Tail>,
}

impl ClassPrompts {
    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.tails.len()
    }

    /// The embeddings `(k, width)` of the template's words before the name; none, `(0, width)`, when it begins with it.
    pub fn template(&self) -> candle_core::Result<Tensor> {
        if self.context.is_empty() {
            return Tensor::zeros((0, self.tower.width()), self.tower.dtype(), self.tower.device());
        }
        self.tower.embed(&[self.context.as_slice()])?.squeeze(0)
    }

    /// Features `(n, dim)`, not normalised, of some of the classes behind `context` `(k, width)`, 0 ≤ k ≤ context
    /// length − 3, with a gradient where `context` has one. Where the context is longer than the template's, names are
    /// cut off earlier. Until a gradient is taken all layers' states are kept, with what is computed on the way back
    /// some 40 MB a class for ViT-B/32 and 16 vectors: memory is the caller's to bound, by a few classes at a time. The
    /// last bits of a row depend on the classes that are encoded with it.
    ///
    /// # Errors
    /// When `context` is of another width or leaves no room, or there are no such classes.
    pub fn encode(&self, context: &Tensor, classes: Range<usize>) -> candle_core::Result<Tensor> {
        let (k, width) = context.dims2()?;
        if width != self.tower.width() {
            bail!(
                "a context of width {width} before a tower of {}",
                self.tower.width()
            );
        }
        let limit = self.tower.context_length();
        if k > most_context(limit) {
            return Err(Error::wrap(EncodeError::NoRoom { context: k, limit }));
        }
        let Some(tails) = self.tails.get(classes.clone()) else {
            bail!("classes {classes:?} of {}", self.tails.len());
        };
        if tails.is_empty() {
            return Tensor::zeros((0, self.tower.dim()?), context.dtype(), context.device());
        }
        let tails = tails.iter().map(|tail| tail.cut(limit - 1 - k));
        let tails: Vec<Vec<u32>> = tails.collect();
        let pooled = tails.iter().enumerate().map(|(row, ids)| {
            let position = self.tower.pooled_position(row, ids).map_err(Error::wrap)?;
            Ok(1 + k + position)
        });
        let pooled = pooled.collect::<candle_core::Result<Vec<_>>>()?;
        let texts: Vec<&[u32]> = tails.iter().map(Vec::as_slice).collect();
        let start = self.tower.embed(&vec![[self.start].as_slice(); texts.len()])?;
        let tails = self.tower.embed(&texts)?;
        // A tensor without rows is nothing to join.
        let prompts = match k {
            0 => Tensor::cat(&[&start, &tails], 1)?,
            _ => {
                let context = context.unsqueeze(0)?.broadcast_as((texts.len(), k, width))?;
                Tensor::cat(&[&start, &context, &tails], 1)?
            }
        };
        self.tower.read(prompts, &pooled)
    }
}

impl Tail {
    /// At most `room` tokens, the end always among them.
    fn cut(&self, room: usize) -> Vec<u32> {
        let name = &self.name[..self.name.len().min(room - 1)];
        [name, &[self.end]].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device, Var};

    use super::super::config::ClipConfig;
    use super::super::source::BackboneFiles;
    use super::*;

    /// A tiny text tower of `tests/backbone/data`, in f64.
    fn tower(name: &str) -> PromptTower {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/backbone/data")
            .join(name);
        let files = BackboneFiles::read(&directory).expect("a model");
        let config = ClipConfig::parse(&files.config).expect("a configuration");
        let mut weights = files.tensors(&Device::Cpu).expect("weights");
        let tower = weights.in_dtype(DType::F64, |weights| TextTower::load(weights, &config));
        let tower = tower.expect("a tower");
        let tokenizer = ClipTokenizer::parse(&files.tokenizer, &config.text).expect("a tokenizer");
        PromptTower::new(Arc::new(tower), tokenizer)
    }

    /// A number that depends on every feature of every class.
    fn loss(prompts: &ClassPrompts, context: &Tensor) -> candle_core::Result<Tensor> {
        let features = prompts.encode(context, 0..prompts.classes())?;
        let weights = Tensor::arange(0.0, features.elem_count() as f64, &Device::Cpu)?;
        let weights = weights.reshape(features.shape())?.cos()?;
        (features.tanh()? * weights)?.sum_all()
    }

    #[test]
    fn gradients_are_the_slopes_that_differences_show() -> candle_core::Result<()> {
        const STEP: f64 = 1e-5;
        // candle rounds a factor in the derivative of the exact GELU to six digits.
        for (name, tolerance) in [("quick-gelu", 1e-7), ("gelu", 1e-5)] {
            let words = ["cat", "a b c"].map(str::to_owned);
            let prompts = tower(name).prompts(&words, "a {} .").expect("prompts");
            let shape = (3, prompts.tower.width());
            let start: Vec<f64> = (0..shape.0 * shape.1).map(|place| (place as f64).sin()).collect();
            // Always a variable: candle's fast operators, which have no gradient, have no f64 either.
            let context = |values: &[f64]| Var::from_slice(values, shape, &Device::Cpu);
            let middle = context(&start)?;
            let gradients = loss(&prompts, &middle)?.backward()?;
            let gradient = gradients.get(&middle).expect("a gradient").flatten_all()?;
            let moved = |place: usize, step: f64| {
                let mut values = start.clone();
                values[place] += step;
                loss(&prompts, context(&values)?.as_tensor())?.to_scalar::<f64>()
            };
            let mut largest = 0.0_f64;
            for (place, slope) in gradient.to_vec1::<f64>()?.into_iter().enumerate() {
                let difference = (moved(place, STEP)? - moved(place, -STEP)?) / (2.0 * STEP);
                let apart = (slope - difference).abs();
                assert!(
                    apart < tolerance,
                    "{name}, value {place}: {slope}, by difference {difference}"
                );
                largest = largest.max(slope.abs());
            }
            assert!(largest > 1e-2, "{name}: {largest}");
        }
        Ok(())
    }
}
