//! Decodes JSON objects straight into columns of known types.
//!
//! Arrow's reader makes a tape of all of a text first and looks fields up by their names in each object; a scan of rows that
//! are an object each then spends most of its time there. Here what is wanted is parsed where it stands, and the rest only
//! passed over. Only what is plain is decoded: JSON as it is written everywhere. Of anything else, also of what is wrong,
//! nothing is said but that it is not plain, and Arrow's reader decides: so both always come to the same.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Decimal128Array, Float64Array, Int64Array, PrimitiveArray,
    StringArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::compute::kernels::cast_utils::{Parser, parse_decimal, string_to_datetime};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, FieldRef, Schema, TimeUnit};

use crate::strings::Strings;

/// Levels of lists and objects that are passed over.
const MAX_DEPTH: usize = 64;
/// Fields whose order is learnt from the object before.
const MAX_PLACES: usize = 256;
/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// Digits of a whole number that a double holds exactly whatever they are.
const EXACT_DIGITS: usize = 15;

/// Objects become columns.
pub(super) struct Objects {
    columns: Vec<Column>,
    by_name: HashMap<Box<[u8]>, usize>,
    /// The fields of the object before, in their order: objects of a table mostly look alike.
    places: Vec<Place>,
    rows: usize,
}

/// What stands between the value before and that of a field (`, "name": `), and the column that the field is.
struct Place {
    token: Vec<u8>,
    /// The first bytes of it as a number, and which bits of it count.
    head: u128,
    mask: u128,
    column: Option<usize>,
}

impl Place {
    fn new(token: &[u8], column: Option<usize>) -> Self {
        let mut head = [0; 16];
        let length = token.len().min(16);
        head[..length].copy_from_slice(&token[..length]);
        Self {
            token: token.to_vec(),
            head: u128::from_le_bytes(head),
            mask: u128::MAX >> (8 * (16 - length)),
            column,
        }
    }

    /// Pass over this, if it is there.
    #[inline]
    fn strip<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        match data.first_chunk() {
            Some(head) if self.token.len() <= 16 => {
                let is_same = (u128::from_le_bytes(*head) ^ self.head) & self.mask == 0;
                is_same.then(|| &data[self.token.len()..])
            }
            _ => data.strip_prefix(&self.token[..]),
        }
    }
}

struct Column {
    field: FieldRef,
    cells: Cells,
    len: usize,
    /// Of the cells up to the last one that is NULL, which are there; nothing as long as all are.
    valid: Option<BooleanBufferBuilder>,
}

enum Cells {
    Bool(BooleanBufferBuilder),
    /// Numbers of a type that has room from the one to the other.
    Int(Vec<i64>, i64, i64),
    Double(Vec<f64>),
    Single(Vec<f64>),
    Decimal(Vec<i128>, u8, i8),
    Text(Strings),
    Date(Vec<i32>),
    Time(Vec<i64>, TimeUnit, Tz),
}

impl Objects {
    /// Return a decoder for columns; `None` where there is none for their types.
    pub fn new(schema: &Schema) -> Option<Self> {
        let fields = schema.fields();
        let columns = fields.iter().map(Column::of).collect::<Option<Vec<_>>>()?;
        let by_name: HashMap<Box<[u8]>, usize> = fields
            .iter()
            .enumerate()
            .map(|(number, field)| (field.name().as_bytes().into(), number))
            .collect();
        (by_name.len() == columns.len()).then_some(Self {
            columns,
            by_name,
            places: Vec::new(),
            rows: 0,
        })
    }

    /// Decode values that are one object each; `None` when one of them is not plain.
    pub fn decode<'a>(&mut self, values: impl Iterator<Item = &'a [u8]>) -> Option<Vec<ArrayRef>> {
        let found = self.read(values).and_then(|()| self.finish());
        self.clear();
        found
    }

    /// Decode the next objects of a text, at most so many, and go on behind them; `None`, and no step further, when one of
    /// them is not plain.
    pub fn part(&mut self, text: &mut &[u8], most: usize) -> Option<(Vec<ArrayRef>, usize)> {
        let mut rest = *text;
        let found = self.read_part(&mut rest, most).and_then(|()| self.finish());
        let rows = self.rows;
        self.clear();
        *text = if found.is_some() { rest } else { *text };
        found.map(|columns| (columns, rows))
    }

    fn read_part(&mut self, text: &mut &[u8], most: usize) -> Option<()> {
        blank(text);
        while self.rows < most && !text.is_empty() {
            self.object(text)?;
            blank(text);
        }
        Some(())
    }

    fn read<'a>(&mut self, values: impl Iterator<Item = &'a [u8]>) -> Option<()> {
        for mut value in values {
            self.object(&mut value)?;
            blank(&mut value);
            if !value.is_empty() {
                return None;
            }
        }
        Some(())
    }

    fn clear(&mut self) {
        self.rows = 0;
        self.columns.iter_mut().for_each(Column::clear);
    }

    fn finish(&mut self) -> Option<Vec<ArrayRef>> {
        self.columns.iter_mut().map(Column::finish).collect()
    }

    /// Take in one object.
    fn object(&mut self, data: &mut &[u8]) -> Option<()> {
        for number in 0.. {
            match self.field(number, data)? {
                Next::End => break,
                Next::Wanted(column) => {
                    let column = &mut self.columns[column];
                    // Twice in one object: the last one counts, which is not plain.
                    if column.len > self.rows {
                        return None;
                    }
                    column.take(data)?;
                }
                Next::Other => pass(data, MAX_DEPTH)?,
            }
        }
        self.rows += 1;
        for column in &mut self.columns {
            if column.len < self.rows {
                column.null()?;
            }
        }
        Some(())
    }

    /// Go on to the value of the next field of an object.
    #[inline]
    fn field(&mut self, number: usize, data: &mut &[u8]) -> Option<Next> {
        if let Some(place) = self.places.get(number)
            && let Some(rest) = place.strip(data)
        {
            *data = rest;
            return Some(place.column.map_or(Next::Other, Next::Wanted));
        }
        self.other_field(number, data)
    }

    fn other_field(&mut self, number: usize, data: &mut &[u8]) -> Option<Next> {
        let before = *data;
        blank(data);
        if number == 0 {
            sign(data, b'{')?;
            blank(data);
        }
        let (&first, rest) = data.split_first()?;
        match (first, number) {
            (b'}', _) => {
                *data = rest;
                return Some(Next::End);
            }
            (b',', 1..) => {
                *data = rest;
                blank(data);
            }
            (b'"', 0) => {}
            _ => return None,
        }
        let name = string(data)?;
        let column = self.by_name.get(name.bytes()).copied();
        blank(data);
        sign(data, b':')?;
        blank(data);
        let place = Place::new(&before[..before.len() - data.len()], column);
        match self.places.get_mut(number) {
            Some(known) => *known = place,
            None if number < MAX_PLACES => self.places.push(place),
            None => {}
        }
        Some(column.map_or(Next::Other, Next::Wanted))
    }
}

/// What comes next in an object.
enum Next {
    /// The value of a column.
    Wanted(usize),
    /// A value that is not wanted.
    Other,
    End,
}

impl Column {
    fn of(field: &FieldRef) -> Option<Self> {
        let int = |least: i64, most: i64| Cells::Int(Vec::new(), least, most);
        let cells = match field.data_type() {
            DataType::Boolean => Cells::Bool(BooleanBufferBuilder::new(0)),
            DataType::Int8 => int(i8::MIN.into(), i8::MAX.into()),
            DataType::Int16 => int(i16::MIN.into(), i16::MAX.into()),
            DataType::Int32 => int(i32::MIN.into(), i32::MAX.into()),
            DataType::Int64 => int(i64::MIN, i64::MAX),
            DataType::UInt8 => int(0, u8::MAX.into()),
            DataType::UInt16 => int(0, u16::MAX.into()),
            DataType::UInt32 => int(0, u32::MAX.into()),
            DataType::UInt64 => int(0, i64::MAX),
            DataType::Float64 => Cells::Double(Vec::new()),
            DataType::Float32 => Cells::Single(Vec::new()),
            DataType::Decimal128(precision, scale) => Cells::Decimal(Vec::new(), *precision, *scale),
            DataType::Utf8 => Cells::Text(Strings::default()),
            DataType::Date32 => Cells::Date(Vec::new()),
            DataType::Timestamp(unit, zone) => {
                let zone = zone.as_deref().unwrap_or("UTC").parse().ok()?;
                Cells::Time(Vec::new(), *unit, zone)
            }
            _ => return None,
        };
        Some(Self {
            field: Arc::clone(field),
            cells,
            len: 0,
            valid: None,
        })
    }

    fn take(&mut self, data: &mut &[u8]) -> Option<()> {
        if data.first() == Some(&b'n') {
            word(data, b"null")?;
            return self.null();
        }
        match &mut self.cells {
            Cells::Bool(cells) => cells.append(truth(data)?),
            Cells::Int(cells, least, most) => {
                let number = int(data)?;
                if number < *least || number > *most {
                    return None;
                }
                cells.push(number);
            }
            Cells::Double(cells) => cells.push(double(data)?),
            Cells::Single(cells) => {
                let single: f32 = number(data)?.0.parse().ok()?;
                cells.push(single.into());
            }
            Cells::Decimal(cells, precision, scale) => {
                let cell = match data.first()? {
                    b'"' => parse_decimal::<Decimal128Type>(string(data)?.text()?, *precision, *scale),
                    _ => parse_decimal::<Decimal128Type>(number(data)?.0, *precision, *scale),
                };
                cells.push(cell.ok()?);
            }
            Cells::Text(cells) => cells.push(string(data)?.bytes()),
            Cells::Date(cells) => cells.push(Date32Type::parse(string(data)?.text()?)?),
            Cells::Time(cells, unit, zone) => {
                let at = string_to_datetime(zone, string(data)?.text()?).ok()?;
                cells.push(match unit {
                    TimeUnit::Second => at.timestamp(),
                    TimeUnit::Millisecond => at.timestamp_millis(),
                    TimeUnit::Microsecond => at.timestamp_micros(),
                    TimeUnit::Nanosecond => at.timestamp_nanos_opt()?,
                });
            }
        }
        self.len += 1;
        if let Some(valid) = &mut self.valid {
            valid.append(true);
        }
        Some(())
    }

    fn null(&mut self) -> Option<()> {
        if !self.field.is_nullable() {
            return None;
        }
        match &mut self.cells {
            Cells::Bool(cells) => cells.append(false),
            Cells::Int(cells, ..) | Cells::Time(cells, ..) => cells.push(0),
            Cells::Double(cells) | Cells::Single(cells) => cells.push(0.0),
            Cells::Decimal(cells, ..) => cells.push(0),
            Cells::Text(cells) => cells.push(b""),
            Cells::Date(cells) => cells.push(0),
        }
        let valid = self.valid.get_or_insert_with(|| {
            let mut valid = BooleanBufferBuilder::new(self.len + 1);
            valid.append_n(self.len, true);
            valid
        });
        valid.append(false);
        self.len += 1;
        Some(())
    }

    fn clear(&mut self) {
        self.len = 0;
        self.valid = None;
        match &mut self.cells {
            Cells::Bool(cells) => cells.truncate(0),
            Cells::Int(cells, ..) | Cells::Time(cells, ..) => cells.clear(),
            Cells::Double(cells) | Cells::Single(cells) => cells.clear(),
            Cells::Decimal(cells, ..) => cells.clear(),
            Cells::Text(cells) => cells.clear(),
            Cells::Date(cells) => cells.clear(),
        }
    }

    /// Return the column, and begin anew with room for as much.
    fn finish(&mut self) -> Option<ArrayRef> {
        fn anew<T>(cells: &mut Vec<T>) -> Vec<T> {
            let capacity = cells.len();
            std::mem::replace(cells, Vec::with_capacity(capacity))
        }
        let nulls = self.valid.take().map(|mut valid| NullBuffer::new(valid.finish()));
        let made: ArrayRef = match &mut self.cells {
            Cells::Bool(cells) => Arc::new(BooleanArray::new(cells.finish(), nulls)),
            Cells::Int(cells, ..) | Cells::Time(cells, ..) => Arc::new(Int64Array::new(anew(cells).into(), nulls)),
            Cells::Double(cells) | Cells::Single(cells) => Arc::new(Float64Array::new(anew(cells).into(), nulls)),
            Cells::Decimal(cells, precision, scale) => {
                let cells = Decimal128Array::new(anew(cells).into(), nulls);
                Arc::new(cells.with_precision_and_scale(*precision, *scale).ok()?)
            }
            Cells::Text(cells) => {
                let (offsets, bytes) = cells.take();
                Arc::new(StringArray::try_new(offsets, bytes, nulls).ok()?)
            }
            Cells::Date(cells) => Arc::new(PrimitiveArray::<Date32Type>::new(anew(cells).into(), nulls)),
        };
        let wanted = self.field.data_type();
        if made.data_type() == wanted {
            return Some(made);
        }
        cast(&made, wanted).ok()
    }
}

fn blank(data: &mut &[u8]) {
    while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = data {
        *data = rest;
    }
}

fn sign(data: &mut &[u8], wanted: u8) -> Option<()> {
    let (&found, rest) = data.split_first()?;
    *data = rest;
    (found == wanted).then_some(())
}

fn word(data: &mut &[u8], wanted: &[u8]) -> Option<()> {
    *data = data.strip_prefix(wanted)?;
    Some(())
}

fn truth(data: &mut &[u8]) -> Option<bool> {
    let is_true = data.first() == Some(&b't');
    word(data, if is_true { b"true" } else { b"false" })?;
    Some(is_true)
}

/// A string, without its quotes.
enum Quoted<'a> {
    Plain(&'a [u8]),
    Escaped(String),
}

impl Quoted<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Escaped(text) => text.as_bytes(),
        }
    }

    fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()).ok()
    }
}

fn string<'a>(data: &mut &'a [u8]) -> Option<Quoted<'a>> {
    let whole = *data;
    sign(data, b'"')?;
    let mut end = 1;
    let mut is_escaped = false;
    loop {
        end += end_of_plain(&whole[end..])?;
        match whole[end] {
            b'"' => break,
            b'\\' => {
                is_escaped = true;
                end += 2;
                whole.get(end)?;
            }
            _ => return None,
        }
    }
    *data = &whole[end + 1..];
    if is_escaped {
        return serde_json::from_slice(&whole[..=end]).ok().map(Quoted::Escaped);
    }
    Some(Quoted::Plain(&whole[1..end]))
}

/// Find the first byte that is a quote, a backslash or a control character, eight at a time.
fn end_of_plain(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHS: u64 = ONES << 7;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let (words, rest) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quotes = zero(word ^ (ONES * u64::from(b'"')));
        let slashes = zero(word ^ (ONES * u64::from(b'\\')));
        let controls = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        // The lowest mark is right; those above it may be borrowed.
        let marks = quotes | slashes | controls;
        if marks != 0 {
            return Some(number * 8 + marks.trailing_zeros() as usize / 8);
        }
    }
    let found = rest
        .iter()
        .position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)?;
    Some(words.len() * 8 + found)
}

/// Digits at the beginning: how many, and their number if it has room.
fn digits(data: &[u8], before: u64) -> (usize, u64) {
    let mut number = before;
    let mut count = 0;
    while let Some(digit) = data.get(count).map(|byte| byte.wrapping_sub(b'0'))
        && digit < 10
    {
        number = number.wrapping_mul(10).wrapping_add(digit.into());
        count += 1;
    }
    (count, number)
}

/// A whole number of at most 18 digits.
fn int(data: &mut &[u8]) -> Option<i64> {
    let whole = *data;
    let (is_negative, rest) = match whole.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, whole),
    };
    let (count, number) = digits(rest, 0);
    let is_plain = (1..=18).contains(&count) && (count == 1 || rest[0] != b'0');
    if !is_plain || matches!(rest.get(count), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    *data = &rest[count..];
    let number = i64::try_from(number).ok()?;
    Some(if is_negative { -number } else { number })
}

/// A number as text; and if it is short and has no exponent, its digits as one, and how many of them are a fraction.
fn number<'a>(data: &mut &'a [u8]) -> Option<(&'a str, Option<(u64, usize)>)> {
    let whole = *data;
    let start = usize::from(whole.first() == Some(&b'-'));
    let (count, mut number) = digits(&whole[start..], 0);
    if count == 0 || (count > 1 && whole[start] == b'0') {
        return None;
    }
    let mut end = start + count;
    let mut fraction = 0;
    if whole.get(end) == Some(&b'.') {
        (fraction, number) = digits(&whole[end + 1..], number);
        if fraction == 0 {
            return None;
        }
        end += 1 + fraction;
    }
    let mut has_exponent = false;
    if matches!(whole.get(end), Some(b'e' | b'E')) {
        has_exponent = true;
        end += 1 + usize::from(matches!(whole.get(end + 1), Some(b'+' | b'-')));
        let (count, _) = digits(whole.get(end..)?, 0);
        if count == 0 {
            return None;
        }
        end += count;
    }
    *data = &whole[end..];
    let is_short = !has_exponent && count + fraction <= EXACT_DIGITS;
    let text = std::str::from_utf8(&whole[..end]).ok()?;
    Some((text, is_short.then_some((number, fraction))))
}

/// A number as a double, the nearest to what is written.
fn double(data: &mut &[u8]) -> Option<f64> {
    let (text, short) = number(data)?;
    let Some((digits, fraction)) = short else {
        return text.parse().ok();
    };
    // Both are exact, so their quotient is rounded once.
    #[allow(clippy::cast_precision_loss, reason = "it has few digits")]
    let found = digits as f64 / POWERS[fraction];
    Some(if text.starts_with('-') { -found } else { found })
}

/// Pass over a value, which has to be plain too.
fn pass(data: &mut &[u8], depth: usize) -> Option<()> {
    match data.first()? {
        b'"' => string(data).map(drop),
        b'n' => word(data, b"null"),
        b't' | b'f' => truth(data).map(drop),
        b'[' => items(data, b']', |data| pass(data, depth.checked_sub(1)?)),
        b'{' => items(data, b'}', |data| {
            string(data)?;
            blank(data);
            sign(data, b':')?;
            blank(data);
            pass(data, depth.checked_sub(1)?)
        }),
        b'-' | b'0'..=b'9' => {
            // That it is one is not looked at in what is not wanted, there as here.
            while let [b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E', rest @ ..] = data {
                *data = rest;
            }
            Some(())
        }
        _ => None,
    }
}

fn items(data: &mut &[u8], end: u8, item: impl Fn(&mut &[u8]) -> Option<()>) -> Option<()> {
    *data = &data[1..];
    blank(data);
    if data.first() == Some(&end) {
        *data = &data[1..];
        return Some(());
    }
    loop {
        item(data)?;
        blank(data);
        let (&found, rest) = data.split_first()?;
        *data = rest;
        if found == end {
            return Some(());
        }
        if found != b',' {
            return None;
        }
        blank(data);
    }
}
