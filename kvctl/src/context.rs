//! A causal context as text: `kvc1.` and the context's bytes in URL-safe base64 without padding.

use crate::error::Failure;
use crate::exit::Exit;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

const PREFIX: &str = "kvc1.";

/// The text of a context.
pub(crate) fn to_text(context: &[u8]) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(context))
}

/// The context in a text. What it says only the server can judge.
pub(crate) fn from_text(text: &str) -> Result<Bytes, Failure> {
    text.trim()
        .strip_prefix(PREFIX)
        .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
        .map(Bytes::from)
        .ok_or_else(|| {
            Failure::new(Exit::Conflict, "CONTEXT_INVALID", "the context is not one kvctl printed")
                .why("a context is `kvc1.` and URL-safe base64")
                .state("nothing was sent")
                .advice("read it again: kvctl get KEY --context-out FILE, then --context @FILE")
        })
}

/// The context a `--context` flag names: the text itself, or with `@` the file that holds it.
pub(crate) fn from_flag(flag: &str) -> Result<Bytes, Failure> {
    let Some(path) = flag.strip_prefix('@') else {
        return from_text(flag);
    };
    let text = std::fs::read(path)
        .map_err(|error| Failure::usage(format!("context file {path}: {error}")))?;
    from_text(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_context_survives_its_text(context: Vec<u8>) {
            prop_assert_eq!(from_text(&to_text(&context)).unwrap(), context);
        }

        #[test]
        fn any_text_is_taken_or_refused_in_words(text: String) {
            if let Err(failure) = from_text(&text) {
                prop_assert_eq!(failure.exit, Exit::Conflict);
            }
        }
    }

    #[test]
    fn what_is_not_a_context_is_refused() {
        for bad in ["", "kvc1", "kvc2.AAAA", "kvc1.A", "kvc1.AA==", "kvc1.+/"] {
            assert!(from_text(bad).is_err(), "{bad}");
        }
        assert_eq!(from_text("kvc1.\n").unwrap(), "");
    }
}
