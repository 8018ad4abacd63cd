//! Lists in JSON bodies that do not grow without bound while they are read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Most entries, whatever the operator allows: `"",` takes three bytes in a body and many more in memory.
const MOST: usize = 1 << 16;

/// A list of at most [`MOST`] entries.
#[derive(Debug)]
pub(super) struct Capped<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Capped<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = Capped<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == MOST {
                return Err(A::Error::custom(format_args!(
                    "a list of more than {MOST} entries"
                )));
            }
            entries.push(entry);
        }
        Ok(Capped(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_where_the_cap_is() {
        let list =
            |entries: usize| serde_json::from_str::<Capped<u8>>(&format!("[{}1]", "1,".repeat(entries - 1)));
        assert_eq!(list(MOST).expect("within the cap").0.len(), MOST);
        let error = list(MOST + 1).expect_err("beyond the cap");
        assert!(error.is_data(), "{error}");
    }
}
