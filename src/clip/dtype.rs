//! In which type the towers multiply.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use clipkeep_towers::{
    ImageShape, ImageTower, Instructions, MIDDLE, Precision, Take, TextShape, TextTower, Transformer,
};

/// What features that are rounded on the way must at least have for a cosine with f32's to be chosen.
const LEAST_COSINE: f64 = 0.999;
/// Images that towers are compared on: the start waits for them, and one has many tokens.
const IMAGES: usize = 1;
/// Tokens of a text that towers are compared on, beside one as long as can be.
const TOKENS: usize = 8;

/// What lists the instructions that a tower has for a precision, the best first.
type MadeFor = fn(&Transformer, Precision) -> Vec<Instructions>;

/// What weights and activations are rounded to where they are multiplied. On the CPU, what is between the products, and their
/// sums, stays f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// bfloat16 on a GPU and on a processor with instructions for it, and otherwise whole numbers of 16 bits where the
    /// processor multiplies them faster than f32; the next of these, and in the end f32, where features do not keep a cosine of
    /// 0.999 with those of f32. The choice is always the same: nothing is timed.
    #[default]
    Auto,
    /// Not at all.
    F32,
    /// bfloat16, whether or not the processor has instructions for it.
    Bf16,
    /// Whole numbers of 16 bits, of which 12 are used, scaled for each token and each output. On processors alone.
    Int16,
    /// As `Int16`, of 8 bits: faster, and less exact.
    Int8,
}

/// All but `Auto`, and what they are on a processor.
const GIVEN: [(Dtype, Precision); 4] = [
    (Dtype::F32, Precision::F32),
    (Dtype::Bf16, Precision::Bf16),
    (Dtype::Int16, Precision::Int16),
    (Dtype::Int8, Precision::Int8),
];

/// What `Auto` tries on a processor that has instructions for it, the fastest first.
const FAST: [Precision; 2] = [Precision::Bf16, Precision::Int16];

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let given = GIVEN.iter().find(|(_, precision)| precision.to_string() == text);
        let dtype = given.map(|(dtype, _)| *dtype);
        dtype.ok_or_else(|| format!("{text:?} is neither auto, f32, bf16, int16 nor int8"))
    }
}

impl Dtype {
    /// What it is on a processor, where it is given.
    fn precision(self) -> Option<Precision> {
        let given = GIVEN.iter().find(|(dtype, _)| *dtype == self);
        given.map(|(_, precision)| *precision)
    }

    /// Whether something is rounded in any case.
    pub(super) fn rounds(self) -> bool {
        self.precision().is_some_and(|given| given != Precision::F32)
    }

    /// Whether tensors cannot have it.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Int16 | Self::Int8)
    }

    /// An image tower for whatever computes beside the processor, in f32 where that cannot have the type, as `load` makes it of
    /// either type. `fast` is the type that it multiplies fastest. Where a choice is to be made, `exact` is one in f32,
    /// wherever it computes, and `features` are of bytes `(n, 3, image_size, image_size)` as rows of `shape.dim`.
    pub(super) fn tower<T, E>(
        self,
        fast: DType,
        shape: ImageShape,
        mut load: impl FnMut(DType) -> Result<T, E>,
        exact: impl FnOnce() -> Result<T, E>,
        features: impl Fn(&T, &Tensor) -> candle_core::Result<Vec<f32>>,
    ) -> Result<T, E>
    where
        T: fmt::Display,
        E: From<candle_core::Error>,
    {
        match self {
            Self::F32 | Self::Int16 | Self::Int8 => load(DType::F32),
            Self::Bf16 => load(fast),
            Self::Auto if fast == DType::F32 => load(fast),
            Self::Auto => {
                let size = shape.image_size;
                let images = noise(IMAGES * 3 * size.pow(2));
                let images = Tensor::from_vec(images, (IMAGES, 3, size, size), &Device::Cpu)?;
                let exact = exact()?;
                let wanted = Exact::new(&exact, features(&exact, &images)?, shape.dim);
                drop(exact);
                let rounded = load(fast)?;
                let is_near = match features(&rounded, &images) {
                    Ok(found) => wanted.is_near(&rounded, &found),
                    Err(error) => {
                        tracing::warn!(%error, %rounded, "a tower fails: it computes in f32");
                        false
                    }
                };
                if is_near {
                    return Ok(rounded);
                }
                drop(rounded);
                load(DType::F32)
            }
        }
    }

    /// The image tower of a shape that suits this processor best; `None` where none does. Tensors may be taken more than once.
    pub(super) fn image_tower<E>(
        self,
        shape: ImageShape,
        take: &mut Take<'_, E>,
    ) -> Result<Option<ImageTower>, E> {
        let load = |instructions| ImageTower::load(shape, instructions, take);
        let images = || noise(IMAGES * shape.bytes());
        let made_for: MadeFor = Instructions::made_for;
        self.best((&shape.transformer, made_for), load, shape.dim, |tower| {
            tower.forward(&images(), None)
        })
    }

    /// The text tower. Where one is compared, it is by texts of these `tokens`: as many embeddings as the longest text has.
    pub(super) fn text_tower<E>(
        self,
        shape: TextShape,
        tokens: &[f32],
        take: &mut Take<'_, E>,
    ) -> Result<Option<TextTower>, E> {
        let load = |instructions| TextTower::load(shape, instructions, take);
        let lengths = [TOKENS.min(shape.context_length), shape.context_length];
        let short = &tokens[..lengths[0] * shape.transformer.width];
        let made_for: MadeFor = Instructions::made_for_texts;
        self.best((&shape.transformer, made_for), load, shape.dim, |tower| {
            tower.forward(&[short, tokens].concat(), &lengths)
        })
    }

    /// The tower that suits this processor best, of those that `load` makes for a `transformer`, by the instructions that are
    /// `made_for` it. What is rounded is compared by its `features`, rows of `dim`.
    fn best<T: fmt::Display, E>(
        self,
        (transformer, made_for): (&Transformer, MadeFor),
        mut load: impl FnMut(Instructions) -> Result<T, E>,
        dim: usize,
        features: impl Fn(&T) -> Vec<f32>,
    ) -> Result<Option<T>, E> {
        let first = |precision| Instructions::suiting(transformer, precision).into_iter().next();
        if let Some(given) = self.precision() {
            return first(given).map(load).transpose();
        }
        // Behind what multiplies in halves stands the same with whole products, which is more exact.
        let fastest = |rounded| {
            let mut fast = made_for(transformer, rounded);
            fast.truncate(1 + usize::from(fast.first().is_some_and(Instructions::are_in_halves)));
            fast
        };
        let fast: Vec<Instructions> = FAST.into_iter().flat_map(fastest).collect();
        let Some(exact) = first(Precision::F32) else {
            return Ok(None);
        };
        let exact = load(exact)?;
        if fast.is_empty() {
            return Ok(Some(exact));
        }
        let wanted = Exact::new(&exact, features(&exact), dim);
        drop(exact);
        for instructions in fast {
            let rounded = load(instructions)?;
            if wanted.is_near(&rounded, &features(&rounded)) {
                return Ok(Some(rounded));
            }
        }
        first(Precision::F32).map(load).transpose()
    }
}

/// What a tower in f32 makes of something. The tower itself goes before another one is loaded, so that no two are held; where none is near
/// enough, it is loaded again.
struct Exact {
    tower: String,
    features: Vec<f32>,
    dim: usize,
}

impl Exact {
    /// Of a tower whose `features` are rows of `dim`.
    fn new(tower: &impl fmt::Display, features: Vec<f32>, dim: usize) -> Self {
        let tower = tower.to_string();
        Self { tower, features, dim }
    }

    /// Whether a tower that rounds is to be preferred: what it `found` of the same is near enough.
    fn is_near(&self, rounded: &impl fmt::Display, found: &[f32]) -> bool {
        let rows = found.chunks(self.dim).zip(self.features.chunks(self.dim));
        let cosines: Vec<f64> = rows.map(|(a, b)| cosine(a, b)).collect();
        let is_near = are_near(&cosines);
        let exact = &self.tower;
        tracing::info!(%exact, %rounded, ?cosines, is_near, "compared a tower with the same one rounded");
        is_near
    }
}

/// So many bytes without a pattern.
pub(super) fn noise(count: usize) -> Vec<u8> {
    let byte = |number: f32| (f32::from(MIDDLE) * (1.0 + number)) as u8;
    numbers(count).into_iter().map(byte).collect()
}

/// So many numbers without a pattern.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 12.9898).sin()).collect()
}

/// Whether features are near enough to those of f32. What is no number is not.
fn are_near(cosines: &[f64]) -> bool {
    cosines.iter().all(|cosine| *cosine >= LEAST_COSINE)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    const TRANSFORMER: Transformer = Transformer {
        width: 128,
        mlp_width: 256,
        layers: 2,
        heads: 2,
        activation: clipkeep_towers::Activation::QuickGelu,
        layer_norm_epsilon: 1e-5,
    };

    /// Of a usual width.
    const WIDE: Transformer = Transformer {
        width: 512,
        mlp_width: 2048,
        heads: 8,
        ..TRANSFORMER
    };

    const IMAGE: ImageShape = ImageShape {
        image_size: 32,
        patch_size: 8,
        transformer: TRANSFORMER,
        dim: 24,
    };

    const TEXT: TextShape = TextShape {
        context_length: 16,
        transformer: TRANSFORMER,
        dim: 24,
    };

    /// Weights without a pattern, times `size`.
    fn take(size: f32) -> impl FnMut(&str, &[usize]) -> Result<Cow<'static, [f32]>, ()> {
        move |name, shape| {
            let seed = name.len() as f32;
            let value = |i| ((i as f32 + 1.0) * (12.9898 + seed)).sin() * size;
            Ok((0..shape.iter().product::<usize>()).map(value).collect())
        }
    }

    fn image_tower(dtype: Dtype, size: f32) -> ImageTower {
        let tower = dtype.image_tower(IMAGE, &mut take(size)).expect("weights");
        tower.expect("some instructions suit it")
    }

    fn text_tower(dtype: Dtype, size: f32) -> TextTower {
        let tokens = numbers(TEXT.context_length * TRANSFORMER.width);
        let tower = dtype.text_tower(TEXT, &tokens, &mut take(size)).expect("weights");
        tower.expect("some instructions suit it")
    }

    #[test]
    fn what_is_asked_for_is_loaded() {
        for text in ["f32", "bf16", "int16", "int8"] {
            let dtype: Dtype = text.parse().expect("a dtype");
            assert_eq!(image_tower(dtype, 0.1).precision().to_string(), text);
            assert_eq!(text_tower(dtype, 0.1).precision().to_string(), text);
        }
        assert!("f16".parse::<Dtype>().is_err());
    }

    #[test]
    fn the_rounded_tower_is_chosen_only_where_its_features_are_near() {
        let choice = |size| {
            let towers = [(Dtype::F32, 0.1), (Dtype::Bf16, size)];
            let [exact, rounded] = towers.map(|(dtype, size)| image_tower(dtype, size));
            let pixels = noise(3 * 32 * 32);
            let features = |tower: &ImageTower| tower.forward(&pixels, None);
            let wanted = Exact::new(&exact, features(&exact), 24);
            wanted.is_near(&rounded, &features(&rounded))
        };
        assert!(choice(0.1));
        assert!(!choice(0.3), "another tower altogether");
        assert!(are_near(&[0.9991, 1.0]) && !are_near(&[0.9989, 1.0]) && !are_near(&[1.0, f64::NAN]));
    }

    #[test]
    fn of_itself_a_processor_rounds_to_what_it_has_instructions_for() {
        let has = |precision| !Instructions::made_for(&TRANSFORMER, precision).is_empty();
        let wanted = if has(Precision::Bf16) {
            Precision::Bf16
        } else if has(Precision::Int16) {
            Precision::Int16
        } else {
            Precision::F32
        };
        assert_eq!(image_tower(Dtype::Auto, 0.1).precision(), wanted);
        assert_eq!(text_tower(Dtype::Auto, 0.1).precision(), wanted);
    }

    /// What is chosen of instructions, where features are near by those whose names say so.
    fn chosen(made_for: MadeFor, is_near: impl Fn(&str) -> bool) -> Option<String> {
        let load = |instructions: Instructions| Ok::<_, ()>(instructions.to_string());
        let features = |name: &String| {
            if is_near(name) {
                vec![1.0, 0.0]
            } else {
                vec![0.0, 1.0]
            }
        };
        let chosen = Dtype::Auto.best((&WIDE, made_for), load, 2, features);
        chosen.expect("nothing fails")
    }

    #[test]
    fn a_processor_without_fast_instructions_computes_in_f32() {
        let chosen = chosen(|_, _| Vec::new(), |_| true).expect("a tower");
        assert!(chosen.ends_with(" f32"), "{chosen}");
    }

    #[test]
    fn what_is_not_near_enough_in_halves_is_tried_whole() {
        let bf16 = |transformer: &Transformer, precision| match precision {
            Precision::Bf16 => Instructions::made_for(transformer, precision),
            _ => Vec::new(),
        };
        let fastest = chosen(bf16, |_| true).expect("a tower");
        let other = chosen(bf16, |name| is_exact(name) || *name != fastest);
        let whole = fastest.strip_prefix("strassen ").map(str::to_owned);
        assert_eq!(other, whole.or(chosen(bf16, is_exact)), "instead of {fastest}");
    }

    #[test]
    fn what_is_not_near_enough_in_bfloat16_is_tried_in_whole_numbers() {
        let is_near = |name: &str| is_exact(name) || name.ends_with(" int16");
        let [whole, exact] = [is_near, is_exact].map(|is_near| chosen(Instructions::made_for, is_near));
        let whole = whole.expect("a tower");
        let has = !Instructions::made_for(&WIDE, Precision::Int16).is_empty();
        assert_eq!(whole.ends_with(" int16"), has, "{whole}");
        assert!(exact.as_deref().is_some_and(is_exact), "{exact:?}");
    }

    fn is_exact(name: &str) -> bool {
        name.ends_with(" f32")
    }
}
