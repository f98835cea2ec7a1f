//! How dimensions are written and read.

use std::fmt;

use super::poly::Mono;
use super::{Atom, Dim, MAX_DEPTH, Op};

/// Deepest nesting of brackets and signs the parser follows: printing an atom opens two brackets.
const MAX_PARSE_DEPTH: usize = 4 * MAX_DEPTH;
/// How the undefined dimension is written.
const UNDEFINED: &str = "⊤";

fn starts_identifier(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn continues_identifier(c: char) -> bool {
    starts_identifier(c) || c.is_ascii_digit()
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(starts_identifier) && text.chars().all(continues_identifier)
}

/// `4096·batch·seq^2 + 128·batch + 64`: degrees descending, then by symbol names. Names that are not
/// identifiers are quoted inside an expression. [`Dim::parse`] reads it back to an equal dimension.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(terms) = self.terms() else {
            return f.write_str(UNDEFINED);
        };
        if terms.is_empty() {
            return f.write_str("0");
        }
        if let Some(name) = self.as_symbol()
            && Dim::parse(name) == *self
        {
            return f.write_str(name);
        }
        for (i, (mono, coef)) in terms.iter().enumerate() {
            f.write_str(match (i, *coef < 0) {
                (0, false) => "",
                (0, true) => "-",
                (_, false) => " + ",
                (_, true) => " - ",
            })?;
            write_term(f, mono, coef.unsigned_abs())?;
        }
        Ok(())
    }
}

fn write_term(f: &mut fmt::Formatter<'_>, mono: &Mono, coef: u64) -> fmt::Result {
    let shown = coef != 1 || mono.0.is_empty();
    if shown {
        write!(f, "{coef}")?;
    }
    for (i, (atom, exponent)) in mono.0.iter().enumerate() {
        if shown || i > 0 {
            f.write_str("·")?;
        }
        write_atom(f, atom)?;
        if *exponent != 1 {
            write!(f, "^{exponent}")?;
        }
    }
    Ok(())
}

fn write_atom(f: &mut fmt::Formatter<'_>, atom: &Atom) -> fmt::Result {
    let op = match atom {
        Atom::Symbol(name) if is_identifier(name) => return f.write_str(name),
        Atom::Symbol(name) => {
            return write!(f, "\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
        }
        Atom::Op(op) => op,
    };
    if let (Op::FloorDiv, [n, d]) = (op.op, op.args.as_slice()) {
        f.write_str("(")?;
        write_operand(f, n)?;
        f.write_str("//")?;
        write_operand(f, d)?;
        return f.write_str(")");
    }
    f.write_str(match op.op {
        Op::FloorDiv => "FloorDiv(",
        Op::CeilDiv => "CeilDiv(",
        Op::Mod => "Mod(",
        Op::Max => "Max(",
        Op::Min => "Min(",
    })?;
    for (i, arg) in op.args.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        write_nested(f, arg)?;
    }
    f.write_str(")")
}

/// Inside an expression a lone symbol is quoted like any other.
fn write_nested(f: &mut fmt::Formatter<'_>, dim: &Dim) -> fmt::Result {
    match dim.single_atom() {
        Some(atom) => write_atom(f, atom),
        None => write!(f, "{dim}"),
    }
}

/// An operand of `//`: bracketed unless it is one atom or a constant.
fn write_operand(f: &mut fmt::Formatter<'_>, dim: &Dim) -> fmt::Result {
    if dim.single_atom().is_some() || dim.as_const().is_some_and(|c| c >= 0) {
        return write_nested(f, dim);
    }
    write!(f, "({dim})")
}

impl Dim {
    fn single_atom(&self) -> Option<&Atom> {
        let (mono, coef) = self.terms().filter(|t| t.len() == 1)?.first_key_value()?;
        match mono.0.as_slice() {
            [(atom, 1)] if *coef == 1 => Some(atom),
            _ => None,
        }
    }

    fn as_symbol(&self) -> Option<&str> {
        match self.single_atom()? {
            Atom::Symbol(name) => Some(name),
            Atom::Op(_) => None,
        }
    }

    /// Reads an ONNX `dim_param`, or what `Display` writes. An identifier is a symbol; integer
    /// arithmetic as PyTorch's exporter writes it (`4*batch`, `(s0//2)`, `Max(1, u0)`, `s0**2`,
    /// `/` where the division is exact) is an expression; any other text, and any expression whose
    /// value is undefined, is one symbol with exactly that text as its name.
    pub fn parse(text: &str) -> Dim {
        if text == UNDEFINED {
            return Dim::undefined();
        }
        let mut parser = Parser {
            rest: text,
            depth: 0,
        };
        match parser.sum() {
            Some(dim) if parser.peek().is_none() && !dim.is_undefined() => dim,
            _ => Dim::symbol(text),
        }
    }
}

/// Recursive descent; `None` is text outside the grammar.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Option<Dim>) -> Option<Dim> {
        if self.depth >= MAX_PARSE_DEPTH {
            return None;
        }
        self.depth += 1;
        let dim = read(self);
        self.depth -= 1;
        dim
    }

    fn sum(&mut self) -> Option<Dim> {
        let mut total = self.product()?;
        loop {
            if self.eat("+") {
                total = total + self.product()?;
            } else if self.eat("-") {
                total = total - self.product()?;
            } else {
                return Some(total);
            }
        }
    }

    fn product(&mut self) -> Option<Dim> {
        let mut total = self.signed()?;
        loop {
            if self.eat("*") || self.eat("·") {
                total = total * self.signed()?;
            } else if self.eat("//") {
                total = total.div_floor(&self.signed()?);
            } else if self.eat("/") {
                total = total.exact_div(&self.signed()?)?;
            } else if self.eat("%") {
                total = total.modulo(&self.signed()?);
            } else {
                return Some(total);
            }
        }
    }

    fn signed(&mut self) -> Option<Dim> {
        if self.eat("-") {
            return Some(-self.nested(Self::signed)?);
        }
        if self.eat("+") {
            return self.nested(Self::signed);
        }
        let base = self.primary()?;
        if self.eat("^") || self.eat("**") {
            self.peek();
            return Some(base.pow(self.take_while(|c| c.is_ascii_digit()).parse().ok()?));
        }
        Some(base)
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let (taken, rest) = match self.rest.find(|c| !keep(c)) {
            Some(end) => self.rest.split_at_checked(end).unwrap_or((self.rest, "")),
            None => (self.rest, ""),
        };
        self.rest = rest;
        taken.to_owned()
    }

    fn primary(&mut self) -> Option<Dim> {
        match self.peek()? {
            '(' => {
                self.eat("(");
                let inner = self.nested(Self::sum)?;
                self.eat(")").then_some(inner)
            }
            '"' => self.quoted(),
            c if c.is_ascii_digit() => {
                let value: i64 = self.take_while(|c| c.is_ascii_digit()).parse().ok()?;
                // `2d` is neither a number nor a product.
                (!self.rest.starts_with(starts_identifier)).then(|| Dim::from(value))
            }
            c if starts_identifier(c) => {
                let name = self.take_while(continues_identifier);
                if self.eat("(") {
                    self.call(&name)
                } else {
                    Some(Dim::symbol(&name))
                }
            }
            _ => None,
        }
    }

    fn quoted(&mut self) -> Option<Dim> {
        let mut name = String::new();
        let mut chars = self.rest.strip_prefix('"')?.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => name.push(chars.next()?),
                c => name.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(Dim::symbol(&name))
    }

    fn call(&mut self, name: &str) -> Option<Dim> {
        let op = match name {
            "Max" | "max" => Op::Max,
            "Min" | "min" => Op::Min,
            "FloorDiv" => Op::FloorDiv,
            "CeilDiv" => Op::CeilDiv,
            "Mod" | "PythonMod" => Op::Mod,
            _ => return None,
        };
        let mut args = vec![self.nested(Self::sum)?];
        while self.eat(",") {
            args.push(self.nested(Self::sum)?);
        }
        self.eat(")").then(|| Dim::apply(op, args))
    }
}
