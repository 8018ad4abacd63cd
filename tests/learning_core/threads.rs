//! The same fit gives the same bytes, however many threads share its work.
//!
//! There are three numbers of threads. A matrix product is split into `RAYON_NUM_THREADS` parts, what is computed value
//! by value is shared by `CANDLE_NUM_THREADS`, and a fit runs in a pool, as the learner's does in one of its own. The two
//! variables are read where they are needed, so each pair of them has a process of its own.

use std::process::Command;

use candle_core::Device;
use clipkeep::adapter::{Fitted, statistics};
use clipkeep::domain::{Digest, ModelConfig, Strategy};

use crate::strategies::{encoded, quick};
use crate::towers::Towered;
use crate::world::World;

/// In a process of this test's own: how many threads the pool has.
const POOL: &str = "CLIPKEEP_TEST_POOL";

/// Examples to learn from, so many that matrix products and what is computed value by value are large enough to be shared.
struct Examples {
    wide: World,
    /// For ridge regression, which takes longer and has wide rows anyway.
    narrow: World,
    towered: Towered,
}

/// What each strategy makes of two tasks, and keeps of them.
fn two_tasks(examples: &Examples) -> Vec<String> {
    let made = Strategy::ALL.map(|strategy| {
        let config = ModelConfig {
            epochs: 3,
            batch_size: 256,
            random_features: 512,
            ..quick(strategy)
        };
        let (first, second) = match strategy {
            Strategy::SelfAttention | Strategy::Prompt => {
                let first = recalled(examples.towered.first(&config));
                let second = examples.towered.second(&first, &config);
                (first, second)
            }
            _ => {
                let (world, known) = match strategy {
                    Strategy::Ridge => (&examples.narrow, 25),
                    _ => (&examples.wide, 120),
                };
                let first = recalled(world.first(known, &config));
                let second = world.second(&first, 1, &config);
                (first, second)
            }
        };
        let bytes = [parts(&first), parts(&second)].concat();
        let [snapshot, kept, next_snapshot, next_kept] = bytes.as_slice() else {
            panic!("two parts a version");
        };
        let keeps = strategy != Strategy::ZeroShot;
        assert!(
            snapshot != next_snapshot && (kept != next_kept) == keeps,
            "{strategy:?}"
        );
        format!("{strategy:?} {}", Digest::of(&bytes.concat()))
    });
    made.to_vec()
}

/// With what is kept of its classes as the store gives it back.
fn recalled(fitted: Fitted) -> Fitted {
    let bytes = statistics::encode(&fitted.statistics).expect("encoded");
    Fitted {
        statistics: statistics::decode(&bytes, &Device::Cpu).expect("decoded"),
        ..fitted
    }
}

/// A version's snapshot and what is kept of its classes, as they are stored.
fn parts(fitted: &Fitted) -> [Vec<u8>; 2] {
    let kept = statistics::encode(&fitted.statistics).expect("encoded");
    [encoded(&fitted.head), kept]
}

/// Numbers of threads: of a product's parts, for what is computed value by value, and of the pool.
type Threads = [usize; 3];

/// What a process of its own makes with so many threads.
fn made_with([products, values, pool]: Threads) -> String {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--exact", "threads::the_number_of_threads_does_not_matter"])
        .arg("--nocapture")
        .env("RAYON_NUM_THREADS", products.to_string())
        .env("CANDLE_NUM_THREADS", values.to_string())
        .env(POOL, pool.to_string())
        .output()
        .expect("run");
    let output = String::from_utf8(output.stdout).expect("text");
    let line = output
        .lines()
        .find_map(|line| Some(line.split_once("made ")?.1.to_owned()));
    line.unwrap_or_else(|| panic!("nothing was made: {output}"))
}

/// With [`POOL`] it is one of its own processes.
#[test]
fn the_number_of_threads_does_not_matter() {
    if let Ok(threads) = std::env::var(POOL) {
        let examples = Examples {
            wide: World::new(200),
            narrow: World::new(50),
            towered: Towered::new(),
        };
        let threads = threads.parse().expect("a number");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let made = pool.expect("threads").install(|| two_tasks(&examples));
        println!("made {}.", made.join(", "));
        return;
    }
    let alone = made_with([1, 1, 1]);
    for threads in [[2, 3, 3], [3, 2, 2]] {
        assert_eq!(made_with(threads), alone, "{threads:?}");
    }
}
