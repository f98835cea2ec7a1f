//! One array in NumPy's format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
//!
//! A magic number, a version, the length of a header, the header as a Python dictionary, the elements.
//! The dictionary has three known keys, and what is wanted of the elements is where they lie, so it is
//! read here rather than by a crate with a parser for all of Python's literals.

use std::fmt::Write;

use bytes::{Bytes, BytesMut};
use velora_graph::shapes::DataType;

use crate::tensor::{Tensor, TensorView, byte_length};

/// The first bytes of every array file.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// The letters and the size in an array's `descr`, after the byte order. NumPy has no type with 8
/// exponent bits; arrays of the ml_dtypes package are written as two opaque bytes.
const TYPES: [(&str, DataType); 14] = [
    ("b1", DataType::BOOL),
    ("i1", DataType::INT8),
    ("i2", DataType(5)),
    ("i4", DataType::INT32),
    ("i8", DataType::INT64),
    ("u1", DataType::UINT8),
    ("u2", DataType(4)),
    ("u4", DataType(12)),
    ("u8", DataType(13)),
    ("f2", DataType::FLOAT16),
    ("f4", DataType::FLOAT),
    ("f8", DataType::DOUBLE),
    ("V2", DataType::BFLOAT16),
    ("bfloat16", DataType::BFLOAT16),
];

/// NumPy allows 64 axes.
const MAX_RANK: usize = 64;

/// The problem with an array, and a hint; the caller knows the array and the file.
pub type Problem = (String, &'static str);

const DAMAGED: &str = "is the file complete? write it again with numpy.savez";
const TYPE_HINT: &str = "convert it with .astype(); read are bool, int8 to int64, uint8 to uint64, \
                         float16, float32, float64, and bfloat16 of ml_dtypes";

fn damaged<T>(problem: impl Into<String>) -> Result<T, Problem> {
    Err((problem.into(), DAMAGED))
}

struct Header {
    data_type: DataType,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// Reads an array. Elements that lie as they are wanted are not copied.
pub fn decode(bytes: &Bytes) -> Result<Tensor, Problem> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return damaged("it does not begin as a NumPy array does");
    };
    let (length, start) = match *rest {
        [1, 0, a, b, ..] => (u32::from(u16::from_le_bytes([a, b])), MAGIC.len() + 4),
        [2 | 3, 0, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]), MAGIC.len() + 6),
        [major, minor, ..] if major == 0 || major > 3 || minor != 0 => {
            return Err((
                format!("version {major}.{minor} of NumPy's format is not known"),
                "1.0, 2.0 and 3.0 are",
            ));
        }
        _ => return damaged("it ends within its header"),
    };
    let end = usize::try_from(length).ok();
    let end = end.and_then(|length| start.checked_add(length));
    let Some((text, end)) = end.and_then(|end| Some((bytes.get(start..end)?, end))) else {
        return damaged(format!("it ends within its header of {length} bytes"));
    };
    let header = header(text)?;
    let data = bytes.slice(end..);

    let Some(expected) = byte_length(header.data_type, &header.shape) else {
        return damaged(format!("its shape {:?} exceeds any memory", header.shape));
    };
    if data.len() != expected {
        return damaged(format!(
            "it holds {} bytes of elements, but {}{:?} takes {expected}",
            data.len(),
            header.data_type,
            header.shape
        ));
    }
    // The product of the sizes cannot overflow, as `byte_length` has found.
    let size = expected / header.shape.iter().product::<usize>().max(1);
    let elements = if header.fortran_order && header.shape.len() > 1 && expected > 0 {
        row_major(&data, &header.shape, size, header.big_endian)
    } else if header.big_endian && size > 1 {
        let mut swapped = BytesMut::from(&data[..]);
        swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        swapped.freeze()
    } else {
        data
    };
    Ok(Tensor {
        data_type: header.data_type,
        shape: header.shape,
        bytes: elements,
    })
}

/// The elements of a column-major array, in row-major order and little-endian.
fn row_major(data: &[u8], shape: &[usize], size: usize, big_endian: bool) -> Bytes {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = size;
    for &axis in shape {
        strides.push(stride);
        stride *= axis;
    }
    let mut out = BytesMut::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    let mut from = 0;
    loop {
        // `from` is the offset of the element at `index`, within `data` since its length is the
        // product of the shape and the size.
        let element = &data[from..from + size];
        let begin = out.len();
        out.extend_from_slice(element);
        if big_endian {
            out[begin..].reverse();
        }
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return out.freeze();
            }
            axis -= 1;
            index[axis] += 1;
            from += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            from -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}

/// The dictionary before the elements.
fn header(text: &[u8]) -> Result<Header, Problem> {
    let Ok(text) = std::str::from_utf8(text) else {
        return damaged("its header is not text");
    };
    let mut literal = Literal { rest: text };
    let (mut descr, mut order, mut shape) = (None, None, None);
    literal.expect('{')?;
    while !literal.take('}') {
        let key = literal.string()?;
        literal.expect(':')?;
        match key {
            "descr" => descr = Some(literal.descr()?),
            "fortran_order" => order = Some(literal.boolean()?),
            "shape" => shape = Some(literal.shape()?),
            _ => return damaged(format!("its header has an unknown key '{}'", short(key))),
        }
        if !literal.take(',') {
            literal.expect('}')?;
            break;
        }
    }
    if !literal.rest.trim().is_empty() {
        return literal.unexpected("the end of the header");
    }
    let (Some((data_type, big_endian)), Some(fortran_order), Some(shape)) = (descr, order, shape)
    else {
        return damaged("its header lacks one of descr, fortran_order and shape");
    };
    Ok(Header {
        data_type,
        big_endian,
        fortran_order,
        shape,
    })
}

/// The beginning of a text, for messages.
fn short(text: &str) -> &str {
    match text.char_indices().nth(40) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// The few kinds of Python literals that a header is made of.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn unexpected<T>(&self, expected: &str) -> Result<T, Problem> {
        damaged(format!(
            "its header has '{}' where {expected} was expected",
            short(self.rest)
        ))
    }

    fn take(&mut self, token: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: char) -> Result<(), Problem> {
        match self.take(token) {
            true => Ok(()),
            false => self.unexpected(&format!("'{token}'")),
        }
    }

    /// A string without escapes: neither a key nor a type has any.
    fn string(&mut self) -> Result<&'a str, Problem> {
        let quote = match (self.take('\''), self.rest) {
            (true, _) => '\'',
            _ if self.take('"') => '"',
            _ => return self.unexpected("a string"),
        };
        match self.rest.split_once(quote) {
            Some((text, rest)) => {
                self.rest = rest;
                Ok(text)
            }
            None => self.unexpected("the end of a string"),
        }
    }

    fn boolean(&mut self) -> Result<bool, Problem> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        self.unexpected("True or False")
    }

    /// The element type, and whether its bytes are big-endian.
    fn descr(&mut self) -> Result<(DataType, bool), Problem> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with(['[', '(']) {
            return Err(("its elements are records".to_owned(), TYPE_HINT));
        }
        let descr = self.string()?;
        let (big_endian, name) = match descr.strip_prefix(['<', '|', '=']) {
            Some(name) => (false, name),
            None => match descr.strip_prefix('>') {
                Some(name) => (true, name),
                None => (false, descr),
            },
        };
        match TYPES.iter().find(|(known, _)| *known == name) {
            Some((_, data_type)) => Ok((*data_type, big_endian)),
            None => Err((
                format!("dtype '{}' is not supported", short(descr)),
                TYPE_HINT,
            )),
        }
    }

    fn shape(&mut self) -> Result<Vec<usize>, Problem> {
        let mut shape = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            self.rest = self.rest.trim_start();
            let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = self.rest.split_at(digits);
            let Ok(size) = number.parse() else {
                return self.unexpected("a size");
            };
            // Python 2 marked long integers.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            shape.push(size);
            if shape.len() > MAX_RANK {
                return damaged(format!("it has more than {MAX_RANK} axes"));
            }
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}

/// The magic number and the header of an array, padded so that the elements begin at a multiple of
/// 64 bytes; `None` where NumPy has no such type.
pub fn prelude(tensor: &TensorView<'_>) -> Option<Vec<u8>> {
    let (name, _) = TYPES.iter().find(|(_, t)| *t == tensor.data_type)?;
    let order = if tensor.data_type.bits()? > 8 {
        '<'
    } else {
        '|'
    };
    let mut text = format!("{{'descr': '{order}{name}', 'fortran_order': False, 'shape': (");
    for size in tensor.shape {
        // Writing to a string cannot fail.
        let _ = write!(text, "{size}, ");
    }
    // A tuple of one needs its comma, a longer one does without, as NumPy writes it.
    let text = match tensor.shape.len() {
        0 => text,
        1 => text.trim_end().to_owned(),
        _ => text.trim_end_matches(", ").to_owned(),
    };
    let mut text = text + "), }";
    let before = MAGIC.len() + 4;
    while !(before + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let length = u16::try_from(text.len()).ok()?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.bytes());
    Some(bytes)
}
