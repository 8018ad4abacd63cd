//! The backbone against the reference implementation, `transformers`.
//!
//! `make_reference.py` wrote `data/`: tiny models with their outputs, prompts with their ids, pictures with their
//! pixels. `make_prompt_gradients.py` printed the numbers in `prompts.rs`. What needs files that are not in this repository says what it skipped and why.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod contradictions;
mod directory;
mod embedded;
mod faults;
mod features;
mod large;
mod preprocessing;
mod prompts;
mod readout;
mod real;
mod second_opinion;
mod sources;
mod tokens;
