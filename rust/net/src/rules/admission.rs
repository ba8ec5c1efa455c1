//! Which handshakes may be under way, and which connection of a peer counts.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// What to do with somebody who begins a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Go on.
    Admit,
    /// Many are under way: let it show first that it receives at its address.
    Prove,
    /// Too many.
    Refuse,
}

/// Handshakes under way, by source address. What each may cost is bounded, so all of them are.
#[derive(Debug)]
pub struct Handshakes {
    under_way: BTreeMap<IpAddr, usize>,
    count: usize,
    max_count: usize,
    max_per_source: usize,
}

impl Handshakes {
    /// None under way.
    #[must_use]
    pub const fn new(max_count: usize, max_per_source: usize) -> Self {
        Self {
            under_way: BTreeMap::new(),
            count: 0,
            max_count,
            max_per_source,
        }
    }

    /// One begins. Call `end` for it when it was admitted.
    pub fn begin(&mut self, source: IpAddr, proven: bool) -> Entry {
        let of_source = self.under_way.get(&source).copied().unwrap_or(0);
        if self.count >= self.max_count || of_source >= self.max_per_source {
            return Entry::Refuse;
        }
        if !proven && self.count >= self.max_count / 4 {
            return Entry::Prove;
        }
        self.under_way.insert(source, of_source + 1);
        self.count += 1;
        Entry::Admit
    }

    /// An admitted one is over, however.
    pub fn end(&mut self, source: IpAddr) {
        if let Some(count) = self.under_way.get_mut(&source) {
            self.count -= 1;
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&source);
            }
        }
    }
}

/// Place of a hello in the order of their arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(u64);

/// Which of a peer's connections for one channel counts.
///
/// A hello can be late: its sender may have given up that connection and be on another one by now. So a connection
/// counts only from its `go` on, which its sender sends after the welcome; and a sender that has begun a later connection
/// has given up the earlier ones. A connection therefore counts when no hello of a later arrival has gone on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Newest {
    arrivals: u64,
    current: Option<Arrival>,
}

impl Newest {
    /// A hello came.
    pub fn hello(&mut self) -> Arrival {
        self.arrivals += 1;
        Arrival(self.arrivals)
    }

    /// Its sender goes on: whether the connection counts from now on, instead of any other.
    pub fn go(&mut self, arrival: Arrival) -> bool {
        if self.current.is_some_and(|current| current >= arrival) {
            return false;
        }
        self.current = Some(arrival);
        true
    }

    /// Whether this is the one that counts.
    #[must_use]
    pub fn is_current(&self, arrival: Arrival) -> bool {
        self.current == Some(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_connection_given_up_never_takes_the_place_of_a_later_one() {
        let mut newest = Newest::default();
        let (early, late) = (newest.hello(), newest.hello());
        assert!(newest.go(late));
        assert!(!newest.go(early));
        assert!(newest.is_current(late) && !newest.is_current(early));
        let next = newest.hello();
        assert!(newest.is_current(late), "a hello alone changes nothing");
        assert!(newest.go(next));
        assert!(!newest.is_current(late));
    }

    proptest! {
        #[test]
        fn handshakes_stay_within_their_limits(steps in proptest::collection::vec((0u8..6, any::<bool>(), any::<bool>()), 0..300)) {
            let mut handshakes = Handshakes::new(16, 5);
            let mut admitted: Vec<IpAddr> = Vec::new();
            for (source, proven, ends) in steps {
                let source = IpAddr::from([127, 0, 0, source]);
                if ends && !admitted.is_empty() {
                    handshakes.end(admitted.swap_remove(usize::from(proven) % admitted.len()));
                    continue;
                }
                let of_source = admitted.iter().filter(|other| **other == source).count();
                let entry = handshakes.begin(source, proven);
                let full = admitted.len() >= 16 || of_source >= 5;
                prop_assert_eq!(entry == Entry::Refuse, full);
                prop_assert_eq!(entry == Entry::Prove, !full && !proven && admitted.len() >= 4);
                if entry == Entry::Admit {
                    admitted.push(source);
                }
                prop_assert_eq!(handshakes.count, admitted.len());
            }
            for source in admitted {
                handshakes.end(source);
            }
            prop_assert!(handshakes.under_way.is_empty());
        }
    }
}
