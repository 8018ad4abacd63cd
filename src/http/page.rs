//! Keyset pagination: a limit, a cursor, and a link to the next page.

use std::fmt::Display;

use axum::http::{HeaderName, Uri, header};

use super::problem::Problem;

const DEFAULT: u32 = 50;
const MOST: u32 = 500;

/// The number of entries asked for.
pub(super) fn limit(asked: Option<u32>) -> Result<u32, Problem> {
    match asked.unwrap_or(DEFAULT) {
        limit @ 1..=MOST => Ok(limit),
        _ => Err(Problem::invalid(
            "invalid_limit",
            format!("limit must be between 1 and {MOST}"),
        )),
    }
}

/// The first `limit` entries of up to `limit + 1`, and the key of the last if there are more.
pub(super) fn cut<T, K>(mut entries: Vec<T>, limit: u32, key: impl Fn(&T) -> K) -> (Vec<T>, Option<K>) {
    let more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    let next = entries.last().filter(|_| more).map(key);
    (entries, next)
}

/// A `Link` header to the next page (RFC 8288), if there is one.
pub(super) fn link<K: Display>(uri: &Uri, next: Option<K>) -> Option<(HeaderName, String)> {
    let next = next?;
    let kept = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
    let query: Vec<String> = kept
        .map(str::to_owned)
        .chain([format!("cursor={next}")])
        .collect();
    Some((
        header::LINK,
        format!("<{}?{}>; rel=\"next\"", uri.path(), query.join("&")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_next() {
        assert_eq!(cut(vec![5, 4, 3], 2, |n| *n), (vec![5, 4], Some(4)));
        assert_eq!(cut(vec![5, 4], 2, |n| *n), (vec![5, 4], None));
        assert_eq!(cut(Vec::<u8>::new(), 2, |n| *n), (vec![], None));
    }

    #[test]
    fn the_link_keeps_the_other_parameters() {
        let uri: Uri = "/v1/models?limit=2&cursor=a".parse().expect("valid");
        let (_, link) = link(&uri, Some("b")).expect("there is a next page");
        assert_eq!(link, "</v1/models?limit=2&cursor=b>; rel=\"next\"");
    }
}
