//! What callers create: handles, layouts, descriptors, preferences, each known by a number.

use crate::driver::driver;
use crate::matmul::Matrix;
use crate::status::{Outcome, Status};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Mutex, PoisonError};

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) compute: i32,
    pub(crate) scale: i32,
    pub(crate) pointer_mode: i32,
    pub(crate) transpose_a: i32,
    pub(crate) transpose_b: i32,
    pub(crate) transpose_c: i32,
    pub(crate) epilogue: i32,
    pub(crate) bias: u64,
    pub(crate) bias_stride: i64,
    /// -1: as D.
    pub(crate) bias_kind: i32,
}

impl Descriptor {
    pub(crate) fn new(compute: i32, scale: i32) -> Self {
        Self {
            compute,
            scale,
            pointer_mode: 0,
            transpose_a: 0,
            transpose_b: 0,
            transpose_c: 0,
            epilogue: 1,
            bias: 0,
            bias_stride: 0,
            bias_kind: -1,
        }
    }
}

/// What an algorithm may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) workspace: u64,
    /// What the addresses of A, B, C, D are multiples of.
    pub(crate) alignment: [u32; 4],
}

impl Default for Preference {
    /// As documented: no workspace, and addresses that are multiples of 256.
    fn default() -> Self {
        Self {
            workspace: 0,
            alignment: [256; 4],
        }
    }
}

/// An object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Object {
    Handle,
    Layout(Matrix),
    Descriptor(Descriptor),
    Preference(Preference),
}

impl Object {
    /// What to call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Object::Handle => "cuBLASLt handle",
            Object::Layout(_) => "matrix layout",
            Object::Descriptor(_) => "matmul descriptor",
            Object::Preference(_) => "matmul preference",
        }
    }
}

/// All objects, and the generation of the driver that they belong to.
pub(crate) struct Objects {
    live: BTreeMap<usize, Object>,
    next: usize,
    generation: u64,
}

static OBJECTS: Mutex<Objects> = Mutex::new(Objects {
    live: BTreeMap::new(),
    next: 0x00df_0000_0101,
    generation: 0,
});

/// One call of a function: counted, and run on the objects.
pub(crate) fn enter(name: &str, f: impl FnOnce(&mut Objects) -> Outcome<()>) -> c_int {
    let injected = driver().call(name);
    if injected != 0 {
        return injected;
    }
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    let generation = driver().generation();
    if objects.generation != generation {
        objects.live.clear();
        objects.generation = generation;
    }
    match f(&mut objects) {
        Ok(()) => 0,
        Err(status) => status.0,
    }
}

/// Reports; for the end of a chain.
pub(crate) fn wrong<T>(what: &str, status: Status) -> Outcome<T> {
    driver().report(&format!("cuBLASLt: {what}"));
    Err(status)
}

impl Objects {
    /// Adds an object; its number.
    pub(crate) fn add(&mut self, object: Object) -> usize {
        let number = self.next;
        self.next += 0x100;
        driver().objects(object.kind(), 1);
        self.live.insert(number, object);
        number
    }

    /// Ends an object.
    pub(crate) fn remove(&mut self, number: usize, kind: &str) -> Outcome<()> {
        match self.live.get(&number) {
            Some(object) if object.kind() == kind => {
                driver().objects(kind, -1);
                self.live.remove(&number);
                Ok(())
            }
            Some(object) => wrong(
                &format!("destroys a {kind}, but it is a {}", object.kind()),
                Status::INVALID_VALUE,
            ),
            None => wrong(
                &format!("destroys a {kind} that does not exist (double destroy?)"),
                Status::INVALID_VALUE,
            ),
        }
    }

    /// Checks a handle.
    pub(crate) fn handle(&self, number: usize) -> Outcome<()> {
        match self.live.get(&number) {
            Some(Object::Handle) => Ok(()),
            _ => wrong("this is no handle of cuBLASLt", Status::NOT_INITIALIZED),
        }
    }

    /// A layout; `role` is for the report if it is none.
    pub(crate) fn layout(&mut self, number: usize, role: &str) -> Outcome<&mut Matrix> {
        match self.live.get_mut(&number) {
            Some(Object::Layout(layout)) => Ok(layout),
            _ => wrong(
                &format!("the layout of {role} is no live matrix layout"),
                Status::INVALID_VALUE,
            ),
        }
    }

    /// A descriptor.
    pub(crate) fn descriptor(&mut self, number: usize) -> Outcome<&mut Descriptor> {
        match self.live.get_mut(&number) {
            Some(Object::Descriptor(descriptor)) => Ok(descriptor),
            _ => wrong("this is no live matmul descriptor", Status::INVALID_VALUE),
        }
    }

    /// A preference.
    pub(crate) fn preference(&mut self, number: usize) -> Outcome<&mut Preference> {
        match self.live.get_mut(&number) {
            Some(Object::Preference(preference)) => Ok(preference),
            _ => wrong("this is no live matmul preference", Status::INVALID_VALUE),
        }
    }
}

/// A new layout: one matrix in column order.
pub(crate) fn layout(kind: i32, rows: u64, cols: u64, ld: i64) -> Object {
    Object::Layout(Matrix {
        at: 0,
        kind,
        order: 0,
        rows,
        cols,
        ld,
        stride: 0,
        batch: 1,
    })
}
