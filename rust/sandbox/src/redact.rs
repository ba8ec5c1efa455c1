//! Takes the values of a job's secrets out of what it writes; pure. What is hidden is found whatever the pieces are that
//! the output comes in, in time that grows with the output only.
//!
//! This is against accidents: a job that means to tell a secret writes it backwards.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::rc::Rc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::noncontiguous::NFA;
use aho_corasick::{Anchored, MatchKind};

/// What stands in the place of what is hidden.
pub const MASK: &[u8] = b"***";
/// What is shorter occurs by chance, and is not hidden.
pub const MIN_BYTES: usize = 8;
/// Longer values are looked for in pieces of this size, so that never more than this waits for its rest.
const PIECE_BYTES: usize = 1024;
/// Up to this size values are also looked for as base64 in the midst of base64, and in narrower lines of it.
const SHORT_BYTES: usize = 4096;
/// How `base64` and `openssl` break their lines.
const BASE64_LINES: [usize; 2] = [76, 64];
const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const FOR_URLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What is looked for, for all streams of a job.
pub struct Patterns {
    automaton: NFA,
    start: StateID,
    states: Vec<State>,
    /// Whether something begins with the byte.
    begins: [bool; 256],
}

/// What a state of the automaton means.
#[derive(Clone, Copy, Default)]
struct State {
    /// How many of the last bytes could be the beginning of something.
    depth: u32,
    /// How many of the last bytes are something whole; none if 0.
    found: u32,
}

impl Patterns {
    /// Makes what finds the values; none if there is nothing that could be hidden.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Rc<Self>> {
        let mut forms = Forms::default();
        values.into_iter().for_each(|value| forms.add_value(value));
        let pieces: Vec<Vec<u8>> = forms.0.into_iter().collect();
        if pieces.is_empty() {
            return None;
        }
        // Fails only for more than 2^31 states, and a request that brings as much is refused.
        let automaton = NFA::builder()
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(&pieces)
            .ok()?;
        let start = automaton.start_state(Anchored::No).ok()?;
        let mut states = Vec::new();
        let mut begins = [false; 256];
        for piece in &pieces {
            begins[usize::from(piece[0])] = true;
            let mut at = start;
            for (depth, byte) in (1..).zip(piece) {
                at = automaton.next_state(Anchored::No, at, *byte);
                if states.len() <= at.as_usize() {
                    states.resize(at.as_usize() + 1, State::default());
                }
                states[at.as_usize()] = State {
                    depth,
                    found: longest(&automaton, at),
                };
            }
        }
        Some(Rc::new(Self {
            automaton,
            start,
            states,
            begins,
        }))
    }

    /// Returns the text with everything hidden that is to be.
    #[must_use]
    pub fn redact(self: &Rc<Self>, text: &[u8]) -> Vec<u8> {
        let mut redactor = Redactor::new(self);
        let mut redacted = redactor.push(text).into_owned();
        redacted.extend(redactor.finish());
        redacted
    }

    fn state(&self, at: StateID) -> State {
        self.states.get(at.as_usize()).copied().unwrap_or_default()
    }
}

/// How long the longest is of all that end here.
fn longest(automaton: &NFA, at: StateID) -> u32 {
    if !automaton.is_match(at) {
        return 0;
    }
    let lengths = (0..automaton.match_len(at)).map(|index| automaton.pattern_len(automaton.match_pattern(at, index)));
    u32::try_from(lengths.max().unwrap_or(0)).unwrap_or(0)
}

/// Redacts one stream.
pub struct Redactor {
    patterns: Rc<Patterns>,
    at: StateID,
    /// What may still turn out to be part of something.
    held: Vec<u8>,
    /// How many bytes of the stream came before what is held.
    base: u64,
    /// Where in the stream something was found: from, to; apart from each other and in order.
    found: VecDeque<(u64, u64)>,
    /// Where what was hidden last ends: what goes on there needs no mask of its own.
    hidden_to: Option<u64>,
}

impl Redactor {
    /// Starts at the beginning of a stream.
    #[must_use]
    pub fn new(patterns: &Rc<Patterns>) -> Self {
        Self {
            patterns: Rc::clone(patterns),
            at: patterns.start,
            held: Vec::new(),
            base: 0,
            found: VecDeque::new(),
            hidden_to: None,
        }
    }

    /// Takes what comes next of the stream, and returns what can be told of it by now.
    pub fn push<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut position = self.base + self.held.len() as u64;
        for byte in bytes {
            position += 1;
            // Most of what is written is nothing of a secret.
            if self.at == self.patterns.start && !self.patterns.begins[usize::from(*byte)] {
                continue;
            }
            self.at = self.patterns.automaton.next_state(Anchored::No, self.at, *byte);
            let length = self.patterns.state(self.at).found;
            if length > 0 {
                self.note(position - u64::from(length), position);
            }
        }
        let waiting = self.patterns.state(self.at).depth as usize;
        if self.held.is_empty() && self.found.is_empty() && waiting == 0 {
            self.base = position;
            return Cow::Borrowed(bytes);
        }
        self.held.extend_from_slice(bytes);
        Cow::Owned(self.tell(self.held.len() - waiting))
    }

    /// Returns what was held back: nothing comes any more.
    pub fn finish(&mut self) -> Vec<u8> {
        self.at = self.patterns.start;
        self.tell(self.held.len())
    }

    fn note(&mut self, mut from: u64, to: u64) {
        while let Some((before, end)) = self.found.back().copied() {
            if end < from {
                break;
            }
            from = from.min(before);
            self.found.pop_back();
        }
        self.found.push_back((from, to));
    }

    /// Lets go of the first `count` bytes of what is held.
    fn tell(&mut self, count: usize) -> Vec<u8> {
        let mut told = Vec::with_capacity(count);
        let end = self.base + count as u64;
        let place = |position: u64, base: u64| usize::try_from(position - base).expect("within what is held");
        let mut position = self.base;
        while let Some((from, to)) = self.found.front().copied().filter(|(from, _)| *from < end) {
            told.extend_from_slice(&self.held[place(position, self.base)..place(from, self.base)]);
            if self.hidden_to != Some(from) {
                told.extend_from_slice(MASK);
            }
            position = to.min(end);
            self.hidden_to = Some(position);
            self.found.pop_front();
            if to > end {
                self.found.push_front((end, to));
                break;
            }
        }
        told.extend_from_slice(&self.held[place(position, self.base)..count]);
        self.held.drain(..count);
        self.base = end;
        told
    }
}

/// The forms in which a value may be written, in pieces.
#[derive(Default)]
struct Forms(BTreeSet<Vec<u8>>);

impl Forms {
    fn add_value(&mut self, value: &[u8]) {
        let trimmed = value.trim_ascii();
        if trimmed.len() < MIN_BYTES {
            return;
        }
        self.add_text(trimmed);
        for line in trimmed.split(|byte| *byte == b'\n') {
            self.add_text(line.trim_ascii());
        }
        for alphabet in [STANDARD, FOR_URLS] {
            for text in [value, trimmed] {
                let encoded = base64(alphabet, 0, text);
                self.add(&encoded);
                if !text.len().is_multiple_of(3) {
                    // The last digit is another one where something follows.
                    self.add(&encoded[..encoded.len() - 1]);
                }
                for width in BASE64_LINES.iter().filter(|_| text.len() <= SHORT_BYTES) {
                    encoded.chunks(*width).for_each(|line| self.add(line));
                }
            }
            if trimmed.len() <= SHORT_BYTES {
                self.add(&base64(alphabet, 1, trimmed));
                self.add(&base64(alphabet, 2, trimmed));
            }
        }
    }

    /// Adds the text as it is, and as it stands in JSON.
    fn add_text(&mut self, text: &[u8]) {
        self.add(text);
        if let Ok(text) = std::str::from_utf8(text) {
            self.add(in_json(text, false).as_bytes());
            self.add(in_json(text, true).as_bytes());
        }
    }

    fn add(&mut self, form: &[u8]) {
        let mut rest = form;
        while rest.len() >= PIECE_BYTES + MIN_BYTES {
            let (piece, others) = rest.split_at(PIECE_BYTES);
            self.0.insert(piece.to_vec());
            rest = others;
        }
        if rest.len() >= MIN_BYTES {
            self.0.insert(rest.to_vec());
        }
    }
}

/// The base64, without padding, of the text behind `before` bytes that are not known, as far as it does not depend on
/// them; of a text that has something before it, nor on what follows.
fn base64(alphabet: &[u8; 64], before: usize, text: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity((before + text.len()).div_ceil(3) * 4);
    let bytes: Vec<u8> = std::iter::repeat_n(0, before).chain(text.iter().copied()).collect();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..=group.len() {
            encoded.push(alphabet[(word >> (18 - 6 * index)) as usize & 63]);
        }
    }
    if before > 0 {
        if !bytes.len().is_multiple_of(3) {
            encoded.pop();
        }
        // The digit that the first byte of the text shares with what is before it goes as well.
        encoded.drain(..=before);
    }
    encoded
}

fn in_json(text: &str, ascii_only: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            other if other < ' ' || (ascii_only && !other.is_ascii()) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(secrets: &[&str], text: &str) -> String {
        let patterns = Patterns::new(secrets.iter().map(|secret| secret.as_bytes())).unwrap();
        String::from_utf8(patterns.redact(text.as_bytes())).unwrap()
    }

    fn in_pieces(patterns: &Rc<Patterns>, text: &[u8], size: usize) -> Vec<u8> {
        let mut redactor = Redactor::new(patterns);
        let mut told = Vec::new();
        for piece in text.chunks(size) {
            told.extend_from_slice(&redactor.push(piece));
        }
        told.extend(redactor.finish());
        told
    }

    #[test]
    fn every_occurrence_is_hidden_and_nothing_else() {
        assert_eq!(
            redacted(&["correct horse"], "a correct horse, correct horse and a correct house"),
            "a ***, *** and a correct house"
        );
        assert_eq!(redacted(&["correct horse\n"], "correct horse"), "***");
    }

    #[test]
    fn the_pieces_that_output_comes_in_make_no_difference() {
        let patterns =
            Patterns::new([&b"aaaaaaaaab"[..], b"abababababa", b"line one is long\nand the second"]).unwrap();
        let text = b"xaaaaaaaaaaaabababababababababab line one is long\nand the second\nline one is long\nand then\
            aaaaaaaaaabaaaaaaaaab end line one is lo";
        let whole = patterns.redact(text);
        for size in 1..text.len() {
            assert_eq!(in_pieces(&patterns, text, size), whole, "pieces of {size}");
        }
        let whole = String::from_utf8(whole).unwrap();
        assert!(
            !whole.contains("second") && whole.ends_with("*** end line one is lo"),
            "{whole}"
        );
    }

    /// Hides by looking at each place for each form.
    fn searched(patterns: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
        let mut hidden = vec![false; text.len()];
        for pattern in patterns {
            for start in 0..text.len() {
                if text[start..].starts_with(pattern) {
                    hidden[start..start + pattern.len()].fill(true);
                }
            }
        }
        let mut told = Vec::new();
        for (index, byte) in text.iter().enumerate() {
            if !hidden[index] {
                told.push(*byte);
            } else if index == 0 || !hidden[index - 1] {
                told.extend_from_slice(MASK);
            }
        }
        told
    }

    #[test]
    fn what_is_hidden_is_what_a_search_at_each_place_finds() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let values: Vec<Vec<u8>> = (0..=random(3))
                .map(|_| {
                    (0..8 + random(6))
                        .map(|_| b'a' + u8::try_from(random(2)).unwrap())
                        .collect()
                })
                .collect();
            let mut forms = Forms::default();
            for value in &values {
                forms.add_value(value);
            }
            let forms: Vec<Vec<u8>> = forms.0.into_iter().collect();
            let text: Vec<u8> = (0..400).map(|_| b'a' + u8::try_from(random(2)).unwrap()).collect();
            let patterns = Patterns::new(values.iter().map(Vec::as_slice)).unwrap();
            let size = usize::try_from(1 + random(50)).unwrap();
            assert_eq!(in_pieces(&patterns, &text, size), searched(&forms, &text), "{values:?}");
        }
    }

    #[test]
    fn nothing_is_held_back_but_what_may_be_the_beginning_of_a_secret() {
        let patterns = Patterns::new([&b"hunter2hunter2"[..]]).unwrap();
        let mut redactor = Redactor::new(&patterns);
        assert_eq!(&*redactor.push(b"progress 10 %\n"), b"progress 10 %\n");
        assert_eq!(&*redactor.push(b"the word is hunt"), b"the word is ");
        assert_eq!(&*redactor.push(b"ing\n"), b"hunting\n");
        assert_eq!(&*redactor.push(b"hunter2hunter2"), b"");
        assert_eq!(&*redactor.push(b"\n"), b"***\n");
        assert_eq!(&*redactor.push(b"hunter2hu"), b"");
        assert_eq!(redactor.finish(), b"hunter2hu");
    }

    #[test]
    fn secrets_that_overlap_are_hidden_together() {
        assert_eq!(redacted(&["abcdefghij", "fghijklmnop"], "-abcdefghijklmnop-"), "-***-");
        assert_eq!(
            redacted(&["abcdefghij", "abcdefghijklmnop"], "-abcdefghijklmno-"),
            "-***klmno-"
        );
        assert_eq!(redacted(&["12345678"], "1234567812345678123456789"), "***9");
    }

    #[test]
    fn of_several_lines_each_is_hidden_that_is_long_enough() {
        let key = "-----BEGIN KEY-----\n  MIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\nshort\n-----END KEY-----\n";
        assert_eq!(redacted(&[key], "x MIIEvQIBADANBgkq y short"), "x *** y short");
        assert_eq!(redacted(&[key], key), "***\n");
        assert_eq!(redacted(&["a\nb\nc\nd\ne\nf\n"], ">a\nb\nc\nd\ne\nf<"), ">***<");
    }

    #[test]
    fn base64_is_hidden_by_itself_and_within_other_base64() {
        let encode = |text: &str| String::from_utf8(base64(STANDARD, 0, text.as_bytes())).unwrap();
        assert_eq!(encode("foobar"), "Zm9vYmFy");
        assert_eq!(encode("fooba"), "Zm9vYmE");
        let secret = "hunter2-hunter2?~~~";
        assert_eq!(redacted(&[secret], &encode(secret)), "***");
        for before in ["", "u", "us", "user", "user:", "user: "] {
            for after in ["", "\n", "&x", "&xy", "&xyz"] {
                let text = encode(&format!("{before}{secret}{after}"));
                let left = redacted(&[secret], &text);
                assert!(left.contains("***"), "{before} {after}: {text}");
                assert!(left.len() < text.len() - 20, "{before} {after}: {left}");
            }
        }
        let for_urls = String::from_utf8(base64(FOR_URLS, 0, secret.as_bytes())).unwrap();
        assert_eq!(redacted(&[secret], &for_urls), "***");
    }

    #[test]
    fn base64_in_lines_is_hidden_line_by_line() {
        let secret = (1000..1040)
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
            .join("+");
        let encoded = base64(STANDARD, 0, secret.as_bytes());
        for width in BASE64_LINES {
            let lines: Vec<_> = encoded
                .chunks(width)
                .map(|line| String::from_utf8_lossy(line))
                .collect();
            let left = redacted(&[&secret], &lines.join("\n"));
            assert!(
                left.lines().all(|line| line == "***" || line.len() < MIN_BYTES),
                "{left}"
            );
        }
    }

    #[test]
    fn what_json_makes_of_a_value_is_hidden() {
        assert_eq!(
            redacted(&["pa\"ss\\wörd\t1"], r#"{"p": "pa\"ss\\wörd\t1"}"#),
            r#"{"p": "***"}"#
        );
        assert_eq!(
            redacted(&["pa\"ss\\wörd\t1"], r#"{"p": "pa\"ss\\w\u00f6rd\t1"}"#),
            r#"{"p": "***"}"#
        );
    }

    #[test]
    fn what_is_short_is_not_looked_for() {
        assert!(Patterns::new([&b"1234567"[..], b"", b"   1234567   \n"]).is_none());
        assert!(Patterns::new([&b"12345678"[..]]).is_some());
    }

    #[test]
    fn a_long_value_is_hidden_though_it_is_looked_for_in_pieces() {
        let secret: Vec<u8> = (0..60_000u32)
            .map(|number| b'!' + (number * number % 89) as u8)
            .collect();
        let patterns = Patterns::new([secret.as_slice()]).unwrap();
        let mut redactor = Redactor::new(&patterns);
        let mut told = Vec::new();
        for piece in secret.chunks(777) {
            told.extend_from_slice(&redactor.push(piece));
            assert!(redactor.held.len() < PIECE_BYTES + MIN_BYTES);
        }
        told.extend(redactor.finish());
        assert_eq!(told, MASK);
    }

    #[test]
    fn the_worst_output_takes_time_by_its_length() {
        // What begins again with every byte would take the square of it.
        let secret = [vec![b'a'; 60_000], vec![b'b']].concat();
        let patterns = Patterns::new([secret.as_slice()]).unwrap();
        let began = std::time::Instant::now();
        let told = in_pieces(&patterns, &vec![b'a'; 8 << 20], 64 << 10);
        assert!(
            told.len() < 100,
            "pieces of the value were all there was: {}",
            told.len()
        );
        assert!(began.elapsed().as_secs() < 60);
    }
}
