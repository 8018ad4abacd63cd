//! Parameters of `Content-Disposition` in the form of RFC 5987, `name*=utf-8''%E9%B7%BA`, which some clients send for
//! names that are not ASCII. The plain form is the multipart parser's business.

use axum::http::{HeaderMap, header};

/// Why an encoded parameter cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EncodingError {
    /// The character set is another one.
    #[error("the part's {0} must be UTF-8, encoded as in RFC 5987")]
    Charset(&'static str),
    /// The bytes are not what they are said to be.
    #[error("the part's {0} is not UTF-8, percent-encoded as in RFC 5987")]
    Bytes(&'static str),
}

/// The parameter in its encoded form; `None` where it is not there.
pub(super) fn encoded(headers: &HeaderMap, parameter: &'static str) -> Result<Option<String>, EncodingError> {
    let Some(value) = headers
        .get(header::CONTENT_DISPOSITION)
        // Other parameters may be UTF-8 as it stands.
        .and_then(|value| str::from_utf8(value.as_bytes()).ok())
    else {
        return Ok(None);
    };
    let Some(value) = parameters(value).find_map(|(name, value)| {
        let name = name.trim().strip_suffix('*')?;
        name.trim_end()
            .eq_ignore_ascii_case(parameter)
            .then(|| value.trim())
    }) else {
        return Ok(None);
    };
    let mut pieces = value.trim_matches('"').splitn(3, '\'');
    let (Some(charset), Some(_language), Some(text)) = (pieces.next(), pieces.next(), pieces.next()) else {
        return Err(EncodingError::Charset(parameter));
    };
    if !charset.eq_ignore_ascii_case("utf-8") {
        return Err(EncodingError::Charset(parameter));
    }
    percent_decoded(text)
        .map(Some)
        .ok_or(EncodingError::Bytes(parameter))
}

/// The parameters of a header, split where a semicolon stands outside quotes.
fn parameters(header: &str) -> impl Iterator<Item = (&str, &str)> {
    let (mut quoted, mut escaped) = (false, false);
    header
        .split(move |character| {
            let splits = character == ';' && !quoted;
            quoted ^= character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            splits
        })
        .filter_map(|parameter| parameter.split_once('='))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let digits = piece
            .get(..2)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(disposition: &str) -> Result<Option<String>, EncodingError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_DISPOSITION,
            disposition.parse().expect("a header"),
        );
        encoded(&headers, "name")
    }

    #[test]
    fn encoded_names_are_decoded() {
        let read = |disposition| name(disposition).expect("well-formed");
        assert_eq!(read("form-data; name*=utf-8''%E9%B7%BA"), Some("鷺".to_owned()));
        assert_eq!(
            read("form-data; NAME* = UTF-8'de'Graureiher%20%26; filename=\"x\""),
            Some("Graureiher &".to_owned())
        );
        assert_eq!(
            read("form-data; name*=utf-8''a; filename=\"鷺.png\""),
            Some("a".to_owned()),
            "beside plain UTF-8"
        );
        assert_eq!(read("form-data; name=\"plain\""), None);
        assert_eq!(
            read("form-data; name=\"; name*=utf-8''x\""),
            None,
            "inside quotes"
        );
        assert_eq!(read("form-data; filename*=utf-8''x"), None, "another parameter");
    }

    #[test]
    fn what_is_not_utf_8_is_told() {
        assert_eq!(
            name("form-data; name*=latin1''%E9"),
            Err(EncodingError::Charset("name"))
        );
        assert_eq!(name("form-data; name*=x"), Err(EncodingError::Charset("name")));
        for broken in ["%E9", "%", "%4", "%zz", "%+4"] {
            assert_eq!(
                name(&format!("form-data; name*=utf-8''{broken}")),
                Err(EncodingError::Bytes("name")),
                "{broken}"
            );
        }
    }
}
