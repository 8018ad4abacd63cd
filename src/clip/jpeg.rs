//! Whether a JPEG is all there.
//!
//! Owner: `decode`. The decoder fills with grey what a cut-off file lacks, and a server that classifies, or learns
//! from, half a picture is wrong without anyone noticing. So the markers are walked first, as libjpeg (and with it
//! Pillow, which refuses what lacks its end) walks them: ITU-T T.81, annex B.

/// The bytes that every JPEG starts with, and nothing else that is decoded here.
const START: [u8; 3] = [0xff, SOI, 0xff];

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
/// Stands alone, as restarts do; used by arithmetic coding.
const TEM: u8 = 0x01;

/// Whether `bytes` are a JPEG whose end of image does not follow its last scan. What lies behind the end is not
/// looked at: cameras put a second picture there.
pub(super) fn ends_early(bytes: &[u8]) -> bool {
    bytes.starts_with(&START) && !reaches_end(&bytes[2..])
}

fn reaches_end(mut rest: &[u8]) -> bool {
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            EOI => return true,
            SOI | TEM | 0xd0..=0xd7 => after,
            // The coded data of a scan follows its header and holds no markers but restarts, so that the search for
            // the next marker passes over it.
            _ => match segment(after) {
                Some(after) => after,
                None => return false,
            },
        };
    }
    false
}

/// The next marker and what follows it. Bytes that belong to none are passed over: stuffed zeros, fill bytes, the coded
/// data of a scan.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let mut rest = bytes;
    loop {
        let at = rest.iter().position(|byte| *byte == 0xff)?;
        rest = &rest[at + 1..];
        match rest.first()? {
            0x00 | 0xff => {}
            marker => return Some((*marker, &rest[1..])),
        }
    }
}

/// What follows a segment; `None` where it is longer than the file, or shorter than its own length field.
fn segment(bytes: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes(*bytes.first_chunk()?);
    (length >= 2).then_some(())?;
    bytes.get(usize::from(length)..)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with an embedded end of image (as thumbnails have), and a scan with a stuffed byte, a restart and fill.
    const WHOLE: &[u8] = &[
        0xff, SOI, 0xff, 0xe0, 0, 4, 0xff, EOI, 0xff, 0xda, 0, 3, 1, 7, 0xff, 0, 0xff, 0xd0, 9, 0xff, 0xff,
        EOI,
    ];

    #[test]
    fn only_the_end_of_the_picture_itself_counts() {
        assert!(!ends_early(WHOLE));
        assert!(!ends_early(&[WHOLE, b"another picture".as_slice()].concat()));
        for length in 3..WHOLE.len() {
            assert!(ends_early(&WHOLE[..length]), "{length} bytes");
        }
    }

    #[test]
    fn other_formats_have_other_ends() {
        assert!(!ends_early(b""));
        assert!(!ends_early(b"\x89PNG\r\n\x1a\n"));
    }
}
