//! Words to types and tensors.

use bytes::Bytes;

use super::parser::{Parser, Result, is_word_start};
use super::{ELEMENT_TYPES, is_type_word, number_of};
use crate::onnx::schema::tensor_proto::DataLocation;
use crate::onnx::schema::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::schema::{
    AttributeProto, AttributeType, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};

impl Parser<'_> {
    pub(super) fn tensor_or_type(&mut self, a: &mut AttributeProto) -> Result<AttributeType> {
        let at = self.lex.position();
        let proto = self.type_proto()?;
        let next = self.lex.peek();
        if !next.is_some_and(|c| matches!(c, '{' | '=' | '"') || is_word_start(c)) {
            a.tp = Some(Box::new(proto));
            return Ok(AttributeType::TypeProto);
        }
        let name = match next {
            Some('"') => self.lex.string()?,
            _ => self.lex.take_word().to_owned(),
        };
        let _ = self.lex.matches('=');
        a.t = Some(Box::new(self.tensor(at, name, Some(&proto))?));
        Ok(AttributeType::Tensor)
    }

    pub(super) fn value_info(&mut self) -> Result<ValueInfoProto> {
        let mut info = ValueInfoProto::default();
        if is_type_word(self.lex.peek_word()) {
            info.r#type = Some(self.type_proto()?);
        }
        info.name = Some(self.lex.name("a value name")?);
        Ok(info)
    }

    fn element_type(&mut self) -> Result<i32> {
        match number_of(&ELEMENT_TYPES, self.lex.peek_word()) {
            Some(number) => {
                self.lex.take_word();
                Ok(number)
            }
            None => Err(self.lex.expected("an element type")),
        }
    }

    fn type_proto(&mut self) -> Result<TypeProto> {
        use type_proto::Value;
        let value = match self.lex.peek_word() {
            word @ ("seq" | "optional") => {
                let inner = self.parenthesised(|p| p.nested(Self::type_proto))?;
                let elem_type = Some(Box::new(inner));
                if word == "seq" {
                    Value::SequenceType(type_proto::Sequence { elem_type })
                } else {
                    Value::OptionalType(type_proto::Optional { elem_type })
                }
            }
            "map" => Value::MapType(self.parenthesised(|p| {
                let key_type = Some(p.element_type()?);
                p.lex.expect(',')?;
                let value_type = Some(Box::new(p.nested(Self::type_proto)?));
                Ok(type_proto::Map {
                    key_type,
                    value_type,
                })
            })?),
            "sparse_tensor" => Value::SparseTensorType(self.parenthesised(|p| {
                let elem_type = Some(p.element_type()?);
                let shape = p.shape()?;
                Ok(type_proto::SparseTensor { elem_type, shape })
            })?),
            _ => {
                let elem_type = Some(self.element_type()?);
                let shape = self.shape()?;
                Value::TensorType(type_proto::Tensor { elem_type, shape })
            }
        };
        Ok(TypeProto {
            value: Some(value),
            denotation: None,
        })
    }

    /// A type's keyword, and what is in its parentheses.
    fn parenthesised<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.lex.take_word();
        self.lex.expect('(')?;
        let value = parse(self)?;
        self.lex.expect(')')?;
        Ok(value)
    }

    /// Nothing for a scalar, `[]` for an unknown rank.
    fn shape(&mut self) -> Result<Option<TensorShapeProto>> {
        let mut shape = TensorShapeProto::default();
        if self.lex.peek() != Some('[') {
            return Ok(Some(shape));
        }
        self.list('[', ']', |p| {
            use dimension::Value::{DimParam, DimValue};
            let value = match p.lex.peek() {
                Some('?') => {
                    p.lex.expect('?')?;
                    None
                }
                Some(c) if c == '"' || is_word_start(c) => Some(DimParam(p.lex.name("a name")?)),
                _ => Some(DimValue(p.lex.integer()?)),
            };
            shape.dim.push(Dimension {
                value,
                denotation: None,
            });
            Ok(())
        })?;
        Ok(Some(shape).filter(|s| !s.dim.is_empty()))
    }

    pub(super) fn initializer(&mut self, info: &ValueInfoProto) -> Result<TensorProto> {
        let at = self.lex.position();
        let name = info.name.clone().unwrap_or_default();
        self.tensor(at, name, info.r#type.as_ref())
    }

    /// The elements or the location of a tensor whose type was read already.
    fn tensor(
        &mut self,
        at: usize,
        name: String,
        proto: Option<&TypeProto>,
    ) -> Result<TensorProto> {
        let wrong = |p: &Self, what: &str, found: &str| {
            let message = format!("expected {what} before the elements, found {found}");
            Err(p.lex.error_at(at, message))
        };
        let Some(type_proto::Value::TensorType(kind)) = proto.and_then(|t| t.value.as_ref()) else {
            return wrong(self, "a tensor type", "none");
        };
        let Some(shape) = &kind.shape else {
            return wrong(self, "a tensor shape", "an unknown rank");
        };
        let mut tensor = TensorProto {
            name: Some(name),
            data_type: kind.elem_type,
            ..TensorProto::default()
        };
        for dim in &shape.dim {
            match dim.value {
                Some(dimension::Value::DimValue(v)) => tensor.dims.push(v),
                _ => return wrong(self, "a numeric shape", "an axis without a number"),
            }
        }
        match self.lex.peek() {
            Some('[') => {
                tensor.data_location = Some(DataLocation::External as i32);
                self.entries(&mut tensor.external_data)?;
            }
            Some('{') => self.list('{', '}', |p| p.element(&mut tensor))?,
            _ => return Err(self.lex.expected("`{` or `[`")),
        }
        Ok(tensor)
    }

    fn element(&mut self, tensor: &mut TensorProto) -> Result<()> {
        match tensor.data_type.unwrap_or_default() {
            7 => tensor.int64_data.push(self.lex.integer()?),
            12 | 13 => tensor.uint64_data.push(self.lex.integer()?),
            1 | 14 => tensor
                .float_data
                .push(self.lex.float(|v: &f32| !v.is_infinite())?),
            11 | 15 => tensor
                .double_data
                .push(self.lex.float(|v: &f64| !v.is_infinite())?),
            8 => tensor.string_data.push(Bytes::from(self.lex.string()?)),
            _ => tensor.int32_data.push(self.lex.integer()?),
        }
        Ok(())
    }
}
