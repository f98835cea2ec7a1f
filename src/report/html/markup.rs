//! A page under construction: escaping, cells and tables.

use crate::report::Amount;
use crate::report::units::Unit;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use velora_graph::dim::Dim;

/// The expressions that the page evaluates, each once. Their symbols are called `s0`, `s1`, …, so that no name
/// of a model can be taken for an operator.
#[derive(Debug, Default)]
pub struct Expressions {
    /// The expressions as [`Dim`] writes them.
    pub texts: Vec<String>,
    numbers: HashMap<Dim, usize>,
    names: BTreeMap<Arc<str>, Dim>,
}

impl Expressions {
    /// With the symbols that may occur, in their order.
    pub fn new<'a>(symbols: impl Iterator<Item = &'a Arc<str>>) -> Self {
        let names = symbols.enumerate();
        Expressions {
            names: names
                .map(|(number, name)| (name.clone(), Dim::symbol(&format!("s{number}"))))
                .collect(),
            ..Expressions::default()
        }
    }

    /// The number of an amount's expression; `None` where it is not known, or holds a symbol that the page does
    /// not have.
    pub fn number(&mut self, amount: &Amount) -> Option<usize> {
        let dim = amount.dim()?;
        if let Some(&number) = self.numbers.get(dim) {
            return Some(number);
        }
        if !dim.symbols().iter().all(|s| self.names.contains_key(s)) {
            return None;
        }
        let renamed = dim.substitute(&self.names);
        if renamed.is_undefined() {
            return None;
        }
        let number = self.texts.len();
        self.texts.push(renamed.to_string());
        self.numbers.insert(dim.clone(), number);
        Some(number)
    }
}

/// A page; all text from a model goes through [`Page::text`].
#[derive(Debug, Default)]
pub struct Page {
    /// The markup.
    pub markup: String,
    /// What its cells refer to.
    pub expressions: Expressions,
    /// Sizes given on the command line.
    pub given: BTreeMap<Arc<str>, i64>,
}

impl Page {
    /// Adds markup as it is.
    pub fn raw(&mut self, markup: &str) {
        self.markup += markup;
    }

    /// Adds text.
    pub fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '<' => self.markup += "&lt;",
                '>' => self.markup += "&gt;",
                '&' => self.markup += "&amp;",
                '"' => self.markup += "&quot;",
                '\'' => self.markup += "&#39;",
                // HTML has no way to write most control characters.
                c if c.is_control() => self.markup.push('\u{fffd}'),
                c => self.markup.push(c),
            }
        }
    }

    /// Adds an element with a class, which may be empty.
    pub fn element(&mut self, tag: &str, class: &str, text: &str) {
        // Writing to a string cannot fail.
        let _ = match class {
            "" => write!(self.markup, "<{tag}>"),
            class => write!(self.markup, "<{tag} class=\"{class}\">"),
        };
        self.text(text);
        let _ = write!(self.markup, "</{tag}>");
        if tag != "td" && tag != "th" {
            self.markup.push('\n');
        }
    }

    /// Adds a cell with a name of the model.
    pub fn code(&mut self, text: &str) {
        self.raw("<td><code>");
        self.text(text);
        self.raw("</code></td>");
    }

    /// Adds a cell with an amount. `open` is the same with no size given: the page shows that at other sizes,
    /// where it says the same at the given ones.
    pub fn amount(&mut self, unit: Unit, amount: &Amount, open: Option<&Amount>) {
        self.amount_as(&unit.amount(amount, true), unit, amount, open);
    }

    /// The same with a text of one's own for readers without the script.
    pub fn amount_as(&mut self, text: &str, unit: Unit, amount: &Amount, open: Option<&Amount>) {
        let here = amount.at_sizes(&self.given);
        let open = open.filter(|open| here.is_some() && open.at_sizes(&self.given) == here);
        let expression = open.unwrap_or(amount);
        let letter = match unit {
            Unit::Bytes => "B",
            Unit::Flops => "FLOP",
        };
        let key = match (expression.symbolic(), amount.exact()) {
            (Some(_), _) => {
                (self.expressions.number(expression)).map(|x| format!(" data-x=\"{x}\""))
            }
            (None, Some(number)) => Some(format!(" data-v=\"{number}\"")),
            (None, None) => None,
        };
        let key = key.unwrap_or_default();
        self.raw(&format!("<td class=\"n\"{key} data-unit=\"{letter}\">"));
        self.text(text);
        self.raw("</td>");
    }

    /// Begins a section with a table that can be sorted and, where it is too wide, moved in its box.
    pub fn table(&mut self, title: &str, columns: &[(&str, &str)]) {
        self.raw("<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"");
        self.text(title);
        self.raw("\"><table class=\"sortable\">\n<thead><tr>");
        for (title, class) in columns {
            match *class {
                "" => self.raw("<th scope=\"col\">"),
                class => self.raw(&format!("<th scope=\"col\" class=\"{class}\">")),
            }
            self.text(title);
            self.raw("</th>");
        }
        self.raw("</tr></thead>\n<tbody>\n");
    }

    /// Ends what [`Page::table`] began.
    pub fn end_table(&mut self) {
        self.raw("</tbody></table></div>\n");
    }
}
