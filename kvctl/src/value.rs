//! Values are bytes: where they come from, how they are checked and described.

use crate::cli::Put;
use crate::error::Failure;
use crate::exit::Exit;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proto::MESSAGE_BYTES_MAX;
use proto::v1::Sibling;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;

/// Longest value that leaves room for the rest of its message. What a keyspace allows is the
/// server's to judge.
pub(crate) const SENDABLE_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64 * 1024;

/// The value a put names. Exactly one source.
pub(crate) async fn of_put(put: &mut Put) -> Result<Bytes, Failure> {
    let literal = put.value.take();
    let flags = put.value_file.is_some() || put.value_b64.is_some() || put.value_hex.is_some();
    if literal.is_some() && flags {
        return Err(Failure::usage("the value is given twice"));
    }
    let value: Bytes = match (literal, &put.value_file, &put.value_b64, &put.value_hex) {
        (Some(value), ..) => value.into_vec().into(),
        (_, Some(path), ..) if path.as_os_str() != "-" => file(path).await?,
        (_, _, Some(text), _) => from_base64(text)?.into(),
        (_, _, _, Some(text)) => from_hex(text)?.into(),
        _ => stdin(put.value_file.is_some()).await?,
    };
    check_size(value.len())?;
    Ok(value)
}

/// Refuses a value that fits in no message.
pub(crate) fn check_size(length: usize) -> Result<(), Failure> {
    if length <= SENDABLE_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Usage,
        "VALUE_TOO_LARGE",
        format!("no value may have more than {SENDABLE_BYTES_MAX} bytes"),
    )
    .state("nothing was sent"))
}

/// Refuses a value that is not what its writer sent.
pub(crate) fn verify(key: &[u8], sibling: &Sibling) -> Result<(), Failure> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&sibling.value);
    let found = hasher.finalize();
    if found == sibling.checksum {
        return Ok(());
    }
    let what = format!(
        "the value of {} is damaged: checksum {found:08x}, written with {:08x}",
        crate::key::show(key),
        sibling.checksum
    );
    Err(Failure::new(Exit::Internal, "CHECKSUM_MISMATCH", what)
        .state("nothing was written to stdout")
        .advice("the same command through another node, with --endpoint HOST:PORT"))
}

/// SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lowercase hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Base64, standard alphabet, padded.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes a base64 text stands for.
pub(crate) fn from_base64(text: &str) -> Result<Vec<u8>, Failure> {
    STANDARD.decode(text.trim()).map_err(|error| Failure::usage(format!("not base64: {error}")))
}

/// The bytes a hex text stands for.
pub(crate) fn from_hex(text: &str) -> Result<Vec<u8>, Failure> {
    let digits: Option<Vec<u8>> =
        text.trim().chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => {
            Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
        _ => Err(Failure::usage("not hex: an even number of 0-9a-f is needed")),
    }
}

/// Whether a terminal would show these bytes as the text they are.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_ok_and(|text| !text.chars().any(|c| c.is_control() && !"\n\t\r".contains(c)))
}

/// The first characters of a value that is text, on one line; empty if it is not.
pub(crate) fn preview(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    if !is_text(bytes) {
        return String::new();
    }
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// A number of bytes for people: `412 B`, `51.2 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0 of the smaller unit.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Writes a file so that it is there whole or not at all: a temporary one beside it is renamed.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    replace_file(&folder, path, bytes).map_err(|error| Failure::file(path, &error))
}

fn replace_file(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Renaming over a pipe or a device (/dev/null) would replace it.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return std::fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    // Less the umask, as any new file.
    let mut file =
        tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

async fn file(path: &Path) -> Result<Bytes, Failure> {
    match tokio::fs::read(path).await {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(Failure::usage(format!("value file {}: {error}", path.display()))),
    }
}

async fn stdin(asked_for: bool) -> Result<Bytes, Failure> {
    if io::stdin().is_terminal() && !asked_for {
        return Err(Failure::usage("no value is given")
            .advice("kvctl put KEY VALUE, or kvctl put KEY < FILE; see kvctl help put"));
    }
    let mut value = Vec::new();
    tokio::io::stdin()
        .take(SENDABLE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut value)
        .await
        .map_err(|error| Failure::usage(format!("stdin: {error}")))?;
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_survive_hex_and_base64(bytes: Vec<u8>) {
            prop_assert_eq!(&from_hex(&hex(&bytes)).unwrap(), &bytes);
            prop_assert_eq!(&from_base64(&base64(&bytes)).unwrap(), &bytes);
        }
    }

    #[test]
    fn what_is_not_hex_or_base64_is_a_usage_error() {
        for bad in ["a", "zz", "0x00", "é"] {
            assert_eq!(from_hex(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
        assert_eq!(from_base64("a*").unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_damaged_value_is_refused() {
        let mut sibling = Sibling {
            value: Bytes::from_static(b"value"),
            checksum: crc32fast::hash(b"keyvalue"),
            ..Default::default()
        };
        assert!(verify(b"key", &sibling).is_ok());
        assert_eq!(verify(b"yek", &sibling).unwrap_err().code(), "CHECKSUM_MISMATCH");
        sibling.checksum ^= 1;
        assert!(verify(b"key", &sibling).is_err());
    }

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (53_687_091, "51.2 MiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_preview_is_one_line_of_text_or_nothing() {
        assert_eq!(preview(b"a\nb"), "a b");
        assert_eq!(preview(b"a\x1b[2J"), "");
        assert_eq!(preview(&[b'x'; 41]), format!("{}…", "x".repeat(40)));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"2").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
