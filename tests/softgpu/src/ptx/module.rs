//! A module: its variables, and its kernels one after another.

use super::operands::Decoder;
use super::syntax::{File, Init, RawFunction, RawVar};
use super::{Kernel, Module, Variable};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) type Decoded<T> = Result<T, String>;

fn element_size(ty: &str) -> Decoded<usize> {
    Ok(match ty {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return Err(format!("unsupported type {ty}")),
    })
}

/// Size and alignment in bytes.
pub(super) fn layout(var: &RawVar) -> Decoded<(usize, usize)> {
    let element = element_size(var.ty)?;
    Ok((element * var.count, var.align.max(element)))
}

/// A number as written, as bits of 64.
pub(super) fn number(word: &str) -> Decoded<u64> {
    let bad = |_| format!("bad number {word}");
    if let Some(hex) = word
        .strip_prefix("0f")
        .or(word.strip_prefix("0F"))
        .or(word.strip_prefix("0d"))
        .or(word.strip_prefix("0D"))
    {
        return u64::from_str_radix(hex, 16).map_err(bad);
    }
    let digits = word.trim_end_matches('U');
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).map_err(bad),
        None => digits.parse().map_err(bad),
    }
}

/// Decodes all kernels of a file.
pub(super) fn module(text: &str, source_lines: Vec<u32>, file: &File) -> Decoded<Vec<Kernel>> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut module = Module {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        variables: Vec::new(),
        lines: text.lines().map(str::to_owned).collect(),
        source_lines,
    };
    let stored: Vec<&RawVar> = file.vars.iter().filter(|v| v.space != ".shared").collect();
    for var in &stored {
        let variable = variable(var, &stored).map_err(|e| format!("line {}: {e}", var.line))?;
        module.variables.push(variable);
    }
    let module = Arc::new(module);
    let functions: HashMap<&str, &RawFunction> = file
        .functions
        .iter()
        .filter(|f| !f.entry && !f.body.is_empty())
        .map(|f| (f.name, f))
        .collect();
    // Functions that no kernel calls are decoded, too, so that what is unsupported never passes unseen.
    let mut called = Vec::new();
    let mut kernels = Vec::new();
    for entry in file.functions.iter().filter(|f| f.entry) {
        let mut decoder = Decoder::new(file, &functions, module.clone());
        kernels.push(decoder.kernel(entry)?);
        called.extend(decoder.done.iter().map(|d| d.name));
    }
    for function in functions.values().filter(|f| !called.contains(&f.name)) {
        Decoder::new(file, &functions, module.clone()).function(function)?;
    }
    Ok(kernels)
}

fn variable(var: &RawVar, all: &[&RawVar]) -> Decoded<Variable> {
    let (size, _) = layout(var)?;
    let element = element_size(var.ty)?;
    let mut bytes = vec![0; size];
    let mut addresses = Vec::new();
    for (index, init) in var.init.iter().enumerate() {
        let at = index * element;
        let place = bytes
            .get_mut(at..at + element)
            .ok_or("an initialiser longer than its variable")?;
        match init {
            Init::Number(word, negative) => {
                let value = number(word)?;
                let value = if *negative {
                    value.wrapping_neg()
                } else {
                    value
                };
                place.copy_from_slice(&value.to_le_bytes()[..element]);
            }
            Init::Symbol(name) => {
                let target = all.iter().position(|v| v.name == *name);
                let target = target.ok_or(format!(
                    "unsupported: the address of {name} in an initialiser"
                ))?;
                if element != 8 {
                    return Err("an address in less than 8 bytes".into());
                }
                addresses.push((at, target));
            }
        }
    }
    Ok(Variable {
        name: var.name.to_owned(),
        bytes,
        constant: var.space == ".const",
        addresses,
    })
}
