//! Small synthetic pictures of a few classes that look clearly different, the same on every run.

use std::io::Cursor;
use std::ops::Range;

use image::{ImageFormat, Rgb, RgbImage};
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Side of a picture in pixels.
const SIDE: u32 = 40;

/// The classes of a first and of a second task.
pub(crate) const FLORA: [&str; 2] = ["poppy", "meadow"];
pub(crate) const SKIES: [&str; 2] = ["night sky", "rainbow"];

/// Picture `number` of a class, as PNG.
pub(crate) fn png(class: &str, number: u64) -> Vec<u8> {
    encoded(&picture(class, number), ImageFormat::Png)
}

/// Pictures `numbers` of each class, as the files of class folders.
pub(crate) fn folders(classes: &[&str], numbers: Range<u64>) -> Vec<(String, Vec<u8>)> {
    let of_class = |class: &&str| {
        let class = (*class).to_owned();
        numbers
            .clone()
            .map(move |number| (format!("{class}/{number}.png"), png(&class, number)))
    };
    classes.iter().flat_map(of_class).collect()
}

/// A picture as a file of a format.
pub(crate) fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).expect("encoded");
    file.into_inner()
}

/// Picture `number` of a class.
pub(crate) fn picture(class: &str, number: u64) -> RgbImage {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let shift = random.random_range(0..8);
    let size = random.random_range(9..15);
    let mut noise = move || random.random_range(-18..=18_i32);
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let colour: [i32; 3] = match class {
            "poppy" if distance(x, y, 16 + shift, 20) < size => [215, 30, 35],
            "poppy" => [70, 140, 60],
            "meadow" if (x + shift) % 6 < 3 => [40, 120, 30],
            "meadow" => [150, 200, 70],
            "night sky" if (x * 7 + y * 13 + shift) % 29 == 0 => [250, 250, 220],
            "night sky" => [12, 14, 45],
            "rainbow" => [[230, 60, 60], [240, 220, 70], [70, 90, 230]][((y + shift) / 5 % 3) as usize],
            "snow" if (x + 2 * y + shift) % 17 < 3 => [190, 215, 245],
            "snow" => [240, 244, 250],
            "lavender" if (x + shift) % 9 < 3 && y > 8 => [75, 40, 120],
            "lavender" => [190, 130, 225],
            other => panic!("nobody draws {other}"),
        };
        Rgb(colour.map(|value| (value + noise()).clamp(0, 255) as u8))
    })
}

fn distance(x: u32, y: u32, to_x: u32, to_y: u32) -> u32 {
    (x.abs_diff(to_x).pow(2) + y.abs_diff(to_y).pow(2)).isqrt()
}
