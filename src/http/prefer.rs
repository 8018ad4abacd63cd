//! The `Prefer` header (RFC 7240): how long a caller would like to wait.

use axum::http::HeaderMap;

/// The longest wait, in seconds. A caller who wants to wait longer asks again.
const LONGEST: u64 = 600;

/// The seconds of `wait=N`, at most [`LONGEST`]. What is not understood is ignored, as the RFC demands; of several
/// the first counts.
pub(super) fn wait(headers: &HeaderMap) -> Option<u64> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(seconds)
        .map(|seconds| seconds.min(LONGEST))
}

/// The seconds of one preference, if it is `wait`. The value may be quoted, and parameters may follow.
fn seconds(preference: &str) -> Option<u64> {
    let (name, value) = preference.split(';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    value.trim().trim_matches('"').trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(values: &[&'static str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", value.parse().expect("a header"));
        }
        wait(&headers)
    }

    #[test]
    fn a_wait_is_found_however_it_is_written() {
        assert_eq!(asked(&["wait=30"]), Some(30));
        assert_eq!(asked(&["respond-async, Wait = \"30\"; x=y"]), Some(30));
        assert_eq!(asked(&["respond-async", "WAIT=5"]), Some(5));
        assert_eq!(asked(&["wait=100000"]), Some(LONGEST), "longer than allowed");
        assert_eq!(asked(&["wait=1, wait=2"]), Some(1), "the first counts");
    }

    #[test]
    fn other_preferences_are_ignored() {
        assert_eq!(asked(&[]), None);
        for value in ["return=minimal", "wait", "wait=soon", "await=3", "wait=-1"] {
            assert_eq!(asked(&[value]), None, "{value}");
        }
    }
}
