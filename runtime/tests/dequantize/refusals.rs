//! What is wrong with a graph is said before anything runs.

use super::{integers, model, run};
use proptest::prelude::*;
use velora_graph::shapes::DataType;
use velora_runtime::tensor::Tensor;

fn refusal(opset: i64, inputs: &str, output: &str, node: &str) -> String {
    run(&model(opset, inputs, output, "", node), &[]).unwrap_err()
}

#[test]
fn shapes_of_scales_and_zero_points() {
    let blocks = |x: &str, s: &str, block: i64| {
        let node = format!("y = DequantizeLinear <axis = 0, block_size = {block}> (x, s)");
        refusal(
            21,
            &format!("{x} x, {s} s"),
            &x.replace("int4", "float").replace(']', "] y"),
            &node,
        )
    };
    for (x, s, block, expected) in [
        (
            "int4[5,3]",
            "float[2,3]",
            2,
            "float[2,3]: expected float[3,3]",
        ),
        (
            "int4[5,3]",
            "float[5,3]",
            2,
            "float[5,3]: expected float[3,3]",
        ),
        ("int4[5,3]", "float[3]", 2, "float[3]: expected float[3,3]"),
        ("int4[5,3]", "float", 2, "expected float[3,3]"),
        ("int4[5,3]", "float[1,3]", 9, ""),
        ("int4[5,3]", "float[5,3]", 0, "expected float[5]"),
        ("int4[5,3]", "float[3]", 0, "expected float[5]"),
        ("int4[5,3]", "float[3,3]", -2, "block_size -2"),
        ("int4[5,3]", "float[1,3]", i64::MAX, ""),
    ] {
        let found = blocks(x, s, block);
        // What fits lacks its input only.
        let expected = if expected.is_empty() {
            "got nothing"
        } else {
            expected
        };
        assert!(found.contains(expected), "{x} {s} {block}: {found}");
    }
    for (opset, inputs, node, expected) in [
        (
            21,
            "int4[5] x, float[5] s",
            "(x, s)",
            "axis 1 is none of int4[5]",
        ),
        (
            20,
            "int8[2,4] x, float[2,2] s",
            "<block_size = 2> (x, s)",
            "operator set 21",
        ),
        (
            10,
            "int8[2,4] x, float[4] s",
            "(x, s)",
            "a scalar before operator set 13",
        ),
        (
            21,
            "int4[2,4] x, float[4] s, int4[2] z",
            "(x, s, z)",
            "expected int4[4]",
        ),
        (
            21,
            "int4[2,4] x, float[4] s, uint4[4] z",
            "(x, s, z)",
            "zero point is uint4[4]",
        ),
        (
            21,
            "int32[2,4] x, float s, int32 z",
            "(x, s, z)",
            "int32 with a zero point",
        ),
        (
            21,
            "int64[2,4] x, float s",
            "(x, s)",
            "expected int4, uint4",
        ),
        (
            21,
            "float8e4m3fn[2,4] x, float s",
            "(x, s)",
            "expected int4, uint4",
        ),
        (
            21,
            "int4[2,4] x, double s",
            "(x, s)",
            "the scale is double[]",
        ),
        (
            21,
            "float4e2m1[2,4] x, float s",
            "(x, s)",
            "the runtime cannot hold",
        ),
        (
            21,
            "int2[2,4] x, float s",
            "(x, s)",
            "the runtime cannot hold",
        ),
    ] {
        let found = refusal(opset, inputs, "y", &format!("y = DequantizeLinear {node}"));
        assert!(found.contains(expected), "{inputs} {node}: {found}");
    }
    let node = "y = DequantizeLinear <output_dtype = 11> (x, s)";
    let found = refusal(23, "int4[2] x, float s", "y", node);
    assert!(found.contains("the output is double[2]"), "{found}");
}

#[test]
fn other_operators_refuse_integers_of_4_bits() {
    for node in [
        "y = Cast <to = 1> (x)",
        "y = Transpose (x)",
        "y = Concat <axis = 0> (x, x)",
        "y = Gather (x, i)",
        "y = Slice (x, i, i)",
        "y = Equal (x, x)",
        "y = ConstantOfShape <value = int4[1] {3}> (i)",
        "f = DequantizeLinear (x, s) y = CastLike (f, x)",
    ] {
        let found = refusal(25, "int4[2,2] x, int64[1] i, float s", "y", node);
        assert!(
            found.contains("int4, which only DequantizeLinear"),
            "{node}: {found}"
        );
    }
}

#[test]
fn sizes_that_no_memory_has() {
    let huge = 1usize << 40;
    let node = "y = DequantizeLinear <axis = 0, block_size = 2> (x, s)";
    for shape in [
        format!("{huge},{huge}"),
        format!("{huge},{huge},0"),
        format!("{}", i64::MAX),
    ] {
        let inputs = format!("int4[{shape}] x, float[1] s");
        assert!(!refusal(21, &inputs, "y", node).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_shape_makes_it_panic(
        x in prop::collection::vec(0usize..4, 0..4),
        s in prop::collection::vec(0usize..4, 0..4),
        z in prop::option::of(prop::collection::vec(0usize..4, 0..4)),
        axis in -4i64..4,
        block in prop::sample::select(vec![-1, 0, 1, 2, 3, i64::MAX, i64::MIN]),
        opset in prop::sample::select(vec![10, 13, 19, 21, 23, 25]),
    ) {
        let zeros = if z.is_some() { ", z" } else { "" };
        let node = format!("y = DequantizeLinear <axis = {axis}, block_size = {block}> (x, s{zeros})");
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let filled = |shape: &[usize]| integers(DataType::INT4, shape, &vec![-3; elements(shape)]);
        let mut inputs = vec![
            ("x", filled(&x)),
            ("s", Tensor::from_f32(&s, &vec![0.5; elements(&s)])),
        ];
        inputs.extend(z.as_ref().map(|z| ("z", filled(z))));
        let declared = |(name, t): &(&str, Tensor)| {
            format!("{} {name}", velora_runtime::tensor::TensorType::new(t.data_type, t.shape.clone()))
        };
        let declarations: Vec<String> = inputs.iter().map(declared).collect();
        let source = model(opset, &declarations.join(", "), "y", "", &node);
        if let Ok(outputs) = run(&source, &inputs) {
            let expected = if z.is_some() { 0.0 } else { -1.5 };
            prop_assert_eq!(outputs[0].to_f32().unwrap(), vec![expected; elements(&x)]);
        }
    }
}
