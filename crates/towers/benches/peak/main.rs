//! How many operations a second the processor can do at most: loops of nothing but one instruction, on registers, by all threads.
//!
//!     cargo bench -p clipkeep-towers --bench peak -- [--threads N] [INSTRUCTION …]
//!
//! Prints one JSON object a line for each instruction that the processor has, or for those that are named, and says on standard
//! error which were left out. An operation is one multiplication or one addition. Instructions take turns; medians are told.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::process::exit;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Runs of each instruction, and how long one takes.
const RUNS: usize = 5;
const RUN: Duration = Duration::from_millis(500);

/// An instruction, many times.
struct Instruction {
    name: &'static str,
    /// Of one `repeat`.
    operations: f64,
    /// `None` where the processor or the system has it not.
    repeat: Option<fn()>,
}

fn main() {
    let asked = Asked::read(std::env::args().skip(1)).unwrap_or_else(|problem| {
        eprintln!("{problem}\nusage: peak [--threads N] [INSTRUCTION …]");
        exit(2);
    });
    #[cfg(target_arch = "x86_64")]
    let all = x86::all();
    #[cfg(not(target_arch = "x86_64"))]
    let all = Vec::new(); // Only instructions of x86 are written out.
    let mut found = Vec::new();
    for Instruction {
        name,
        operations,
        repeat,
    } in all
    {
        match repeat {
            Some(repeat) if asked.includes(name) => found.push((name, operations, repeat, Vec::new())),
            None if asked.includes(name) => eprintln!("skipped: {name}, which is not to be had here"),
            _ => {}
        }
    }
    for _ in 0..RUNS {
        for (_, operations, repeat, rates) in &mut found {
            rates.push(*operations * repeats_per_second(*repeat, asked.threads));
        }
    }
    for (name, _, _, mut rates) in found {
        rates.sort_by(f64::total_cmp);
        let (threads, median) = (asked.threads, rates[RUNS / 2]);
        println!(
            r#"{{"instruction": "{name}", "threads": {threads}, "operations_per_second": {median:.0}}}"#
        );
    }
}

/// What the command line asks for.
struct Asked {
    threads: usize,
    /// All, where none is named.
    instructions: Vec<String>,
}

impl Asked {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self {
            threads: thread::available_parallelism().map_or(1, usize::from),
            instructions: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // What cargo adds.
                "--bench" => {}
                "--threads" => {
                    let number = arguments.next().and_then(|number| number.parse().ok());
                    let number = number.filter(|number| *number > 0);
                    asked.threads = number.ok_or("--threads takes a number")?;
                }
                flag if flag.starts_with('-') => return Err(format!("{flag} is not known")),
                _ => asked.instructions.push(argument),
            }
        }
        Ok(asked)
    }

    fn includes(&self, name: &str) -> bool {
        self.instructions.is_empty() || self.instructions.iter().any(|asked| asked == name)
    }
}

/// Of one run of all threads.
fn repeats_per_second(repeat: fn(), threads: usize) -> f64 {
    let begin = Barrier::new(threads);
    let run = || {
        begin.wait();
        let (begun, mut repeats) = (Instant::now(), 0.0);
        while begun.elapsed() < RUN {
            repeat();
            repeats += 1.0;
        }
        repeats / begun.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let rates = running
            .into_iter()
            .map(|thread| thread.join().expect("a thread that only counts"));
        rates.sum()
    })
}
