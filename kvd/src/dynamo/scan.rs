//! One page of a keyspace, joined from the pages of several replicas.

use crate::dynamo::object::Object;
use bytes::Bytes;
use proto::token::Token;
use std::collections::BTreeMap;

/// A place in the order that keyspaces are walked in.
pub type Place = (Token, Bytes);

/// What one replica holds from some place on.
#[derive(Default, Clone, Debug)]
pub struct Page {
    /// Keys and copies, ascending by token, then key.
    pub entries: Vec<(Bytes, Object)>,
    /// The place it was walked through, inclusive; `None`: to the end.
    pub through: Option<Place>,
}

/// The join of several replicas' pages from the same place on.
///
/// It goes as far as the shortest of them: beyond that, one replica has not been heard, and a key
/// would be shown without its say.
pub fn join(pages: Vec<Page>) -> Page {
    let through = pages.iter().filter_map(|page| page.through.clone()).min();
    let mut joined: BTreeMap<Place, Object> = BTreeMap::new();
    for (key, copy) in pages.into_iter().flat_map(|page| page.entries) {
        let place = (Token::of(&key), key);
        if through.as_ref().is_none_or(|end| place <= *end) {
            joined.entry(place).or_default().merge(&copy);
        }
    }
    let entries = joined.into_iter().map(|((_, key), object)| (key, object)).collect();
    Page { entries, through }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&Bytes], more: bool) -> Page {
        let entries = keys.iter().map(|k| ((*k).clone(), Object::default())).collect();
        let last = keys.last().map(|key| (Token::of(key), (*key).clone()));
        Page { entries, through: last.filter(|_| more) }
    }

    #[test]
    fn a_page_ends_where_the_shortest_reply_does() {
        let mut keys: Vec<Bytes> = (0..6).map(|i| Bytes::from(format!("k{i}"))).collect();
        keys.sort_by_key(|key| Token::of(key));
        let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|i| &keys[i]);
        let joined = join(vec![page(&[a, c, e], true), page(&[b, c, d, e, f], true)]);
        let found: Vec<&Bytes> = joined.entries.iter().map(|(key, _)| key).collect();
        assert_eq!(found, [a, b, c, d, e]);
        assert_eq!(joined.through, Some((Token::of(e), e.clone())));

        let joined = join(vec![page(&[a, c], false), page(&[b, f], false)]);
        assert_eq!((joined.entries.len(), joined.through), (4, None));
        assert!(join(vec![]).entries.is_empty());
    }
}
