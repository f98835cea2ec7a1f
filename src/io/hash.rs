//! SHA-256 of files, so that a certificate says what it is about.

use super::external::{check, open};
use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use velora_graph::ir::Model;

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hashed {
    /// The path as given, or for external data as the model has it.
    pub path: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// A model's files and their hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fingerprint {
    /// The model.
    #[serde(flatten)]
    pub model: Hashed,
    /// The files that hold data of its tensors, by path.
    pub external_data: Vec<Hashed>,
}

/// Hashes a model's files.
///
/// # Errors
/// Where one cannot be read, or a reference leaves the model's folder.
pub fn fingerprint(path: &Path, model: &Model) -> Result<Fingerprint> {
    let external = check(&mut model.to_proto(), Some(path))?;
    let external = external.iter().flat_map(|external| {
        let files = external.locations.iter();
        files.map(|location| {
            Ok(Hashed {
                path: location.display().to_string(),
                sha256: digest(open(external.folder, location)?, location)?,
            })
        })
    });
    Ok(Fingerprint {
        model: Hashed {
            path: path.display().to_string(),
            sha256: sha256(path)?,
        },
        external_data: external.collect::<Result<_>>()?,
    })
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// Where it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    digest(File::open(path).with_context(unreadable)?, path)
}

/// SHA-256 of an opened file, in hexadecimal.
fn digest(mut file: File, path: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).with_context(unreadable)?;
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::sha256;

    /// The examples of FIPS 180-2, appendix B: one block, and a million letters.
    #[test]
    fn hashes_are_those_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        std::fs::write(&path, "a".repeat(1_000_000)).unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
    }
}
