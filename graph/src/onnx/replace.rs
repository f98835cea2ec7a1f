//! Putting a file in place as a whole: whatever happens on the way, and whenever the process ends, there is
//! the old file or the new one under the name.
//!
//! The content goes to a file beside the target, which is synced and then renamed. On Linux that file has
//! no name until it is complete (`O_TMPFILE`), so that the system itself takes it away with a process that
//! dies. Where a file system has no such files it is named `.velora-XXXXXX.tmp` from the start, as all are
//! in the moment between their completion and the renaming. Such names may outlive their process; the next
//! file that is put into the folder removes those that nobody holds the lock of.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use super::read::FileError;

const PREFIX: &str = ".velora-";
const SUFFIX: &str = ".tmp";
/// The number of random characters between the two.
const RANDOM: usize = 6;

/// Writes a file, which appears complete, or not at all: see [`Staged`].
///
/// # Errors
/// Those of [`Staged::write`] and [`Staged::commit`].
pub fn replace(
    path: &Path,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    Staged::write(path, content)?.commit()
}

/// Whether [`replace`] could write a file now, for those who have long work to do before they write.
///
/// # Errors
/// What [`replace`] would say; nothing is left behind.
pub fn check_replaceable(path: &Path) -> Result<(), FileError> {
    Staged::begin(path).map(drop)
}

/// A file that is complete and on the disk, but not yet in its place. Dropped, it is gone.
///
/// Several files that belong together are all staged before the first one is put in place: what fails
/// because of a full disk then fails with all old files intact.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Has no name, and is gone with the process, however that ends.
    Unnamed(File),
    /// Removes itself when dropped.
    Named(NamedTempFile),
}

impl Staged {
    /// Writes the content that `path` is to have, beside it, and syncs it.
    ///
    /// An existing file is replaced later, and its permissions are kept; a symbolic link is replaced rather
    /// than followed.
    ///
    /// # Errors
    /// Where the folder is missing or cannot be written to, where there is a folder, a device or a
    /// write-protected file in the place, and what `content` returns.
    pub fn write(
        path: &Path,
        content: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<Self, FileError> {
        let mut staged = Staged::begin(path)?;
        let file = match &mut staged.content {
            Content::Unnamed(file) => file,
            Content::Named(file) => file.as_file_mut(),
        };
        let written = content(file).and_then(|()| file.sync_all());
        written.map_err(|source| failed("write", path, source))?;
        Ok(staged)
    }

    /// Where the file is to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// Where that cannot be done, and the old file is still there; or where the folder cannot be synced, and
    /// the new file is in place, but may not survive that the machine stops.
    pub fn commit(self) -> Result<(), FileError> {
        let Staged { path, content } = self;
        let named = match content {
            Content::Named(file) => file,
            Content::Unnamed(file) => {
                name(file, &path).map_err(|source| failed("write", &path, source))?
            }
        };
        let placed = named.persist(&path);
        placed.map_err(|error| failed("write", &path, error.error))?;
        sync_folder(folder_of(&path)).map_err(|source| failed("sync the folder of", &path, source))
    }

    fn begin(path: &Path) -> Result<Self, FileError> {
        // Renaming onto a device or a pipe would replace it.
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let path = path.to_path_buf();
            return Err(FileError::NotAFile { path });
        }
        let folder = folder_of(path);
        if !folder.is_dir() {
            return Err(FileError::NoFolder {
                path: path.to_path_buf(),
                folder: folder.to_path_buf(),
            });
        }
        // Of a link nothing is kept: it is replaced.
        let old = fs::symlink_metadata(path).ok().filter(|old| old.is_file());
        let permissions = old.map(|old| old.permissions());
        // Renaming needs no right to the file itself, but whoever took that away meant it.
        if permissions.as_ref().is_some_and(|p| p.readonly()) {
            let path = path.to_path_buf();
            return Err(FileError::Protected { path });
        }
        #[cfg(unix)]
        remove_abandoned(folder);
        let io_error = |source| failed("write", path, source);
        let content = match unnamed(folder) {
            Some(file) => Content::Unnamed(file),
            None => Content::Named(create(folder).map_err(io_error)?),
        };
        if let Some(permissions) = permissions {
            let file = match &content {
                Content::Unnamed(file) => file,
                Content::Named(file) => file.as_file(),
            };
            keep(file, permissions).map_err(io_error)?;
        }
        Ok(Staged {
            path: path.to_path_buf(),
            content,
        })
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> FileError {
    FileError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}

/// The folder of a file, `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Gives the new file the permissions of the one that it is to replace.
fn keep(file: &File, permissions: fs::Permissions) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Not what makes a program run as somebody else.
        let mode = permissions.mode() & 0o777;
        if file.metadata()?.permissions().mode() & 0o777 != mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
    }
    #[cfg(not(unix))]
    let _ = (file, permissions);
    Ok(())
}

/// A locked file without a name; `None` where the system or the file system has none, or where such a file
/// could not be given a name.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> Option<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    // Less the umask, as for any new file.
    let options = options.read(true).write(true).mode(0o666);
    let flags = i32::try_from(OFlags::TMPFILE.bits()).ok()?;
    // Whatever is wrong, creating a file by name finds it as well, and says it better.
    let file = options.custom_flags(flags).open(folder).ok()?;
    fs::metadata(by_descriptor(&file)).ok()?;
    // A file system without locks cannot give abandoned files away either.
    let _ = file.try_lock();
    Some(file)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn by_descriptor(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Gives a complete file a name beside its target.
#[cfg(target_os = "linux")]
fn name(mut file: File, path: &Path) -> io::Result<NamedTempFile> {
    use io::{ErrorKind, Seek};
    use rustix::fs::{AtFlags, CWD, linkat};
    let folder = folder_of(path);
    let from = by_descriptor(&file);
    let link = |to: &Path| Ok(linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW)?);
    match naming().make_in(folder, link) {
        // The file stays open, and locked, until it is in place.
        Ok(named) => Ok(NamedTempFile::from_parts(file, named.into_temp_path())),
        // Some file systems have such files and cannot name them.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Unsupported
                    | ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::CrossesDevices
            ) =>
        {
            let mut named = create(folder)?;
            keep(named.as_file(), file.metadata()?.permissions())?;
            file.rewind()?;
            io::copy(&mut file, named.as_file_mut())?;
            named.as_file().sync_all()?;
            Ok(named)
        }
        Err(error) => Err(without_temporary_name(error)),
    }
}

#[cfg(not(target_os = "linux"))]
fn name(_: File, _: &Path) -> io::Result<NamedTempFile> {
    Err(io::ErrorKind::Unsupported.into())
}

fn naming<'a, 'b>() -> Builder<'a, 'b> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(RANDOM);
    #[cfg(unix)]
    {
        // Less the umask, as for any new file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder
}

/// A new file with a temporary name, locked where the file system has locks.
fn create(folder: &Path) -> io::Result<NamedTempFile> {
    let create = || naming().tempfile_in(folder).map_err(without_temporary_name);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // In the moment before it is locked, another process may take it for abandoned.
        const ATTEMPTS: usize = 64;
        for _ in 0..ATTEMPTS {
            let named = create()?;
            match named.as_file().try_lock() {
                Err(fs::TryLockError::WouldBlock) => continue,
                Err(fs::TryLockError::Error(_)) => return Ok(named),
                Ok(()) if named.as_file().metadata()?.nlink() > 0 => return Ok(named),
                Ok(()) => continue,
            }
        }
    }
    create()
}

/// The system's message without the temporary file's name, which says nothing and is never the same.
/// The crate keeps the system's error to itself, so that only the text can be taken apart.
fn without_temporary_name(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path ") {
        Some((system, _)) => io::Error::new(error.kind(), system),
        None => error,
    }
}

/// Makes a renaming last. Where a file system, or a folder that may not be read, cannot be synced, the
/// file is no less in place.
fn sync_folder(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Not every system opens folders.
        Err(_) if cfg!(not(unix)) => Ok(()),
        Err(e) if matches!(e.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Removes the temporary files in a folder whose processes are gone.
#[cfg(unix)]
fn remove_abandoned(folder: &Path) {
    // Nothing here is needed for the work to be done, so no error is one.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_temporary) {
            remove_if_abandoned(&entry.path());
        }
    }
}

#[cfg(unix)]
fn is_temporary(name: &str) -> bool {
    let random = { name.strip_prefix(PREFIX) }.and_then(|rest| rest.strip_suffix(SUFFIX));
    random.is_some_and(|r| r.len() == RANDOM && r.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(unix)]
fn remove_if_abandoned(path: &Path) -> Option<()> {
    use std::os::unix::fs::MetadataExt;
    // Before it is opened, which could wait if it were a pipe.
    fs::symlink_metadata(path).ok()?.is_file().then_some(())?;
    // To write, because locks of some network file systems ask for that.
    let file = File::options().read(true).write(true).open(path).ok()?;
    // Whoever writes it, or is about to rename it, holds the lock; it goes with the process.
    file.try_lock().ok()?;
    let (held, named) = (file.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    let is_same = (held.dev(), held.ino()) == (named.dev(), named.ino());
    is_same.then(|| fs::remove_file(path))?.ok()
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn abandoned_files_are_removed_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // As a killed process leaves them; a living one's; and whatever else begins so.
        fs::write(folder.join(".velora-abcDE1.tmp"), "half").unwrap();
        let living = create(folder).unwrap();
        for other in [
            ".velora-notes.tmp",
            ".velora-abcde.tmp",
            ".velora-a_cdef.tmp",
        ] {
            fs::write(folder.join(other), "mine").unwrap();
        }
        fs::create_dir(folder.join(".velora-folder.tmp")).unwrap();
        std::os::unix::fs::symlink("there", folder.join(".velora-linked.tmp")).unwrap();
        replace(&folder.join("out"), |file| {
            io::Write::write_all(file, b"new")
        })
        .unwrap();
        let mut expected = vec![
            ".velora-a_cdef.tmp".to_owned(),
            ".velora-abcde.tmp".to_owned(),
            ".velora-folder.tmp".to_owned(),
            ".velora-linked.tmp".to_owned(),
            ".velora-notes.tmp".to_owned(),
            living
                .path()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
            "out".to_owned(),
        ];
        expected.sort();
        assert_eq!(names(folder), expected);
        living.persist(folder.join("other")).unwrap();
    }

    #[test]
    fn nothing_is_left_of_what_is_not_put_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();
        let full = replace(&path, |file| {
            io::Write::write_all(file, b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(
            full,
            Err(FileError::Io {
                action: "write",
                ..
            })
        ));
        drop(Staged::write(&path, |_| Ok(())).unwrap());
        assert_eq!(names(folder.path()), ["out"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn permissions_are_kept_and_respected() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        for kept in [0o600, 0o640, 0o755] {
            set(kept);
            replace(&path, |_| Ok(())).unwrap();
            assert_eq!(mode(), kept);
        }
        set(0o4755);
        replace(&path, |_| Ok(())).unwrap();
        assert_eq!(mode(), 0o755, "a new program does not run as somebody else");
        set(0o444);
        let refused = replace(&path, |_| Ok(()));
        assert!(
            matches!(refused, Err(FileError::Protected { .. })),
            "{refused:?}"
        );
    }
}
