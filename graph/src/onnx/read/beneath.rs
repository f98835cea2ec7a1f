//! Files below a folder, found and opened without following a link.
//!
//! A path that is checked and then opened may lead elsewhere by then. On Unix every folder on the way is
//! therefore opened from the one before it, and the file from the last; what the opened file is, is asked of
//! itself.

use std::fs::File;
use std::path::{Component, Path};

/// A problem and a hint.
pub(super) type Problem = (String, &'static str);

const INSIDE: &str = "expected a relative path inside the model's folder";
const PLAIN: &str = "expected a plain file in the model's folder; copy the data there";

/// A plain file of its own below a folder.
pub(super) struct Found {
    /// Its length in bytes.
    pub size: u64,
    /// The same for two files only where they are one.
    pub identity: Identity,
    place: Place,
}

/// What tells files apart, however their paths are spelt.
#[cfg(unix)]
pub(super) type Identity = (u64, u64);
/// What tells files apart; here, files that a link makes one are two.
#[cfg(not(unix))]
pub(super) type Identity = std::path::PathBuf;

/// The names that a location consists of.
///
/// # Errors
/// Where it may lead out of the folder that it is relative to.
fn names(location: &str) -> Result<Vec<&str>, Problem> {
    if location.is_empty() {
        return Err(("no location is given".into(), INSIDE));
    }
    let leaves = || {
        let problem = format!("the location {location:?} may leave the folder");
        Err((problem, INSIDE))
    };
    // A backslash separates folders for readers on Windows, where this check must hold too.
    if location.contains(['\\', '\0']) {
        return leaves();
    }
    let mut names = Vec::new();
    for component in Path::new(location).components() {
        match component {
            Component::Normal(name) => names.extend(name.to_str()),
            Component::CurDir => {}
            _ => return leaves(),
        }
    }
    Ok(names)
}

fn not_regular(path: &Path) -> Problem {
    (format!("{} is not a regular file", path.display()), PLAIN)
}

fn linked(path: &Path) -> Problem {
    (format!("{} is a symbolic link", path.display()), PLAIN)
}

fn missing(path: &Path, error: impl std::fmt::Display) -> Problem {
    (format!("cannot find {}: {error}", path.display()), PLAIN)
}

fn hard_linked(path: &Path) -> Problem {
    (format!("{} has several hard links", path.display()), PLAIN)
}

fn replaced(path: &Path) -> Problem {
    let problem = format!("{} is not the file that was checked", path.display());
    (problem, "leave the data file alone while the tool runs")
}

#[cfg(unix)]
use unix::Place;

#[cfg(unix)]
mod unix {
    use super::*;
    use rustix::fd::OwnedFd;
    use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, open, openat, statat};
    use rustix::io::{Errno, retry_on_intr};
    use std::io;
    use std::path::PathBuf;

    /// Where a file was found: the opened folder and the name there.
    pub(in super::super) struct Place {
        folder: OwnedFd,
        name: String,
        path: PathBuf,
    }

    /// Finds a file; it is not opened.
    pub(in super::super) fn find(location: &str, dir: &Path) -> Result<Found, Problem> {
        const FOLDER: OFlags = OFlags::RDONLY
            .union(OFlags::DIRECTORY)
            .union(OFlags::CLOEXEC);
        let names = names(location)?;
        let mut path = dir.to_path_buf();
        let Some((name, folders)) = names.split_last() else {
            return Err(not_regular(&path));
        };
        let here = match dir.as_os_str().is_empty() {
            true => Path::new("."),
            false => dir,
        };
        // The model's own folder is the user's choice, who may have reached it through a link.
        let folder = retry_on_intr(|| open(here, FOLDER, Mode::empty()));
        let mut folder = folder.map_err(|e| missing(&path, text(e)))?;
        for name in folders {
            path.push(name);
            let flags = FOLDER | OFlags::NOFOLLOW;
            folder = retry_on_intr(|| openat(&folder, *name, flags, Mode::empty()))
                .map_err(|error| why_no_folder(&folder, name, &path, error))?;
        }
        path.push(name);
        let found = retry_on_intr(|| statat(&folder, *name, AtFlags::SYMLINK_NOFOLLOW));
        let found = found.map_err(|error| missing(&path, text(error)))?;
        check(&found, &path)?;
        Ok(Found {
            size: u64::try_from(found.st_size).unwrap_or(0),
            identity: identity(&found),
            place: Place {
                folder,
                name: (*name).to_owned(),
                path,
            },
        })
    }

    /// Opens a file that was found, if it still is that one.
    pub(in super::super) fn open_found(found: &Found) -> Result<File, Problem> {
        let Place { folder, name, path } = &found.place;
        // A pipe that has come into its place would keep us waiting.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = retry_on_intr(|| openat(folder, name.as_str(), flags, Mode::empty()));
        let file = file.map_err(|e| {
            (
                format!("cannot open {}: {}", path.display(), text(e)),
                PLAIN,
            )
        })?;
        let opened = retry_on_intr(|| fstat(&file)).map_err(|error| missing(path, text(error)))?;
        check(&opened, path)?;
        let same = identity(&opened) == found.identity;
        let size = u64::try_from(opened.st_size).unwrap_or(0);
        match same && size == found.size {
            true => Ok(File::from(file)),
            false => Err(replaced(path)),
        }
    }

    fn check(found: &Stat, path: &Path) -> Result<(), Problem> {
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => Err(linked(path)),
            FileType::RegularFile if found.st_nlink > 1 => Err(hard_linked(path)),
            FileType::RegularFile => Ok(()),
            _ => Err(not_regular(path)),
        }
    }

    // The types of the fields differ from system to system.
    #[allow(clippy::unnecessary_cast)]
    fn identity(found: &Stat) -> Identity {
        (found.st_dev as u64, found.st_ino as u64)
    }

    /// The message of the standard library for an error of the system.
    fn text(error: Errno) -> io::Error {
        io::Error::from(error)
    }

    /// A link where a folder should be is an error of several names.
    fn why_no_folder(folder: &OwnedFd, name: &str, path: &Path, error: Errno) -> Problem {
        let there = retry_on_intr(|| statat(folder, name, AtFlags::SYMLINK_NOFOLLOW));
        let link = |found: Stat| FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
        match there.is_ok_and(link) {
            true => linked(path),
            false => missing(path, text(error)),
        }
    }
}

#[cfg(unix)]
pub(super) use unix::{find, open_found};

/// The path. Without folders that can be opened, nothing keeps it from leading elsewhere later.
#[cfg(not(unix))]
type Place = std::path::PathBuf;

/// Finds a file; it is not opened.
#[cfg(not(unix))]
pub(super) fn find(location: &str, dir: &Path) -> Result<Found, Problem> {
    let mut path = dir.to_path_buf();
    let mut last = None;
    for name in names(location)? {
        path.push(name);
        let metadata = std::fs::symlink_metadata(&path).map_err(|error| missing(&path, error))?;
        if metadata.file_type().is_symlink() {
            return Err(linked(&path));
        }
        last = Some(metadata);
    }
    match last.filter(std::fs::Metadata::is_file) {
        Some(metadata) => Ok(Found {
            size: metadata.len(),
            identity: path.clone(),
            place: path,
        }),
        None => Err(not_regular(&path)),
    }
}

/// Opens a file that was found, if it still is that one.
#[cfg(not(unix))]
pub(super) fn open_found(found: &Found) -> Result<File, Problem> {
    let path = &found.place;
    let file = File::open(path).map_err(|error| missing(path, error))?;
    let metadata = file.metadata().map_err(|error| missing(path, error))?;
    match metadata.is_file() && metadata.len() == found.size {
        true => Ok(file),
        false => Err(replaced(path)),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{find, open_found};
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// A folder `in` with `w.bin` and `sub/w.bin`, and one outside with files of the same names.
    fn folders() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("in", "inner"), ("outside", "other")] {
            fs::create_dir_all(folder.path().join(name).join("sub")).unwrap();
            fs::write(folder.path().join(name).join("w.bin"), text).unwrap();
            fs::write(folder.path().join(name).join("sub/w.bin"), text).unwrap();
        }
        folder
    }

    /// What is read where `exchange` happens between the check and the opening.
    fn read(location: &str, exchange: impl FnOnce(&Path)) -> Result<String, String> {
        let folder = folders();
        let found = find(location, &folder.path().join("in")).map_err(|(problem, _)| problem)?;
        exchange(folder.path());
        let mut file = open_found(&found).map_err(|(problem, _)| problem)?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn what_is_opened_is_what_was_checked() {
        assert_eq!(read("sub/w.bin", |_| {}).unwrap(), "inner");
        let linked = |at: &Path| {
            fs::remove_file(at.join("in/w.bin")).unwrap();
            symlink("../outside/w.bin", at.join("in/w.bin")).unwrap();
        };
        assert!(read("w.bin", linked).unwrap_err().contains("cannot open"));
        let renamed =
            |at: &Path| fs::rename(at.join("outside/w.bin"), at.join("in/w.bin")).unwrap();
        assert!(
            read("w.bin", renamed)
                .unwrap_err()
                .contains("not the file that was checked")
        );
        let longer = |at: &Path| fs::write(at.join("in/w.bin"), "longer than it was").unwrap();
        assert!(
            read("w.bin", longer)
                .unwrap_err()
                .contains("not the file that was checked")
        );
        let hard = |at: &Path| fs::hard_link(at.join("in/w.bin"), at.join("outside/more")).unwrap();
        assert!(
            read("w.bin", hard)
                .unwrap_err()
                .contains("several hard links")
        );
        // Opened plainly, it would wait for somebody who writes.
        let pipe = |at: &Path| {
            fs::remove_file(at.join("in/w.bin")).unwrap();
            mknodat(CWD, at.join("in/w.bin"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        };
        assert!(
            read("w.bin", pipe)
                .unwrap_err()
                .contains("not a regular file")
        );
    }

    /// The folder that was checked is held, and its name is not looked for again.
    #[test]
    fn a_folder_that_becomes_a_link_leads_nowhere() {
        let linked = |at: &Path| {
            fs::rename(at.join("in/sub"), at.join("in/old")).unwrap();
            symlink("../outside/sub", at.join("in/sub")).unwrap();
        };
        assert_eq!(read("sub/w.bin", linked).unwrap(), "inner");
        let folder = folders();
        linked(folder.path());
        let error = find("sub/w.bin", &folder.path().join("in"))
            .err()
            .unwrap()
            .0;
        assert!(error.contains("symbolic link"), "{error}");
    }
}
