//! What is sent and decoded in benchmarks.

use std::io::Cursor;

use bytes::Bytes;
use image::ImageFormat;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// A picture of a width and height, with edges and grain, as photographs have; each seed has grain of its own.
pub(crate) fn encoded((width, height): (u32, u32), format: ImageFormat, seed: u64) -> Bytes {
    let mut grain = ChaCha8Rng::seed_from_u64(seed);
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        let stripe = if (x / 40 + y / 60) % 2 == 0 { 60 } else { 150 };
        let [red, green, blue] = [x % 64, y % 64, (x + y) % 64].map(|shade| stripe + shade as u8);
        let grain = grain.random_range(0..24);
        image::Rgb([red + grain, green + grain, blue + grain])
    });
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).expect("encoded");
    file.into_inner().into()
}
