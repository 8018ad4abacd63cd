//! Backbones of the published shapes with made-up weights: to measure what a backbone costs where its weights are not at
//! hand. They know nothing about images.
//!
//! Weights are of the size that training starts from, so that what flows through the towers neither dies nor overflows. The
//! tokenizer is the embedded backbone's; all else has the published dimensions.

use std::fmt;
use std::str::FromStr;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};
use serde_json::json;

/// A published shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// ViT-B/32.
    VitB32,
    /// ViT-B/16.
    VitB16,
    /// ViT-L/14.
    VitL14,
}

impl Shape {
    const ALL: [Self; 3] = [Self::VitB32, Self::VitB16, Self::VitL14];

    pub(super) fn dimensions(self) -> Dimensions {
        let base = |patch| Dimensions {
            patch,
            dim: 512,
            vision: Tower {
                width: 768,
                layers: 12,
                heads: 12,
            },
            text: Tower {
                width: 512,
                layers: 12,
                heads: 8,
            },
        };
        match self {
            Self::VitB32 => base(32),
            Self::VitB16 => base(16),
            Self::VitL14 => Dimensions {
                patch: 14,
                dim: 768,
                vision: Tower {
                    width: 1024,
                    layers: 24,
                    heads: 16,
                },
                text: Tower {
                    width: 768,
                    layers: 12,
                    heads: 12,
                },
            },
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::VitB32 => "vit-b-32",
            Self::VitB16 => "vit-b-16",
            Self::VitL14 => "vit-l-14",
        })
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = Self::ALL.into_iter().find(|shape| shape.to_string() == text);
        shape.ok_or_else(|| format!("{text:?} is none of vit-b-32, vit-b-16 and vit-l-14"))
    }
}

/// What a shape stands for.
pub(super) struct Dimensions {
    patch: usize,
    dim: usize,
    vision: Tower,
    text: Tower,
}

struct Tower {
    width: usize,
    layers: usize,
    heads: usize,
}

const IMAGE: usize = 224;
const CONTEXT: usize = 77;

/// The embedded tokenizer's vocabulary; its last id ends a text.
const VOCABULARY: usize = 2048;

/// What training starts with: the exponential of it is CLIP's first logit scale.
const LOGIT_SCALE: f32 = 2.6592;

/// `config.json` of a shape.
pub(super) fn config(dimensions: &Dimensions) -> Vec<u8> {
    let Dimensions {
        patch,
        dim,
        vision,
        text,
    } = dimensions;
    let tower = |tower: &Tower| {
        json!({
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
        })
    };
    let mut config = json!({
        "model_type": "clip",
        "projection_dim": dim,
        "vision_config": tower(vision),
        "text_config": tower(text),
    });
    config["vision_config"]["image_size"] = json!(IMAGE);
    config["vision_config"]["patch_size"] = json!(patch);
    config["text_config"]["vocab_size"] = json!(VOCABULARY);
    config["text_config"]["max_position_embeddings"] = json!(CONTEXT);
    config["text_config"]["eos_token_id"] = json!(VOCABULARY - 1);
    config.to_string().into_bytes()
}

/// `preprocessor_config.json`: CLIP's own.
pub(super) fn preprocessor() -> Vec<u8> {
    json!({ "size": { "shortest_edge": IMAGE }, "crop_size": { "height": IMAGE, "width": IMAGE } })
        .to_string()
        .into_bytes()
}

/// `model.safetensors` of a shape; the same every time.
pub(super) fn weights(dimensions: &Dimensions) -> Result<Vec<u8>, SafeTensorError> {
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors(dimensions)
        .into_iter()
        .map(|(name, shape, (middle, spread))| {
            let values = (0..shape.iter().product())
                .flat_map(|_| (middle + spread * generator.random_range(-1.0_f32..1.0)).to_le_bytes());
            (name, shape, values.collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    safetensors::serialize(views, None)
}

/// Names, shapes, and the middle and half the width of the range of their values.
fn tensors(dimensions: &Dimensions) -> Vec<(String, Vec<usize>, (f32, f32))> {
    let Dimensions {
        patch,
        dim,
        vision,
        text,
    } = dimensions;
    let tokens = (IMAGE / patch).pow(2) + 1;
    // Of a matrix, so that what comes out varies as much as what goes in.
    let of = |inputs: usize| (0.0, (3.0 / inputs as f32).sqrt());
    let embedding = (0.0, 0.05);
    let mut all = vec![
        ("logit_scale".to_owned(), vec![], (LOGIT_SCALE, 0.0)),
        (
            "vision_model.embeddings.class_embedding".to_owned(),
            vec![vision.width],
            embedding,
        ),
        (
            "vision_model.embeddings.patch_embedding.weight".to_owned(),
            vec![vision.width, 3, *patch, *patch],
            of(3 * patch * patch),
        ),
        (
            "vision_model.embeddings.position_embedding.weight".to_owned(),
            vec![tokens, vision.width],
            embedding,
        ),
        (
            "text_model.embeddings.token_embedding.weight".to_owned(),
            vec![VOCABULARY, text.width],
            embedding,
        ),
        (
            "text_model.embeddings.position_embedding.weight".to_owned(),
            vec![CONTEXT, text.width],
            embedding,
        ),
        (
            "visual_projection.weight".to_owned(),
            vec![*dim, vision.width],
            of(vision.width),
        ),
        (
            "text_projection.weight".to_owned(),
            vec![*dim, text.width],
            of(text.width),
        ),
    ];
    let norms = [
        ("vision_model.pre_layrnorm", vision.width),
        ("vision_model.post_layernorm", vision.width),
        ("text_model.final_layer_norm", text.width),
    ];
    for (norm, width) in norms {
        all.extend(self::norm(norm, width));
    }
    for (name, tower) in [("vision_model", vision), ("text_model", text)] {
        let width = tower.width;
        for layer in 0..tower.layers {
            let prefix = format!("{name}.encoder.layers.{layer}");
            let mut linear = |name: &str, inputs: usize, outputs: usize| {
                all.push((
                    format!("{prefix}.{name}.weight"),
                    vec![outputs, inputs],
                    of(inputs),
                ));
                all.push((format!("{prefix}.{name}.bias"), vec![outputs], embedding));
            };
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(&format!("self_attn.{name}"), width, width);
            }
            linear("mlp.fc1", width, 4 * width);
            linear("mlp.fc2", 4 * width, width);
            for name in ["layer_norm1", "layer_norm2"] {
                all.extend(norm(&format!("{prefix}.{name}"), width));
            }
        }
    }
    all
}

fn norm(prefix: &str, width: usize) -> [(String, Vec<usize>, (f32, f32)); 2] {
    [
        (format!("{prefix}.weight"), vec![width], (1.0, 0.1)),
        (format!("{prefix}.bias"), vec![width], (0.0, 0.05)),
    ]
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::clip::source::BackboneFiles;
    use crate::clip::{Backbone, Dtype};

    /// ViT-B/32, but for its size.
    fn small() -> Dimensions {
        let tower = |width| Tower {
            width,
            layers: 2,
            heads: width / 64,
        };
        Dimensions {
            vision: tower(128),
            text: tower(64),
            ..Shape::VitB32.dimensions()
        }
    }

    #[test]
    fn what_is_made_up_loads_and_computes_and_is_always_the_same() {
        let files = || BackboneFiles::random(&small()).expect("files");
        let backbone =
            Backbone::build("random".to_owned(), &files(), Device::Cpu, Dtype::F32).expect("a backbone");
        assert_eq!(
            (backbone.dim(), backbone.image_size(), backbone.context_length()),
            (512, 224, 77)
        );
        let pixels = Tensor::ones((1, 3, 224, 224), DType::U8, &Device::Cpu).expect("pixels");
        let ids = backbone.tokenizer().encode("a photo of an owl.").expect("ids");
        for features in [backbone.encode_images(&pixels), backbone.encode_tokens(&[ids])] {
            let row: Vec<f32> = features
                .and_then(|features| Ok(features.flatten_all()?.to_vec1()?))
                .expect("features");
            let largest = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert!(row.len() == 512 && (0.01..100.0).contains(&largest), "{largest}");
        }
        assert_eq!(files().digest().expect("hashed"), backbone.digest());
    }

    #[test]
    fn shapes_are_named_as_they_are_read() {
        for shape in Shape::ALL {
            assert_eq!(shape.to_string().parse(), Ok(shape));
            let Dimensions { vision, text, .. } = shape.dimensions();
            assert!([vision, text].iter().all(|tower| tower.width == 64 * tower.heads));
        }
    }
}
