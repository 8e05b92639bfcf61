//! N, R and W of one request.

/// How many replicas there are, and how many of them must take part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorum {
    /// Replicas of the key.
    pub n: u8,
    /// Of those, how many must answer (R of a get) or store (W of a put).
    pub needed: u8,
}

/// R or W outside 1..=N.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={asked} is not between 1 and N={n}")]
pub struct QuorumError {
    name: &'static str,
    asked: u32,
    n: u8,
}

impl Quorum {
    /// The quorum of a request: what it `asked` for, or else the keyspace's `usual`. `name` is
    /// "R" or "W", for the error.
    pub fn new(
        n: u8,
        name: &'static str,
        asked: Option<u32>,
        usual: u8,
    ) -> Result<Self, QuorumError> {
        let asked = asked.unwrap_or(u32::from(usual));
        match u8::try_from(asked) {
            Ok(needed) if (1..=n).contains(&needed) => Ok(Self { n, needed }),
            _ => Err(QuorumError { name, asked, n }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_lies_between_one_and_n() {
        let of = |asked| Quorum::new(3, "W", asked, 2).map(|q| q.needed);
        assert_eq!((of(None), of(Some(1)), of(Some(3))), (Ok(2), Ok(1), Ok(3)));
        assert_eq!(of(Some(4)).unwrap_err().to_string(), "W=4 is not between 1 and N=3");
        assert!(of(Some(0)).is_err() && of(Some(256 + 2)).is_err());
    }
}
