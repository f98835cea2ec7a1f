//! Characters to words and literals.

use super::{ParseError, is_identifier};

/// A literal as it stands in the text.
pub(super) enum Literal<'a> {
    /// Digits with an optional sign.
    Int(&'a str),
    /// A number with a point or exponent, or an infinity or NaN.
    Float(&'a str),
    /// A string, its escapes resolved.
    Text(String),
}

/// A position in the text; the syntax needs no token list, as what a word means depends on where
/// it stands.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Goes past white space and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// The next character that is no white space.
    pub(super) fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    /// Where the next token starts.
    pub(super) fn position(&mut self) -> usize {
        self.skip();
        self.at
    }

    /// Takes `c` if it is next.
    pub(super) fn matches(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// Takes `c`, which must be next.
    pub(super) fn expect(&mut self, c: char) -> Result<(), ParseError> {
        if self.matches(c) {
            Ok(())
        } else {
            Err(self.expected(&format!("`{c}`")))
        }
    }

    /// Takes the arrow between inputs and outputs.
    pub(super) fn expect_arrow(&mut self) -> Result<(), ParseError> {
        self.skip();
        if self.rest().starts_with("=>") {
            self.at += 2;
            Ok(())
        } else {
            Err(self.expected("`=>`"))
        }
    }

    /// The identifier that is next, or nothing.
    pub(super) fn peek_word(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        if !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return "";
        }
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
    }

    /// Takes the identifier that is next, or nothing.
    pub(super) fn take_word(&mut self) -> &'a str {
        let word = self.peek_word();
        self.at += word.len();
        word
    }

    /// Takes an identifier.
    pub(super) fn word(&mut self, what: &str) -> Result<&'a str, ParseError> {
        match self.take_word() {
            "" => Err(self.expected(what)),
            word => Ok(word),
        }
    }

    /// Takes an identifier or a quoted name.
    pub(super) fn name(&mut self, what: &str) -> Result<String, ParseError> {
        if self.peek() == Some('"') {
            self.string()
        } else {
            self.word(what).map(str::to_owned)
        }
    }

    /// Takes a string literal.
    pub(super) fn string(&mut self) -> Result<String, ParseError> {
        if self.peek() != Some('"') {
            return Err(self.expected("a string"));
        }
        let start = self.at;
        let mut value = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at = start + i + 1;
                    return Ok(value);
                }
                '\\' => value.extend(chars.next().map(|(_, c)| c)),
                _ => value.push(c),
            }
        }
        Err(self.error_at(
            start,
            "expected `\"` at the end of the string, found end of input".to_owned(),
        ))
    }

    /// Whether the next word is an infinity or a NaN.
    pub(super) fn next_is_special_float(&mut self) -> bool {
        is_special_float(self.peek_word())
    }

    /// Takes a number or a string.
    pub(super) fn literal(&mut self, what: &str) -> Result<Literal<'a>, ParseError> {
        if self.peek() == Some('"') {
            return self.string().map(Literal::Text);
        }
        let rest = self.rest();
        let unsigned = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - unsigned.len();
        let word = unsigned
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .and_then(|end| unsigned.get(..end))
            .unwrap_or(unsigned);
        if is_special_float(word) {
            return Ok(Literal::Float(self.take(sign + word.len())));
        }
        let bytes = unsigned.as_bytes();
        let digits = |from: usize| {
            let tail = bytes.get(from..).unwrap_or_default();
            tail.iter().take_while(|b| b.is_ascii_digit()).count()
        };
        let mut end = digits(0);
        if end == 0 {
            return Err(self.expected(what));
        }
        let mut float = false;
        if bytes.get(end) == Some(&b'.') {
            float = true;
            end += 1;
            end += digits(end);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            float = true;
            end += 1;
            if matches!(bytes.get(end), Some(b'+' | b'-')) {
                end += 1;
            }
            end += digits(end);
        }
        let text = self.take(sign + end);
        Ok(if float {
            Literal::Float(text)
        } else {
            Literal::Int(text)
        })
    }

    fn take(&mut self, length: usize) -> &'a str {
        let text = self.rest().get(..length).unwrap_or_default();
        self.at += text.len();
        text
    }

    /// Takes an integer.
    pub(super) fn integer<T: std::str::FromStr>(&mut self) -> Result<T, ParseError> {
        let start = self.position();
        let Literal::Int(text) = self.literal("an integer")? else {
            self.at = start;
            return Err(self.expected("an integer"));
        };
        self.convert(start, text, "an integer")
    }

    /// Takes a number.
    pub(super) fn float<T: std::str::FromStr>(
        &mut self,
        finite: fn(&T) -> bool,
    ) -> Result<T, ParseError> {
        let start = self.position();
        let (Literal::Int(text) | Literal::Float(text)) = self.literal("a number")? else {
            self.at = start;
            return Err(self.expected("a number"));
        };
        let value = self.convert(start, text, "a number")?;
        let special = text
            .trim_start_matches('-')
            .starts_with(char::is_alphabetic);
        if finite(&value) || special {
            Ok(value)
        } else {
            Err(self.out_of_range(start, "a number", text))
        }
    }

    /// The value of a number's text.
    pub(super) fn convert<T: std::str::FromStr>(
        &self,
        start: usize,
        text: &str,
        what: &str,
    ) -> Result<T, ParseError> {
        text.parse()
            .map_err(|_| self.out_of_range(start, what, text))
    }

    fn out_of_range(&self, start: usize, what: &str, text: &str) -> ParseError {
        self.error_at(
            start,
            format!("expected {what} that the type can hold, found `{text}`"),
        )
    }

    /// The error that something else than the next token was expected.
    pub(super) fn expected(&mut self, what: &str) -> ParseError {
        self.skip();
        let rest = self.rest();
        let word = self.peek_word();
        let found = match rest.chars().next() {
            None => "end of input".to_owned(),
            Some('"') => "a string".to_owned(),
            Some('=') if rest.starts_with("=>") => "`=>`".to_owned(),
            Some(_) if is_identifier(word) => format!("`{word}`"),
            Some(c) if c.is_ascii_digit() => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                format!("`{}`", end.and_then(|e| rest.get(..e)).unwrap_or(rest))
            }
            Some(c) => format!("`{}`", c.escape_debug()),
        };
        self.error_at(self.at, format!("expected {what}, found {found}"))
    }

    /// An error at a byte offset.
    pub(super) fn error_at(&self, offset: usize, message: String) -> ParseError {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        ParseError {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            message,
        }
    }
}

fn is_special_float(word: &str) -> bool {
    ["inf", "infinity", "nan"]
        .iter()
        .any(|s| word.eq_ignore_ascii_case(s))
}
