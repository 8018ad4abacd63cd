//! Learning by itself, without a server: fits on made-up features, and `clipkeep evaluate` on features and images.

mod closed_forms;
mod evaluating;
mod evaluating_images;
mod fitting;
mod strategies;
mod threads;
mod towers;
mod unlearning;
mod vetting;
mod world;
