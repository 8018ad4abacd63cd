//! Configurations that contradict their weights, themselves or what is possible: each is an error that names the field or
//! tensor.

use std::path::Path;

use clipkeep::clip::BackboneError;
use serde_json::{Value, json};

use crate::directory::copy_of;
use crate::faults::{MODEL, edit, failure, load_with_config};

/// A change to a JSON file.
type Edit = fn(&mut Value);

#[test]
fn too_few_and_too_many_layers_name_a_tensor() {
    let layers = |tower: &str, count: u32| {
        load_with_config("quick-gelu", |config| {
            config[tower]["num_hidden_layers"] = json!(count);
        })
    };
    for (tower, prefix) in [("vision_config", "vision_model"), ("text_config", "text_model")] {
        let error = layers(tower, 1);
        let name = format!("{prefix}.encoder.layers.1.");
        assert!(
            matches!(&error, BackboneError::ExtraLayer(tensor) if tensor.starts_with(&name)),
            "{error:?}"
        );
        let error = layers(tower, 3);
        let name = format!("{prefix}.encoder.layers.2.");
        assert!(
            matches!(&error, BackboneError::MissingTensor(tensor) if tensor.starts_with(&name)),
            "{error:?}"
        );
    }
}

#[test]
fn contradicting_sizes_name_the_tensor() {
    let cases: [(Edit, &str); 5] = [
        (
            |config| config["projection_dim"] = json!(21),
            "visual_projection.weight",
        ),
        (
            |config| config["vision_config"]["patch_size"] = json!(8),
            "vision_model.embeddings.patch_embedding.weight",
        ),
        (
            |config| config["vision_config"]["intermediate_size"] = json!(81),
            "vision_model.encoder.layers.0.mlp.fc1.weight",
        ),
        (
            |config| config["text_config"]["max_position_embeddings"] = json!(17),
            "text_model.embeddings.position_embedding.weight",
        ),
        (
            |config| config["text_config"]["vocab_size"] = json!(600),
            "text_model.embeddings.token_embedding.weight",
        ),
    ];
    for (change, key) in cases {
        let error = load_with_config("quick-gelu", change);
        assert!(
            matches!(&error, BackboneError::Shape { tensor, .. } if tensor == key),
            "{key}: {error:?}"
        );
    }
}

#[test]
fn impossible_fields_are_named() {
    let cases: [(Edit, &str); 13] = [
        (
            |config| config["vision_config"]["num_attention_heads"] = json!(5),
            "num_attention_heads 5",
        ),
        (
            |config| config["text_config"]["num_attention_heads"] = json!(5),
            "num_attention_heads 5",
        ),
        (
            |config| config["text_config"]["num_attention_heads"] = json!(0),
            "num_attention_heads 0",
        ),
        (
            |config| config["vision_config"]["num_channels"] = json!(1),
            "num_channels is 1",
        ),
        (
            |config| config["vision_config"]["patch_size"] = json!(0),
            "patch_size 0",
        ),
        (
            |config| config["vision_config"]["image_size"] = json!([24, 32]),
            "image_size 24×32",
        ),
        (
            |config| config["vision_config"]["layer_norm_eps"] = json!(-1.0),
            "layer_norm_eps -1",
        ),
        (
            |config| config["text_config"]["max_position_embeddings"] = json!(2),
            "max_position_embeddings is 2",
        ),
        (
            |config| config["text_config"]["eos_token_id"] = json!(521),
            "eos_token_id 521",
        ),
        (|config| config["model_type"] = json!("siglip"), "siglip"),
        (|config| config["projection_dim"] = json!(0), "projection_dim"),
        // These contradict the other files.
        (
            |config| config["text_config"]["eos_token_id"] = json!(7),
            "texts end with id 520",
        ),
        (
            |config| config["text_config"]["vocab_size"] = json!(100),
            "vocab_size in config.json is 100",
        ),
    ];
    for (change, part) in cases {
        let error = load_with_config("quick-gelu", change);
        assert!(
            matches!(error, BackboneError::Invalid { .. }),
            "{part}: {error:?}"
        );
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = load_with_config("quick-gelu", |config| {
        config["vision_config"]["hidden_act"] = json!("relu");
    });
    assert!(
        matches!(&error, BackboneError::Json { file: "config.json", source } if source.to_string().contains("relu"))
    );
}

#[test]
fn impossible_preprocessing_is_named() {
    let cases: [(Edit, &str); 9] = [
        (|config| config["crop_size"] = json!(9), "9×9"),
        (|config| config["resample"] = json!(6), "resample 6"),
        (|config| config["do_pad"] = json!(true), "do_pad"),
        (|config| config["do_center_crop"] = json!(false), "do_center_crop"),
        (
            |config| config["crop_size"] = json!({"shortest_edge": 8}),
            "crop_size",
        ),
        (
            |config| config["size"] = json!({"shortest_edge": 8, "longest_edge": 16}),
            "shortest_edge",
        ),
        (|config| config["size"] = json!("large"), "shortest_edge"),
        (|config| config["size"] = json!(0), "size"),
        (|config| config["image_std"] = json!([1, 0, 1]), "image_std"),
    ];
    for (change, part) in cases {
        let copy = copy_of(MODEL);
        edit(&copy.path().join("preprocessor_config.json"), change);
        let error = failure(copy.path());
        let text = match &error {
            BackboneError::Invalid {
                file: "preprocessor_config.json",
                reason,
            } => reason.clone(),
            BackboneError::Json {
                file: "preprocessor_config.json",
                source,
            } => source.to_string(),
            other => panic!("{part}: {other:?}"),
        };
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn impossible_nested_preprocessing_names_its_own_file() {
    let nest = |directory: &Path, change: Edit| {
        let plain = directory.join("preprocessor_config.json");
        let mut inner: Value = serde_json::from_slice(&std::fs::read(&plain).unwrap()).unwrap();
        change(&mut inner);
        std::fs::remove_file(plain).unwrap();
        let nested = json!({"image_processor": inner, "processor_class": "CLIPProcessor"});
        std::fs::write(directory.join("processor_config.json"), nested.to_string()).unwrap();
    };
    for change in [
        (|inner| inner["crop_size"] = json!(9)) as Edit,
        |inner| inner["resample"] = json!(6),
        |inner| inner["size"] = json!("large"),
        |inner| *inner = json!(null),
    ] {
        let copy = copy_of(MODEL);
        nest(copy.path(), change);
        let text = failure(copy.path()).to_string();
        assert!(
            text.contains("processor_config.json") && !text.contains("preprocessor_config.json"),
            "{text}"
        );
    }
}

#[test]
fn bad_json_names_the_file() {
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
        let copy = copy_of(MODEL);
        let path = copy.path().join(file);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        let error = failure(copy.path());
        assert!(error.to_string().contains(file), "{error}");
    }
}
