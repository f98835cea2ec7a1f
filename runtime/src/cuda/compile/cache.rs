//! Compiled kernels on disk.
//!
//! A cache may be missing, read-only, full, shared by several processes, or damaged: kernels are compiled
//! anew then, and nothing else changes. A file holds the hash of its contents in front of them, and is
//! moved to its place when it is whole.

use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::{env, fs, process};

const HASH: usize = 32;

/// A folder of compiled kernels; `None` where nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct Cache(Option<PathBuf>);

impl Cache {
    /// A cache in a folder, which is made when something is put in.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Cache(Some(folder.into()))
    }

    /// The user's own cache: `velora-opt/kernels` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    pub fn of_user() -> Self {
        let folder = |name: &str| {
            let value = env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let base = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        Cache(base.map(|base| base.join("velora-opt").join("kernels")))
    }

    /// What was put in under a name, if it is whole.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let contents = fs::read(self.0.as_ref()?.join(key)).ok()?;
        let (hash, image) = contents.split_at_checked(HASH)?;
        (Sha256::digest(image)[..] == *hash).then(|| image.to_vec())
    }

    /// Keeps something under a name, where that is possible.
    pub fn put(&self, key: &str, image: &[u8]) {
        let Some(folder) = &self.0 else { return };
        let temporary = folder.join(format!("{key}.{}", process::id()));
        let mut contents = Sha256::digest(image).to_vec();
        contents.extend_from_slice(image);
        let kept = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&temporary, contents))
            .and_then(|()| fs::rename(&temporary, folder.join(key)));
        if kept.is_err() {
            // Nothing depends on it; what is left of it would only take room.
            let _ = fs::remove_file(&temporary);
        }
    }
}
