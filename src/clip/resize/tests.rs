//! Properties of the resampling. That it equals Pillow is tested on pictures, in `tests/backbone`.

use proptest::prelude::*;

use super::vectors::{Column, Vectors};
use super::{Filter, PRECISION, Scaling, Size, Window, resize, taps};

fn scaling(from: Size, to: Size, filter: Filter) -> Scaling {
    Scaling { from, to, filter }
}

/// The pixels of a window, row by row.
fn resized<const CHANNELS: usize>(pixels: &[u8], scaling: Scaling, window: &Window) -> Vec<u8> {
    let width = window.columns.len();
    let mut out = vec![[0; CHANNELS]; window.rows.len() * width];
    resize::<CHANNELS>(pixels, scaling, window, |(row, column), pixels| {
        out[row * width + column..][..pixels.len()].copy_from_slice(pixels);
    });
    out.into_flattened()
}

proptest! {
    #[test]
    fn a_constant_picture_stays_constant(
        value: [u8; 3], size in sizes(60), target in sizes(60), filter in filters()
    ) {
        let pixels = value.repeat(size.width * size.height);
        let out = resized::<3>(&pixels, scaling(size, target, filter), &whole(target));
        prop_assert_eq!(out, value.repeat(target.width * target.height));
    }

    #[test]
    fn the_size_it_has_changes_nothing((pixels, size) in pictures(), filter in filters()) {
        prop_assert_eq!(resized::<1>(&pixels, scaling(size, size, filter), &whole(size)), pixels);
    }

    #[test]
    fn a_window_is_a_part_of_the_whole(
        (pixels, size) in pictures(),
        (target, window) in sizes(50).prop_flat_map(|target| (Just(target), windows(target))),
        filter in filters(),
    ) {
        let all = resized::<1>(&pixels, scaling(size, target, filter), &whole(target));
        let cut: Vec<u8> = window
            .rows
            .clone()
            .flat_map(|row| all[row * target.width..][window.columns.clone()].to_vec())
            .collect();
        prop_assert_eq!(resized::<1>(&pixels, scaling(size, target, filter), &window), cut);
    }

    #[test]
    fn channels_are_independent((pixels, size) in pictures(), target in sizes(40), filter in filters()) {
        let inverted: Vec<u8> = pixels.iter().map(|value| !value).collect();
        let pairs: Vec<u8> = pixels.iter().zip(&inverted).flat_map(|(a, b)| [*a, *b]).collect();
        let of = |plane: &[u8]| resized::<1>(plane, scaling(size, target, filter), &whole(target));
        let (first, second) = (of(&pixels), of(&inverted));
        let both: Vec<u8> = first.iter().zip(&second).flat_map(|(a, b)| [*a, *b]).collect();
        prop_assert_eq!(resized::<2>(&pairs, scaling(size, target, filter), &whole(target)), both);
    }

    /// Rows of a picture, the last one, too; weights that sums go below zero and above 255 by.
    #[test]
    fn all_vectors_give_the_same(
        row in prop::collection::vec(any::<[u8; 3]>(), 1..40),
        below in prop::collection::vec(any::<u8>(), 0..9),
        columns in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(-1.0..1.5_f64, 1..9)), 1..20),
        weight in -(1 << PRECISION)..(1 << PRECISION),
    ) {
        let columns: Vec<(Column, usize)> = columns.iter().map(|(start, weights)| {
            let start = start.index(row.len());
            let seen = weights.len().min(row.len() - start);
            let weights: Vec<i32> = weights[..seen].iter().map(|weight| (weight * f64::from(1 << PRECISION)) as i32 / 8).collect();
            (Column::new(start, &weights), 1)
        }).collect();
        let of = |vectors: Vectors| {
            let (mut narrowed, mut sums) = (vec![7; 3 * columns.len()], vec![-12_345; 3 * columns.len()]);
            let mut rounded = narrowed.clone();
            vectors.narrow::<3>(&[row.as_flattened(), &below].concat(), &columns, &mut narrowed);
            vectors.add(&mut sums, weight, &narrowed);
            vectors.round(&sums, &mut rounded);
            let mut planes = [(); 3].map(|()| vec![0; row.len()]);
            vectors.split(&row, planes.each_mut().map(Vec::as_mut_slice));
            for (channel, plane) in planes.iter().enumerate() {
                assert!(plane.iter().eq(row.iter().map(|pixel| &pixel[channel])));
            }
            (narrowed, sums, rounded)
        };
        prop_assert_eq!(of(Vectors::new()), of(Vectors::portable()));
    }

    #[test]
    fn each_pass_rounds_what_real_numbers_give((pixels, size) in pictures(), length in 1..=40_usize, cubic: bool) {
        let (filter, kernel): (_, fn(f64) -> f64) =
            if cubic { (Filter::Bicubic, catmull_rom) } else { (Filter::Bilinear, tent) };
        let of = |target: Size| resized::<1>(&pixels, scaling(size, target, filter), &whole(target));

        let wide = of(Size { width: length, ..size });
        for (line, out) in pixels.chunks_exact(size.width).zip(wide.chunks_exact(length)) {
            assert_rounded(out, &naive(line, length, kernel))?;
        }
        let high = of(Size { height: length, ..size });
        for x in 0..size.width {
            let column = |pixels: &[u8]| -> Vec<u8> { pixels.iter().skip(x).step_by(size.width).copied().collect() };
            assert_rounded(&column(&high), &naive(&column(&pixels), length, kernel))?;
        }
    }
}

#[test]
fn a_strip_costs_only_its_window() {
    // The whole target would have 40 billion pixels.
    let size = Size {
        width: 1,
        height: 20_000,
    };
    let target = Size {
        width: 44_800,
        height: 896_000,
    };
    let pixels: Vec<u8> = (0..size.height).map(|y| (y / 79) as u8).collect();
    let window = Window {
        columns: 22_288..22_512,
        rows: 447_888..448_112,
    };
    let out = resized::<1>(&pixels, scaling(size, target, Filter::Bicubic), &window);
    assert_eq!(out.len(), 224 * 224);
    assert!(out.iter().all(|value| *value == (10_000_u32 / 79) as u8));
}

#[test]
fn a_strip_squeezed_into_an_exact_target_costs_only_its_window() {
    // Kept side by side, its rows at the target's width would need 200 GB.
    let size = Size {
        width: 1,
        height: 100_000,
    };
    let target = Size {
        width: 2_000_000,
        height: 3,
    };
    let pixels: Vec<u8> = (0..size.height).map(|y| (y / 393) as u8).collect();
    let out = resized::<1>(&pixels, scaling(size, target, Filter::Bicubic), &whole(target));
    assert_eq!(out.len(), 6_000_000);
    for (row, middle) in out.chunks_exact(target.width).zip([42, 127, 212]) {
        assert!(
            row.iter().all(|value| *value == row[0]) && row[0].abs_diff(middle) < 6,
            "{}",
            row[0]
        );
    }
}

#[test]
fn a_picture_much_wider_than_its_target_is_computed_in_strips() {
    // More weights than one strip holds: 4 for each source pixel.
    let size = Size {
        width: 600_000,
        height: 2,
    };
    let target = Size { width: 5, height: 2 };
    let pixels: Vec<u8> = (0..2 * size.width)
        .map(|x| (x % size.width / 2_353) as u8)
        .collect();
    let out = resized::<1>(&pixels, scaling(size, target, Filter::Bicubic), &whole(target));
    let line = naive(&pixels[..size.width], target.width, catmull_rom);
    for row in out.chunks_exact(target.width) {
        // A sum of 480,000 rounded weights: each is off by up to 2^-23.
        let close = |(byte, number): (&u8, &f64)| (f64::from(*byte) - number.clamp(0.0, 255.0)).abs() < 16.0;
        assert!(row.iter().zip(&line).all(close), "{row:?} for {line:?}");
    }
}

/// One line resampled in double precision over all its pixels, not rounded.
fn naive(line: &[u8], length: usize, kernel: fn(f64) -> f64) -> Vec<f64> {
    let scale = line.len() as f64 / length as f64;
    let weight = |center: f64, x: usize| kernel(((x as f64 + 0.5 - center) / scale.max(1.0)).abs());
    (0..length)
        .map(|index| {
            let center = (index as f64 + 0.5) * scale;
            let (mut value, mut sum) = (0.0, 0.0);
            for (x, pixel) in line.iter().enumerate() {
                value += f64::from(*pixel) * weight(center, x);
                sum += weight(center, x);
            }
            value / sum
        })
        .collect()
}

/// Each byte is the number rounded. Weights have 22 fractional bits, so 40 of them may move a sum by 40 · 255 / 2^23.
fn assert_rounded(bytes: &[u8], numbers: &[f64]) -> Result<(), TestCaseError> {
    prop_assert_eq!(bytes.len(), numbers.len());
    for (byte, number) in bytes.iter().zip(numbers) {
        let distance = (f64::from(*byte) - number.clamp(0.0, 255.0)).abs();
        prop_assert!(distance <= 0.502, "{byte} for {number}");
    }
    Ok(())
}

fn tent(x: f64) -> f64 {
    (1.0 - x).max(0.0)
}

/// Keys' cubic convolution with a = -1/2, expanded (<https://doi.org/10.1109/TASSP.1981.1163711>).
fn catmull_rom(x: f64) -> f64 {
    if x < 1.0 {
        1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0
    } else if x < 2.0 {
        -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0
    } else {
        0.0
    }
}

/// A column of 50,000,000 pixels that is to be 224 wide: only rows of its middle are looked at.
#[test]
fn the_middle_of_a_very_long_target_is_where_it_should_be() {
    let (source, target) = (50_000_000, 224 * 50_000_000);
    let middle = target / 2 - 112..target / 2 + 112;
    let starts = taps(Filter::Nearest, source, target, middle).map(|tap| tap.start);
    let [left, right] = [24_999_999, 25_000_000].map(|start| [start; 112]);
    assert_eq!(starts.collect::<Vec<_>>(), [left, right].concat());
}

fn whole(size: Size) -> Window {
    Window {
        columns: 0..size.width,
        rows: 0..size.height,
    }
}

fn sizes(limit: usize) -> impl Strategy<Value = Size> {
    (1..=limit, 1..=limit).prop_map(|(width, height)| Size { width, height })
}

fn pictures() -> impl Strategy<Value = (Vec<u8>, Size)> {
    sizes(40).prop_flat_map(|size| {
        (
            prop::collection::vec(any::<u8>(), size.width * size.height),
            Just(size),
        )
    })
}

fn windows(size: Size) -> impl Strategy<Value = Window> {
    let range = |length: usize| (0..length).prop_flat_map(move |start| (Just(start), start + 1..=length));
    (range(size.width), range(size.height)).prop_map(|((left, right), (top, bottom))| Window {
        columns: left..right,
        rows: top..bottom,
    })
}

fn filters() -> impl Strategy<Value = Filter> {
    (0..6_u64).prop_map(|number| Filter::from_pillow(number).expect("a filter that Pillow has"))
}
