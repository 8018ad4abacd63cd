//! Real CLIP ViT-B/32 features of ImageNet pictures, where they are to be had.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use clipkeep::adapter::embedding::{normalise, stack};
use clipkeep::domain::Features;
use npyz::{NpyFile, NpyHeader};

/// Four training rows a class and three test rows a class, in 1,000 classes.
pub(crate) struct ImageNet {
    pub(crate) train: Tensor,
    pub(crate) train_labels: Vec<u32>,
    pub(crate) test: Tensor,
    pub(crate) test_labels: Vec<u32>,
    /// Row c: the text embedding of "a photo of a {class c}", unit length.
    pub(crate) anchors: Tensor,
}

/// The features, from `$CLIPKEEP_SHARED` or `shared` beside the project; prints what is skipped where there are none.
pub(crate) fn imagenet(skipped: &str) -> Option<ImageNet> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("CLIPKEEP_SHARED").map_or_else(beside, PathBuf::from);
    let folder = shared.join("data/clip-vitb32/imagenet");
    if !folder.is_dir() {
        println!("skipped {skipped}: no features in {}", folder.display());
        return None;
    }
    Some(ImageNet {
        train: features(&folder.join("train_features.npy")),
        train_labels: labels(&folder.join("train_labels.npy")),
        test: features(&folder.join("test_features.npy")),
        test_labels: labels(&folder.join("test_labels.npy")),
        anchors: normalise(&features(&folder.join("text_embeddings.npy"))).expect("normalised"),
    })
}

fn open(path: &Path) -> BufReader<File> {
    BufReader::new(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Float16 rows, widened.
fn features(path: &Path) -> Tensor {
    let mut file = open(path);
    let shape = NpyHeader::from_reader(&mut file)
        .expect("a NumPy array")
        .shape()
        .to_vec();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    let rows: Vec<Features> = bytes
        .chunks_exact(2 * shape[1] as usize)
        .map(|row| Features::from_le_bytes(row).expect("pairs of bytes"))
        .collect();
    stack(&rows, &Device::Cpu).expect("rows of equal length")
}

fn labels(path: &Path) -> Vec<u32> {
    let labels: Vec<u16> = NpyFile::new(open(path))
        .expect("a NumPy array")
        .into_vec()
        .expect("16-bit integers");
    labels.into_iter().map(u32::from).collect()
}
