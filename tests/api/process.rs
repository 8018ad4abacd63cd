//! The server as a process of its own, to be measured and killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};

use crate::caller::Caller;
use crate::database::Database;

/// A server that runs as `clipkeep`; killed when dropped.
pub(crate) struct Process {
    caller: Caller,
    pub(crate) child: Child,
}

impl Process {
    /// Starts a server on the database, told what `flags` say, and waits until it listens.
    pub(crate) fn start(database: &Database, flags: &[&str]) -> Self {
        let data_dir = database.data_dir("process");
        std::fs::create_dir_all(&data_dir).expect("a directory");
        let log = data_dir.join("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_clipkeep"))
            .args(["--listen", "127.0.0.1:0", "--device", "cpu", "--data-dir"])
            .arg(&data_dir)
            .args(["--database-url", database.url()])
            .args(flags)
            // Whatever it holds, the program sets it anew.
            .env("RAYON_NUM_THREADS", "7")
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("the program starts");
        let mut said = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("a line");
        let Some(origin) = said.trim().strip_prefix("clipkeep listens on ") else {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            panic!("the server said {said:?} and logged {log}");
        };
        Self {
            caller: Caller::new(origin.to_owned()),
            child,
        }
    }
}

impl Drop for Process {
    /// Sends SIGKILL: the server gets no chance to tidy up.
    fn drop(&mut self) {
        self.child.kill().expect("the server still runs");
        self.child.wait().expect("an exit status");
    }
}

impl Deref for Process {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}
