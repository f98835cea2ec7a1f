//! Cuts PTX text into words and punctuation, each with its line.

/// A piece of PTX text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A name, a number, a directive or a mnemonic with its modifiers: `ld.global.f32`, `%r1`, `0f3F800000`.
    Word(&'a str),
    /// A quoted string, without its quotes.
    Text(&'a str),
    /// One character of punctuation.
    Mark(char),
}

/// A token and the line (from 1) it starts on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// The tokens of `text`, and for each line the line of the CUDA source that the last `.loc` before it names
/// (0 where there is none).
pub(crate) fn lex(text: &str) -> Result<(Vec<Located<'_>>, Vec<u32>), String> {
    let mut tokens = Vec::new();
    let mut source_lines = Vec::new();
    let mut current = 0;
    for (index, raw) in text.lines().enumerate() {
        let line = index as u32 + 1;
        let code = raw.split("//").next().unwrap_or("");
        let trimmed = code.trim_start();
        if trimmed.starts_with(".visible")
            || trimmed.starts_with(".entry")
            || trimmed.starts_with(".func")
        {
            current = 0;
        }
        // These two end with their line and mean nothing to execution.
        if let Some(rest) = trimmed
            .strip_prefix(".loc")
            .filter(|r| r.starts_with(char::is_whitespace))
        {
            current = rest
                .split_whitespace()
                .nth(1)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            source_lines.push(current);
            continue;
        }
        source_lines.push(current);
        if trimmed.starts_with(".file") {
            continue;
        }
        lex_line(code, line, &mut tokens)?;
    }
    Ok((tokens, source_lines))
}

fn lex_line<'a>(code: &'a str, line: u32, tokens: &mut Vec<Located<'a>>) -> Result<(), String> {
    let bytes = code.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let c = bytes[at];
        let start = at;
        at += 1;
        if c.is_ascii_whitespace() {
            continue;
        }
        let token = if in_word(c) {
            // A double colon belongs to a modifier (`shared::cta`), a single one ends a label.
            loop {
                if at < bytes.len() && in_word(bytes[at]) {
                    at += 1;
                } else if bytes[at..].starts_with(b"::") {
                    at += 2;
                } else {
                    break;
                }
            }
            Token::Word(&code[start..at])
        } else if c == b'"' {
            let length = code[at..]
                .find('"')
                .ok_or(format!("line {line}: a string without an end"))?;
            at += length + 1;
            Token::Text(&code[start + 1..at - 1])
        } else if c.is_ascii() {
            Token::Mark(c as char)
        } else {
            return Err(format!("line {line}: unexpected character"));
        };
        tokens.push(Located { token, line });
    }
    Ok(())
}
