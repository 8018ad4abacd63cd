//! Where the database is.

use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf, absolute};

use super::error::StoreError;

/// Where the database is. Shows no password.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file on a local disk.
    Sqlite(PathBuf),
    /// A URL `postgres://user:password@host/database`.
    Postgres(Secret),
}

/// A URL that may hold a password; nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Location {
    /// The SQLite file at `path`.
    ///
    /// # Errors
    /// [`StoreError::Location`] for a path that is empty or not UTF-8.
    pub fn file(path: &Path) -> Result<Self, StoreError> {
        let path = absolute(path).map_err(|_| StoreError::Location("an empty path"))?;
        if path.to_str().is_none() {
            return Err(StoreError::Location("a path that is not UTF-8"));
        }
        Ok(Self::Sqlite(path))
    }

    /// From the text of `DATABASE_URL`: `postgres://…`, `postgresql://…` or `sqlite:<path>`, the path as it is.
    ///
    /// # Errors
    /// [`StoreError::Location`] for any other text.
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        match url.split_once(':') {
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Self::Postgres(Secret(url.to_owned())))
            }
            Some(("sqlite", path)) if path.contains('?') => {
                Err(StoreError::Location("a sqlite: URL with parameters"))
            }
            Some(("sqlite", path)) => Self::file(Path::new(path.strip_prefix("//").unwrap_or(path))),
            _ => Err(StoreError::Location(
                "a URL that starts with neither postgres:// nor sqlite:",
            )),
        }
    }

    /// The URL that the driver connects to. Keep it out of errors and logs.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => {
                let mut url = "sqlite://".to_owned();
                for &byte in path.as_os_str().as_encoded_bytes() {
                    match byte {
                        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                            url.push(char::from(byte));
                        }
                        other => write!(url, "%{other:02X}").expect("a String takes every write"),
                    }
                }
                url + "?mode=rwc"
            }
            Self::Postgres(Secret(url)) => url.clone(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres://…"),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_keeps_its_password_to_itself() {
        let location = Location::from_url("postgres://me:hunter2@localhost/clipkeep").expect("a location");
        assert!(!format!("{location} {location:?}").contains("hunter2"));
        assert!(
            matches!(Location::from_url("mysql://me:hunter2@h/d"), Err(e) if !e.to_string().contains("hunter2"))
        );
    }

    #[test]
    fn a_path_survives_the_url() {
        let location = Location::file(Path::new("/a b/50%?#é.db")).expect("a location");
        assert_eq!(location.url(), "sqlite:///a%20b/50%25%3F%23%C3%A9.db?mode=rwc");
        assert_eq!(
            Location::from_url("sqlite:///a/b.db").expect("a location"),
            Location::Sqlite("/a/b.db".into())
        );
    }
}
