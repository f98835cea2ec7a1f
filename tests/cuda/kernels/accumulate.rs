//! Sums kept in a buffer.

use super::{assert_same, both, both_over, random_tensor, tensor};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::accumulate::Accumulate;
use velora_runtime::tensor::TensorType;

const TYPES: [(DataType, DataType); 6] = [
    (DataType::FLOAT, DataType::FLOAT),
    (DataType::FLOAT, DataType::FLOAT16),
    (DataType::FLOAT, DataType::BFLOAT16),
    (DataType::DOUBLE, DataType::DOUBLE),
    (DataType::FLOAT16, DataType::FLOAT16),
    (DataType::BFLOAT16, DataType::BFLOAT16),
];

/// One addition, which both machines round to the nearest: the same bits.
#[test]
fn sums_are_the_same() {
    for (kept, added) in TYPES {
        for size in [0, 1, 3, 8, 37, 5000] {
            for rule in [Accumulate::Add, Accumulate::Overwrite, Accumulate::Gated] {
                for flag in [0.0, 1.0] {
                    let inputs = [
                        Some(random_tensor(kept, &[size], 1)),
                        Some(random_tensor(added, &[size], 2)),
                        (rule != Accumulate::Add).then(|| tensor(DataType::BOOL, &[1], &[flag])),
                    ];
                    let outputs = [
                        Some(TensorType::new(kept, [size])),
                        Some(TensorType::new(DataType::BOOL, [1])),
                    ];
                    let what = format!("{rule:?} {flag} of {size} {kept} {added}");
                    assert_same(&both(Op::Accumulate(rule), &inputs, &outputs), &what);
                    let found = both_over(Op::Accumulate(rule), &inputs, &outputs, &[0]);
                    assert_same(&found, &what);
                }
            }
        }
    }
}
