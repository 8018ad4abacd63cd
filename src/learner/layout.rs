//! How an archive of class folders is laid out. Pure: paths in, labels and splits out.
//!
//! ```text
//! heron/1.jpg             the class and its examples
//! train/heron/1.jpg       … with the caller's own split
//! test/heron/2.jpg
//! birds/heron/1.jpg       … inside one folder around everything
//! ```

use crate::domain::{Label, NameError, Split};

/// Most bytes of a path: a label of the longest kind and a file's name fit.
const PATH_BYTES: usize = 2048;

/// Why a path cannot be placed. Long paths are shown in part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The path is absolute or climbs out of the archive.
    #[error("{0:?} leads out of the archive")]
    Escapes(String),
    /// The file is in no class's folder.
    #[error("{0:?} is not in a class's folder (expected class/file, train/class/file or test/class/file)")]
    NoClass(String),
    /// The folders are nested deeper than a class.
    #[error("{0:?} is nested too deep (expected class/file, train/class/file or test/class/file)")]
    TooDeep(String),
    /// The path is too long.
    #[error("{0:?} is a path of more than {PATH_BYTES} bytes")]
    TooLong(String),
    /// The folder's name is no label.
    #[error("{path:?} names no class")]
    Label {
        /// The path.
        path: String,
        /// What is wrong with the label.
        source: NameError,
    },
}

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing of the caller's: a split folder, or what operating systems leave in archives.
    Ignored,
    /// A class's folder.
    Class { label: Label },
    /// An example.
    Example { label: Label, split: Option<Split> },
}

/// The one folder around everything, if there is one: every file is at least three deep under the same first
/// folder, which is not a split.
pub(super) fn wrapper<'a>(paths: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut files = paths
        .filter(|path| !path.ends_with('/') && !is_litter(path))
        .peekable();
    let first = files.peek()?.split_once('/')?.0.to_owned();
    let wrapped = |path: &str| {
        let mut parts = path.split('/');
        parts.next() == Some(&first) && parts.count() >= 2
    };
    (split_of(&first).is_none() && files.all(wrapped)).then_some(first)
}

/// What `path` stands for, below `wrapper`.
pub(super) fn place(path: &str, wrapper: Option<&str>) -> Result<Place, LayoutError> {
    let is_folder = path.ends_with('/');
    if path.len() > PATH_BYTES {
        return Err(LayoutError::TooLong(shown(path)));
    }
    if path.starts_with(['/', '\\']) || path.contains('\0') || path.get(1..2) == Some(":") {
        return Err(LayoutError::Escapes(shown(path)));
    }
    let mut parts: Vec<&str> = path
        .split(['/', '\\'])
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err(LayoutError::Escapes(shown(path)));
    }
    if is_litter(path) {
        return Ok(Place::Ignored);
    }
    if wrapper.is_some() && parts.first().copied() == wrapper {
        parts.remove(0);
    }
    let label = |part: &str| {
        part.parse::<Label>().map_err(|source| LayoutError::Label {
            path: shown(path),
            source,
        })
    };
    match (parts.as_slice(), is_folder) {
        ([], _) => Ok(Place::Ignored),
        ([only], true) if split_of(only).is_some() => Ok(Place::Ignored),
        ([class], true) => Ok(Place::Class { label: label(class)? }),
        ([top, class], true) if split_of(top).is_some() => Ok(Place::Class { label: label(class)? }),
        ([_], false) => Err(LayoutError::NoClass(shown(path))),
        ([class, _], false) => Ok(Place::Example {
            label: label(class)?,
            split: None,
        }),
        ([top, class, _], false) if split_of(top).is_some() => Ok(Place::Example {
            label: label(class)?,
            split: split_of(top),
        }),
        _ => Err(LayoutError::TooDeep(shown(path))),
    }
}

/// A path as far as messages repeat it.
pub(super) fn shown(path: &str) -> String {
    const MOST: usize = 200;
    match path.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &path[..end]),
        None => path.to_owned(),
    }
}

fn split_of(folder: &str) -> Option<Split> {
    match folder {
        "train" => Some(Split::Train),
        "test" => Some(Split::HeldOut),
        _ => None,
    }
}

/// Hidden files, and what macOS and Windows add to archives.
fn is_litter(path: &str) -> bool {
    path.split('/')
        .any(|part| part.starts_with('.') && part != "." && part != "..")
        || path.starts_with("__MACOSX/")
        || matches!(path.rsplit('/').next(), Some("Thumbs.db" | "desktop.ini"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "what is compared with it is a result")]
    fn example(label: &str, split: Option<Split>) -> Result<Place, LayoutError> {
        Ok(Place::Example {
            label: label.parse().expect("valid"),
            split,
        })
    }

    #[test]
    fn class_folders_with_and_without_a_split() {
        assert_eq!(place("heron/1.jpg", None), example("heron", None));
        assert_eq!(
            place("train/heron/1.jpg", None),
            example("heron", Some(Split::Train))
        );
        assert_eq!(
            place("test/heron/1.jpg", None),
            example("heron", Some(Split::HeldOut))
        );
        assert_eq!(
            place("train/1.jpg", None),
            example("train", None),
            "a class may be called train"
        );
        assert_eq!(
            place("birds/train/heron/1.jpg", Some("birds")),
            example("heron", Some(Split::Train))
        );
        assert_eq!(place("train/", None), Ok(Place::Ignored));
        assert!(matches!(place("heron/", None), Ok(Place::Class { .. })));
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in [
            "../x/1.jpg",
            "a/../../1.jpg",
            "/etc/passwd",
            "\\x\\1.jpg",
            "C:\\x\\1.jpg",
            "a\\..\\1.jpg",
        ] {
            assert!(
                matches!(place(path, None), Err(LayoutError::Escapes(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn loose_and_deep_files_are_refused_and_litter_is_ignored() {
        assert!(matches!(place("1.jpg", None), Err(LayoutError::NoClass(_))));
        assert!(matches!(place("a/b/c/1.jpg", None), Err(LayoutError::TooDeep(_))));
        assert_eq!(place("heron/.DS_Store", None), Ok(Place::Ignored));
        assert_eq!(place("__MACOSX/heron/._1.jpg", None), Ok(Place::Ignored));
    }

    #[test]
    fn long_paths_are_refused_and_shown_in_part() {
        let long = format!("heron/{}.jpg", "é".repeat(2000));
        let Err(LayoutError::TooLong(shown)) = place(&long, None) else {
            panic!("accepted");
        };
        assert_eq!(shown.chars().count(), 201);
    }

    #[test]
    fn a_wrapper_holds_everything() {
        let wrapped = ["birds/", "birds/heron/1.jpg", "birds/egret/2.jpg", ".DS_Store"];
        assert_eq!(wrapper(wrapped.into_iter()), Some("birds".to_owned()));
        assert_eq!(
            wrapper(["heron/1.jpg", "heron/2.jpg"].into_iter()),
            None,
            "that is the class"
        );
        assert_eq!(
            wrapper(["train/heron/1.jpg", "train/egret/1.jpg"].into_iter()),
            None,
            "that is the split"
        );
        assert_eq!(wrapper(["a/heron/1.jpg", "b/egret/1.jpg"].into_iter()), None);
    }
}
