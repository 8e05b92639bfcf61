//! Keys are bytes: how they are given, shown, and turned into file names.

use crate::cli::{ManyKeys, OneKey};
use crate::error::Failure;
use crate::value::{from_base64, from_hex};
use bytes::Bytes;
use proto::KEY_BYTES_MAX;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::OsStringExt;

/// A file name this long is still legal with a suffix on every file system in use.
const FILE_NAME_BYTES_MAX: usize = 200;

/// The one key of a command.
pub(crate) fn one(given: OneKey) -> Result<Bytes, Failure> {
    let many = ManyKeys {
        keys: given.key.into_iter().collect(),
        key_b64: given.key_b64.into_iter().collect(),
        key_hex: given.key_hex.into_iter().collect(),
    };
    match <[Bytes; 1]>::try_from(self::many(many)?) {
        Ok([key]) => Ok(key),
        Err(keys) => Err(Failure::usage(format!("one key is needed, not {}", keys.len()))),
    }
}

/// The keys of a command, each checked.
pub(crate) fn many(given: ManyKeys) -> Result<Vec<Bytes>, Failure> {
    let literal = given.keys.into_iter().map(|key| Ok(key.into_vec()));
    let base64 = given.key_b64.iter().map(|text| from_base64(text));
    let hex = given.key_hex.iter().map(|text| from_hex(text));
    literal.chain(base64).chain(hex).map(|key| check(key?)).collect()
}

/// The bytes of a key prefix; empty when none is given.
pub(crate) fn prefix(given: Option<OsString>) -> Bytes {
    given.map_or_else(Bytes::new, |text| text.into_vec().into())
}

/// Refuses what no node would take.
pub(crate) fn check(key: Vec<u8>) -> Result<Bytes, Failure> {
    match key.len() {
        0 => Err(Failure::usage("a key must have at least one byte")),
        1..=KEY_BYTES_MAX => Ok(key.into()),
        length => Err(Failure::usage(format!(
            "a key has at most {KEY_BYTES_MAX} bytes, this one {length}"
        ))),
    }
}

/// A key for people: what is not printable text becomes `\xNN`, a backslash `\\`.
pub(crate) fn show(key: &[u8]) -> String {
    let mut shown = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                c if c.is_control() => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape(&mut shown, byte))
                }
                c => shown.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut shown, *byte));
    }
    shown
}

/// A file name for a key: percent-escaped, or the key's hash where that would be too long. A `~`
/// is escaped too, so that `~0` after it can only be a sibling's number.
pub(crate) fn file_name(key: &[u8]) -> String {
    let mut name = String::with_capacity(key.len());
    for (position, byte) in key.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => name.push(*byte as char),
            b'.' if position > 0 => name.push('.'),
            _ => {
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    if name.len() > FILE_NAME_BYTES_MAX {
        return format!("sha256-{}", crate::value::hex(&Sha256::digest(key)));
    }
    name
}

fn escape(shown: &mut String, byte: u8) {
    let _ = write!(shown, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_shown_so_that_a_terminal_cannot_be_written_to() {
        assert_eq!(show("user:42/ä".as_bytes()), "user:42/ä");
        assert_eq!(show(b"a\0b\x1b[2J\xff\\"), "a\\x00b\\x1b[2J\\xff\\\\");
        assert_eq!(show("\u{9b}".as_bytes()), "\\xc2\\x9b");
    }

    #[test]
    fn keys_become_file_names() {
        assert_eq!(file_name(b"user:42"), "user%3A42");
        assert_eq!(file_name(b"../etc/a~1"), "%2E.%2Fetc%2Fa%7E1");
        assert!(file_name(&[b'/'; 100]).starts_with("sha256-"));
    }

    #[test]
    fn a_key_has_a_byte_and_not_too_many() {
        assert!(check(vec![]).is_err());
        assert!(check(vec![0; KEY_BYTES_MAX]).is_ok());
        assert!(check(vec![0; KEY_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn no_two_short_keys_share_a_name_or_a_look(
            a in prop::collection::vec(any::<u8>(), 1..30),
            b in prop::collection::vec(any::<u8>(), 1..30),
        ) {
            prop_assert_eq!(show(&a) == show(&b), a == b);
            prop_assert_eq!(file_name(&a) == file_name(&b), a == b);
            prop_assert!(!file_name(&a).contains(['/', '\0', '~']));
            prop_assert!(!show(&a).chars().any(char::is_control));
        }
    }
}
