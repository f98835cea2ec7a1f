//! What reads or writes at places given by a tensor.

mod elements;
mod number;
mod rows;
mod select;

use super::Machine;
use super::memory::{Call, Data, Input};
use super::rows::for_chunks;
use crate::backend::StepContext;
use crate::ops::index::Index;
use crate::tensor::TensorType;
use bytemuck::Pod;
use rayon::prelude::*;
use velora_graph::shapes::DataType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Index,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Index::Scatter(op, _) => rows::workspace(op),
        Index::TopK(op) => select::workspace(op),
        _ => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Index, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    match op {
        Index::Gather(op) => rows::gather(op, &mut call),
        Index::Scatter(op, reduction) => rows::scatter(op, *reduction, &mut call),
        Index::GatherElements(op) => elements::gather(op, &mut call),
        Index::ScatterElements(op, reduction) => elements::scatter(op, *reduction, &mut call),
        Index::OneHot(op) => select::one_hot(op, &mut call),
        Index::TopK(op) => select::top_k(op, &mut call),
    }
}

/// Indices in the type that the graph has them in.
#[derive(Clone, Copy)]
enum Indices<'m> {
    Narrow(&'m [i32]),
    Wide(&'m [i64]),
}

impl<'m> Indices<'m> {
    fn new(input: &Input<'m>) -> Self {
        match input.ty.data_type {
            DataType::INT32 => Indices::Narrow(input.elements()),
            _ => Indices::Wide(input.elements()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Indices::Narrow(all) => all.len(),
            Indices::Wide(all) => all.len(),
        }
    }

    #[inline]
    fn get(&self, place: usize) -> i64 {
        match self {
            Indices::Narrow(all) => i64::from(all[place]),
            Indices::Wide(all) => all[place],
        }
    }

    /// The place that an index means, negative ones counted from the end; checked before.
    #[inline]
    fn place(&self, place: usize, bound: usize) -> usize {
        let index = self.get(place);
        if index < 0 {
            (index + bound as i64) as usize
        } else {
            index as usize
        }
    }

    /// Checks all indices against bounds that they cycle through.
    fn check(&self, bounds: &[usize]) -> Result<(), String> {
        let fits = |place: usize| {
            let (index, bound) = (self.get(place), bounds[place % bounds.len()] as i64);
            -bound <= index && index < bound
        };
        if bounds.is_empty()
            || (0..self.len())
                .into_par_iter()
                .with_min_len(super::movement::GRAIN)
                .all(fits)
        {
            return Ok(());
        }
        let place = (0..self.len()).find(|&place| !fits(place)).unwrap_or(0);
        let bound = bounds[place % bounds.len()];
        Err(format!(
            "index {} at position {place} is outside the axis: expected -{bound} to {bound}, exclusive",
            self.get(place)
        ))
    }
}

/// The elements of an operand; `None` where they lie in the output already.
fn other_than_output<'m, T: Pod>(input: &Input<'m>) -> Option<&'m [T]> {
    match input.data {
        Data::Shared(_) => Some(input.elements()),
        Data::InOutput(_) => None,
    }
}

/// Gives an output its first elements: those of the data, or 0.
fn start<T: Pod + Send + Sync>(data: Option<&Input<'_>>, output: &mut [T]) {
    let data = data.map(other_than_output::<T>);
    let grain = super::movement::GRAIN;
    match data {
        None => for_chunks(output, grain, grain, &|_, output| output.fill(T::zeroed())),
        Some(Some(data)) => for_chunks(output, grain, grain, &|number, output| {
            output.copy_from_slice(&data[number * grain..][..output.len()]);
        }),
        Some(None) => {}
    }
}
