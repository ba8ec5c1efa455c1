//! Reads MessagePack where it lies. What is read is not trusted: every length is checked, and nothing recurses.

use std::fmt;

use rmp::Marker;

/// Deepest nesting that is turned into JSON.
const MAX_DEPTH: usize = 64;

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged(pub &'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

const ENDS_EARLY: Damaged = Damaged("the record ends early");
const NOT_TEXT: Damaged = Damaged("text in the record is not UTF-8");

/// A value, or the beginning of one that holds others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    Large(u64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// So many values follow.
    Array(usize),
    /// So many pairs follow.
    Map(usize),
    Extension,
}

pub(crate) struct Reader<'a> {
    data: &'a [u8],
}

type Read<T> = Result<T, Damaged>;

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data }
    }

    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        let (head, rest) = self.data.split_at_checked(length).ok_or(ENDS_EARLY)?;
        self.data = rest;
        Ok(head)
    }

    fn bytes<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    fn length(&mut self, width: usize) -> Read<usize> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }

    fn text(&mut self, length: usize) -> Read<Value<'a>> {
        let bytes = self.take(length)?;
        Ok(Value::Text(std::str::from_utf8(bytes).map_err(|_| NOT_TEXT)?))
    }

    /// The next value; of one that holds others, its beginning.
    pub fn value(&mut self) -> Read<Value<'a>> {
        let [marker] = self.bytes()?;
        Ok(match Marker::from_u8(marker) {
            Marker::Null => Value::Nil,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(number) => Value::Int(number.into()),
            Marker::FixNeg(number) => Value::Int(number.into()),
            Marker::U8 => Value::Int(u8::from_be_bytes(self.bytes()?).into()),
            Marker::U16 => Value::Int(u16::from_be_bytes(self.bytes()?).into()),
            Marker::U32 => Value::Int(u32::from_be_bytes(self.bytes()?).into()),
            Marker::U64 => {
                let number = u64::from_be_bytes(self.bytes()?);
                i64::try_from(number).map_or(Value::Large(number), Value::Int)
            }
            Marker::I8 => Value::Int(i8::from_be_bytes(self.bytes()?).into()),
            Marker::I16 => Value::Int(i16::from_be_bytes(self.bytes()?).into()),
            Marker::I32 => Value::Int(i32::from_be_bytes(self.bytes()?).into()),
            Marker::I64 => Value::Int(i64::from_be_bytes(self.bytes()?)),
            Marker::F32 => Value::Float(f32::from_be_bytes(self.bytes()?).into()),
            Marker::F64 => Value::Float(f64::from_be_bytes(self.bytes()?)),
            Marker::FixStr(length) => self.text(length.into())?,
            Marker::Str8 => {
                let length = self.length(1)?;
                self.text(length)?
            }
            Marker::Str16 => {
                let length = self.length(2)?;
                self.text(length)?
            }
            Marker::Str32 => {
                let length = self.length(4)?;
                self.text(length)?
            }
            Marker::Bin8 => self.binary(1)?,
            Marker::Bin16 => self.binary(2)?,
            Marker::Bin32 => self.binary(4)?,
            Marker::FixArray(length) => Value::Array(length.into()),
            Marker::Array16 => Value::Array(self.length(2)?),
            Marker::Array32 => Value::Array(self.length(4)?),
            Marker::FixMap(length) => Value::Map(length.into()),
            Marker::Map16 => Value::Map(self.length(2)?),
            Marker::Map32 => Value::Map(self.length(4)?),
            Marker::FixExt1 => self.extension(1)?,
            Marker::FixExt2 => self.extension(2)?,
            Marker::FixExt4 => self.extension(4)?,
            Marker::FixExt8 => self.extension(8)?,
            Marker::FixExt16 => self.extension(16)?,
            Marker::Ext8 => {
                let length = self.length(1)?;
                self.extension(length)?
            }
            Marker::Ext16 => {
                let length = self.length(2)?;
                self.extension(length)?
            }
            Marker::Ext32 => {
                let length = self.length(4)?;
                self.extension(length)?
            }
            Marker::Reserved => return Err(Damaged("the record holds an unknown type")),
        })
    }

    fn binary(&mut self, width: usize) -> Read<Value<'a>> {
        let length = self.length(width)?;
        Ok(Value::Bytes(self.take(length)?))
    }

    fn extension(&mut self, length: usize) -> Read<Value<'a>> {
        self.take(1 + length)?;
        Ok(Value::Extension)
    }

    /// Pass over the next value, with all that it holds; return its bytes.
    pub fn skip(&mut self) -> Read<&'a [u8]> {
        let before = self.data;
        let mut left: usize = 1;
        while left > 0 {
            left -= 1;
            let held = match self.value()? {
                Value::Array(length) => length,
                Value::Map(length) => 2 * length,
                _ => 0,
            };
            // Each takes a byte at least, so more than there are bytes is no number to go on with.
            if held > self.data.len() {
                return Err(ENDS_EARLY);
            }
            left += held;
        }
        Ok(&before[..before.len() - self.data.len()])
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.data.len()
    }
}

/// The value of a member of an object; `None` when it has none of that name, or is nil.
pub(crate) fn member<'a>(object: &'a [u8], name: &str) -> Read<Option<&'a [u8]>> {
    let mut reader = Reader::new(object);
    let pairs = match reader.value()? {
        Value::Nil => return Ok(None),
        Value::Map(pairs) => pairs,
        _ => return Err(Damaged("a field of the record is no object")),
    };
    for _ in 0..pairs {
        let found = reader.value()? == Value::Text(name);
        let value = reader.skip()?;
        if found {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The value of an item of an array; `None` when it has fewer, or is nil.
pub(crate) fn item(array: &[u8], index: usize) -> Read<Option<&[u8]>> {
    let mut reader = Reader::new(array);
    let length = match reader.value()? {
        Value::Nil => return Ok(None),
        Value::Array(length) => length,
        _ => return Err(Damaged("a field of the record is no array")),
    };
    if index >= length {
        return Ok(None);
    }
    for _ in 0..index {
        reader.skip()?;
    }
    reader.skip().map(Some)
}

/// Write a value as JSON.
pub(crate) fn to_json(value: &[u8], out: &mut String) -> Read<()> {
    let mut reader = Reader::new(value);
    write_json(&mut reader, out, MAX_DEPTH)
}

fn write_json(reader: &mut Reader<'_>, out: &mut String, depth: usize) -> Read<()> {
    let deeper = depth.checked_sub(1).ok_or(Damaged("the record is nested too deep"));
    match reader.value()? {
        Value::Nil => out.push_str("null"),
        Value::Bool(value) => out.push_str(if value { "true" } else { "false" }),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Large(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&serde_json::Value::from(number).to_string()),
        Value::Text(text) => write_text(text, out),
        Value::Bytes(_) | Value::Extension => return Err(Damaged("the record holds bytes where JSON is asked for")),
        Value::Array(length) => {
            out.push('[');
            for number in 0..length {
                if number > 0 {
                    out.push(',');
                }
                write_json(reader, out, deeper?)?;
            }
            out.push(']');
        }
        Value::Map(length) => {
            out.push('{');
            for number in 0..length {
                if number > 0 {
                    out.push(',');
                }
                let Value::Text(name) = reader.value()? else {
                    return Err(Damaged("the name of a member is no text"));
                };
                write_text(name, out);
                out.push(':');
                write_json(reader, out, deeper?)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut data = Vec::new();
        rmp::encode::write_array_len(&mut data, 3).unwrap();
        rmp::encode::write_sint(&mut data, -5).unwrap();
        rmp::encode::write_map_len(&mut data, 2).unwrap();
        rmp::encode::write_str(&mut data, "a\"b").unwrap();
        rmp::encode::write_f64(&mut data, 1.5).unwrap();
        rmp::encode::write_str(&mut data, "list").unwrap();
        rmp::encode::write_array_len(&mut data, 2).unwrap();
        rmp::encode::write_bool(&mut data, true).unwrap();
        rmp::encode::write_nil(&mut data).unwrap();
        rmp::encode::write_uint(&mut data, u64::MAX).unwrap();
        data
    }

    #[test]
    fn values_are_found_and_written_as_json() {
        let data = sample();
        assert_eq!(Reader::new(&data).skip().unwrap(), &data[..]);
        let object = item(&data, 1).unwrap().unwrap();
        assert!(member(object, "list").unwrap().is_some());
        assert!(member(object, "none").unwrap().is_none());
        assert!(item(&data, 3).unwrap().is_none());
        let mut json = String::new();
        to_json(&data, &mut json).unwrap();
        assert_eq!(json, r#"[-5,{"a\"b":1.5,"list":[true,null]},18446744073709551615]"#);
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let data = sample();
        for end in 0..data.len() {
            assert!(Reader::new(&data[..end]).skip().is_err(), "cut at {end}");
            assert!(to_json(&data[..end], &mut String::new()).is_err());
        }
    }

    #[test]
    fn nesting_and_lengths_that_lie_are_errors() {
        let deep = vec![0x91; 100_000];
        assert_eq!(Reader::new(&deep).skip(), Err(ENDS_EARLY));
        assert!(to_json(&[vec![0x91; 1_000], vec![0xc0]].concat(), &mut String::new()).is_err());
        for lie in [
            [0xdd, 0xff, 0xff, 0xff, 0xff],
            [0xdf, 0xff, 0xff, 0xff, 0xff],
            [0xdb, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(Reader::new(&lie).skip().is_err());
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        for length in 0..200 {
            for _ in 0..50 {
                let data: Vec<u8> = (0..length).map(|_| next()).collect();
                let _ = Reader::new(&data).skip();
                let _ = to_json(&data, &mut String::new());
                let _ = (item(&data, 1), member(&data, "a"));
            }
        }
    }
}
