//! Words to protos.

use bytes::Bytes;

use super::lexer::{Lexer, Literal};
use super::{ATTRIBUTE_TYPES, ParseError, is_type_word, number_of};
use crate::onnx::schema::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, ValueInfoProto,
};

/// How deep graphs and types may nest.
const MAX_DEPTH: usize = 64;

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Reads the text of a model.
///
/// # Errors
///
/// Where the text departs from the syntax.
pub fn parse_model(text: &str) -> Result<ModelProto> {
    let mut p = Parser::new(text);
    let mut model = p.model()?;
    while p.lex.peek().is_some() {
        model.functions.push(p.function()?);
    }
    Ok(model)
}

/// Reads the text of a graph.
///
/// # Errors
///
/// Where the text departs from the syntax.
pub fn parse_graph(text: &str) -> Result<GraphProto> {
    let mut p = Parser::new(text);
    let graph = p.graph()?;
    p.end(graph)
}

/// Reads the text of a function.
///
/// # Errors
///
/// Where the text departs from the syntax.
pub fn parse_function(text: &str) -> Result<FunctionProto> {
    let mut p = Parser::new(text);
    let function = p.function()?;
    p.end(function)
}

/// Reads the text of a node.
///
/// # Errors
///
/// Where the text departs from the syntax.
pub fn parse_node(text: &str) -> Result<NodeProto> {
    let mut p = Parser::new(text);
    let node = p.node()?;
    p.end(node)
}

pub(super) struct Parser<'a> {
    pub(super) lex: Lexer<'a>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            lex: Lexer::new(text),
            depth: 0,
        }
    }

    fn end<T>(&mut self, value: T) -> Result<T> {
        match self.lex.peek() {
            None => Ok(value),
            Some(_) => Err(self.lex.expected("end of input")),
        }
    }

    /// Parses one level deeper.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            let at = self.lex.position();
            let message = format!("expected at most {MAX_DEPTH} nested levels, found more");
            return Err(self.lex.error_at(at, message));
        }
        self.depth += 1;
        let value = parse(self);
        self.depth -= 1;
        value
    }

    /// Items separated by commas, at least one.
    fn commas(&mut self, mut each: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        each(self)?;
        while self.lex.matches(',') {
            each(self)?;
        }
        Ok(())
    }

    /// Items between brackets, possibly none.
    pub(super) fn list(
        &mut self,
        open: char,
        close: char,
        each: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.lex.expect(open)?;
        if !self.lex.matches(close) {
            self.commas(each)?;
            self.lex.expect(close)?;
        }
        Ok(())
    }

    fn model(&mut self) -> Result<ModelProto> {
        let mut model = ModelProto::default();
        if self.lex.matches('<') {
            self.commas(|p| p.model_key(&mut model))?;
            self.lex.expect('>')?;
        }
        model.graph = Some(self.graph()?);
        Ok(model)
    }

    fn model_key(&mut self, model: &mut ModelProto) -> Result<()> {
        let at = self.lex.position();
        let key = self.lex.word("a model property")?;
        self.lex.expect(':')?;
        match key {
            "ir_version" => model.ir_version = Some(self.lex.integer()?),
            "opset_import" => self.opsets(&mut model.opset_import)?,
            "producer_name" => model.producer_name = Some(self.lex.string()?),
            "producer_version" => model.producer_version = Some(self.lex.string()?),
            "domain" => model.domain = Some(self.lex.string()?),
            "model_version" => model.model_version = Some(self.lex.integer()?),
            "doc_string" => model.doc_string = Some(self.lex.string()?),
            "metadata_props" => self.entries(&mut model.metadata_props)?,
            _ => {
                let message = format!("expected a model property, found `{key}`");
                return Err(self.lex.error_at(at, message));
            }
        }
        Ok(())
    }

    fn opsets(&mut self, opsets: &mut Vec<OperatorSetIdProto>) -> Result<()> {
        self.list('[', ']', |p| {
            let domain = Some(p.lex.string()?);
            p.lex.expect(':')?;
            let version = Some(p.lex.integer()?);
            opsets.push(OperatorSetIdProto { domain, version });
            Ok(())
        })
    }

    pub(super) fn entries(&mut self, entries: &mut Vec<StringStringEntryProto>) -> Result<()> {
        self.list('[', ']', |p| {
            let key = Some(p.lex.string()?);
            p.lex.expect(':')?;
            let value = Some(p.lex.string()?);
            entries.push(StringStringEntryProto { key, value });
            Ok(())
        })
    }

    fn function(&mut self) -> Result<FunctionProto> {
        let mut function = FunctionProto::default();
        if self.lex.matches('<') {
            self.commas(|p| p.function_key(&mut function))?;
            self.lex.expect('>')?;
        }
        function.name = Some(self.lex.name("a function name")?);
        if self.lex.matches('<') {
            self.commas(|p| {
                let name = p.lex.name("an attribute name")?;
                if matches!(p.lex.peek(), Some(':' | '=')) {
                    function.attribute_proto.push(*p.attribute_value(name)?);
                } else {
                    function.attribute.push(name);
                }
                Ok(())
            })?;
            self.lex.expect('>')?;
        }
        self.function_values(&mut function.input, &mut function.value_info)?;
        self.lex.expect_arrow()?;
        self.function_values(&mut function.output, &mut function.value_info)?;
        if self.lex.peek() == Some('<') {
            self.list('<', '>', |p| {
                function.value_info.push(p.value_info()?);
                Ok(())
            })?;
        }
        self.nodes(&mut function.node)?;
        Ok(function)
    }

    fn function_key(&mut self, function: &mut FunctionProto) -> Result<()> {
        let at = self.lex.position();
        let key = self.lex.word("a function property")?;
        self.lex.expect(':')?;
        match key {
            "opset_import" => self.opsets(&mut function.opset_import)?,
            "doc_string" => function.doc_string = Some(self.lex.string()?),
            "domain" => function.domain = Some(self.lex.string()?),
            "overload" => function.overload = Some(self.lex.string()?),
            _ => {
                let message = format!("expected a function property, found `{key}`");
                return Err(self.lex.error_at(at, message));
            }
        }
        Ok(())
    }

    fn function_values(
        &mut self,
        names: &mut Vec<String>,
        infos: &mut Vec<ValueInfoProto>,
    ) -> Result<()> {
        self.list('(', ')', |p| {
            let info = p.value_info()?;
            names.extend(info.name.clone());
            infos.extend(Some(info).filter(|i| i.r#type.is_some()));
            Ok(())
        })
    }

    fn graph(&mut self) -> Result<GraphProto> {
        self.nested(|p| {
            let mut graph = GraphProto {
                name: Some(p.lex.name("a graph name")?),
                ..GraphProto::default()
            };
            if p.lex.peek() == Some('(') {
                p.list('(', ')', |p| {
                    let info = p.value_info()?;
                    if p.lex.matches('=') {
                        graph.initializer.push(p.initializer(&info)?);
                    }
                    graph.input.push(info);
                    Ok(())
                })?;
            }
            p.lex.expect_arrow()?;
            p.list('(', ')', |p| {
                graph.output.push(p.value_info()?);
                Ok(())
            })?;
            if p.lex.peek() == Some('<') {
                p.list('<', '>', |p| {
                    let info = p.value_info()?;
                    if p.lex.matches('=') {
                        graph.initializer.push(p.initializer(&info)?);
                    } else {
                        graph.value_info.push(info);
                    }
                    Ok(())
                })?;
            }
            p.nodes(&mut graph.node)?;
            Ok(graph)
        })
    }

    fn nodes(&mut self, nodes: &mut Vec<NodeProto>) -> Result<()> {
        self.lex.expect('{')?;
        while !self.lex.matches('}') {
            nodes.push(self.node()?);
        }
        Ok(())
    }

    /// Names of a node's inputs or outputs: nothing before a comma is an empty name.
    fn names(&mut self, names: &mut Vec<String>) -> Result<()> {
        loop {
            let name = match self.lex.peek() {
                Some('"') => self.lex.string()?,
                next => match self.lex.take_word() {
                    "" if next != Some(',') => return Ok(()),
                    word => word.to_owned(),
                },
            };
            names.push(name);
            if !self.lex.matches(',') {
                return Ok(());
            }
        }
    }

    fn node(&mut self) -> Result<NodeProto> {
        let mut node = NodeProto::default();
        if self.lex.matches('[') {
            node.name = Some(match self.lex.peek() {
                Some('"') => self.lex.string()?,
                _ => self.lex.take_word().to_owned(),
            });
            self.lex.expect(']')?;
        }
        self.names(&mut node.output)?;
        self.lex.expect('=')?;
        let mut domain = String::new();
        let mut op = self.lex.name("an operator")?;
        while self.lex.matches('.') {
            if !domain.is_empty() {
                domain.push('.');
            }
            domain.push_str(&op);
            op = self.lex.name("an operator")?;
        }
        node.domain = Some(domain);
        node.op_type = Some(op);
        if self.lex.matches(':') {
            node.overload = Some(self.lex.name("an overload")?);
        }
        self.attributes(&mut node.attribute)?;
        self.lex.expect('(')?;
        self.names(&mut node.input)?;
        self.lex.expect(')')?;
        if node.attribute.is_empty() {
            self.attributes(&mut node.attribute)?;
        }
        Ok(node)
    }

    fn attributes(&mut self, attributes: &mut Vec<AttributeProto>) -> Result<()> {
        if self.lex.matches('<') {
            self.commas(|p| {
                let name = p.lex.name("an attribute name")?;
                attributes.push(*p.attribute_value(name)?);
                Ok(())
            })?;
            self.lex.expect('>')?;
        }
        Ok(())
    }

    /// What follows an attribute's name. Boxed, as these are large and the recursion is deep.
    fn attribute_value(&mut self, name: String) -> Result<Box<AttributeProto>> {
        let mut declared = AttributeType::Undefined;
        if self.lex.matches(':') {
            let at = self.lex.position();
            let word = self.lex.word("an attribute type")?;
            let number = number_of(&ATTRIBUTE_TYPES, word).unwrap_or_default();
            declared = AttributeType::try_from(number).unwrap_or(AttributeType::Undefined);
            if declared == AttributeType::Undefined {
                let message = format!("expected an attribute type, found `{word}`");
                return Err(self.lex.error_at(at, message));
            }
        }
        self.lex.expect('=')?;
        let at = self.lex.position();
        let mut attribute = if self.lex.matches('[') {
            self.attribute_list(at, declared)?
        } else {
            self.single(declared)?
        };
        attribute.name = Some(name);
        Ok(attribute)
    }

    fn attribute_list(
        &mut self,
        at: usize,
        declared: AttributeType,
    ) -> Result<Box<AttributeProto>> {
        let mut list = Box::<AttributeProto>::default();
        let mut expected = match singleton(declared) {
            Some(kind) => kind,
            None if declared == AttributeType::Undefined => declared,
            None => {
                let message = format!("expected {}, found a list", describe(declared));
                return Err(self.lex.error_at(at, message));
            }
        };
        list.r#type = Some(declared as i32);
        if self.lex.matches(']') {
            if declared == AttributeType::Undefined {
                let message = "expected a type before an empty list, found none".to_owned();
                return Err(self.lex.error_at(at, message));
            }
            return Ok(list);
        }
        self.commas(|p| {
            let item_at = p.lex.position();
            let item = p.single(expected)?;
            if item.ref_attr_name.is_some() {
                let message = "expected a value in the list, found a reference".to_owned();
                return Err(p.lex.error_at(item_at, message));
            }
            let kind = item.r#type.and_then(|t| AttributeType::try_from(t).ok());
            expected = kind.unwrap_or(AttributeType::Undefined);
            list.floats.extend(item.f);
            list.ints.extend(item.i);
            list.strings.extend(item.s);
            list.tensors.extend(item.t.map(|t| *t));
            list.graphs.extend(item.g.map(|g| *g));
            list.type_protos.extend(item.tp.map(|tp| *tp));
            Ok(())
        })?;
        self.lex.expect(']')?;
        list.r#type = Some(plural(expected) as i32);
        Ok(list)
    }

    /// One value of an attribute, of the type `declared` unless that is undefined.
    fn single(&mut self, declared: AttributeType) -> Result<Box<AttributeProto>> {
        let mut a = Box::<AttributeProto>::default();
        let at = self.lex.position();
        let found = match self.lex.peek() {
            Some('@') => {
                self.lex.expect('@')?;
                a.ref_attr_name = Some(self.lex.name("an attribute name")?);
                a.r#type = Some(declared as i32).filter(|t| *t != 0);
                return Ok(a);
            }
            Some(c) if declared == AttributeType::Graph && (c == '"' || is_word_start(c)) => {
                a.g = Some(self.boxed_graph()?);
                AttributeType::Graph
            }
            Some(c) if is_word_start(c) && !self.lex.next_is_special_float() => {
                if is_type_word(self.lex.peek_word()) {
                    self.tensor_or_type(&mut a)?
                } else {
                    a.g = Some(self.boxed_graph()?);
                    AttributeType::Graph
                }
            }
            _ => self.literal_value(&mut a, at, declared)?,
        };
        if declared != AttributeType::Undefined && declared != found {
            let message = format!("expected {}, found {}", describe(declared), describe(found));
            return Err(self.lex.error_at(at, message));
        }
        a.r#type = Some(found as i32);
        Ok(a)
    }

    fn boxed_graph(&mut self) -> Result<Box<GraphProto>> {
        self.graph().map(Box::new)
    }

    fn literal_value(
        &mut self,
        a: &mut AttributeProto,
        at: usize,
        declared: AttributeType,
    ) -> Result<AttributeType> {
        Ok(match self.lex.literal(describe(declared))? {
            Literal::Int(text) => {
                let value: i64 = self.lex.convert(at, text, "an integer")?;
                if declared == AttributeType::Float {
                    a.f = Some(value as f32);
                    AttributeType::Float
                } else {
                    a.i = Some(value);
                    AttributeType::Int
                }
            }
            Literal::Float(text) => {
                a.f = Some(self.lex.convert(at, text, "a number")?);
                AttributeType::Float
            }
            Literal::Text(text) => {
                a.s = Some(Bytes::from(text));
                AttributeType::String
            }
        })
    }
}

pub(super) fn is_word_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

/// The type of the items of a list type.
fn singleton(kind: AttributeType) -> Option<AttributeType> {
    Some(match kind {
        AttributeType::Floats => AttributeType::Float,
        AttributeType::Ints => AttributeType::Int,
        AttributeType::Strings => AttributeType::String,
        AttributeType::Tensors => AttributeType::Tensor,
        AttributeType::Graphs => AttributeType::Graph,
        AttributeType::SparseTensors => AttributeType::SparseTensor,
        AttributeType::TypeProtos => AttributeType::TypeProto,
        _ => return None,
    })
}

/// The type of a list of items of this type.
fn plural(kind: AttributeType) -> AttributeType {
    match kind {
        AttributeType::Float => AttributeType::Floats,
        AttributeType::Int => AttributeType::Ints,
        AttributeType::String => AttributeType::Strings,
        AttributeType::Tensor => AttributeType::Tensors,
        AttributeType::Graph => AttributeType::Graphs,
        AttributeType::SparseTensor => AttributeType::SparseTensors,
        AttributeType::TypeProto => AttributeType::TypeProtos,
        other => other,
    }
}

/// A type in an error message.
fn describe(kind: AttributeType) -> &'static str {
    match kind {
        AttributeType::Undefined => "an attribute value",
        AttributeType::Float => "a float",
        AttributeType::Int => "an int",
        AttributeType::String => "a string",
        AttributeType::Tensor => "a tensor",
        AttributeType::Graph => "a graph",
        AttributeType::SparseTensor => "a sparse tensor",
        AttributeType::TypeProto => "a type",
        _ => "a list",
    }
}
