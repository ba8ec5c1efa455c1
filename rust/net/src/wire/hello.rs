//! The handshake of a connection: hello, welcome, go.
//!
//! The keys are known by then (TLS); this says which cluster and which protocol they are used for.

use thiserror::Error;

/// Version of everything after the first six bytes of a hello.
pub const VERSION: u16 = 1;
/// First bytes of each hello, in every version.
pub const MAGIC: [u8; 4] = *b"jobs";
/// Longest cluster id and longest node name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Longest hello.
pub const MAX_HELLO_BYTES: usize = 4 + 2 + 1 + 8 + 2 * (1 + MAX_NAME_BYTES);

/// What a connection is for. Each has connections of its own, so that none waits for another's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Channel {
    /// Small ordered frames.
    Messages = 0,
    /// Requests and their answers.
    Requests = 1,
    /// Duplex streams.
    Streams = 2,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Messages, Self::Requests, Self::Streams];

    /// Its place in arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What one side says of itself; the same in a hello and in a welcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub channel: Channel,
    /// A number that is another one in each life of a node.
    pub incarnation: u64,
    /// Cluster that it belongs to.
    pub cluster: String,
    /// Its name, for people.
    pub node: String,
}

/// Why a hello is not gone on with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HelloError {
    /// It is none.
    #[error("the first frame is no greeting of this protocol")]
    Malformed,
    /// It is of another version.
    #[error("protocol version {0} is unknown here; this node speaks {VERSION}")]
    Version(u16),
    /// It is for another cluster.
    #[error("cluster {theirs:?} is not this node's, which is {ours:?}")]
    Cluster {
        /// What the hello says.
        theirs: String,
        /// What is right.
        ours: String,
    },
    /// It is of another cluster than the one that its sender is known to be of.
    #[error("cluster {theirs:?} is not the one that this endpoint id is known to be of, which is {known:?}")]
    Foreign {
        /// What the hello says.
        theirs: String,
        /// What is right.
        known: String,
    },
}

/// Whether this may be a cluster id or a node name: 1 to 64 letters, digits, `.`, `_`, `-`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

impl Hello {
    /// As the payload of a frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_HELLO_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(self.channel as u8);
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        for name in [&self.cluster, &self.node] {
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(name.as_bytes());
        }
        out
    }

    /// From the payload of a frame.
    ///
    /// # Errors
    /// When it is none, or one of another version.
    pub fn decode(payload: &[u8]) -> Result<Self, HelloError> {
        let mut rest = payload;
        if take::<4>(&mut rest)? != MAGIC {
            return Err(HelloError::Malformed);
        }
        let version = u16::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(HelloError::Version(version));
        }
        let [channel] = take(&mut rest)?;
        let channel = Channel::ALL
            .into_iter()
            .find(|known| *known as u8 == channel)
            .ok_or(HelloError::Malformed)?;
        let incarnation = u64::from_le_bytes(take(&mut rest)?);
        let (cluster, node) = (name(&mut rest)?, name(&mut rest)?);
        if !rest.is_empty() {
            return Err(HelloError::Malformed);
        }
        Ok(Self {
            channel,
            incarnation,
            cluster,
            node,
        })
    }

    /// Whether its sender is of this cluster.
    ///
    /// # Errors
    /// When not.
    pub fn check_cluster(&self, ours: &str) -> Result<(), HelloError> {
        if self.cluster == ours {
            return Ok(());
        }
        Err(HelloError::Cluster {
            theirs: self.cluster.clone(),
            ours: ours.to_owned(),
        })
    }

    /// Whether its sender is of the other cluster that it is known to be of.
    ///
    /// # Errors
    /// When not.
    pub fn check_foreign(&self, known: &str) -> Result<(), HelloError> {
        if self.cluster == known {
            return Ok(());
        }
        Err(HelloError::Foreign {
            theirs: self.cluster.clone(),
            known: known.to_owned(),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], HelloError> {
    let (first, others) = rest.split_first_chunk::<N>().ok_or(HelloError::Malformed)?;
    *rest = others;
    Ok(*first)
}

fn name(rest: &mut &[u8]) -> Result<String, HelloError> {
    let [length] = take(rest)?;
    let (text, others) = rest
        .split_at_checked(usize::from(length))
        .ok_or(HelloError::Malformed)?;
    *rest = others;
    let text = std::str::from_utf8(text).map_err(|_| HelloError::Malformed)?;
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(HelloError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hellos() -> impl Strategy<Value = Hello> {
        let channel = proptest::sample::select(&Channel::ALL[..]);
        (channel, any::<u64>(), "[a-zA-Z0-9._-]{1,64}", "[a-zA-Z0-9._-]{1,64}").prop_map(
            |(channel, incarnation, cluster, node)| Hello {
                channel,
                incarnation,
                cluster,
                node,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::test_cases()))]

        #[test]
        fn a_hello_comes_back(hello in hellos()) {
            let bytes = hello.encode();
            prop_assert!(bytes.len() <= MAX_HELLO_BYTES);
            prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
        }

        #[test]
        fn every_truncation_and_every_longer_one_is_refused(hello in hellos(), more in 0u8..=255) {
            let bytes = hello.encode();
            for length in 0..bytes.len() {
                prop_assert_eq!(Hello::decode(&bytes[..length]), Err(HelloError::Malformed));
            }
            prop_assert_eq!(Hello::decode(&[&bytes[..], &[more]].concat()), Err(HelloError::Malformed));
        }

        #[test]
        fn a_flipped_bit_is_another_hello_or_is_refused(hello in hellos(), place in any::<prop::sample::Index>()) {
            let mut bytes = hello.encode();
            let bit = place.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            match Hello::decode(&bytes) {
                Ok(other) => {
                    prop_assert_eq!(other.encode(), bytes);
                    prop_assert_ne!(other, hello);
                }
                Err(error) => prop_assert_eq!(matches!(error, HelloError::Version(_)), (4..6).contains(&(bit / 8))),
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Hello::decode(&bytes);
            let _ = Hello::decode(&[&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat());
        }
    }

    #[test]
    fn another_version_is_named_whatever_follows_it() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[7, 0, 99, 98]);
        let refused = Hello::decode(&bytes).unwrap_err();
        assert_eq!(refused, HelloError::Version(7));
        assert_eq!(
            refused.to_string(),
            "protocol version 7 is unknown here; this node speaks 1"
        );
    }

    #[test]
    fn another_cluster_is_named() {
        let hello = Hello {
            channel: Channel::Messages,
            incarnation: 1,
            cluster: "blue".into(),
            node: "n1".into(),
        };
        assert!(hello.check_cluster("blue").is_ok());
        let refused = hello.check_cluster("green").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cluster \"blue\" is not this node's, which is \"green\""
        );
        assert!(hello.check_foreign("blue").is_ok());
        let refused = hello.check_foreign("green").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cluster \"blue\" is not the one that this endpoint id is known to be of, which is \"green\""
        );
    }
}
