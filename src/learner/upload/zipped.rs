//! Opens zip archives. The reader below keeps the whole directory in memory, so what the archive claims about it is
//! checked first, and how much of it is read is bounded.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use super::metered::{Budget, Metered};
use super::{UploadError, UploadLimits};

/// An open archive.
pub(super) type Zip = ZipArchive<Metered<BufReader<File>>>;

/// Most bytes of the directory for each entry: the fixed part, a name, extensions and a comment.
const BYTES_PER_ENTRY: u64 = 512;
/// What is read besides the directory: the end of the file, searched for where the directory is.
const BYTES_OF_THE_END: u64 = 1 << 20;
/// How far from the end of the file the record of the end may begin: its own 22 bytes and a comment's 65,535, and some
/// more, because the reader looks a little farther back than it must.
const LONGEST_END: u64 = 0xffff + 256;

/// Opens an archive that begins where the file does.
///
/// # Errors
/// When it is damaged or has more to say about its files than `limits` allow.
pub(super) fn open(file: File, limits: UploadLimits) -> Result<Zip, UploadError> {
    let mut reader = BufReader::new(file);
    if claimed_entries(&mut reader)? > limits.entries() as u64 {
        return Err(UploadError::TooManyExamples(limits.examples));
    }
    let most = limits.entries() as u64 * BYTES_PER_ENTRY + BYTES_OF_THE_END;
    let budget = Budget::new(most);
    let reader = Metered::new(reader, &budget);
    // The offset is known, so that the file is not searched for directories.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    match ZipArchive::with_config(config, reader) {
        Ok(archive) => {
            budget.set(Budget::UNLIMITED);
            Ok(archive)
        }
        Err(_) if budget.is_spent() => Err(UploadError::HeadersTooLarge(most)),
        Err(error) => Err(error.into()),
    }
}

/// The largest number of entries that any record of the archive's end claims. There may be several such records, and
/// it is the reader's choice which one it believes.
fn claimed_entries(reader: &mut (impl Read + Seek)) -> io::Result<u64> {
    const END: &[u8; 4] = b"PK\x05\x06";
    const LOCATOR: &[u8; 4] = b"PK\x06\x07";
    const LOCATOR_BYTES: usize = 20;
    let length = reader.seek(SeekFrom::End(0))?;
    // Where a record begins, the locator of its 64-bit form may stand before it.
    let start = length.saturating_sub(LONGEST_END + LOCATOR_BYTES as u64);
    reader.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    reader.take(length - start).read_to_end(&mut tail)?;
    let mut most = 0;
    for at in 0..tail.len() {
        if !tail[at..].starts_with(END) {
            continue;
        }
        most = most
            .max(number::<2>(&tail, at + 8))
            .max(number::<2>(&tail, at + 10));
        let Some(locator) = at.checked_sub(LOCATOR_BYTES) else {
            continue;
        };
        if tail[locator..].starts_with(LOCATOR) {
            most = most.max(entries_in_64_bits(reader, number::<8>(&tail, locator + 8))?);
        }
    }
    Ok(most)
}

/// The entries that the 64-bit record at this place claims; 0 where there is none.
fn entries_in_64_bits(reader: &mut (impl Read + Seek), at: u64) -> io::Result<u64> {
    const END: &[u8; 4] = b"PK\x06\x06";
    if i64::try_from(at).is_err() {
        return Ok(0);
    }
    reader.seek(SeekFrom::Start(at))?;
    let mut record = Vec::new();
    reader.take(40).read_to_end(&mut record)?;
    if !record.starts_with(END) {
        return Ok(0);
    }
    Ok(number::<8>(&record, 24).max(number::<8>(&record, 32)))
}

/// The little-endian number of `N` bytes at a place; 0 where the bytes end before it.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let digits = bytes.get(at..at + N).unwrap_or_default();
    digits
        .iter()
        .rev()
        .fold(0, |number, digit| number << 8 | u64::from(*digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(entries: u16, comment: &[u8]) -> Vec<u8> {
        let count = entries.to_le_bytes();
        let length = (comment.len() as u16).to_le_bytes();
        [
            b"PK\x05\x06\0\0\0\0",
            &count[..],
            &count,
            &[0; 8],
            &length,
            comment,
        ]
        .concat()
    }

    fn end_in_64_bits(entries: u64, at: u64) -> Vec<u8> {
        let count = entries.to_le_bytes();
        let record = [b"PK\x06\x06", &[0; 20][..], &count, &count, &[0; 16]].concat();
        let locator = [b"PK\x06\x07\0\0\0\0", &at.to_le_bytes()[..], &1_u32.to_le_bytes()].concat();
        [record, locator, end(u16::MAX, b"")].concat()
    }

    fn claimed(bytes: Vec<u8>) -> u64 {
        claimed_entries(&mut io::Cursor::new(bytes)).expect("readable")
    }

    #[test]
    fn the_largest_claim_counts() {
        assert_eq!(claimed(Vec::new()), 0);
        assert_eq!(claimed(end(3, b"")), 3);
        assert_eq!(claimed(end(3, &end(70, b""))), 70, "one in the other's comment");
        assert_eq!(claimed(end(70, &end(3, b""))), 70);
        assert_eq!(claimed(end(70, &vec![b' '; 0xffff])), 70, "a long comment");
        assert_eq!(claimed(end_in_64_bits(1 << 40, 0)), 1 << 40);
        assert_eq!(
            claimed(end_in_64_bits(1 << 40, u64::MAX)),
            0xffff,
            "no such place"
        );
    }
}
