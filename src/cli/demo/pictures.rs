//! Pictures of patterns, drawn from random numbers: no two alike, and nobody's but ours.

use std::f32::consts::TAU;
use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// Side of a picture in pixels.
const SIDE: u32 = 96;

/// A kind of picture: the demo's classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    Stripes,
    Rings,
    Dots,
    Checkerboard,
    Gradient,
    Grain,
}

impl Pattern {
    /// The class's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Stripes => "stripes",
            Self::Rings => "rings",
            Self::Dots => "dots",
            Self::Checkerboard => "checkerboard",
            Self::Gradient => "gradient",
            Self::Grain => "grain",
        }
    }

    /// A picture of the pattern in random colours, size, place and direction, as PNG.
    pub(super) fn draw(self, rng: &mut ChaCha8Rng) -> anyhow::Result<Vec<u8>> {
        let side = SIDE as f32;
        let colours = [bright(rng), dark(rng)];
        let period = rng.random_range(0.14..0.24) * side;
        let angle = rng.random_range(0.0..TAU);
        let centre = [
            rng.random_range(0.3..0.7) * side,
            rng.random_range(0.3..0.7) * side,
        ];
        let (sin, cos) = angle.sin_cos();
        let mut picture = RgbImage::new(SIDE, SIDE);
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            let (dx, dy) = (x as f32 - centre[0], y as f32 - centre[1]);
            // Along and across the pattern's direction, in periods.
            let (along, across) = ((dx * cos + dy * sin) / period, (dy * cos - dx * sin) / period);
            let share = match self {
                Self::Stripes => wave(along),
                Self::Rings => wave(dx.hypot(dy) / period),
                Self::Dots => {
                    let from_centre = (along - along.round()).hypot(across - across.round());
                    f32::from(u8::from(from_centre < 0.3))
                }
                Self::Checkerboard => (along.floor() + across.floor()).rem_euclid(2.0),
                Self::Gradient => (0.5 + (dx * cos + dy * sin) / side).clamp(0.0, 1.0),
                Self::Grain => rng.random_range(0.0..1.0),
            };
            let blended = std::array::from_fn(|channel| {
                let value = colours[0][channel] * share + colours[1][channel] * (1.0 - share);
                (value + rng.random_range(-8.0..8.0)).clamp(0.0, 255.0) as u8
            });
            *pixel = Rgb(blended);
        }
        let mut png = Vec::new();
        picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png)?;
        Ok(png)
    }
}

/// A smooth square wave of period 1 between 0 and 1.
fn wave(phase: f32) -> f32 {
    (0.5 + 2.0 * (phase * TAU).sin()).clamp(0.0, 1.0)
}

fn bright(rng: &mut ChaCha8Rng) -> [f32; 3] {
    std::array::from_fn(|_| rng.random_range(150.0..255.0))
}

fn dark(rng: &mut ChaCha8Rng) -> [f32; 3] {
    std::array::from_fn(|_| rng.random_range(0.0..110.0))
}
