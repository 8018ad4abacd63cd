//! Both towers against another implementation of CLIP, candle's own, at the widths of ViT-B/32.
//!
//! It shares the tensor library with ours and nothing else: patches by convolution, attention head by head, each bias
//! and activation an operator of its own. Weights are made up, in two layers a tower.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig};
use candle_transformers::models::clip::vision_model::ClipVisionConfig;
use candle_transformers::models::clip::{ClipConfig, ClipModel};
use serde_json::json;

use crate::directory::{load, pinned};
use crate::features::{assert_close, rows};

/// The pinned tokenizer's.
const VOCABULARY: usize = 521;
const LAYERS: usize = 2;
/// Unlike CLIP's own, and unlike one another.
const FACTOR: f64 = 1.0 / 127.5;
const MEAN: [f32; 3] = [1.0, 0.75, 0.5];
const DEVIATION: [f32; 3] = [0.5, 0.625, 0.875];

#[test]
fn towers_agree_with_another_implementation() {
    let config = config();
    let weights = weights(&config).unwrap();
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &weights);
    let ours = load(directory.path()).unwrap();
    let theirs = ClipModel::new(
        VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu),
        &config,
    )
    .unwrap();

    let pixels = noise("pixels", &[7, 3, 224, 224], 128.0).unwrap();
    let pixels = (pixels + 128.0).unwrap().to_dtype(DType::U8).unwrap();
    let ids: Vec<Vec<u32>> = (0..7)
        .map(|n| {
            let text = "a photo of a heron ".repeat(1 + 2 * n);
            ours.tokenizer().encode(&text).unwrap()
        })
        .collect();
    assert_eq!(ids.last().unwrap().len(), 77, "one fills the context");
    for batch in [1, 7] {
        let pixels = pixels.narrow(0, 0, batch).unwrap();
        assert_close(
            &format!("{batch} images"),
            &rows(&ours.encode_images(&pixels).unwrap()),
            &rows(&theirs.get_image_features(&normalised(&pixels)).unwrap()),
        );
        assert_close(
            &format!("{batch} texts"),
            &rows(&ours.encode_tokens(&ids[..batch]).unwrap()),
            &rows(&theirs.get_text_features(&padded(&ids[..batch])).unwrap()),
        );
    }
}

/// As `CLIPImageProcessor` does of itself.
fn normalised(pixels: &Tensor) -> Tensor {
    let of_channels = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu)?.reshape((1, 3, 1, 1));
    let normalised = || {
        let values = (pixels.to_dtype(DType::F32)? * FACTOR)?;
        let mean = of_channels(MEAN)?;
        values
            .broadcast_sub(&mean)?
            .broadcast_div(&of_channels(DEVIATION)?)
    };
    normalised().unwrap()
}

/// Zeros behind the end: attention is causal, and the end has the largest id.
fn padded(ids: &[Vec<u32>]) -> Tensor {
    let longest = ids.iter().map(Vec::len).max().unwrap();
    let rows = ids.iter().map(|ids| {
        let mut ids = ids.clone();
        ids.resize(longest, 0);
        ids
    });
    Tensor::new(rows.collect::<Vec<_>>(), &Device::Cpu).unwrap()
}

fn config() -> ClipConfig {
    ClipConfig {
        text_config: ClipTextConfig {
            vocab_size: VOCABULARY,
            num_hidden_layers: LAYERS,
            ..ClipTextConfig::vit_base_patch32()
        },
        vision_config: ClipVisionConfig {
            num_hidden_layers: LAYERS,
            activation: Activation::QuickGelu,
            ..ClipVisionConfig::vit_base_patch32()
        },
        ..ClipConfig::vit_base_patch32()
    }
}

fn write(directory: &Path, weights: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(weights, directory.join("model.safetensors")).unwrap();
    std::fs::copy(
        pinned("quick-gelu/tokenizer.json"),
        directory.join("tokenizer.json"),
    )
    .unwrap();
    // What is left out is that of ViT-B/32.
    let config = json!({
        "model_type": "clip",
        "text_config": {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "eos_token_id": 2},
        "vision_config": {"num_hidden_layers": LAYERS},
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let preprocessor = json!({"rescale_factor": FACTOR, "image_mean": MEAN, "image_std": DEVIATION});
    std::fs::write(
        directory.join("preprocessor_config.json"),
        preprocessor.to_string(),
    )
    .unwrap();
}

/// Every tensor of the checkpoint, by its Hugging Face name.
fn weights(config: &ClipConfig) -> Result<HashMap<String, Tensor>> {
    let (vision, text) = (&config.vision_config, &config.text_config);
    let (image_width, text_width, dim) = (vision.embed_dim, text.embed_dim, vision.projection_dim);
    let mut all = Checkpoint::default();
    all.add("logit_scale", &[], 1.0)?;
    all.add("visual_projection.weight", &[dim, image_width], 0.1)?;
    all.add("text_projection.weight", &[dim, text_width], 0.1)?;

    let embeddings = "vision_model.embeddings";
    let patches = (vision.image_size / vision.patch_size).pow(2);
    let patch = [image_width, 3, vision.patch_size, vision.patch_size];
    all.add(&format!("{embeddings}.patch_embedding.weight"), &patch, 0.05)?;
    all.add(&format!("{embeddings}.class_embedding"), &[image_width], 1.0)?;
    let positions = [patches + 1, image_width];
    all.add(
        &format!("{embeddings}.position_embedding.weight"),
        &positions,
        0.5,
    )?;
    all.norm("vision_model.pre_layrnorm", image_width)?;
    all.layers("vision_model", image_width, vision.intermediate_size)?;
    all.norm("vision_model.post_layernorm", image_width)?;

    let embeddings = "text_model.embeddings";
    let tokens = [VOCABULARY, text_width];
    all.add(&format!("{embeddings}.token_embedding.weight"), &tokens, 1.0)?;
    let positions = [text.max_position_embeddings, text_width];
    all.add(
        &format!("{embeddings}.position_embedding.weight"),
        &positions,
        0.5,
    )?;
    all.layers("text_model", text_width, text.intermediate_size)?;
    all.norm("text_model.final_layer_norm", text_width)?;
    Ok(all.0)
}

#[derive(Default)]
struct Checkpoint(HashMap<String, Tensor>);

impl Checkpoint {
    fn layers(&mut self, tower: &str, width: usize, mlp: usize) -> Result<()> {
        for layer in 0..LAYERS {
            let prefix = format!("{tower}.encoder.layers.{layer}");
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&format!("{prefix}.self_attn.{projection}"), width, width)?;
            }
            self.linear(&format!("{prefix}.mlp.fc1"), width, mlp)?;
            self.linear(&format!("{prefix}.mlp.fc2"), mlp, width)?;
            self.norm(&format!("{prefix}.layer_norm1"), width)?;
            self.norm(&format!("{prefix}.layer_norm2"), width)?;
        }
        Ok(())
    }

    /// Wide enough that attention is far from even and activations far from straight.
    fn linear(&mut self, prefix: &str, inputs: usize, outputs: usize) -> Result<()> {
        let widest = 3.0 / (inputs as f64).sqrt();
        self.add(&format!("{prefix}.weight"), &[outputs, inputs], widest)?;
        self.add(&format!("{prefix}.bias"), &[outputs], 0.5)
    }

    fn norm(&mut self, prefix: &str, width: usize) -> Result<()> {
        let weight = (noise(prefix, &[width], 0.5)? + 1.0)?;
        self.0.insert(format!("{prefix}.weight"), weight);
        self.add(&format!("{prefix}.bias"), &[width], 0.5)
    }

    fn add(&mut self, name: &str, shape: &[usize], widest: f64) -> Result<()> {
        self.0.insert(name.to_owned(), noise(name, shape, widest)?);
        Ok(())
    }
}

/// Numbers without a pattern between ± `widest`, the same for the same name: the digits of a sine that its argument
/// leaves to chance. Tensor operators make millions of them in no time, also in a build that is not optimised.
fn noise(name: &str, shape: &[usize], widest: f64) -> Result<Tensor> {
    let start: u32 = name
        .bytes()
        .fold(0, |sum, byte| (sum * 31 + u32::from(byte)) % 1_000_003);
    let count = shape.iter().product::<usize>();
    let places = (Tensor::arange(0.0, count as f64, &Device::Cpu)? + f64::from(start))?;
    let digits = ((places * 12.9898)?.sin()? * 43_758.545_3)?;
    let between = (&digits - digits.floor()?)?;
    ((between * (2.0 * widest))? - widest)?
        .to_dtype(DType::F32)?
        .reshape(shape)
}
