//! Copying a file's content, as large as it may be.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;

/// How much is copied before the progress is told, in bytes.
const PART: u64 = 32 << 20;

/// Copies a file's content into an empty one; `progress` is told the bytes that are done, and all.
///
/// The system copies, where it can: on file systems that share blocks between files, nothing is copied at
/// all. Holes stay holes. No memory is needed for the content, and a source that becomes shorter is an error.
///
/// # Errors
/// What the system says, and `UnexpectedEof` where the source became shorter.
pub fn copy(mut from: &File, mut to: &File, mut progress: impl FnMut(u64, u64)) -> io::Result<()> {
    let length = from.metadata()?.len();
    let mut at = 0;
    while let Some(extent) = next_extent(from, at, length)? {
        at = extent.start;
        while at < extent.end {
            from.seek(SeekFrom::Start(at))?;
            to.seek(SeekFrom::Start(at))?;
            let mut part = from.take(PART.min(extent.end - at));
            at += match io::copy(&mut part, &mut to) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            progress(at, length);
        }
    }
    // What follows the last extent is a hole.
    to.set_len(length)
}

/// The next bytes that are not a hole, at or after a position.
#[cfg(target_os = "linux")]
fn next_extent(file: &File, at: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    if at >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that does not know holes has none.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(at..length)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?.min(length);
    Ok((start < end).then_some(start..end))
}

#[cfg(not(target_os = "linux"))]
fn next_extent(_: &File, at: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    Ok((at < length).then_some(at..length))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    /// Bytes that are no hole, and where they are.
    type Part<'a> = (u64, &'a [u8]);

    fn file_of(parts: &[Part<'_>], length: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for (at, bytes) in parts {
            file.seek(SeekFrom::Start(*at)).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.set_len(length).unwrap();
        file
    }

    fn content(mut file: &File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn copies_are_the_same_bytes_wherever_the_holes_are() {
        let some = [7; 5000];
        let cases: [(&[Part<'_>], u64); 6] = [
            (&[], 0),
            (&[], 1 << 20),
            (&[(0, &some)], 5000),
            (&[(0, &some)], 1 << 20),
            (&[((1 << 20) - 5000, &some)], 1 << 20),
            (&[(12_345, &some), (400_000, &some)], 1 << 20),
        ];
        for (parts, length) in cases {
            let (from, to) = (file_of(parts, length), tempfile::tempfile().unwrap());
            let mut last = 0;
            copy(&from, &to, |done, all| {
                assert!(last < done && done <= all && all == length);
                last = done;
            })
            .unwrap();
            assert!(content(&to) == content(&from), "{parts:?} of {length}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let from = file_of(&[(1 << 30, b"some")], 3 << 30);
        // Some file systems have none.
        if from.metadata().unwrap().blocks() > 1 << 20 {
            return;
        }
        let to = tempfile::tempfile().unwrap();
        copy(&from, &to, |_, _| {}).unwrap();
        let copied = to.metadata().unwrap();
        assert_eq!(copied.len(), 3 << 30);
        assert!(copied.blocks() < 1024, "{} blocks", copied.blocks());
    }

    #[test]
    fn a_source_that_becomes_shorter_is_an_error() {
        let length = PART + 5000;
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut writer = &from;
        writer.write_all(&vec![7; length as usize]).unwrap();
        let error = copy(&from, &to, |done, _| {
            if done == PART {
                from.set_len(PART).unwrap();
            }
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
