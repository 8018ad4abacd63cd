//! Who runs a job.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

use uuid::Uuid;

/// One run of one server, as the owner of leases.
///
/// A server keeps its id over restarts and has a new boot id after each, so that it knows the jobs that it left
/// behind when it was killed and need not wait for their leases to run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    server: Uuid,
    boot: Uuid,
}

impl Owner {
    /// A new boot of the server with this id. No two servers that run at the same time may have the same id.
    pub fn new(server: Uuid) -> Self {
        Self {
            server,
            boot: Uuid::now_v7(),
        }
    }

    /// A new boot of the server whose id is kept in the file at `path`; the file is created when it is missing.
    /// Blocks.
    ///
    /// # Errors
    /// When the file can neither be read nor created, or holds no UUID.
    pub fn persisted(path: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => text.trim().parse().map(Self::new).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let owner = Self::new(Uuid::now_v7());
                // Written aside and renamed: a crash leaves the whole id or none.
                let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
                writeln!(file, "{}", owner.server)?;
                file.as_file().sync_all()?;
                file.persist_noclobber(path)?;
                Ok(owner)
            }
            Err(error) => Err(error),
        }
    }

    /// What the owners of all boots of this server look like to `like`.
    pub(super) fn any_boot(&self) -> String {
        format!("{}:%", self.server)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.server, self.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_keeps_its_id_over_boots() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server-id");
        let (first, second) = (
            Owner::persisted(&path).expect("created"),
            Owner::persisted(&path).expect("read"),
        );
        assert_eq!(first.server, second.server);
        assert_ne!(first.boot, second.boot);
        std::fs::write(&path, "nonsense").expect("written");
        assert!(Owner::persisted(&path).is_err());
    }
}
