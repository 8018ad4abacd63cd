//! Whole towers of random shapes against plain ones, which compute in f64, token by token and layer by layer, as the formulas stand.

use proptest::prelude::*;

use super::kernels::erf;
use super::towers::weights;
use super::{bytes, noise};
use crate::attention::Sight;
use crate::{
    Activation, ImageShape, ImageTower, Instructions, MIDDLE, Precision, TextShape, TextTower, Transformer,
};

/// One a token.
type Rows = Vec<Vec<f64>>;

/// How far rows may be from those of the plain tower, as a share of their length.
const APART: [(Precision, f64); 4] = [
    (Precision::F32, 6e-6),
    (Precision::Bf16, 0.02),
    (Precision::Int16, 4e-3),
    (Precision::Int8, 0.08),
];

/// A tensor's values.
fn taken(name: &str, shape: &[usize]) -> Vec<f64> {
    let values = weights::<()>()(name, shape).expect("weights");
    values.iter().map(|value| f64::from(*value)).collect()
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// `x · Wᵀ` of weights `(outputs, inputs)`.
fn product(rows: &Rows, name: &str, shape: &[usize]) -> Rows {
    let weights = taken(name, shape);
    let inputs = weights.len() / shape[0];
    let of_row = |row: &Vec<f64>| weights.chunks(inputs).map(|weights| dot(row, weights)).collect();
    rows.iter().map(of_row).collect()
}

/// `x · Wᵀ + b`.
fn linear(rows: &Rows, prefix: &str, outputs: usize) -> Rows {
    let products = product(rows, &format!("{prefix}.weight"), &[outputs, rows[0].len()]);
    let bias = taken(&format!("{prefix}.bias"), &[outputs]);
    let biased = |row: Vec<f64>| row.iter().zip(&bias).map(|(x, b)| x + b).collect();
    products.into_iter().map(biased).collect()
}

fn layer_norm(rows: &Rows, prefix: &str, epsilon: f32) -> Rows {
    let [weight, bias] = ["weight", "bias"].map(|name| taken(&format!("{prefix}.{name}"), &[rows[0].len()]));
    let normed = |row: &Vec<f64>| {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let centred: Vec<f64> = row.iter().map(|x| x - mean).collect();
        let deviation = (dot(&centred, &centred) / row.len() as f64 + f64::from(epsilon)).sqrt();
        let scaled = centred.iter().zip(weight.iter().zip(&bias));
        scaled.map(|(x, (w, b))| x / deviation * w + b).collect()
    };
    rows.iter().map(normed).collect()
}

/// Of queries, keys and values, head by head.
fn attention([queries, keys, values]: &[Rows; 3], heads: usize, sight: Sight) -> Rows {
    let width = queries[0].len() / heads;
    let attended = |(token, query): (usize, &Vec<f64>)| {
        let seen = match sight {
            Sight::All => keys.len(),
            Sight::Causal => token + 1,
        };
        let of_head = |head: usize| {
            let part = head * width..(head + 1) * width;
            let scores = keys[..seen]
                .iter()
                .map(|key| dot(&query[part.clone()], &key[part.clone()]));
            let weights: Vec<f64> = scores
                .map(|score| (score / (width as f64).sqrt()).exp())
                .collect();
            let sum: f64 = weights.iter().sum();
            part.map(move |column| {
                let weighed = weights
                    .iter()
                    .zip(values)
                    .map(|(weight, value)| weight * value[column]);
                weighed.sum::<f64>() / sum
            })
        };
        (0..heads).flat_map(of_head).collect()
    };
    queries.iter().enumerate().map(attended).collect()
}

fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Gelu => x * (1.0 + erf(x / 2_f64.sqrt())) / 2.0,
    }
}

fn add(rows: &mut Rows, others: &Rows) {
    let values = rows.iter_mut().flatten().zip(others.iter().flatten());
    values.for_each(|(x, other)| *x += other);
}

/// All layers.
fn transformer(mut x: Rows, of: &Transformer, prefix: &str, sight: Sight) -> Rows {
    for layer in 0..of.layers {
        let named = |name: &str| format!("{prefix}.layers.{layer}.{name}");
        let normed = layer_norm(&x, &named("layer_norm1"), of.layer_norm_epsilon);
        let projections = ["q_proj", "k_proj", "v_proj"];
        let mixed = projections.map(|name| linear(&normed, &named(&format!("self_attn.{name}")), of.width));
        let attended = attention(&mixed, of.heads, sight);
        add(&mut x, &linear(&attended, &named("self_attn.out_proj"), of.width));
        let normed = layer_norm(&x, &named("layer_norm2"), of.layer_norm_epsilon);
        let mut hidden = linear(&normed, &named("mlp.fc1"), of.mlp_width);
        let values = hidden.iter_mut().flatten();
        values.for_each(|x| *x = activated(*x, of.activation));
        add(&mut x, &linear(&hidden, &named("mlp.fc2"), of.width));
    }
    x
}

/// The features of an image, and its tokens.
fn image(shape: &ImageShape, bytes: &[u8]) -> (Vec<f64>, Rows) {
    let (of, size, patch) = (&shape.transformer, shape.image_size, shape.patch_size);
    let grid = size / patch;
    let pixel = |channel: usize, y: usize, x: usize| {
        f64::from(bytes[(channel * size + y) * size + x]) - f64::from(MIDDLE)
    };
    let unfolded = |place: usize| {
        let (top, left) = (place / grid * patch, place % grid * patch);
        let of_channel =
            |channel| (0..patch * patch).map(move |at| pixel(channel, top + at / patch, left + at % patch));
        (0..3).flat_map(of_channel).collect()
    };
    let patches: Rows = (0..grid * grid).map(unfolded).collect();
    let embeddings = "vision_model.embeddings";
    let mut x = vec![taken(&format!("{embeddings}.class_embedding"), &[of.width])];
    let kernel = [of.width, 3, patch, patch];
    x.extend(product(
        &patches,
        &format!("{embeddings}.patch_embedding.weight"),
        &kernel,
    ));
    let positions = taken(
        &format!("{embeddings}.position_embedding.weight"),
        &[x.len(), of.width],
    );
    add(&mut x, &positions.chunks(of.width).map(<[f64]>::to_vec).collect());
    let x = layer_norm(&x, "vision_model.pre_layrnorm", of.layer_norm_epsilon);
    let x = transformer(x, of, "vision_model.encoder", Sight::All);
    let pooled = layer_norm(
        &vec![x[0].clone()],
        "vision_model.post_layernorm",
        of.layer_norm_epsilon,
    );
    let features = product(&pooled, "visual_projection.weight", &[shape.dim, of.width]);
    (features.concat(), x)
}

/// The features of a text of some embeddings.
fn text(shape: &TextShape, embeddings: &[f32]) -> Vec<f64> {
    let of = &shape.transformer;
    let name = "text_model.embeddings.position_embedding.weight";
    let positions = taken(name, &[shape.context_length, of.width]);
    let sums = embeddings
        .iter()
        .zip(positions)
        .map(|(x, position)| f64::from(*x) + position);
    let x: Rows = sums
        .collect::<Vec<_>>()
        .chunks(of.width)
        .map(<[f64]>::to_vec)
        .collect();
    let x = transformer(x, of, "text_model.encoder", Sight::Causal);
    let last = layer_norm(
        &x[x.len() - 1..].to_vec(),
        "text_model.final_layer_norm",
        of.layer_norm_epsilon,
    );
    product(&last, "text_projection.weight", &[shape.dim, of.width]).concat()
}

/// How far a row is from the plain one, as a share of its length.
fn apart(found: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let off: Vec<f64> = found
        .iter()
        .zip(wanted)
        .map(|(found, wanted)| f64::from(*found) - wanted)
        .collect();
    (dot(&off, &off) / dot(wanted, wanted)).sqrt()
}

/// Transformers that panels of some width suit, of any number of layers, heads and tokens.
fn transformers() -> impl Strategy<Value = Transformer> {
    let head = prop_oneof![1_usize..=8, Just(8)];
    let activation = prop_oneof![Just(Activation::QuickGelu), Just(Activation::Gelu)];
    let epsilon = prop_oneof![Just(1e-5_f32), Just(1e-6)];
    (head, 1_usize..5, 1_usize..25, 1_usize..4, activation, epsilon).prop_map(
        |(head, heads, mlp, layers, activation, layer_norm_epsilon)| Transformer {
            width: 8 * head * heads,
            mlp_width: 8 * head * mlp,
            layers,
            heads,
            activation,
            layer_norm_epsilon,
        },
    )
}

/// Towers whose images may have a rim that no patch sees.
fn image_shapes() -> impl Strategy<Value = ImageShape> {
    (transformers(), 1_usize..9, 1_usize..6, 0_usize..9, 16_usize..70).prop_map(
        |(transformer, patch_size, grid, rim, dim)| ImageShape {
            image_size: patch_size * grid + rim % patch_size,
            patch_size,
            transformer,
            dim,
        },
    )
}

/// Towers, and how long some texts are.
fn text_shapes() -> impl Strategy<Value = (TextShape, Vec<usize>)> {
    let of = |longest| (Just(longest), prop::collection::vec(1..=longest, 1..6));
    (transformers(), (1_usize..40).prop_flat_map(of), 16_usize..70).prop_map(
        |(transformer, (context_length, lengths), dim)| {
            let shape = TextShape {
                context_length,
                transformer,
                dim,
            };
            (shape, lengths)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn image_towers_of_any_shape_are_plain_ones(shape in image_shapes(), images in 1_usize..5, seed in 0_usize..1000) {
        let pixels = bytes(seed, images * shape.bytes());
        let (features, tokens): (Rows, Vec<Rows>) = pixels.chunks(shape.bytes()).map(|bytes| image(&shape, bytes)).unzip();
        for (precision, most) in APART {
            let all = Instructions::suiting(&shape.transformer, precision);
            prop_assert!(!all.is_empty(), "portable ones suit it");
            for instructions in all {
                let tower = ImageTower::load::<()>(shape, instructions, &mut weights()).expect("weights");
                let mut states = Vec::new();
                let found = tower.forward(&pixels, Some(&mut states));
                prop_assert_eq!(found.len(), images * shape.dim);
                prop_assert_eq!(states.len(), images * shape.tokens() * shape.transformer.width);
                let rows = found.chunks(shape.dim).zip(&features);
                let wanted = tokens.iter().flatten();
                for (found, wanted) in rows.chain(states.chunks(shape.transformer.width).zip(wanted)) {
                    let apart = apart(found, wanted);
                    prop_assert!(apart <= most, "{tower}: {apart}");
                }
            }
        }
    }

    #[test]
    fn text_towers_of_any_shape_are_plain_ones((shape, lengths) in text_shapes(), seed in 0_usize..1000) {
        let width = shape.transformer.width;
        let embeddings = noise(seed, lengths.iter().sum::<usize>() * width);
        let (mut rest, mut wanted) = (embeddings.as_slice(), Rows::new());
        for length in &lengths {
            let (of_text, after) = rest.split_at(length * width);
            wanted.push(text(&shape, of_text));
            rest = after;
        }
        for (precision, most) in APART {
            let all = Instructions::suiting(&shape.transformer, precision);
            prop_assert!(!all.is_empty(), "portable ones suit it");
            for instructions in all {
                let tower = TextTower::load::<()>(shape, instructions, &mut weights()).expect("weights");
                let found = tower.forward(&embeddings, &lengths);
                prop_assert_eq!(found.len(), wanted.len() * shape.dim);
                for (found, wanted) in found.chunks(shape.dim).zip(&wanted) {
                    let apart = apart(found, wanted);
                    prop_assert!(apart <= most, "{tower}: {apart}");
                }
            }
        }
    }
}
