//! How domain values stand in columns.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;
use crate::domain::{Features, Split, VersionNumber};

/// Microseconds since the Unix epoch.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// Microseconds since the Unix epoch, `after` a time.
pub(super) fn micros_after(at: Timestamp, after: Duration) -> i64 {
    micros(at).saturating_add(i64::try_from(after.as_micros()).unwrap_or(i64::MAX))
}

pub(super) fn timestamp(micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|error| StoreError::corrupt("time", error))
}

pub(super) fn parse<T>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>>,
{
    text.parse().map_err(|error| StoreError::corrupt(what, error))
}

pub(super) fn from_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::corrupt(what, error))
}

pub(super) fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt(what, error))
}

/// A number that is never negative and fits the domain's type.
pub(super) fn number<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| StoreError::corrupt(what, format!("{value} is out of range")))
}

pub(super) fn version(value: i64) -> Result<VersionNumber, StoreError> {
    number("version's number", value).map(VersionNumber)
}

pub(super) fn version_or_none(value: Option<i64>) -> Result<Option<VersionNumber>, StoreError> {
    value.map(version).transpose()
}

pub(super) fn to_column(version: Option<VersionNumber>) -> Option<i64> {
    version.map(|VersionNumber(number)| i64::from(number))
}

pub(super) fn features(bytes: &[u8]) -> Result<Features, StoreError> {
    Features::from_le_bytes(bytes).ok_or_else(|| StoreError::corrupt("features", "an odd number of bytes"))
}

pub(super) fn split(text: Option<&str>) -> Result<Option<Split>, StoreError> {
    match text {
        None => Ok(None),
        Some("train") => Ok(Some(Split::Train)),
        Some("held_out") => Ok(Some(Split::HeldOut)),
        Some(other) => Err(StoreError::corrupt("split", other)),
    }
}
