//! CLIP's own tokenizer against `transformers`' ids.

use clipkeep::clip::ClipTokenizer;

use crate::directory::{pinned, shared};

#[test]
fn ids_agree_with_reference() {
    let Some(file) = shared("data/clip-reference/tokenizer.json") else {
        return;
    };
    let tokenizer = ClipTokenizer::from_json(&std::fs::read(file).unwrap(), 77).unwrap();
    let pinned = std::fs::read(pinned("tokens.json")).unwrap();
    let pinned: Vec<(String, Vec<u32>)> = serde_json::from_slice(&pinned).unwrap();
    assert!(pinned.len() >= 1000, "only {} prompts", pinned.len());
    let truncated = pinned.iter().filter(|(_, ids)| ids.len() == 77).count();
    assert!(truncated >= 10, "only {truncated} prompts fill the context");
    for (text, ids) in &pinned {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn truncation_keeps_the_end() {
    let tokenizer = std::fs::read(pinned("quick-gelu/tokenizer.json")).unwrap();
    let tokenizer = ClipTokenizer::from_json(&tokenizer, 5).unwrap();
    let short = tokenizer.encode("").unwrap();
    let long = tokenizer.encode("a b c d e f").unwrap();
    assert_eq!((short.len(), long.len()), (2, 5));
    assert_eq!((short[0], short[1]), (long[0], long[4]));
}
