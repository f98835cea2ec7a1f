//! The structure of a PTX file: variables, functions, and their statements with operands not yet resolved.

use super::lexer::{Located, Token};

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arg<'a> {
    /// A register, a name or a number.
    Word(&'a str),
    /// A negative number, without its sign.
    Minus(&'a str),
    /// A predicate that is read inverted.
    Not(&'a str),
    /// `[base + offset]`; several inner operands do not occur.
    Address(&'a str, i64),
    /// A name with an offset, outside brackets.
    Offset(&'a str, i64),
    /// `{a, b}`
    Vector(Vec<Arg<'a>>),
    /// `(a, b)`
    List(Vec<Arg<'a>>),
    /// `d|p`, two results.
    Pair(&'a str, &'a str),
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(crate) struct RawInst<'a> {
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) mnemonic: &'a str,
    pub(crate) args: Vec<Arg<'a>>,
}

/// What initialises one element of a variable.
#[derive(Clone, Debug)]
pub(crate) enum Init<'a> {
    Number(&'a str, bool),
    /// The generic address of another variable.
    Symbol(&'a str),
}

/// A declared variable of any space.
#[derive(Clone, Debug)]
pub(crate) struct RawVar<'a> {
    pub(crate) space: &'a str,
    pub(crate) name: &'a str,
    pub(crate) ty: &'a str,
    pub(crate) align: usize,
    /// Elements; 1 without brackets, 0 for `[]`.
    pub(crate) count: usize,
    pub(crate) init: Vec<Init<'a>>,
    pub(crate) line: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Statement<'a> {
    /// `.reg .b32 %r<5>`: type, name, and how many (none for a single register of that name).
    Regs(&'a str, &'a str, Option<u32>),
    Var(RawVar<'a>),
    Open,
    Close,
    Label(&'a str),
    /// A table for `brx.idx`.
    Targets(&'a str, Vec<&'a str>),
    Inst(RawInst<'a>),
}

#[derive(Clone, Debug)]
pub(crate) struct RawFunction<'a> {
    pub(crate) name: &'a str,
    pub(crate) entry: bool,
    pub(crate) returns: Vec<RawVar<'a>>,
    pub(crate) params: Vec<RawVar<'a>>,
    /// `.maxntid` or `.reqntid`: the product of its numbers, and whether it is exact.
    pub(crate) threads: Option<(u32, bool)>,
    pub(crate) body: Vec<(u32, Statement<'a>)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct File<'a> {
    pub(crate) vars: Vec<RawVar<'a>>,
    pub(crate) functions: Vec<RawFunction<'a>>,
}

pub(crate) struct Parser<'a> {
    tokens: Vec<Located<'a>>,
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl<'a> Parser<'a> {
    pub(crate) fn new(tokens: Vec<Located<'a>>) -> Parser<'a> {
        Parser { tokens, at: 0 }
    }

    fn line(&self) -> u32 {
        self.tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(0, |t| t.line)
    }

    fn fail<T>(&self, what: &str) -> Parsed<T> {
        Err(format!("line {}: {what}", self.line()))
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.token)
    }

    fn peek_after(&self, n: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + n).map(|t| t.token)
    }

    fn take_mark(&mut self, mark: char) -> bool {
        let there = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(there);
        there
    }

    fn mark(&mut self, mark: char) -> Parsed<()> {
        if self.take_mark(mark) {
            Ok(())
        } else {
            self.fail(&format!("expected `{mark}`"))
        }
    }

    fn word(&mut self) -> Parsed<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.fail("expected a name or number"),
        }
    }

    fn number(&mut self) -> Parsed<usize> {
        let word = self.word()?;
        word.parse()
            .or_else(|_| self.fail(&format!("expected a number, found {word}")))
    }

    /// Reads the whole file.
    pub(crate) fn file(mut self) -> Parsed<File<'a>> {
        let mut file = File::default();
        while self.at < self.tokens.len() {
            match self.word()? {
                ".version" | ".address_size" => self.at += 1,
                ".target" => {
                    self.at += 1;
                    while self.take_mark(',') {
                        self.at += 1;
                    }
                }
                ".section" => self.skip_section()?,
                ".visible" | ".weak" | ".common" | ".extern" => {}
                ".entry" => file.functions.push(self.function(true)?),
                ".func" => file.functions.extend(Some(self.function(false)?)),
                space @ (".global" | ".const" | ".shared") => {
                    let var = self.variable(space)?;
                    self.mark(';')?;
                    file.vars.push(var);
                }
                other => return self.fail(&format!("unsupported directive {other}")),
            }
        }
        Ok(file)
    }

    fn skip_section(&mut self) -> Parsed<()> {
        while !self.take_mark('}') {
            self.at += 1;
            if self.at >= self.tokens.len() {
                return self.fail("a section without an end");
            }
        }
        Ok(())
    }

    /// A declaration after its space, without the semicolon.
    fn variable(&mut self, space: &'a str) -> Parsed<RawVar<'a>> {
        let line = self.line();
        let (mut align, mut ty, mut vector) = (0, "", 1);
        let name = loop {
            match self.word()? {
                ".align" => align = self.number()?,
                // The address of a parameter says where it points, which changes nothing here.
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                ".attribute" => return self.fail("unsupported attribute"),
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                word => match word.strip_prefix('.') {
                    Some(suffix) => ty = suffix,
                    None => break word,
                },
            }
        };
        let mut count = vector;
        while self.take_mark('[') {
            if self.take_mark(']') {
                count = 0;
            } else {
                count *= self.number()?;
                self.mark(']')?;
            }
        }
        let mut init = Vec::new();
        if self.take_mark('=') {
            self.initialiser(&mut init)?;
        }
        Ok(RawVar {
            space,
            name,
            ty,
            align,
            count,
            init,
            line,
        })
    }

    fn initialiser(&mut self, out: &mut Vec<Init<'a>>) -> Parsed<()> {
        if self.take_mark('{') {
            while !self.take_mark('}') {
                self.initialiser(out)?;
                self.take_mark(',');
            }
            return Ok(());
        }
        let negative = self.take_mark('-');
        let word = self.word()?;
        if word == "generic" {
            self.mark('(')?;
            out.push(Init::Symbol(self.word()?));
            return self.mark(')');
        }
        out.push(match word.as_bytes()[0] {
            b'0'..=b'9' => Init::Number(word, negative),
            _ => Init::Symbol(word),
        });
        Ok(())
    }

    fn parameters(&mut self) -> Parsed<Vec<RawVar<'a>>> {
        let mut list = Vec::new();
        self.mark('(')?;
        while !self.take_mark(')') {
            match self.word()? {
                ".param" => list.push(self.variable(".param")?),
                other => return self.fail(&format!("unsupported parameter {other}")),
            }
            self.take_mark(',');
        }
        Ok(list)
    }

    fn function(&mut self, entry: bool) -> Parsed<RawFunction<'a>> {
        let returns = if !entry && self.peek() == Some(Token::Mark('(')) {
            self.parameters()?
        } else {
            Vec::new()
        };
        let name = self.word()?;
        let params = if self.peek() == Some(Token::Mark('(')) {
            self.parameters()?
        } else {
            Vec::new()
        };
        let mut threads = None;
        while let Some(Token::Word(directive)) = self.peek() {
            self.at += 1;
            match directive {
                ".maxntid" | ".reqntid" => {
                    let mut product = self.number()?;
                    while self.take_mark(',') {
                        product *= self.number()?;
                    }
                    threads = Some((product as u32, directive == ".reqntid"));
                }
                ".minnctapersm" | ".maxnreg" => self.at += 1,
                ".noreturn" => {}
                other => return self.fail(&format!("unsupported directive {other}")),
            }
        }
        let mut function = RawFunction {
            name,
            entry,
            returns,
            params,
            threads,
            body: Vec::new(),
        };
        if !self.take_mark(';') {
            self.mark('{')?;
            self.body(&mut function.body)?;
        }
        Ok(function)
    }

    fn body(&mut self, out: &mut Vec<(u32, Statement<'a>)>) -> Parsed<()> {
        let mut depth = 0;
        loop {
            let line = self.line();
            if self.take_mark('{') {
                depth += 1;
                out.push((line, Statement::Open));
            } else if self.take_mark('}') {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
                out.push((line, Statement::Close));
            } else if self.take_mark(';') {
            } else if self.peek() == Some(Token::Mark('@')) {
                out.push((line, self.instruction()?));
            } else {
                self.named_statement(line, out)?;
            }
        }
    }

    fn named_statement(&mut self, line: u32, out: &mut Vec<(u32, Statement<'a>)>) -> Parsed<()> {
        match self.peek() {
            Some(Token::Word(".reg")) => {
                self.at += 1;
                let ty = self.word()?.trim_start_matches('.');
                loop {
                    let name = self.word()?;
                    let mut count = None;
                    if self.take_mark('<') {
                        count = Some(self.number()? as u32);
                        self.mark('>')?;
                    }
                    out.push((line, Statement::Regs(ty, name, count)));
                    if !self.take_mark(',') {
                        break;
                    }
                }
                self.mark(';')
            }
            Some(Token::Word(space @ (".shared" | ".local" | ".param"))) => {
                self.at += 1;
                let var = self.variable(space)?;
                out.push((line, Statement::Var(var)));
                self.mark(';')
            }
            Some(Token::Word(".pragma")) => {
                self.at += 2;
                self.mark(';')
            }
            Some(Token::Word(name)) if self.peek_after(1) == Some(Token::Mark(':')) => {
                self.at += 2;
                match self.peek() {
                    Some(Token::Word(".branchtargets")) => {
                        self.at += 1;
                        let mut targets = vec![self.word()?];
                        while self.take_mark(',') {
                            targets.push(self.word()?);
                        }
                        out.push((line, Statement::Targets(name, targets)));
                        self.mark(';')
                    }
                    Some(Token::Word(".callprototype")) => {
                        self.fail("unsupported: a call through a function pointer")
                    }
                    _ => {
                        out.push((line, Statement::Label(name)));
                        Ok(())
                    }
                }
            }
            Some(Token::Word(name)) if name.starts_with('.') => {
                self.fail(&format!("unsupported directive {name}"))
            }
            Some(Token::Word(_)) => {
                out.push((line, self.instruction()?));
                Ok(())
            }
            _ => self.fail("expected a statement"),
        }
    }

    fn instruction(&mut self) -> Parsed<Statement<'a>> {
        let mut guard = None;
        if self.take_mark('@') {
            let inverted = self.take_mark('!');
            guard = Some((self.word()?, inverted));
        }
        let mnemonic = self.word()?;
        let mut args = Vec::new();
        while !self.take_mark(';') {
            args.push(self.arg()?);
            self.take_mark(',');
        }
        Ok(Statement::Inst(RawInst {
            guard,
            mnemonic,
            args,
        }))
    }

    fn list(&mut self, end: char) -> Parsed<Vec<Arg<'a>>> {
        let mut list = Vec::new();
        while !self.take_mark(end) {
            list.push(self.arg()?);
            self.take_mark(',');
        }
        Ok(list)
    }

    fn offset(&mut self) -> Parsed<Option<i64>> {
        let sign = match self.peek() {
            Some(Token::Mark('+')) => 1,
            Some(Token::Mark('-')) => -1,
            _ => return Ok(None),
        };
        self.at += 1;
        // NVRTC writes `+-16`.
        let sign = if self.take_mark('-') { -sign } else { sign };
        Ok(Some(sign * self.number()? as i64))
    }

    fn arg(&mut self) -> Parsed<Arg<'a>> {
        if self.take_mark('{') {
            return Ok(Arg::Vector(self.list('}')?));
        }
        if self.take_mark('(') {
            return Ok(Arg::List(self.list(')')?));
        }
        if self.take_mark('-') {
            return Ok(Arg::Minus(self.word()?));
        }
        if self.take_mark('!') {
            return Ok(Arg::Not(self.word()?));
        }
        if self.take_mark('[') {
            let base = self.word()?;
            let offset = self.offset()?.unwrap_or(0);
            self.mark(']')?;
            return Ok(Arg::Address(base, offset));
        }
        let word = self.word()?;
        if self.take_mark('|') {
            return Ok(Arg::Pair(word, self.word()?));
        }
        Ok(match self.offset()? {
            Some(offset) => Arg::Offset(word, offset),
            None => Arg::Word(word),
        })
    }
}
