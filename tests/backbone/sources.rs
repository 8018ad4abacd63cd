//! Where a backbone comes from: paths, hub ids, the hub's cache, and the digest that tells backbones apart.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clipkeep::clip::{BackboneError, BackboneSource};

use crate::directory::{copy_of, load, load_source, pinned};

#[test]
fn text_names_a_directory_a_repository_or_the_embedded_one() {
    let parse = |text: &str| text.parse::<BackboneSource>().unwrap();
    let directory = |text: &str| BackboneSource::Directory(text.into());
    let hub = |text: &str| BackboneSource::Hub(text.to_owned());
    assert_eq!(
        parse("openai/clip-vit-base-patch16"),
        hub("openai/clip-vit-base-patch16")
    );
    assert_eq!(
        parse("laion/CLIP-ViT-B-32@refs/pr/3"),
        hub("laion/CLIP-ViT-B-32@refs/pr/3")
    );
    assert_eq!(parse("embedded"), BackboneSource::Embedded);
    // Exists, though it has the form of an id: tests run in the root of the package.
    assert_eq!(parse("src/clip"), directory("src/clip"));
    for path in [
        "./a/b",
        "../a",
        "/models/clip",
        "clip",
        "a/b/c",
        "~/clip",
        "a/",
        "owner/name@",
        "a b/c",
    ] {
        assert_eq!(parse(path), directory(path));
    }
    let shapes = ["random:vit-b-32", "random:vit-b-16", "random:vit-l-14"];
    for text in ["embedded", "openai/clip-vit-base-patch16", "/models/clip"]
        .into_iter()
        .chain(shapes)
    {
        assert_eq!(parse(text).to_string(), text);
    }
    let refused = "random:vit-h-14".parse::<BackboneSource>().unwrap_err();
    assert!(refused.contains("vit-b-32"), "{refused}");
}

#[test]
fn the_digest_covers_every_file_and_nothing_else() {
    let original = load(&pinned("half")).unwrap();
    let copy = copy_of("half");
    assert_eq!(load(copy.path()).unwrap().digest(), original.digest());
    for file in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        let copy = copy_of("half");
        let path = copy.path().join(file);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push('\n');
        std::fs::write(path, text).unwrap();
        assert_ne!(load(copy.path()).unwrap().digest(), original.digest(), "{file}");
    }
    let mut weights = std::fs::read(copy.path().join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(copy.path().join("model.safetensors"), weights).unwrap();
    assert_ne!(
        load(copy.path()).unwrap().digest(),
        original.digest(),
        "model.safetensors"
    );
}

/// transformers 5 saves a `processor_config.json` only.
#[test]
fn preprocessing_may_lie_inside_the_processor_s_configuration() {
    let copy = copy_of("half");
    let plain = copy.path().join("preprocessor_config.json");
    let nested = copy.path().join("processor_config.json");
    let inner: serde_json::Value = serde_json::from_slice(&std::fs::read(&plain).unwrap()).unwrap();
    let original = load(copy.path()).unwrap();

    // Beside the usual file it does not count, and may say nothing about images.
    std::fs::write(&nested, r#"{"processor_class": "CLIPProcessor"}"#).unwrap();
    assert_eq!(load(copy.path()).unwrap().digest(), original.digest());

    let outer = serde_json::json!({"image_processor": inner, "processor_class": "CLIPProcessor"});
    std::fs::write(&nested, outer.to_string()).unwrap();
    std::fs::remove_file(&plain).unwrap();
    let loaded = load(copy.path()).unwrap();
    assert_ne!(loaded.digest(), original.digest(), "other bytes");
    let picture = std::fs::read(pinned("images/photo.jpg")).unwrap();
    let limits = clipkeep::clip::Limits { max_pixels: 1 << 20 };
    let [before, after] =
        [original, loaded].map(|backbone| backbone.image_processor().process(&picture, limits).unwrap());
    assert_eq!(before, after);
}

#[test]
fn the_name_is_the_directory_s() {
    assert_eq!(load(&pinned("half")).unwrap().name(), "half");
}

/// With a network the hub says that there is no such repository, without one it cannot be reached.
#[test]
fn an_unreachable_repository_names_the_local_alternative() {
    let start = Instant::now();
    let source = BackboneSource::Hub("clipkeep-tests/there-is-no-such-repository".to_owned());
    let error = load_source(&source).err().unwrap();
    eprintln!("after {:?}: {}", start.elapsed(), chain(&error));
    assert!(matches!(error, BackboneError::Hub { .. }), "{error:?}");
    let text = error.to_string();
    for part in [
        "clipkeep-tests/there-is-no-such-repository",
        "--backbone",
        "local directory",
        "model.safetensors",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(
        start.elapsed() < Duration::from_secs(40),
        "took {:?}",
        start.elapsed()
    );
}

const CACHE_TEST: &str = "CLIPKEEP_CACHE_TEST";

/// The cache is found through the environment, which a test cannot safely change for itself: it runs itself again.
#[test]
fn a_cached_repository_needs_no_network() {
    if std::env::var_os(CACHE_TEST).is_some() {
        let backbone = load_source(&BackboneSource::Hub("owner/name".to_owned())).unwrap();
        assert_eq!(backbone.name(), "owner/name");
        assert_eq!(backbone.digest(), load(&pinned("gelu")).unwrap().digest());
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = home.path().join("hub/models--owner--name");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    for entry in std::fs::read_dir(pinned("gelu")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    // A closed port, and the switch that says not even to try.
    run_again(home.path(), "HF_ENDPOINT", "http://127.0.0.1:9");
    run_again(home.path(), "HF_HUB_OFFLINE", "1");
}

fn run_again(home: &Path, variable: &str, value: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sources::a_cached_repository_needs_no_network",
            "--nocapture",
        ])
        .env(CACHE_TEST, "1")
        .env("HF_HOME", home)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .env(variable, value)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{variable}={value}: {text}");
    assert!(text.contains("1 passed"), "{text}");
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
