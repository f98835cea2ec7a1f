//! Values.

use super::{floats, integers, model, run_on};
use half::{bf16, f16};
use velora_graph::shapes::DataType;
use velora_runtime::random;
use velora_runtime::tensor::{Tensor, TensorType};

#[test]
fn blocks_along_the_last_axis_of_an_odd_number_of_elements() {
    // -8, 7 | -1, 0 | 3
    let row = "int4[1,5] x = {120, 15, 3}, float[1,3] s = {1, 0.5, 2}";
    let node = "y = DequantizeLinear <axis = 1, block_size = 2> (x, s)";
    let plain = model(21, "", "float[1,5] y", row, node);
    assert_eq!(floats(&plain), [-8.0, 7.0, -0.5, 0.0, 6.0]);
    // Zero points 1, -2, -8.
    let with_zeros = format!("{row}, int4[1,3] z = {{225, 8}}");
    let node = "y = DequantizeLinear <axis = -1, block_size = 2> (x, s, z)";
    let shifted = model(25, "", "float[1,5] y", &with_zeros, node);
    assert_eq!(floats(&shifted), [-9.0, 6.0, 0.5, 1.0, 22.0]);
    // The same bits as unsigned integers: 8, 7, 15, 0, 3 and 1, 14, 8.
    let unsigned = with_zeros.replace("int4", "uint4");
    let shifted = model(21, "", "float[1,5] y", &unsigned, node);
    assert_eq!(floats(&shifted), [7.0, 6.0, 0.5, -7.0, -10.0]);
}

#[test]
fn blocks_along_the_first_axis_of_an_odd_number_of_elements() {
    // -8 -7 -6 | 1 2 3 || -1 -2 -3
    let matrix = "int4[3,3] x = {152, 26, 50, 239, 13}, float[2,3] s = {1, 2, 3, 10, 20, 30}";
    let node = "y = DequantizeLinear <axis = 0, block_size = 2> (x, s)";
    let plain = model(21, "", "float[3,3] y", matrix, node);
    let expected = [-8.0, -14.0, -18.0, 1.0, 4.0, 9.0, -10.0, -40.0, -90.0];
    assert_eq!(floats(&plain), expected);
    // Zero points 1 1 1 || -1 0 2.
    let with_zeros = format!("{matrix}, int4[2,3] z = {{17, 241, 32}}");
    let node = "y = DequantizeLinear <axis = 0, block_size = 2> (x, s, z)";
    let shifted = model(21, "", "float[3,3] y", &with_zeros, node);
    let expected = [-9.0, -16.0, -21.0, 0.0, 2.0, 6.0, 0.0, -40.0, -150.0];
    assert_eq!(floats(&shifted), expected);
}

#[test]
fn a_scale_for_all_and_one_for_each_position() {
    let node = "y = DequantizeLinear (x, s, z)";
    let constants = "uint8[3] x = {0, 128, 255}, float s = {0.5}, uint8 z = {128}";
    let all = model(10, "", "float[3] y", constants, node);
    assert_eq!(floats(&all), [-64.0, 0.0, 63.5]);
    // Zero points -8 and 7.
    let constants = "int4[2,2] x = {120, 31}, float[2] s = {1, 10}, int4[2] z = {120}";
    let each = model(21, "", "float[2,2] y", constants, node);
    assert_eq!(floats(&each), [0.0, 0.0, 7.0, -60.0]);
    let rows = "y = DequantizeLinear <axis = 0> (x, s, z)";
    let each = model(21, "", "float[2,2] y", constants, rows);
    assert_eq!(floats(&each), [0.0, 15.0, -80.0, -60.0]);
    // Zero points of int32 are there, and 0.
    let constants = "int32[2] x = {-2147483648, 16777217}, float s = {2}, int32 z = {0}";
    let wide = model(13, "", "float[2] y", constants, node);
    assert_eq!(floats(&wide), [-4294967296.0, 33554432.0]);
}

#[test]
fn other_types_of_the_output() {
    let constants = "int4[2] x = {24}, float16[1] s = {14336}";
    let of_scale = model(
        21,
        "",
        "float16[2] y",
        constants,
        "y = DequantizeLinear (x, s)",
    );
    let found = run_on(&of_scale, &[], 1).unwrap()[0].to_f64().unwrap();
    assert_eq!(found, [-4.0, 0.5]);
    let node = "y = DequantizeLinear <output_dtype = 1> (x, s)";
    assert_eq!(
        floats(&model(23, "", "float[2] y", constants, node)),
        [-4.0, 0.5]
    );
}

/// An integer type, and its least and greatest integer.
const TYPES: [(DataType, i64, i64); 7] = [
    (DataType::INT4, -8, 7),
    (DataType::UINT4, 0, 15),
    (DataType::INT8, -128, 127),
    (DataType::UINT8, 0, 255),
    (DataType(5), -32768, 32767),
    (DataType(4), 0, 65535),
    (DataType::INT32, -2147483648, 2147483647),
];

fn drawn(range: (i64, i64), count: usize, stream: u64) -> Vec<i64> {
    (0..count as u64)
        .map(|n| range.0 + random::below(7, stream, n, (range.1 - range.0 + 1) as u64) as i64)
        .collect()
}

/// Numbers as a tensor of a type, and as what that type makes of them.
fn numbers(data_type: DataType, shape: &[usize], numbers: &[f32]) -> (Tensor, Vec<f32>) {
    let (bytes, rounded): (Vec<u8>, Vec<f32>) = match data_type {
        DataType::FLOAT16 => {
            let halves = numbers.iter().map(|&x| f16::from_f32(x));
            let bytes = halves.clone().flat_map(f16::to_le_bytes);
            (bytes.collect(), halves.map(f16::to_f32).collect())
        }
        DataType::BFLOAT16 => {
            let halves = numbers.iter().map(|&x| bf16::from_f32(x));
            let bytes = halves.clone().flat_map(bf16::to_le_bytes);
            (bytes.collect(), halves.map(bf16::to_f32).collect())
        }
        _ => {
            let bytes = numbers.iter().flat_map(|x| x.to_le_bytes());
            (bytes.collect(), numbers.to_vec())
        }
    };
    let tensor = Tensor {
        data_type,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    };
    (tensor, rounded)
}

/// One case against the formula element by element; bits, for any number of threads.
fn check(
    (data_type, least, greatest): (DataType, i64, i64),
    (of_scale, of_output): (DataType, DataType),
    shape: &[usize],
    axis: usize,
    block: Option<usize>,
    zeros: bool,
) {
    let zeros = zeros && data_type != DataType::INT32;
    let elements: usize = shape.iter().product();
    let scale_shape = match block {
        None => vec![shape[axis]],
        Some(block) => {
            let mut blocks = shape.to_vec();
            blocks[axis] = shape[axis].div_ceil(block);
            blocks
        }
    };
    let count: usize = scale_shape.iter().product();
    let x = drawn((least, greatest), elements, 1);
    let z = drawn((least, greatest), count, 2);
    let s: Vec<f32> = drawn((-4000, 4000), count, 3)
        .into_iter()
        .map(|n| n as f32 / 8192.0)
        .collect();
    let (scales, s) = numbers(of_scale, &scale_shape, &s);
    let inner: usize = shape[axis + 1..].iter().product();
    let expected: Vec<f32> = (0..elements)
        .map(|place| {
            let (outer, position) = (place / inner / shape[axis], place / inner % shape[axis]);
            let number = match block {
                None => position,
                Some(block) => {
                    (outer * scale_shape[axis] + position / block) * inner + place % inner
                }
            };
            let zero = if zeros { z[number] } else { 0 };
            (x[place] - zero) as f32 * s[number]
        })
        .collect();
    let (expected, _) = numbers(of_output, shape, &expected);
    let declared = |name: &str, data_type: DataType, shape: &[usize]| {
        format!("{} {name}", TensorType::new(data_type, shape))
    };
    let mut inputs = vec![("x", integers(data_type, shape, &x)), ("s", scales)];
    if zeros {
        inputs.push(("z", integers(data_type, &scale_shape, &z)));
    }
    let declarations: Vec<String> = { inputs.iter() }
        .map(|(name, tensor)| declared(name, tensor.data_type, &tensor.shape))
        .collect();
    let node = format!(
        "y = DequantizeLinear <axis = {axis}, block_size = {}, output_dtype = {}> (x, s{})",
        block.unwrap_or(0),
        of_output.0,
        if zeros { ", z" } else { "" }
    );
    let y = declared("y", of_output, shape);
    let source = model(25, &declarations.join(", "), &y, "", &node);
    for threads in [1, 3] {
        let found = run_on(&source, &inputs, threads).unwrap();
        assert_eq!(found[0], expected, "{source} on {threads} threads");
    }
}

#[test]
fn every_type_in_every_layout() {
    let floats = [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16];
    for (number, ty) in TYPES.into_iter().enumerate() {
        for (place, shape) in [vec![3, 7, 5], vec![1, 33], vec![37, 1], vec![65]]
            .iter()
            .enumerate()
        {
            for axis in 0..shape.len() {
                for block in [None, Some(1), Some(2), Some(3), Some(16), Some(100)] {
                    // All pairs of a type of scales and a type of the output come by.
                    let pair = number + place + axis + block.unwrap_or(0);
                    let types = (floats[pair % 3], floats[pair / 3 % 3]);
                    check(ty, types, shape, axis, block, pair % 2 == 0);
                }
            }
        }
    }
}

#[test]
fn large_ones_on_any_number_of_threads() {
    let single = (DataType::FLOAT, DataType::FLOAT);
    for zeros in [false, true] {
        for axis in [0, 1] {
            // Rows that begin in the middle of bytes, of tiles, and of pieces of work.
            check(TYPES[0], single, &[151, 701], axis, Some(32), zeros);
            check(TYPES[1], single, &[151, 701], axis, None, zeros);
        }
        check(TYPES[0], single, &[9, 50, 331], 1, Some(16), zeros);
        check(
            TYPES[0],
            (DataType::BFLOAT16, DataType::FLOAT16),
            &[40_001],
            0,
            Some(64),
            zeros,
        );
    }
}
