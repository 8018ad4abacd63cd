//! Real shapes with random weights: gigabytes, so they are made by `make_reference.py large` and not committed.

use crate::directory::from_environment;
use crate::features::agrees_with_reference;

/// Names the directory that `make_reference.py large` wrote.
const VARIABLE: &str = "CLIPKEEP_REFERENCE";

#[test]
fn vit_b_32() {
    check("vit-b-32");
}

#[test]
fn vit_b_32_with_plain_gelu() {
    check("vit-b-32-gelu");
}

#[test]
fn vit_b_16() {
    check("vit-b-16");
}

#[test]
fn vit_l_14() {
    check("vit-l-14");
}

fn check(name: &str) {
    if let Some(root) = from_environment(VARIABLE, "the output of make_reference.py large") {
        agrees_with_reference(&root.join(name));
    }
}
