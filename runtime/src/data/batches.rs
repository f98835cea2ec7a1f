//! Batches of samples in an order by seed.
//!
//! The first axis of every array counts the samples. The order of an epoch is a permutation drawn by
//! Fisher and Yates's method with a generator by counter ([`crate::random`]): it depends on the seed,
//! the epoch and the number of samples only, so that [`Position`] is all that a checkpoint needs to go on
//! exactly.

use serde::{Deserialize, Serialize};
use velora_graph::shapes::DataType;

use super::{DataError, Dataset, described};
use crate::random;
use crate::tensor::{Tensor, byte_length};

/// An input of the graph that gets the samples of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input<'a> {
    /// Its name, which is also the array's.
    pub name: &'a str,
    /// The type of its elements; the array's must be the same.
    pub data_type: DataType,
    /// Its shape for a whole batch.
    pub shape: &'a [usize],
    /// The axis along which samples lie side by side. Its size is the batch's, or a multiple where a
    /// sample has several places there: labels of shape `[batch × sequence]` take an array of shape
    /// `[samples, sequence]`.
    pub axis: usize,
}

/// What becomes of the samples that do not fill a batch at the end of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Last {
    /// They are left out of this epoch. The default, for training: a shuffled epoch leaves out
    /// others than the one before, one plan serves, and all samples weigh the same in a mean loss.
    #[default]
    Drop,
    /// They make a smaller batch, for which the graph needs a second plan. For evaluation, where each
    /// sample must be counted.
    Keep,
}

/// How the samples of an epoch are ordered and grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The number of samples in a batch.
    pub size: usize,
    /// What becomes of the rest.
    pub last: Last,
    /// The seed of the orders; `None` keeps the order of the file.
    pub shuffle: Option<u64>,
}

/// Where in which order the next batch begins; what it says of the data guards against going on with
/// other data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The samples of the epoch that were used.
    pub sample: usize,
    /// The number of all samples.
    pub samples: usize,
    /// The number of samples in a batch.
    pub size: usize,
    /// What becomes of the rest.
    pub last: Last,
    /// The seed of the orders.
    pub shuffle: Option<u64>,
}

/// Copies samples into the inputs of a graph, batch after batch, for as many epochs as are asked for.
#[derive(Clone, Debug)]
pub struct Batches {
    sources: Vec<Rows>,
    unused: Vec<String>,
    file: std::path::PathBuf,
    position: Position,
    order: Vec<u32>,
}

/// The samples of one input.
#[derive(Clone, Debug)]
struct Rows {
    array: Tensor,
    /// The bytes of one sample.
    bytes: usize,
    /// A sample is this many blocks, between which the blocks of the other samples lie in a batch.
    blocks: usize,
}

/// A place of another length than the batch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a batch takes {expected} bytes, but there are {found}")]
pub struct WrongLength {
    /// The bytes that the batch takes.
    pub expected: usize,
    /// The bytes of the place given.
    pub found: usize,
}

impl Batches {
    /// Matches the arrays of a file with the inputs of a graph, by name; nothing is copied yet.
    pub fn new(
        dataset: &Dataset,
        inputs: &[Input<'_>],
        settings: Settings,
    ) -> Result<Self, DataError> {
        let refused = |problem, hint| DataError::Batches {
            file: dataset.file.clone(),
            problem,
            hint,
        };
        if settings.size == 0 {
            return Err(refused(
                "a batch of no samples was asked for".to_owned(),
                "give a batch size of at least 1",
            ));
        }
        let mut sources = Vec::with_capacity(inputs.len());
        let mut counted: Option<(&str, usize)> = None;
        for input in inputs {
            let (rows, samples) = Rows::new(dataset, input, settings.size)?;
            match counted {
                Some((name, other)) if other != samples => {
                    return Err(refused(
                        format!(
                            "array '{name}' has {other} samples, but '{}' has {samples}",
                            input.name
                        ),
                        "the first axis of every array must count the same samples",
                    ));
                }
                _ => counted = Some((input.name, samples)),
            }
            sources.push(rows);
        }
        let Some((name, samples)) = counted else {
            return Err(refused(
                "the graph has no input for samples".to_owned(),
                "name the inputs that change with every batch",
            ));
        };
        let Ok(count) = u32::try_from(samples) else {
            return Err(refused(
                format!("array '{name}' has {samples} samples"),
                "up to 4294967295 can be ordered; split the file",
            ));
        };
        if samples == 0 {
            return Err(refused(
                format!("array '{name}' has no samples"),
                "the first axis of every array counts the samples",
            ));
        }
        if settings.last == Last::Drop && samples < settings.size {
            return Err(refused(
                format!(
                    "its {samples} samples do not fill one batch of {}",
                    settings.size
                ),
                "ask for smaller batches",
            ));
        }
        let used = |name: &String| inputs.iter().any(|input| input.name == name);
        let mut batches = Batches {
            sources,
            unused: (dataset.arrays.keys().filter(|name| !used(name)).cloned()).collect(),
            file: dataset.file.clone(),
            position: Position {
                epoch: 0,
                sample: 0,
                samples,
                size: settings.size,
                last: settings.last,
                shuffle: settings.shuffle,
            },
            order: (0..count).collect(),
        };
        batches.arrange();
        Ok(batches)
    }

    /// The arrays of the file that no input has the name of.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The number of batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        let Position { samples, size, .. } = self.position;
        match self.position.last {
            Last::Drop => samples / size,
            Last::Keep => samples.div_ceil(size),
        }
    }

    /// Where the next batch begins.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Goes on where a checkpoint was made.
    pub fn resume(&mut self, position: &Position) -> Result<(), DataError> {
        let own = &self.position;
        let refused = |what: &str, saved: String, now: String| {
            Err(DataError::Batches {
                file: self.file.clone(),
                problem: format!(
                    "the checkpoint was made with {what} {saved}, and now it is {now}"
                ),
                hint: "resume with the data and the batches of the checkpoint",
            })
        };
        // Taken apart without `..`, so that no field is forgotten.
        let Position {
            epoch,
            sample,
            samples,
            size,
            last,
            shuffle,
        } = position;
        if *samples != own.samples {
            return refused("samples:", samples.to_string(), own.samples.to_string());
        }
        if *size != own.size {
            return refused("batch size", size.to_string(), own.size.to_string());
        }
        if *last != own.last {
            let name = |last| match last {
                Last::Drop => "drop".to_owned(),
                Last::Keep => "keep".to_owned(),
            };
            return refused("last batch", name(*last), name(own.last));
        }
        if *shuffle != own.shuffle {
            let name = |seed: Option<u64>| seed.map_or("none".to_owned(), |s| s.to_string());
            return refused("shuffle seed", name(*shuffle), name(own.shuffle));
        }
        // A batch begins only where a whole number of batches ends, and not at an epoch's end.
        if sample % size != 0 || sample / size >= self.per_epoch() {
            return refused("next sample", sample.to_string(), "impossible".to_owned());
        }
        self.position.epoch = *epoch;
        self.position.sample = *sample;
        self.arrange();
        Ok(())
    }

    /// The samples of the next batch, as positions in the arrays.
    pub fn batch(&self) -> &[u32] {
        let begin = self.position.sample.min(self.order.len());
        let end = begin
            .saturating_add(self.position.size)
            .min(self.order.len());
        &self.order[begin..end]
    }

    /// Copies the next batch into the place of an input, which is numbered as [`Batches::new`] got
    /// them. Allocates nothing.
    ///
    /// A smaller batch fills the place that the input has in a plan of that size.
    pub fn copy(&self, input: usize, into: &mut [u8]) -> Result<(), WrongLength> {
        let batch = self.batch();
        let found = into.len();
        let wrong = |expected| WrongLength { expected, found };
        let rows = self.sources.get(input).ok_or(wrong(0))?;
        // At most the bytes of the whole batch, of which `Rows::new` has found that they can be counted.
        let expected = batch.len() * rows.bytes;
        if found != expected {
            return Err(wrong(expected));
        }
        let block = rows.bytes / rows.blocks.max(1);
        if block == 0 {
            return Ok(());
        }
        for (lane, &sample) in batch.iter().enumerate() {
            // `sample` is below the number of samples, and the array has that many rows.
            let from = sample as usize * rows.bytes;
            let row = &rows.array.bytes[from..from + rows.bytes];
            for (number, bytes) in row.chunks_exact(block).enumerate() {
                let to = (number * batch.len() + lane) * block;
                into[to..to + block].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Goes to the next batch, and after the last one of an epoch to the first of the next, whose order is
    /// drawn here. Allocates nothing.
    pub fn advance(&mut self) {
        let Position { size, .. } = self.position;
        self.position.sample += size;
        if self.position.sample / size >= self.per_epoch() {
            self.position.sample = 0;
            self.position.epoch += 1;
            self.arrange();
        }
    }

    /// Draws the order of the epoch.
    fn arrange(&mut self) {
        let Some(seed) = self.position.shuffle else {
            return;
        };
        let stream = random::stream("order of samples", &self.position.epoch.to_le_bytes());
        for (place, sample) in self.order.iter_mut().zip(0..) {
            *place = sample;
        }
        for last in (1..self.order.len()).rev() {
            let other = random::below(seed, stream, last as u64, last as u64 + 1);
            self.order.swap(last, other as usize);
        }
    }
}

impl Rows {
    /// The array for an input, and its number of samples.
    fn new(dataset: &Dataset, input: &Input<'_>, batch: usize) -> Result<(Self, usize), DataError> {
        if input.data_type.is_int4() {
            return Err(DataError::Batches {
                file: dataset.file.clone(),
                problem: format!(
                    "input '{}' is {}, whose samples need not be whole bytes",
                    input.name,
                    described(input.data_type, input.shape)
                ),
                hint: "only parameters may have integers of 4 bits",
            });
        }
        let places = (input.shape.get(input.axis)).filter(|&&size| size % batch == 0);
        let (Some(places), Some(_)) = (places, byte_length(input.data_type, input.shape)) else {
            return Err(DataError::Batches {
                file: dataset.file.clone(),
                problem: format!(
                    "input '{}' is {}, whose axis {} is no multiple of {batch} samples",
                    input.name,
                    described(input.data_type, input.shape),
                    input.axis
                ),
                hint: "give the batch size that the graph was exported with, or one for which its \
                       sizes were left open",
            });
        };
        let mut sample = input.shape.to_vec();
        match places / batch {
            1 => drop(sample.remove(input.axis)),
            places => sample[input.axis] = places,
        }
        let described_as = || {
            let sizes = sample.iter().map(ToString::to_string);
            let shape: Vec<String> = std::iter::once("samples".to_owned()).chain(sizes).collect();
            described(input.data_type, &shape)
        };
        let Some(array) = dataset.arrays.get(input.name) else {
            let names: Vec<String> = (dataset.arrays.keys())
                .map(|name| format!("'{name}'"))
                .collect();
            return Err(DataError::Missing {
                file: dataset.file.clone(),
                input: input.name.to_owned(),
                expected: described_as(),
                found: match names.is_empty() {
                    true => "no arrays".to_owned(),
                    false => names.join(", "),
                },
            });
        };
        let row = array.shape.get(1..);
        if array.data_type != input.data_type || row != Some(&sample[..]) {
            return Err(DataError::Mismatch {
                file: dataset.file.clone(),
                input: input.name.to_owned(),
                expected: described_as(),
                found: described(array.data_type, &array.shape),
                hint: match array.data_type == input.data_type {
                    true => "the first axis counts the samples, the others must be the graph's",
                    false => "convert the array with .astype() when the file is made",
                },
            });
        }
        let samples = array.shape.first().copied().unwrap_or(0);
        let rows = Rows {
            bytes: array.bytes.len() / samples.max(1),
            blocks: input.shape[..input.axis].iter().product(),
            array: array.clone(),
        };
        Ok((rows, samples))
    }
}
