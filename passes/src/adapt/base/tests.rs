//! Bases against plain formulas.
#![allow(clippy::unwrap_used)]

use super::*;
use velora_graph::onnx::schema::StringStringEntryProto;
use velora_graph::onnx::schema::tensor_proto::DataLocation;
use velora_graph::text::parse_model;

/// A model with a weight of these sizes.
fn model(opset: i64, dims: [i64; 2], values: &[f32]) -> Model {
    let [rows, columns] = dims;
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : {opset}]>\n\
         g (float[{rows}, {columns}] w) => (float[{rows}, {columns}] y) {{ y = Neg (w) }}"
    );
    let mut proto = parse_model(&text).unwrap();
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer = vec![float_tensor("w", dims.to_vec(), values)];
    Model::from_proto(proto).unwrap()
}

fn weight(model: &Model) -> ValueId {
    let mut inputs = model.graph.inputs().iter().copied();
    inputs.find(|&v| model.graph.value(v).name == "w").unwrap()
}

fn store(model: &Model, features_last: bool, base: Base) -> Result<Stored, BaseError> {
    stored(model, weight(model), features_last, base, None)
}

/// Numbers of both signs and many sizes, the same every time.
fn numbers(count: i64, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        size * [1.0, 1e-3, 40.0][(state >> 4) as usize % 3]
    };
    (0..count).map(draw).collect()
}

/// What int4 stands for: integers, and the scale of each entry.
fn dequantised(stored: &Stored) -> (Vec<i32>, Vec<f32>) {
    let Stored::Int4 {
        packed,
        dims: [rows, columns],
        scales,
        blocks,
        axis,
    } = stored
    else {
        panic!("no 4-bit integers");
    };
    let mut all = (Vec::new(), Vec::new());
    for entry in 0..rows * columns {
        let (row, column) = (entry / columns, entry % columns);
        // The first of two stands in the low bits, and bit 3 is the sign.
        let bits = packed[entry as usize / 2] >> (4 * (entry % 2)) & 0xF;
        all.0.push(i32::from(bits) - if bits > 7 { 16 } else { 0 });
        let scale = match axis {
            0 => row / BLOCK * blocks[1] + column,
            _ => row * blocks[1] + column / BLOCK,
        };
        all.1.push(scales[scale as usize]);
    }
    all
}

#[test]
fn integers_are_the_formula() {
    // Blocks that are whole, cut off, of one entry; odd counts, which leave half a byte.
    for dims in [
        [64, 3],
        [33, 5],
        [3, 70],
        [1, 1],
        [31, 32],
        [1, 97],
        [65, 1],
    ] {
        let values = numbers(dims[0] * dims[1], dims[1] as u32);
        let model = model(21, dims, &values);
        for axis in [0, 1] {
            let stored = store(&model, axis == 1, Base::Int4).unwrap();
            let (integers, scales) = dequantised(&stored);
            let Stored::Int4 {
                packed,
                blocks,
                axis: said,
                scales: all,
                ..
            } = &stored
            else {
                panic!("no 4-bit integers");
            };
            assert_eq!(packed.len(), values.len().div_ceil(2));
            assert_eq!(*said, axis);
            let (along, across) = (dims[axis as usize], dims[1 - axis as usize]);
            let mut expected = dims;
            expected[axis as usize] = (along + BLOCK - 1) / BLOCK;
            assert_eq!(*blocks, expected);
            assert_eq!(all.len() as i64, blocks[0] * blocks[1]);
            // Line by line along the features, block by block.
            for line in 0..across {
                for start in (0..along).step_by(BLOCK as usize) {
                    let entries = (start..along.min(start + BLOCK)).map(|at| match axis {
                        0 => (at * dims[1] + line) as usize,
                        _ => (line * dims[1] + at) as usize,
                    });
                    let entries: Vec<usize> = entries.collect();
                    let sizes = entries.iter().map(|&e| values[e].abs());
                    let most = sizes.fold(0.0, f32::max);
                    for &e in &entries {
                        let (w, q, s) = (values[e], integers[e], scales[e]);
                        assert_eq!(s, most / 7.0, "{dims:?} axis {axis} entry {e}");
                        assert_eq!(q as f32, (w / s).round_ties_even());
                        if w.abs() == most {
                            assert_eq!(q, if w > 0.0 { 7 } else { -7 }, "the greatest value");
                        }
                        // Half a step, and what w / s, below 8, is rounded by before: half of 2⁻²¹.
                        let (w, s) = (f64::from(w), f64::from(s));
                        let error = (w - f64::from(q) * s).abs();
                        assert!(error <= s * (0.5 + 1.0 / f64::from(1 << 22)), "{error} {s}");
                    }
                }
            }
        }
    }
}

/// Written out: 7 ↦ 7, -3 ↦ -3, 0.5 and 1.5 to the even neighbour.
#[test]
fn integers_by_hand() {
    let model = model(21, [1, 5], &[7.0, -3.0, 0.5, 1.5, -7.0]);
    let stored = store(&model, true, Base::Int4).unwrap();
    let Stored::Int4 { packed, scales, .. } = &stored else {
        panic!("no 4-bit integers");
    };
    assert_eq!(scales, &[1.0]);
    assert_eq!(packed, &[0xD7, 0x20, 0x09]);
}

#[test]
fn zeros_stay_zeros() {
    // Also numbers so small that their scale would round to zero.
    for small in [0.0, 1e-45] {
        let mut values = vec![0.0; 64];
        values[5] = small;
        values[40] = 3.0;
        let model = model(21, [1, 64], &values);
        let stored = store(&model, true, Base::Int4).unwrap();
        let (integers, scales) = dequantised(&stored);
        assert!(integers[..32].iter().all(|&q| q == 0), "{integers:?}");
        assert_eq!(scales[..32], [1.0; 32]);
        assert_eq!((integers[40], scales[40]), (7, 3.0 / 7.0));
    }
    let model = model(21, [0, 4], &[]);
    let (integers, scales) = dequantised(&store(&model, true, Base::Int4).unwrap());
    assert_eq!((integers.len(), scales.len()), (0, 0));
}

/// A number that has no place on a scale is named rather than made a zero.
#[test]
fn integers_of_no_number_are_refused() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let model = model(21, [1, 3], &[1.0, odd, 2.0]);
        let text = store(&model, true, Base::Int4).err().unwrap().to_string();
        assert!(text.contains("not finite"), "{text}");
        assert!(store(&model, true, Base::BFloat16).is_ok());
    }
}

/// Rounded to nearest, and in the middle to even.
#[test]
fn sixteen_bits_are_rounded() {
    let mut values = numbers(90, 7);
    let middle = [0x3F80_8000u32, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF];
    values.extend(middle.map(f32::from_bits));
    values.extend([0.0, -0.0]);
    let model = model(18, [2, 48], &values);
    let Stored::BFloat16(bytes, dims) = store(&model, false, Base::BFloat16).unwrap() else {
        panic!("no 16-bit floats");
    };
    assert_eq!(dims, [2, 48]);
    assert_eq!(bytes.len(), 2 * values.len());
    for (w, bytes) in values.iter().zip(bytes.chunks(2)) {
        let bits = w.to_bits();
        let even = 0x7FFF + (bits >> 16 & 1);
        let found = u16::from_le_bytes([bytes[0], bytes[1]]);
        assert_eq!(u32::from(found), (bits + even) >> 16, "{w}");
    }
    let found = |n: usize| u16::from_le_bytes([bytes[2 * n], bytes[2 * n + 1]]);
    assert_eq!(
        [90, 91, 92, 93].map(found),
        [0x3F80, 0x3F82, 0x3F81, 0x3F80]
    );
}

#[test]
fn what_cannot_be_stored_is_said() {
    let values = numbers(6, 1);
    let right = model(20, [2, 3], &values);
    let said = |model: &Model, base| match store(model, false, base) {
        Ok(_) => "stored".to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(matches!(
        store(&right, false, Base::Float32),
        Ok(Stored::AsIs)
    ));
    assert_eq!(
        said(&right, Base::Int4),
        "a base of 4 bits needs opset 21 (blocks of DequantizeLinear), and the model has 20; use a base of bf16"
    );
    let change = |change: &dyn Fn(&mut Vec<TensorProto>)| {
        let mut proto = model(21, [2, 3], &values).to_proto();
        change(&mut proto.graph.as_mut().unwrap().initializer);
        Model::from_proto(proto).unwrap()
    };
    let without = change(&|tensors| tensors.clear());
    let elsewhere = change(&|tensors| {
        tensors[0].raw_data = None;
        tensors[0].data_location = Some(DataLocation::External as i32);
        tensors[0].external_data = vec![StringStringEntryProto {
            key: Some("location".to_owned()),
            value: Some("weights.bin".to_owned()),
        }];
    });
    let short = change(&|tensors| tensors[0].raw_data = Some(vec![0; 20].into()));
    let ragged = change(&|tensors| tensors[0].raw_data = Some(vec![0; 23].into()));
    for base in [Base::BFloat16, Base::Int4] {
        for (model, problem) in [
            (&without, "there is no initialiser of its name"),
            (&elsewhere, "they lie in another file"),
            (&short, "not as many as its shape says"),
            (&ragged, "not as many as its shape says"),
        ] {
            let text = said(model, base);
            assert!(text.starts_with("parameter 'w' has no values"), "{text}");
            assert!(text.contains(problem), "{text}");
        }
        // A folder in which the file is not.
        let folder = Some(Path::new("/nowhere"));
        let error = stored(&elsewhere, weight(&elsewhere), false, base, folder).err();
        let text = error.unwrap().to_string();
        assert!(text.contains("cannot find /nowhere"), "{text}");
    }
}
