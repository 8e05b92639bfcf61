//! A directory as keys and values: the path below it is the key, the file's bytes the value.

use crate::error::Failure;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// A regular file below the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeFile {
    pub path: PathBuf,
    /// The path relative to the directory.
    pub below: Vec<u8>,
    pub length: u64,
}

/// Every regular file below `folder`, in order of path. Symbolic links are not followed: they
/// could lead out of the tree, or round in circles.
pub(crate) fn walk(folder: &Path) -> Result<Vec<TreeFile>, Failure> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inside) = folders.pop() {
        let failed = |error: io::Error| Failure::file(&inside, &error);
        for entry in fs::read_dir(&inside).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let below = path.strip_prefix(folder).unwrap_or(&path).to_owned();
                found.push(TreeFile {
                    below: below.into_os_string().into_vec(),
                    length: entry.metadata().map_err(failed)?.len(),
                    path,
                });
            }
        }
    }
    found.sort_by(|a, b| a.below.cmp(&b.below));
    Ok(found)
}

/// Writes the file that `below` names below `folder`, making the directories between.
pub(crate) fn write(folder: &Path, below: &[u8], bytes: &[u8]) -> Result<(), Failure> {
    let relative = inside(below)?;
    let path = folder.join(relative);
    make_folders(folder, relative)?;
    if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(Failure::file(&path, &io::Error::other("is there and is no file")));
    }
    crate::value::write_file(&path, bytes)
}

/// The relative path a key names, if it stays below the directory.
fn inside(below: &[u8]) -> Result<&Path, Failure> {
    let refused = |why: &str| {
        Err(Failure::new(
            crate::exit::Exit::Refused,
            "KEY_NOT_A_PATH",
            format!("{} names no file below the directory: {why}", crate::key::show(below)),
        ))
    };
    if below.contains(&0) {
        return refused("it contains a NUL");
    }
    for segment in below.split(|byte| *byte == b'/') {
        match segment {
            b"" => return refused("it has an empty segment"),
            b"." | b".." => return refused("it has a . or .. segment"),
            _ => {}
        }
    }
    let path = Path::new(OsStr::from_bytes(below));
    debug_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
    Ok(path)
}

/// Makes the directories one by one: a symbolic link among them would lead out of the tree.
fn make_folders(folder: &Path, relative: &Path) -> Result<(), Failure> {
    let mut path = folder.to_owned();
    fs::create_dir_all(&path).map_err(|error| Failure::file(&path, &error))?;
    for component in relative.parent().into_iter().flat_map(Path::components) {
        path.push(component);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let error = io::Error::other("is there and is no directory");
                return Err(Failure::file(&path, &error));
            }
            Err(_) => fs::create_dir(&path).map_err(|error| Failure::file(&path, &error))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_below_a_directory_is_found_there() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), b"b/c", b"1").unwrap();
        write(folder.path(), b"a", b"").unwrap();
        write(folder.path(), b"b/\xff", b"22").unwrap();
        std::os::unix::fs::symlink("/etc", folder.path().join("link")).unwrap();
        let found: Vec<_> = walk(folder.path())
            .unwrap()
            .into_iter()
            .map(|file| (file.below, file.length))
            .collect();
        assert_eq!(found, [(b"a".to_vec(), 0), (b"b/c".to_vec(), 1), (b"b/\xff".to_vec(), 2)]);
    }

    #[test]
    fn nothing_is_written_outside_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        write(folder.path(), b"file", b"").unwrap();
        let bad: [&[u8]; 12] = [
            b"",
            b"/etc/x",
            b"../x",
            b"a/../../x",
            b"a//b",
            b"a/",
            b".",
            b"./a",
            b"a\0b",
            b"link/x",
            b"link",
            b"file/x",
        ];
        for key in bad {
            assert!(write(folder.path(), key, b"x").is_err(), "{}", crate::key::show(key));
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
