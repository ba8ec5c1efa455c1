//! Sets of byte strings as ranges in order: which keys can hold rows that a query wants.

/// Most ranges that a set is kept in; beyond it, what lies between neighbours is taken in.
const MAX_RANGES: usize = 4_096;

/// From a byte string on, up to but without another; `None` is beyond all.
type Range = (Vec<u8>, Option<Vec<u8>>);

/// A set of byte strings: ranges in order, apart from each other, none empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range>);

/// The first byte string after another one.
pub(crate) fn next(bytes: &[u8]) -> Vec<u8> {
    [bytes, &[0]].concat()
}

/// The first byte string after all that begin with a prefix; `None` where there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn min_end(one: Option<Vec<u8>>, other: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn reaches(end: Option<&[u8]>, start: &[u8]) -> bool {
    end.is_none_or(|end| end >= start)
}

impl Ranges {
    pub fn all() -> Self {
        Self(vec![(Vec::new(), None)])
    }

    pub fn none() -> Self {
        Self(Vec::new())
    }

    pub fn between(start: Vec<u8>, end: Option<Vec<u8>>) -> Self {
        if end.as_ref().is_some_and(|end| *end <= start) {
            return Self::none();
        }
        Self(vec![(start, end)])
    }

    pub fn one(value: &[u8]) -> Self {
        Self::between(value.to_vec(), Some(next(value)))
    }

    pub fn prefix(prefix: &[u8]) -> Self {
        Self::between(prefix.to_vec(), after_prefix(prefix))
    }

    /// What is in any of several sets.
    pub fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        let mut all: Vec<Range> = sets.into_iter().flat_map(|set| set.0).collect();
        all.sort_unstable();
        let mut merged: Vec<Range> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if reaches(last.as_deref(), &start) => {
                    if last.is_some() && (end.is_none() || end > *last) {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Self(merged).bounded()
    }

    pub fn intersect(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(one), Some(two)) = (left.peek(), right.peek()) {
            let start = (&one.0).max(&two.0).clone();
            let end = min_end(one.1.clone(), two.1.clone());
            let (one_ends, two_ends) = (one.1 == end, two.1 == end);
            if end.as_ref().is_none_or(|end| *end > start) {
                both.push((start, end));
            }
            if one_ends {
                left.next();
            }
            if two_ends {
                right.next();
            }
        }
        Self(both)
    }

    /// A set that holds this one in no more than [`MAX_RANGES`] ranges.
    fn bounded(mut self) -> Self {
        while self.0.len() > MAX_RANGES {
            let mut halved = Vec::with_capacity(self.0.len() / 2 + 1);
            let mut pairs = self.0.into_iter();
            while let Some((start, end)) = pairs.next() {
                let end = pairs.next().map_or(end, |(_, end)| end);
                halved.push((start, end));
            }
            self.0 = halved;
        }
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.0.iter().map(|(start, end)| (&start[..], end.as_deref()))
    }

    /// The keys under a prefix whose next part is in this set, where the key ends with that part.
    pub fn under(&self, prefix: &[u8]) -> Self {
        let ranges = self.0.iter().map(|(start, end)| {
            let end = match end {
                Some(end) => Some([prefix, end].concat()),
                None => after_prefix(prefix),
            };
            Self::between([prefix, start].concat(), end)
        });
        Self::union(ranges)
    }

    /// The same where more follows in the key behind that part, beginning with `after`.
    pub fn under_with_rest(&self, prefix: &[u8], after: &[u8]) -> Self {
        let with_rest = |part: &[u8]| Self::prefix(&[prefix, part, after].concat());
        Self::union(self.0.iter().flat_map(|(start, end)| {
            let Some(end) = end else {
                return vec![Self::between([prefix, start].concat(), after_prefix(prefix))];
            };
            let last = end.strip_suffix(&[0]).unwrap_or(end);
            let mut sets = vec![Self::between([prefix, start].concat(), Some([prefix, last].concat()))];
            // Of parts that the end begins with, the rest can come after the end.
            let shorter = (1..last.len())
                .map(|length| &last[..length])
                .filter(|part| *part >= &start[..]);
            sets.extend(shorter.map(with_rest));
            if last.len() < end.len() {
                sets.push(with_rest(last));
            }
            sets
        }))
    }

    /// In words, for EXPLAIN.
    pub fn describe(&self) -> String {
        const SHOWN: usize = 4;
        let mut parts: Vec<String> = self.0.iter().take(SHOWN).map(describe).collect();
        if self.0.len() > SHOWN {
            parts.push(format!("and {} more", self.0.len() - SHOWN));
        }
        format!("[{}]", parts.join(", "))
    }
}

fn describe((start, end): &Range) -> String {
    match end {
        Some(end) if *end == next(start) => format!("= {}", start.escape_ascii()),
        Some(end) if after_prefix(start).as_ref() == Some(end) => format!("{}*", start.escape_ascii()),
        Some(end) => format!("{} to {}", start.escape_ascii(), end.escape_ascii()),
        None if start.is_empty() => "all".into(),
        None => format!("from {}", start.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(ranges: &Ranges, value: &[u8]) -> bool {
        ranges
            .iter()
            .any(|(start, end)| start <= value && end.is_none_or(|end| value < end))
    }

    fn words() -> Vec<Vec<u8>> {
        let letters = [b'a', b'b', 0, 0xff];
        let mut words = vec![Vec::new()];
        for length in 0..3 {
            let longer: Vec<Vec<u8>> = words
                .iter()
                .filter(|word| word.len() == length)
                .flat_map(|word| letters.map(|letter| [&word[..], &[letter]].concat()))
                .collect();
            words.extend(longer);
        }
        words
    }

    fn sets() -> Vec<Ranges> {
        let mut sets = vec![Ranges::all(), Ranges::none()];
        for word in words().iter().step_by(3) {
            sets.push(Ranges::one(word));
            sets.push(Ranges::prefix(word));
            sets.push(Ranges::between(word.clone(), Some(b"b".to_vec())));
            sets.push(Ranges::between(word.clone(), None));
        }
        let pairs: Vec<Ranges> = sets
            .iter()
            .zip(sets.iter().skip(3))
            .map(|(a, b)| Ranges::union([a.clone(), b.clone()]))
            .collect();
        sets.extend(pairs);
        sets
    }

    #[test]
    fn sets_are_joined_and_met() {
        for one in &sets() {
            for other in &sets() {
                let (any, both) = (Ranges::union([one.clone(), other.clone()]), one.intersect(other));
                for word in &words() {
                    assert_eq!(holds(&any, word), holds(one, word) || holds(other, word));
                    assert_eq!(
                        holds(&both, word),
                        holds(one, word) && holds(other, word),
                        "{one:?} {other:?} {word:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn keys_hold_every_part_of_the_set() {
        for set in &sets() {
            for word in words().iter().filter(|word| !word.contains(&0)) {
                let key = [b"/p/", &word[..]].concat();
                assert_eq!(holds(&set.under(b"/p/"), &key), holds(set, word));
                let longer = [&key[..], b"/000001"].concat();
                assert!(
                    !holds(set, word) || holds(&set.under_with_rest(b"/p/", b"/"), &longer),
                    "{set:?} {word:?}"
                );
            }
        }
    }

    #[test]
    fn very_many_ranges_become_fewer_that_hold_them() {
        let values: Vec<Vec<u8>> = (0..10_000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
        let set = Ranges::union(values.iter().map(|value| Ranges::one(value)));
        assert!(set.iter().count() <= MAX_RANGES);
        assert!(values.iter().all(|value| holds(&set, value)));
    }
}
