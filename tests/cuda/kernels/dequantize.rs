//! Numbers from integers and scales.

use super::{assert_same, both, random_numbers, tensor};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::dequantize::{Dequantize, Scales};
use velora_runtime::tensor::{Tensor, TensorType};

const INTEGERS: [(DataType, f64, f64); 7] = [
    (DataType::INT8, -128.0, 127.0),
    (DataType::UINT8, 0.0, 255.0),
    (DataType(4), 0.0, 65535.0),
    (DataType(5), -32768.0, 32767.0),
    (DataType::INT32, -2147483648.0, 2147483647.0),
    (DataType::UINT4, 0.0, 15.0),
    (DataType::INT4, -8.0, 7.0),
];

const NUMBERS: [DataType; 3] = [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16];

fn integers(ty: DataType, low: f64, high: f64, count: usize, seed: u64) -> Tensor {
    let numbers: Vec<f64> = random_numbers(count, seed)
        .iter()
        .map(|x| (low + (x + 1.0) / 2.0 * (high - low)).round())
        .collect();
    if !ty.is_int4() {
        return tensor(ty, &[count], &numbers);
    }
    let nibble = |place: usize| numbers.get(place).map_or(0, |&n| (n as i64 & 15) as u8);
    let bytes: Vec<u8> = (0..count.div_ceil(2))
        .map(|byte| nibble(2 * byte) | nibble(2 * byte + 1) << 4)
        .collect();
    Tensor {
        data_type: ty,
        shape: vec![count],
        bytes: bytes.into(),
    }
}

/// A subtraction and a product in floats, rounded once to the type: the same bits.
#[test]
fn numbers_are_the_same() {
    let shapes = [
        (1, 1, 37, Scales::Axis),
        (3, 5, 1, Scales::Axis),
        (2, 3, 16, Scales::Axis),
        (2, 3, 5, Scales::Axis),
        (3, 16, 1, Scales::Blocks(8)),
        (3, 10, 1, Scales::Blocks(4)),
        (2, 6, 5, Scales::Blocks(2)),
        (2, 7, 8, Scales::Blocks(3)),
        (1, 9, 1, Scales::Blocks(1)),
        (0, 4, 2, Scales::Axis),
        (2, 64, 40, Scales::Blocks(32)),
    ];
    for (ty, low, high) in INTEGERS {
        for (outer, size, inner, scales) in shapes {
            let op = Dequantize {
                outer,
                size,
                inner,
                scales,
            };
            let count = outer * size * inner;
            for of_scale in NUMBERS {
                for of_result in NUMBERS {
                    // All combinations of types once, and all layouts with floats.
                    let plain = of_scale == DataType::FLOAT && of_result == DataType::FLOAT;
                    if !plain && (outer, size, inner) != (2, 3, 5) {
                        continue;
                    }
                    let scale: Vec<f64> = (0..op.count()).map(|i| 0.5 + i as f64 / 64.0).collect();
                    let zeros =
                        (ty != DataType::INT32).then(|| integers(ty, low, high, op.count(), 2));
                    for zeros in [None, zeros] {
                        let inputs = [
                            Some(integers(ty, low, high, count, 1)),
                            Some(tensor(of_scale, &[op.count()], &scale)),
                            zeros,
                        ];
                        let output = TensorType::new(of_result, [count]);
                        let op = Op::Dequantize(op.clone());
                        let what = format!("{op:?} of {ty} with {of_scale} to {of_result}");
                        assert_same(&both(op, &inputs, &[Some(output)]), &what);
                    }
                }
            }
        }
    }
}
