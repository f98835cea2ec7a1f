//! Characters to words and literals.
