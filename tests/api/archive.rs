//! Archives of class folders.

use std::io::{Cursor, Write as _};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A zip of these files; a name that ends with `/` is a folder.
pub(crate) fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    for (name, content) in files {
        if name.ends_with('/') {
            archive
                .add_directory(name.as_str(), options)
                .expect("a folder is added");
        } else {
            archive
                .start_file(name.as_str(), options)
                .expect("a file is added");
            archive.write_all(content).expect("a file is written");
        }
    }
    archive.finish().expect("the archive is whole").into_inner()
}
