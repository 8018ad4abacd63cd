//! Names and identifiers, parsed once at the edge. A copy of a name shares its text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

/// Why a name or identifier was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is left after trimming.
    #[error("a {what} must not be empty")]
    Empty {
        /// What was being named.
        what: &'static str,
    },
    /// More characters than allowed.
    #[error("a {what} has at most {limit} characters")]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// The limit in characters.
        limit: usize,
    },
    /// A character that is not allowed in this kind of name.
    #[error("a {what} must not contain {character:?}")]
    Character {
        /// What was being named.
        what: &'static str,
        /// The first such character.
        character: char,
    },
    /// A first character that is allowed further on only.
    #[error("a {what} must start with a letter or a digit")]
    Start {
        /// What was being named.
        what: &'static str,
    },
    /// Not a SHA-256 in the form `sha256:<64 hex digits>`.
    #[error("not a digest: expected `sha256:` and 64 hexadecimal digits")]
    Digest,
}

fn checked(
    text: &str,
    what: &'static str,
    limit: usize,
    allowed: impl Fn(char) -> bool,
    may_start: impl Fn(char) -> bool,
) -> Result<Arc<str>, NameError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.chars().count() > limit {
        return Err(NameError::TooLong { what, limit });
    }
    match text.chars().find(|&c| !allowed(c)) {
        Some(character) => Err(NameError::Character { what, character }),
        None if !text.starts_with(may_start) => Err(NameError::Start { what }),
        None => Ok(text.into()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal, $allowed:expr) => {
        name!($(#[$doc])* $name, $what, $limit, $allowed, |_| true);
    };
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal, $allowed:expr, $may_start:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String")]
        #[schema(value_type = String)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                checked(text, $what, $limit, $allowed, $may_start).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A model's name: at most 64 ASCII letters, digits, `-`, `_` or `.`, so that it can stand in a path and in a
    /// metric's label. The first is a letter or a digit: in a path `.` and `..` mean something else.
    ModelName, "model's name", 64, |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'),
    |c: char| c.is_ascii_alphanumeric()
);
name!(
    /// A task's name: at most 128 characters, none of them a control character or `/`.
    TaskName, "task's name", 128, |c: char| !c.is_control() && c != '/'
);
name!(
    /// A class's label: at most 256 characters, none of them a control character.
    Label, "label", 256, |c: char| !c.is_control()
);

name!(
    /// A class's description, to stand in prompts instead of its label: at most 512 characters, none of them a
    /// control character.
    Prompt, "prompt", 512, |c: char| !c.is_control()
);
name!(
    /// Why a version was activated, for the log: at most 1,000 characters, control characters aside from line breaks
    /// excluded.
    Reason, "reason", 1000, |c: char| !c.is_control() || c == '\n'
);

impl Label {
    /// The label as words for a prompt: underscores become spaces (`pickup_truck` reads "pickup truck").
    pub fn words(&self) -> String {
        self.0.replace('_', " ")
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh time-ordered id (UUID version 7).
            #[expect(clippy::new_without_default, reason = "every call gives another value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A job.
    JobId
);
id!(
    /// A class; stays with it through every version that knows it.
    ClassId
);

/// A version's number in its model: 1, 2, 3, … in order of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct VersionNumber(pub u32);

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256 of some content, shown as `sha256:<hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let hex = text.strip_prefix("sha256:").ok_or(NameError::Digest)?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NameError::Digest);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| NameError::Digest)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trimmed_and_bounded() {
        assert_eq!("  birds ".parse::<TaskName>().expect("valid").as_str(), "birds");
        assert_eq!("".parse::<Label>(), Err(NameError::Empty { what: "label" }));
        assert!(matches!(
            "a/b".parse::<TaskName>(),
            Err(NameError::Character { character: '/', .. })
        ));
        assert!(matches!(
            "x".repeat(65).parse::<ModelName>(),
            Err(NameError::TooLong { limit: 64, .. })
        ));
        assert_eq!(
            "pickup_truck".parse::<Label>().expect("valid").words(),
            "pickup truck"
        );
    }

    #[test]
    fn a_model_s_name_is_no_step_in_a_path() {
        for text in [".", "..", ".hidden", "-v", "_a"] {
            let found = text.parse::<ModelName>();
            let what = "model's name";
            assert_eq!(found, Err(NameError::Start { what }), "{text}");
        }
        for text in ["a", "7", "flora.v2", "a..b", "a-_."] {
            assert_eq!(text.parse::<ModelName>().expect("valid").as_str(), text);
        }
    }

    #[test]
    fn digests_round_trip_as_text() {
        let digest = Digest::of(b"abc");
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest.to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("sha256:12".parse::<Digest>(), Err(NameError::Digest));
    }
}
