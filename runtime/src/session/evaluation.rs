//! How well a model does on held-out samples.

use crate::tensor::Tensor;
use velora_graph::shapes::DataType;

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean of the loss, weighted by samples.
    pub loss: f64,
    /// The part of the labels that the greatest logit names; `None` where the graph has no logits, or
    /// no labels were told.
    pub accuracy: Option<f64>,
    /// How many labels were counted.
    pub counted: u64,
}

/// Sums over batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    loss: f64,
    samples: u64,
    right: u64,
    counted: u64,
}

impl Score {
    /// Adds the loss of a batch.
    pub fn loss(&mut self, loss: f64, samples: usize) {
        self.loss += loss * samples as f64;
        self.samples += samples as u64;
    }

    /// Compares the greatest of each row of logits with the label of the row. Negative labels are left
    /// out, as the losses do with theirs.
    pub fn predictions(&mut self, logits: &Tensor, labels: &Tensor) {
        let Some(&classes) = logits.shape.last() else {
            return;
        };
        let labels: Vec<i64> = match labels.data_type {
            DataType::INT64 => bytemuck::pod_collect_to_vec(&labels.bytes[..]),
            DataType::INT32 => bytemuck::pod_collect_to_vec::<u8, i32>(&labels.bytes[..])
                .into_iter()
                .map(i64::from)
                .collect(),
            _ => return,
        };
        let Some(logits) = logits.to_f32() else {
            return;
        };
        if classes == 0 || logits.len() / classes != labels.len() {
            return;
        }
        for (row, label) in logits.chunks_exact(classes).zip(labels) {
            if label < 0 {
                continue;
            }
            let mut greatest = 0;
            for (class, logit) in row.iter().enumerate() {
                if *logit > row[greatest] {
                    greatest = class;
                }
            }
            self.counted += 1;
            self.right += u64::from(i64::try_from(greatest) == Ok(label));
        }
    }

    /// The means.
    pub fn evaluation(&self) -> Evaluation {
        Evaluation {
            loss: self.loss / self.samples as f64,
            accuracy: (self.counted > 0).then(|| self.right as f64 / self.counted as f64),
            counted: self.counted,
        }
    }
}
