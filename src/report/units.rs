//! Amounts, shapes and shares as people read them.

use super::{Amount, Style};
use velora_graph::dim::Dim;

/// Shown for what is not known.
pub const UNKNOWN: &str = "?";

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, in powers of 1024.
    Bytes,
    /// Floating-point operations, in powers of 1000.
    Flops,
}

impl Unit {
    /// A number of them: `16.0 MiB`, `1.67 GiB`, `1.5 GFLOP`.
    fn number(self, number: i64) -> String {
        let (base, names): (f64, &[&str]) = match self {
            Unit::Bytes => (1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]),
            Unit::Flops => (
                1000.0,
                &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"],
            ),
        };
        let mut size = number as f64;
        let mut name = names[0];
        for &larger in names.iter().skip(1) {
            // What would be printed as 1024.0 is 1.0 of the next.
            if size.abs() < base - 0.05 {
                break;
            }
            size /= base;
            name = larger;
        }
        if name == names[0] {
            return format!("{number} {name}");
        }
        // Three digits at least where a tenth would be a hundred MiB.
        let decimals = usize::from(base == 1024.0 && number.abs() >= 1 << 30 && size.abs() < 9.995);
        format!("{size:.*} {name}", 1 + decimals)
    }

    /// An amount: a number with its unit, or the expression.
    pub fn amount(self, amount: &Amount, unicode: bool) -> String {
        match (amount.exact(), amount.symbolic()) {
            (Some(number), _) => self.number(number),
            (None, Some(expression)) => {
                let unit = self.number(0);
                let unit = unit.split_once(' ').map_or("", |(_, unit)| unit);
                format!("{} {unit}", products(&expression, unicode))
            }
            (None, None) => UNKNOWN.to_owned(),
        }
    }
}

fn products(expression: &str, unicode: bool) -> String {
    match unicode {
        true => expression.to_owned(),
        false => expression.replace('·', "*"),
    }
}

/// `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    Unit::Bytes.number(i64::try_from(count).unwrap_or(i64::MAX))
}

/// `[batch, 16, 64]`.
pub fn shape(shape: Option<&[Dim]>, unicode: bool) -> String {
    let Some(shape) = shape else {
        return UNKNOWN.to_owned();
    };
    let dims = shape.iter().map(|dim| products(&dim.to_string(), unicode));
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}

/// A cosine or a ratio with four digits, or a dash where there is none.
pub fn number(x: Option<f64>, style: Style) -> String {
    x.map_or(style.dash().to_owned(), |x| format!("{x:.4}"))
}

/// `12.5%` of a whole.
pub fn percent(ratio: f64) -> String {
    format!("{:.1}%", 100.0 * ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_where_the_printed_number_would_overflow_them() {
        let bytes = |n| Unit::Bytes.number(n);
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(16 << 20), "16.0 MiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(i64::MAX), "8.00 EiB");
        assert_eq!(bytes((1 << 30) - 1), "1.0 GiB");
        assert_eq!(bytes(1 << 30), "1.00 GiB");
        assert_eq!(bytes(-5 << 31), "-10.0 GiB");
        assert_eq!(Unit::Flops.number(1_500_000_000), "1.5 GFLOP");
    }

    #[test]
    fn open_amounts_are_expressions() {
        let open = Amount::from(Dim::parse("4*batch*seq*512"));
        assert_eq!(Unit::Bytes.amount(&open, false), "2048*batch*seq B");
        assert_eq!(Unit::Flops.amount(&open, true), "2048·batch·seq FLOP");
        assert_eq!(Unit::Bytes.amount(&Amount::default(), true), "?");
        let dims = [Dim::parse("2*batch"), Dim::from(16)];
        assert_eq!(shape(Some(&dims), false), "[2*batch, 16]");
        assert_eq!(shape(Some(&[]), false), "[]");
        assert_eq!(shape(None, false), "?");
    }
}
