//! The text tower behind a context of vectors: against whole prompts, and against the gradients that `transformers`
//! gives.

use candle_core::{D, DType, Device, Tensor, Var};
use clipkeep::adapter::embedding::normalise;
use clipkeep::clip::{Backbone, BackboneSource, ClassPrompts, EncodeError};

use crate::directory::{load, load_source, pinned};
use crate::features::{assert_close, rows};

const TEMPLATE: &str = "a good photo of a {}.";

fn embedded() -> Backbone {
    load_source(&BackboneSource::Embedded).unwrap()
}

fn prompts(backbone: &Backbone, words: &[&str], template: &str) -> ClassPrompts {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    backbone.prompt_tower().prompts(&words, template).unwrap()
}

/// Features of all classes behind the template's own words.
fn behind_its_own_words(prompts: &ClassPrompts) -> Vec<Vec<f32>> {
    let context = prompts.template().unwrap();
    rows(&prompts.encode(&context, 0..prompts.classes()).unwrap())
}

/// Features of whole texts.
fn whole(backbone: &Backbone, texts: &[String]) -> Vec<Vec<f32>> {
    let ids: Vec<_> = texts
        .iter()
        .map(|text| backbone.tokenizer().encode(text).unwrap())
        .collect();
    rows(&backbone.encode_tokens(&ids).unwrap())
}

#[test]
fn behind_its_own_words_a_class_has_the_features_of_its_whole_prompt() {
    let long = "very ".repeat(60) + "long";
    let words = ["cat", "pickup truck", "Łódź_tram 7", "x", &long];
    let wordy = ["a {}", TEMPLATE, "{}", "{} in the wild", "the picture shows: {}!"];
    // The tiny ones know letters only, and 16 of them.
    let tiny = |name: &str| load(&pinned(name)).unwrap();
    for (backbone, templates) in [
        (embedded(), &wordy[..]),
        (tiny("quick-gelu"), &["a {}", "{}"]),
        (tiny("gelu"), &["a {}", "{} b"]),
    ] {
        for template in templates {
            let texts: Vec<String> = words.iter().map(|words| template.replace("{}", words)).collect();
            let prompts = prompts(&backbone, &words, template);
            assert_eq!(prompts.classes(), words.len());
            let ours = behind_its_own_words(&prompts);
            assert_close(
                &format!("{}, {template:?}", backbone.name()),
                &ours,
                &whole(&backbone, &texts),
            );
        }
    }
}

/// Where the template's last letters and the name's first ones are one token, there are no tokens of the template alone.
#[test]
fn a_name_that_merges_with_the_template_is_split_alone() {
    let backbone = embedded();
    let ids = |text: &str| backbone.tokenizer().encode(text).unwrap();
    let (template, name) = ("a photo of a ca{}", "t");
    let (before, together) = (ids("a photo of a ca"), ids("a photo of a cat"));
    assert!(
        !together.starts_with(&before[..before.len() - 1]),
        "the tokenizer merges these: {together:?}"
    );
    let apart = [&before[..before.len() - 1], &ids(name)[1..]].concat();
    let expected = rows(&backbone.encode_tokens(&[apart]).unwrap());
    let ours = behind_its_own_words(&prompts(&backbone, &[name], template));
    assert_close("merged", &ours, &expected);
}

#[test]
fn classes_are_encoded_in_any_portion() {
    let backbone = embedded();
    let prompts = prompts(&backbone, &["cat", "pickup truck", "crab"], TEMPLATE);
    let context = (prompts.template().unwrap() * 0.5).unwrap();
    let all = rows(&prompts.encode(&context, 0..3).unwrap());
    let portion = rows(&prompts.encode(&context, 1..3).unwrap());
    assert_close("two of three", &portion, &all[1..]);
    assert_eq!(
        prompts.encode(&context, 2..2).unwrap().dims(),
        [0, backbone.dim()]
    );
    assert!(prompts.encode(&context, 2..4).is_err());
}

#[test]
fn a_context_must_fit() {
    let backbone = embedded();
    let names = prompts(&backbone, &["cat"], "{}");
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let longest = backbone.context_length() - 3;
    assert_eq!(names.template().unwrap().dims(), [0, 128]);
    assert!(names.encode(&zeros((longest, 128)), 0..1).is_ok());
    let error = names.encode(&zeros((longest + 1, 128)), 0..1).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a context of 30 tokens leaves no room for a name among 32"),
        "{error}"
    );
    assert!(names.encode(&zeros((4, 127)), 0..1).is_err());
    let of = |template: &str| backbone.prompt_tower().prompts(&["cat".to_owned()], template);
    assert!(matches!(of("no place"), Err(EncodeError::NoPlace)));
    let wordy = "so very ".repeat(20) + "{}";
    assert!(matches!(of(&wordy), Err(EncodeError::NoRoom { limit: 32, .. })));
}

/// `make_prompt_gradients.py` printed these: torch 2.15, transformers 5.24, float64.
#[test]
fn gradients_agree_with_reference() {
    const FEATURES: [[f32; 4]; 3] = [
        [3.242026, 2.813892, -0.408942, -4.147377],
        [-0.561088, -2.648237, -3.141652, -3.501328],
        [1.931972, 4.101802, -4.370747, -0.163208],
    ];
    const LOSS: f32 = 1.156271;
    const GRADIENT_NORM: f32 = 1.260589;
    const GRADIENT: [[f32; 4]; 4] = [
        [-0.053776, 0.014856, 0.059509, 0.032909],
        [-0.083515, -0.041663, 0.037754, 0.003609],
        [-0.043766, -0.037528, 0.056222, 0.024752],
        [0.056518, 0.136365, 0.079151, 0.064673],
    ];
    let backbone = embedded();
    let prompts = prompts(&backbone, &["cat", "pickup truck", "crab"], TEMPLATE);
    let sine = |count: usize| {
        Tensor::from_iter((0..count).map(|place| (place as f64).sin() as f32), &Device::Cpu).unwrap()
    };
    let context = (sine(4 * 128) * 0.05).unwrap().reshape((4, 128)).unwrap();
    let context = Var::from_tensor(&context).unwrap();

    let features = prompts.encode(&context, 0..3).unwrap();
    close(&features, &FEATURES, 1e-4);
    let image = normalise(&sine(backbone.dim()).unsqueeze(0).unwrap()).unwrap();
    let logits = (image.matmul(&normalise(&features).unwrap().t().unwrap()).unwrap() * 10.0).unwrap();
    let loss =
        candle_nn::loss::cross_entropy(&logits, &Tensor::new(&[1_u32], &Device::Cpu).unwrap()).unwrap();
    let found = loss.to_scalar::<f32>().unwrap();
    assert!((found - LOSS).abs() < 1e-5, "{found}");

    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(&context).unwrap();
    close(gradient, &GRADIENT, 1e-5);
    let norm = gradient
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .to_scalar::<f32>()
        .unwrap()
        .sqrt();
    assert!((norm - GRADIENT_NORM).abs() < 1e-4, "{norm}");
}

/// The first four values of each row.
fn close<const N: usize>(ours: &Tensor, theirs: &[[f32; 4]; N], tolerance: f32) {
    let theirs = Tensor::new(theirs, &Device::Cpu).unwrap();
    let apart = (ours.narrow(D::Minus1, 0, 4).unwrap() - theirs)
        .unwrap()
        .abs()
        .unwrap();
    let apart = apart.max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(apart < tolerance, "{apart}");
}
