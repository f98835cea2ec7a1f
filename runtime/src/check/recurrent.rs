//! Recurrent layers.

use super::bounds::{Allowed, Case};
use crate::ops::recurrent::Recurrent;

pub(super) fn allowed(_case: &Case<'_>, _op: &Recurrent) -> Result<Vec<Allowed>, String> {
    Err("recurrent layers are not compared".to_owned())
}
