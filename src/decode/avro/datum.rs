//! Reading what a schema describes, straight into JSON.

use jiff::Timestamp;

use super::{Node, Schema, Unit};
use crate::decode::out::Out;
use crate::decode::{Why, wire};

/// Nesting beyond this is not read: a record may hold itself.
const DEEPEST: usize = 128;
/// Of the number without its point: 154 digits.
pub(super) const LONGEST_DECIMAL: usize = 64;
const DAY_SECONDS: i64 = 86_400;
const DAY_NANOS: i128 = DAY_SECONDS as i128 * 1_000_000_000;

pub(super) fn json(schema: &Schema, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Why> {
    let mut reader = Reader {
        nodes: &schema.nodes,
        bytes,
        at: 0,
        out: Out::new(limit),
    };
    // Confluent's serializer writes bytes that are all of the message without their length.
    if schema.nodes[schema.root] == Node::Bytes {
        reader.out.base64(bytes)?;
        return Ok(reader.out.finish());
    }
    reader.value(schema.root, DEEPEST)?;
    match bytes.len() - reader.at {
        0 => Ok(reader.out.finish()),
        left => Err(format!(
            "{left} bytes are left over: the schema is not what it was written with"
        )
        .into()),
    }
}

struct Reader<'a> {
    nodes: &'a [Node],
    bytes: &'a [u8],
    at: usize,
    out: Out,
}

impl<'a> Reader<'a> {
    fn value(&mut self, node: usize, depth: usize) -> Result<(), Why> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| Why::from("it is nested too deeply"))?;
        let nodes = self.nodes;
        match &nodes[node] {
            Node::Null => self.out.push(b"null"),
            Node::Boolean => match self.take(1)? {
                [0] => self.out.push(b"false"),
                [1] => self.out.push(b"true"),
                _ => Err("a boolean is neither 0 nor 1".into()),
            },
            Node::Int => {
                let number = self.int()?;
                self.out.shown(number)
            }
            Node::Long => {
                let number = self.long()?;
                self.out.shown(number)
            }
            Node::Float => {
                let number = f32::from_le_bytes(self.array()?);
                match number.is_finite() {
                    // The shortest digits that mean this float, not those of the double nearest to it.
                    true => self.number(&number),
                    false => self.no_number(number.into()),
                }
            }
            Node::Double => {
                let number = f64::from_le_bytes(self.array()?);
                match number.is_finite() {
                    true => self.number(&number),
                    false => self.no_number(number),
                }
            }
            Node::Bytes => {
                let bytes = self.sized()?;
                self.out.base64(bytes)
            }
            Node::Text => {
                let text = self.text()?;
                self.out.quoted(text)
            }
            Node::Fixed(size) => {
                let bytes = self.take(*size)?;
                self.out.base64(bytes)
            }
            Node::Enum(symbols) => {
                let symbol = self.index()?;
                let symbol = symbols.get(symbol);
                let symbol = symbol.ok_or_else(|| Why::from("an enum has no such symbol"))?;
                self.out.push(symbol.as_bytes())
            }
            Node::Union(branches) => {
                let branch = self.index()?;
                let branch = branches.get(branch);
                let branch = branch.ok_or_else(|| Why::from("a union has no such branch"))?;
                self.value(*branch, depth)
            }
            Node::List(items) => {
                self.out.push(b"[")?;
                self.blocks(|reader| reader.value(*items, depth))?;
                self.out.push(b"]")
            }
            Node::Map(values) => {
                self.out.push(b"{")?;
                self.blocks(|reader| {
                    let key = reader.text()?;
                    reader.out.quoted(key)?;
                    reader.out.push(b":")?;
                    reader.value(*values, depth)
                })?;
                self.out.push(b"}")
            }
            Node::Record(fields) => {
                self.out.push(b"{")?;
                for (place, (name, kind)) in fields.iter().enumerate() {
                    if place > 0 {
                        self.out.push(b",")?;
                    }
                    self.out.push(name.as_bytes())?;
                    self.value(*kind, depth)?;
                }
                self.out.push(b"}")
            }
            Node::Decimal { scale, size } => {
                let bytes = match size {
                    Some(size) => self.take(*size)?,
                    None => self.sized()?,
                };
                if bytes.len() > LONGEST_DECIMAL {
                    return Err(format!("a decimal has more than {LONGEST_DECIMAL} bytes").into());
                }
                self.out.push(decimal(bytes, *scale).as_bytes())
            }
            Node::Date => {
                let days = self.int()?;
                let at = Timestamp::from_second(i64::from(days) * DAY_SECONDS).ok();
                self.moment(at, days.into(), |shown| {
                    shown.split_once('T').map(|(date, _)| date)
                })
            }
            Node::Time(unit) => {
                let time = match unit {
                    Unit::Millis => self.int()?.into(),
                    _ => self.long()?,
                };
                let at = moment(*unit, time);
                let at = at.filter(|at| (0..DAY_NANOS).contains(&at.as_nanosecond()));
                self.moment(at, time, |shown| {
                    shown
                        .split_once('T')
                        .map(|(_, time)| time.trim_end_matches('Z'))
                })
            }
            Node::Instant(unit) => {
                let time = self.long()?;
                self.moment(moment(*unit, time), time, whole)
            }
            Node::Local(unit) => {
                let time = self.long()?;
                self.moment(moment(*unit, time), time, |shown| shown.strip_suffix('Z'))
            }
            Node::Uuid => {
                let id = uuid::Uuid::from_bytes(self.array()?);
                self.out.quoted(&id.to_string())
            }
            Node::Duration => {
                for before in ["{\"months\":", ",\"days\":", ",\"millis\":"] {
                    let number = u32::from_le_bytes(self.array()?);
                    self.out.push(before.as_bytes())?;
                    self.out.shown(number)?;
                }
                self.out.push(b"}")
            }
            Node::Pending => Err("the schema is not complete".into()),
        }
    }

    /// The entries of a list or a map: blocks, each with a count, which is negative where the block's
    /// size comes after it.
    fn blocks(&mut self, mut entry: impl FnMut(&mut Self) -> Result<(), Why>) -> Result<(), Why> {
        let mut is_first = true;
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                self.long()?;
            }
            for _ in 0..count.unsigned_abs() {
                if !is_first {
                    self.out.push(b",")?;
                }
                is_first = false;
                entry(self)?;
            }
        }
    }

    /// A float that JSON can write.
    fn number(&mut self, number: &impl serde::Serialize) -> Result<(), Why> {
        let text = serde_json::to_string(number).expect("a finite float is JSON");
        self.out.push(text.as_bytes())
    }

    /// One that it cannot, as Protobuf's mapping has it.
    fn no_number(&mut self, number: f64) -> Result<(), Why> {
        self.out.push(match number {
            f64::INFINITY => b"\"Infinity\"",
            f64::NEG_INFINITY => b"\"-Infinity\"",
            _ => b"\"NaN\"",
        })
    }

    /// A part of a date and a time; one beyond the years 0 to 9999 stays the number that it is.
    fn moment(
        &mut self,
        at: Option<Timestamp>,
        number: i64,
        part: impl FnOnce(&str) -> Option<&str>,
    ) -> Result<(), Why> {
        let shown = at.map(|at| at.to_string());
        let shown = shown.as_deref().filter(|shown| !shown.starts_with('-'));
        match shown.and_then(part) {
            Some(part) => self.out.quoted(part),
            None => self.out.shown(number),
        }
    }

    fn int(&mut self) -> Result<i32, Why> {
        let number = self.long()?;
        i32::try_from(number).map_err(|_| "an int has more than 32 bits".into())
    }

    /// Zigzag.
    fn long(&mut self) -> Result<i64, Why> {
        let (number, length) = wire::varint(&self.bytes[self.at..]).ok_or_else(cut)?;
        self.at += length;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// A place in the schema.
    fn index(&mut self) -> Result<usize, Why> {
        let number = self.long()?;
        Ok(usize::try_from(number).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str, Why> {
        let bytes = self.sized()?;
        std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".into())
    }

    fn sized(&mut self) -> Result<&'a [u8], Why> {
        let length = self.index()?;
        self.take(length)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Why> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Why> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(cut)?;
        self.at += length;
        Ok(taken)
    }
}

fn whole(shown: &str) -> Option<&str> {
    Some(shown)
}

fn cut() -> Why {
    "it ends before the schema does".into()
}

fn moment(unit: Unit, time: i64) -> Option<Timestamp> {
    match unit {
        Unit::Millis => Timestamp::from_millisecond(time),
        Unit::Micros => Timestamp::from_microsecond(time),
        Unit::Nanos => Timestamp::from_nanosecond(time.into()),
    }
    .ok()
}

/// A number in two's complement, the highest byte first, with its last `scale` digits after the
/// point, every digit of it.
fn decimal(bytes: &[u8], scale: usize) -> String {
    let is_negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut rest = bytes.to_vec();
    if is_negative {
        let mut carry = true;
        for byte in rest.iter_mut().rev() {
            let (negated, over) = (!*byte).overflowing_add(carry.into());
            *byte = negated;
            carry = over;
        }
    }
    let mut digits = Vec::new();
    while rest.iter().any(|byte| *byte != 0) {
        let mut left = 0;
        for byte in &mut rest {
            let dividend = left * 256 + u16::from(*byte);
            *byte = (dividend / 10) as u8;
            left = dividend % 10;
        }
        digits.push(b'0' + left as u8);
    }
    while digits.len() <= scale {
        digits.push(b'0');
    }
    let mut shown = String::with_capacity(digits.len() + 2);
    if is_negative {
        shown.push('-');
    }
    for (place, digit) in digits.iter().enumerate().rev() {
        shown.push(char::from(*digit));
        if place == scale && scale > 0 {
            shown.push('.');
        }
    }
    shown
}
