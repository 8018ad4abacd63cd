//! `openapi.yaml`, which clients read, is what the handlers say.

#[test]
fn the_description_in_the_repository_is_current() {
    let kept = include_str!("../openapi.yaml");
    let generated = clipkeep::http::openapi::yaml();
    let differs = kept.lines().zip(generated.lines()).position(|(a, b)| a != b);
    assert!(
        kept == generated,
        "openapi.yaml is out of date from line {} on; `just openapi` writes it anew",
        differs.unwrap_or(kept.lines().count().min(generated.lines().count())) + 1
    );
}
