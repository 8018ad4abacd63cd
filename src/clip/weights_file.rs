//! A safetensors file, in memory or on disk.
//!
//! Owner: the loader. From a disk (of a Unix) tensors are read one by one, as they are taken, so that a start does not hold the file and
//! what is made of it at the same time. Invariant: the digest is of the bytes that tensors are read from, as far as a file's length and
//! the time of its last change tell. It is opened once, and if these are others when all of it was read, that is an error.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io;
use std::ops::Range;
use std::path::Path;

use bytemuck::Pod;
use bytes::Bytes;
use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;
use sha2::{Digest as _, Sha256};

use super::error::BackboneError;
use crate::domain::Digest;

/// A file opens with the length of its header, as eight bytes.
const LENGTH_BYTES: usize = 8;
/// Most bytes of a header, as for the safetensors crate.
const LONGEST_HEADER: usize = 100_000_000;
/// Bytes that are hashed at a time: they stay in the caches.
const HASHED: usize = 1 << 20;

/// One weights file.
pub(super) struct WeightsFile {
    name: String,
    len: usize,
    contents: Contents,
}

enum Contents {
    Memory(Bytes),
    #[cfg(unix)]
    Disk(on_disk::OnDisk),
}

impl WeightsFile {
    /// Of bytes that are there already.
    pub(super) fn in_memory(name: &str, bytes: Bytes) -> Self {
        Self {
            name: name.to_owned(),
            len: bytes.len(),
            contents: Contents::Memory(bytes),
        }
    }

    /// A file of a directory; `None` if there is none.
    pub(super) fn open(directory: &Path, name: &str) -> Result<Option<Self>, BackboneError> {
        let path = directory.join(name);
        match contents(&path) {
            Ok((contents, len)) => Ok(Some(Self {
                name: name.to_owned(),
                len,
                contents,
            })),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BackboneError::Read { path, source }),
        }
    }

    /// Where its tensors begin, and what they are. All of them are in the file, and nothing else is behind them.
    pub(super) fn header(&self) -> Result<(usize, Metadata), BackboneError> {
        let damaged = |source| BackboneError::WeightsHeader {
            file: self.name.clone(),
            source,
        };
        if self.len < LENGTH_BYTES {
            return Err(damaged(SafeTensorError::HeaderTooSmall));
        }
        let length = u64::from_le(self.numbers(0..LENGTH_BYTES)?[0]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST_HEADER {
            return Err(damaged(SafeTensorError::HeaderTooLarge));
        }
        let start = LENGTH_BYTES + length;
        if start > self.len {
            return Err(damaged(SafeTensorError::InvalidHeaderLength));
        }
        let header = self.numbers::<u8>(LENGTH_BYTES..start)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|source| damaged(SafeTensorError::InvalidHeaderDeserialization(source)))?;
        match (self.len - start).cmp(&metadata.data_len()) {
            Ordering::Less => Err(self.truncated(start, &metadata)),
            Ordering::Equal => Ok((start, metadata)),
            Ordering::Greater => Err(damaged(SafeTensorError::MetadataIncompleteBuffer)),
        }
    }

    /// Says which tensor the file breaks off in.
    fn truncated(&self, start: usize, metadata: &Metadata) -> BackboneError {
        let end = |key: &String| start + metadata.info(key).map_or(0, |info| info.data_offsets.1);
        let mut keys = metadata.offset_keys().into_iter();
        let tensor = keys.find(|key| end(key) > self.len).unwrap_or_default();
        BackboneError::Truncated {
            file: self.name.clone(),
            needed: end(&tensor) as u64,
            tensor,
            available: self.len as u64,
        }
    }

    /// The bytes of a range within the file as numbers, without a byte left over: where they lie, if they can be read there.
    pub(super) fn numbers<T: Pod>(&self, range: Range<usize>) -> Result<Cow<'_, [T]>, BackboneError> {
        match &self.contents {
            Contents::Memory(bytes) => {
                let bytes = &bytes[range];
                let borrowed = bytemuck::try_cast_slice(bytes).map(Cow::Borrowed);
                Ok(borrowed.unwrap_or_else(|_| bytemuck::pod_collect_to_vec(bytes).into()))
            }
            #[cfg(unix)]
            Contents::Disk(disk) => {
                let mut numbers = vec![T::zeroed(); range.len() / size_of::<T>()];
                disk.read(bytemuck::cast_slice_mut(&mut numbers), range.start)?;
                Ok(numbers.into())
            }
        }
    }

    /// Of all of it.
    pub(super) fn digest(&self) -> Result<Digest, BackboneError> {
        match &self.contents {
            Contents::Memory(bytes) => Ok(Digest::of(bytes)),
            #[cfg(unix)]
            Contents::Disk(disk) => {
                let (mut hash, mut buffer) = (Sha256::new(), vec![0; HASHED]);
                for start in (0..self.len).step_by(HASHED) {
                    let part = &mut buffer[..HASHED.min(self.len - start)];
                    disk.read(part, start)?;
                    hash.update(part);
                }
                Ok(Digest(hash.finalize().into()))
            }
        }
    }

    /// Checks that it is what it was when it was opened.
    ///
    /// # Errors
    /// [`BackboneError::Changed`].
    pub(super) fn check_unchanged(&self) -> Result<(), BackboneError> {
        match &self.contents {
            Contents::Memory(_) => Ok(()),
            #[cfg(unix)]
            Contents::Disk(disk) => disk.check_unchanged(),
        }
    }
}

/// What is at a path, and its length in bytes.
#[cfg(unix)]
fn contents(path: &Path) -> io::Result<(Contents, usize)> {
    on_disk::OnDisk::open(path).map(|(disk, len)| (Contents::Disk(disk), len))
}

#[cfg(not(unix))]
fn contents(path: &Path) -> io::Result<(Contents, usize)> {
    let bytes = Bytes::from(std::fs::read(path)?);
    let len = bytes.len();
    Ok((Contents::Memory(bytes), len))
}

#[cfg(unix)]
mod on_disk {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt as _;
    use std::path::{Path, PathBuf};
    use std::time::SystemTime;

    use super::BackboneError;

    /// An open file.
    pub(super) struct OnDisk {
        path: PathBuf,
        file: File,
        state: State,
    }

    /// A file's length, and when it was last written to.
    type State = (u64, SystemTime);

    fn state(file: &File) -> io::Result<State> {
        let metadata = file.metadata()?;
        Ok((metadata.len(), metadata.modified()?))
    }

    impl OnDisk {
        /// With its length in bytes.
        pub(super) fn open(path: &Path) -> io::Result<(Self, usize)> {
            let file = File::open(path)?;
            let state = state(&file)?;
            let len = usize::try_from(state.0).map_err(io::Error::other)?;
            let path = path.to_owned();
            Ok((Self { path, file, state }, len))
        }

        /// Fills `bytes` with those from `start` on.
        pub(super) fn read(&self, bytes: &mut [u8], start: usize) -> Result<(), BackboneError> {
            let read = self.file.read_exact_at(bytes, start as u64);
            read.map_err(|source| self.unreadable(source))
        }

        pub(super) fn check_unchanged(&self) -> Result<(), BackboneError> {
            let now = state(&self.file).map_err(|source| self.unreadable(source))?;
            if now == self.state {
                Ok(())
            } else {
                Err(BackboneError::Changed(self.path.clone()))
            }
        }

        fn unreadable(&self, source: io::Error) -> BackboneError {
            BackboneError::Read {
                path: self.path.clone(),
                source,
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::time::SystemTime;

    use candle_core::Device;

    use super::*;
    use crate::clip::source::{BackboneFiles, WEIGHTS};
    use crate::clip::{Backbone, Dtype};

    #[test]
    fn a_file_on_disk_gives_what_it_gives_in_memory() {
        let directory = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = (0..3 * HASHED + 20).map(|at| (at % 251) as u8).collect();
        std::fs::write(directory.path().join("weights"), &bytes).expect("written");
        let files = [
            WeightsFile::in_memory("weights", bytes.into()),
            WeightsFile::open(directory.path(), "weights")
                .expect("readable")
                .expect("there"),
        ];
        let [memory, disk] = files.each_ref().map(|file| file.digest().expect("hashed"));
        assert_eq!(memory, disk);
        // One that f32 may be read from where it lies, and one that none may.
        for range in [8..4008, 9..4009] {
            let [memory, disk] = files
                .each_ref()
                .map(|file| file.numbers::<f32>(range.clone()).expect("read").into_owned());
            assert_eq!(memory.len(), 1000);
            assert_eq!(
                bytemuck::cast_slice::<_, u32>(&memory),
                bytemuck::cast_slice::<_, u32>(&disk)
            );
        }
        let none = WeightsFile::open(directory.path(), "others").expect("readable");
        assert!(none.is_none());
    }

    #[test]
    fn a_file_that_changes_is_told_from_one_that_is_moved() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weights");
        std::fs::write(&path, [1; 100]).expect("written");
        let open = WeightsFile::open(directory.path(), "weights")
            .expect("readable")
            .expect("there");
        std::fs::rename(&path, directory.path().join("moved")).expect("moved");
        std::fs::write(&path, [2; 100]).expect("written");
        assert_eq!(open.numbers::<u8>(0..2).expect("read")[..], [1, 1]);
        open.check_unchanged().expect("the same file, elsewhere");

        let mut moved = OpenOptions::new()
            .append(true)
            .open(directory.path().join("moved"))
            .expect("there");
        moved.write_all(&[3]).expect("written");
        let error = open.check_unchanged().expect_err("it is longer");
        assert_eq!(
            error.to_string(),
            format!("{} changed while it was read", path.display())
        );

        std::fs::write(directory.path().join("moved"), [1; 50]).expect("written");
        let error = open.numbers::<u8>(0..100).expect_err("it is shorter");
        assert!(matches!(error, BackboneError::Read { .. }), "{error:?}");
    }

    #[test]
    fn no_backbone_is_made_of_weights_that_change() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backbone/data/half");
        let built = |change: fn(&std::fs::File)| {
            let directory = tempfile::tempdir().expect("a directory");
            for file in data.read_dir().expect("a model") {
                let file = file.expect("a file");
                std::fs::copy(file.path(), directory.path().join(file.file_name())).expect("copied");
            }
            let files = BackboneFiles::read(directory.path()).expect("a model");
            let weights = OpenOptions::new()
                .write(true)
                .open(directory.path().join(WEIGHTS));
            change(&weights.expect("there"));
            Backbone::build("half".to_owned(), &files, Device::Cpu, Dtype::F32).map(drop)
        };
        built(|_| ()).expect("as they were");
        let changes: [fn(&std::fs::File); 2] = [
            |weights| weights.set_modified(SystemTime::UNIX_EPOCH).expect("set"),
            // Before that shows, a tensor is not there.
            |weights| weights.set_len(20_000).expect("cut"),
        ];
        for change in changes {
            let error = built(change).expect_err("they changed");
            assert!(matches!(error, BackboneError::Changed(_)), "{error:?}");
        }
    }
}
