//! Learning by itself, without a server: fits on made-up features, and `clipkeep evaluate` on real ones.

mod evaluating;
mod fitting;
mod strategies;
mod unlearning;
mod vetting;
mod world;
