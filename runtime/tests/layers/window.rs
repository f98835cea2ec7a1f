//! Convolutions and pooling.

use super::{Array, assert_close, differences, dims, run, try_run};
use velora_graph::shapes::DataType;

/// A convolution of two spatial axes.
struct Case {
    x: [usize; 4],
    w: [usize; 4],
    stride: [usize; 2],
    dilation: [usize; 2],
    pads: [usize; 4],
    group: usize,
}

impl Case {
    fn attributes(&self) -> String {
        let Case {
            stride,
            dilation,
            pads,
            group,
            ..
        } = self;
        format!("strides={stride:?}, dilations={dilation:?}, pads={pads:?}, group={group}")
    }

    fn y(&self) -> [usize; 4] {
        let size = |axis: usize| {
            let room = self.x[2 + axis] + self.pads[axis] + self.pads[2 + axis];
            (room - self.dilation[axis] * (self.w[2 + axis] - 1) - 1) / self.stride[axis] + 1
        };
        [self.x[0], self.w[0], size(0), size(1)]
    }

    /// The definition: a sum over channels and taps for every element of Y.
    fn naive(&self, x: &Array, w: &Array, bias: &Array) -> Array {
        let [batch, filters, height, width] = self.y();
        let [_, channels, rows, columns] = self.w;
        let each = filters / self.group;
        let mut y = Vec::new();
        for n in 0..batch {
            for m in 0..filters {
                for (h, v) in (0..height).flat_map(|h| (0..width).map(move |v| (h, v))) {
                    let mut sum = bias.data[m];
                    for c in 0..channels {
                        for (r, s) in (0..rows).flat_map(|r| (0..columns).map(move |s| (r, s))) {
                            let at = |o: usize, k: usize, axis: usize| {
                                (o * self.stride[axis] + k * self.dilation[axis])
                                    .checked_sub(self.pads[axis])
                                    .filter(|&at| at < self.x[2 + axis])
                            };
                            if let (Some(i), Some(j)) = (at(h, r, 0), at(v, s, 1)) {
                                let channel = n * self.x[1] + m / each * channels + c;
                                sum += x.data[(channel * self.x[2] + i) * self.x[3] + j]
                                    * w.data[((m * channels + c) * rows + r) * columns + s];
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
        Array {
            shape: self.y().to_vec(),
            data: y,
        }
    }

    fn conv(&self, data_type: &str) -> String {
        format!(
            "g ({data_type}[{}] x, {data_type}[{}] w, {data_type}[{}] b) => ({data_type}[{}] y) {{
                y = Conv <{}> (x, w, b)
            }}",
            dims(&self.x),
            dims(&self.w),
            self.w[0],
            dims(&self.y()),
            self.attributes()
        )
    }

    fn grad(&self, data_type: &str) -> String {
        format!(
            "g ({data_type}[{}] dy, {data_type}[{x}] x, {data_type}[{w}] w)
                => ({data_type}[{x}] dx, {data_type}[{w}] dw, {data_type}[{}] db) {{
                dx, dw, db = com.microsoft.ConvGrad <{}> (dy, x, w)
            }}",
            dims(&self.y()),
            self.w[0],
            self.attributes(),
            x = dims(&self.x),
            w = dims(&self.w),
        )
    }
}

fn small() -> Vec<Case> {
    let case = |x, w, stride, dilation, pads, group| Case {
        x,
        w,
        stride,
        dilation,
        pads,
        group,
    };
    vec![
        case([2, 3, 6, 5], [4, 3, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 1),
        case([2, 4, 7, 6], [6, 2, 3, 2], [2, 3], [2, 1], [1, 0, 2, 1], 2),
        case([1, 3, 4, 5], [3, 1, 3, 3], [1, 1], [1, 1], [2, 2, 0, 0], 3),
        case([2, 3, 4, 4], [5, 3, 1, 1], [1, 1], [1, 1], [0, 0, 0, 0], 1),
        case([1, 2, 5, 5], [2, 2, 1, 1], [2, 2], [1, 1], [0, 0, 0, 0], 1),
        // Windows with nothing but padding.
        case([1, 1, 3, 3], [2, 1, 2, 2], [2, 2], [1, 1], [3, 3, 3, 3], 1),
    ]
}

#[test]
fn a_convolution_is_the_sum_over_channels_and_taps() {
    for case in small() {
        let (x, w) = (Array::random(&case.x, 1), Array::random(&case.w, 2));
        let b = Array::random(&case.w[..1], 3);
        let inputs = [("x", &x), ("w", &w), ("b", &b)];
        let y = run(DataType::DOUBLE, &case.conv("double"), &inputs);
        assert_close(&y[0], &case.naive(&x, &w, &b), 1e-14, &case.attributes());
    }
}

/// More output positions than one block of columns has, and enough work for threads.
#[test]
fn a_convolution_of_several_blocks_in_singles() {
    let case = Case {
        x: [3, 24, 33, 31],
        w: [10, 24, 5, 5],
        stride: [1, 1],
        dilation: [1, 1],
        pads: [2, 2, 2, 2],
        group: 1,
    };
    let x = Array::random(&case.x, 4).single();
    let w = Array::random(&case.w, 5).single();
    let b = Array::random(&case.w[..1], 6).single();
    let y = run(
        DataType::FLOAT,
        &case.conv("float"),
        &[("x", &x), ("w", &w), ("b", &b)],
    );
    // Sums of 600 products: 600 roundings of 2^-24 at the very most.
    assert_close(&y[0], &case.naive(&x, &w, &b), 4e-5, "y");
    let dy = Array::random(&case.y(), 7).single();
    let inputs = [("dy", &dy), ("x", &x), ("w", &w)];
    let single = run(DataType::FLOAT, &case.grad("float"), &inputs);
    let double = run(DataType::DOUBLE, &case.grad("double"), &inputs);
    for (single, double) in single.iter().zip(&double) {
        assert_close(single, double, 4e-5, "gradient");
    }
}

#[test]
fn gradients_of_convolutions_are_what_finite_differences_say() {
    for case in small() {
        let (x, w) = (Array::random(&case.x, 8), Array::random(&case.w, 9));
        let (b, dy) = (
            Array::random(&case.w[..1], 10),
            Array::random(&case.y(), 11),
        );
        let inputs = [("dy", &dy), ("x", &x), ("w", &w)];
        let found = run(DataType::DOUBLE, &case.grad("double"), &inputs);
        let name = case.attributes();
        let dx = differences(&x, |x| case.naive(x, &w, &b).dot(&dy));
        let dw = differences(&w, |w| case.naive(&x, w, &b).dot(&dy));
        let db = differences(&b, |b| case.naive(&x, &w, b).dot(&dy));
        for (found, expected) in found.iter().zip([dx, dw, db]) {
            assert_close(found, &expected, 1e-8, &name);
        }
    }
}

/// `<ConvTranspose(x, w), y> = <x, Conv(y, w)>`, and the same for its gradient.
#[test]
fn a_transposed_convolution_is_the_adjoint() {
    let graph = "g (double[2,4,3,4] x, double[4,3,3,2] w, double[6] b, double[2,6,6,12] dy)
            => (double[2,6,6,12] y, double[2,4,3,4] dx, double[4,3,3,2] dw, double[6] db) {
            y = ConvTranspose <strides=[2, 3], group=2, pads=[1, 0, 0, 0], output_padding=[0, 1]> (x, w, b)
            dx, dw, db = com.microsoft.ConvTransposeGrad
                <strides=[2, 3], group=2, pads=[1, 0, 0, 0], output_padding=[0, 1]> (dy, x, w)
        }";
    let x = Array::random(&[2, 4, 3, 4], 1);
    let w = Array::random(&[4, 3, 3, 2], 2);
    let b = Array::random(&[6], 3);
    let dy = Array::random(&[2, 6, 6, 12], 4);
    let evaluate = |x: &Array, w: &Array, b: &Array| {
        let inputs = [("x", x), ("w", w), ("b", b), ("dy", &dy)];
        run(DataType::DOUBLE, graph, &inputs)
    };
    let found = evaluate(&x, &w, &b);
    let case = Case {
        x: [2, 6, 6, 12],
        w: [4, 3, 3, 2],
        stride: [2, 3],
        dilation: [1, 1],
        pads: [1, 0, 0, 0],
        group: 2,
    };
    let zero = Array {
        shape: vec![4],
        data: vec![0.0; 4],
    };
    let mut bias_part = 0.0;
    for (place, dy) in dy.data.iter().enumerate() {
        bias_part += dy * b.data[place / 72 % 6];
    }
    let adjoint = case.naive(&dy, &w, &zero).dot(&x);
    assert!((found[0].dot(&dy) - bias_part - adjoint).abs() < 1e-12);
    let dw = differences(&w, |w| evaluate(&x, w, &b)[0].dot(&dy));
    let dx = differences(&x, |x| evaluate(x, &w, &b)[0].dot(&dy));
    let db = differences(&b, |b| evaluate(&x, &w, b)[0].dot(&dy));
    for (found, expected) in found[1..].iter().zip([dx, dw, db]) {
        assert_close(found, &expected, 1e-8, "gradient");
    }
}

#[test]
fn the_maximum_its_place_and_its_gradient() {
    let graph = "g (double[1,2,4,5] x, double[1,2,2,3] dy)
            => (double[1,2,2,3] y, int64[1,2,2,3] places, double[1,2,4,5] dx) {
            y, places = MaxPool <kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]> (x)
            dx = MaxPoolGrad <kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]> (dy, places)
        }";
    let x = Array::random(&[1, 2, 4, 5], 5);
    let dy = Array::random(&[1, 2, 2, 3], 6);
    let evaluate = |x: &Array| run(DataType::DOUBLE, graph, &[("x", x), ("dy", &dy)]);
    let found = evaluate(&x);
    for (y, &place) in found[0].data.iter().zip(&found[1].data) {
        assert_eq!(*y, x.data[place as usize]);
    }
    // The window of the last output: rows 1 to 3, and column 4 alone.
    let last = [x.data[29], x.data[34], x.data[39]];
    assert_eq!(found[0].data[11], last.into_iter().fold(-1.0, f64::max));
    let dx = differences(&x, |x| evaluate(x)[0].dot(&dy));
    assert_close(&found[2], &dx, 1e-8, "dx");
}

#[test]
fn the_first_of_equal_maxima_and_any_nan_win() {
    let graph = "g (float[1,1,6] x) => (float[1,1,3] y, int64[1,1,3] places) {
            y, places = MaxPool <kernel_shape=[2], strides=[2]> (x)
        }";
    let x = Array {
        shape: vec![1, 1, 6],
        data: vec![2.0, 2.0, f64::NAN, 1.0, 5.0, f64::NAN],
    };
    let found = run_bits(graph, &x);
    assert_eq!(found[0].data[0], 2.0);
    assert!(found[0].data[1].is_nan() && found[0].data[2].is_nan());
    assert_eq!(found[1].data, [0.0, 2.0, 5.0]);
}

fn run_bits(graph: &str, x: &Array) -> Vec<Array> {
    let outputs = try_run(2, graph, &[("x", x.tensor(DataType::FLOAT))]).unwrap();
    outputs.iter().map(Array::from_tensor).collect()
}

#[test]
fn places_may_count_columns_first_and_elements_may_be_bytes() {
    let graph = "g (uint8[1,2,2,3] x) => (uint8[1,2,1,1] y, int64[1,2,1,1] places) {
            y, places = MaxPool <kernel_shape=[2, 3], storage_order=1> (x)
        }";
    let x = Array {
        shape: vec![1, 2, 2, 3],
        data: vec![0., 1., 2., 3., 4., 200., 0., 9., 2., 3., 4., 5.],
    };
    let outputs = try_run(1, graph, &[("x", x.tensor(DataType::UINT8))]).unwrap();
    let outputs: Vec<Array> = outputs.iter().map(Array::from_tensor).collect();
    assert_eq!(outputs[0].data, [200.0, 9.0]);
    // Row 1, column 2 is the sixth of the first plane; row 0, column 1 the third of the second.
    assert_eq!(outputs[1].data, [5.0, 8.0]);
}

#[test]
fn a_mean_shares_its_gradient_out() {
    for count in [0, 1] {
        let attributes = format!(
            "kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 0, 0], count_include_pad={count}"
        );
        let forward = format!(
            "g (double[2,1,4,3] x) => (double[2,1,2,3] y) {{ y = AveragePool <{attributes}> (x) }}"
        );
        let backward = format!(
            "g (double[2,1,2,3] dy) => (double[2,1,4,3] dx) {{ dx = AveragePoolGrad <{attributes}> (dy) }}"
        );
        let (x, dy) = (
            Array::random(&[2, 1, 4, 3], 7),
            Array::random(&[2, 1, 2, 3], 8),
        );
        let loss = |x: &Array| run(DataType::DOUBLE, &forward, &[("x", x)])[0].dot(&dy);
        let dx = run(DataType::DOUBLE, &backward, &[("dy", &dy)]);
        assert_close(&dx[0], &differences(&x, loss), 1e-8, &attributes);
        // The first window has a column and a row in the padding.
        let first = (x.data[0] + x.data[3]) / if count == 1 { 6.0 } else { 2.0 };
        let y = run(DataType::DOUBLE, &forward, &[("x", &x)]);
        assert!((y[0].data[0] - first).abs() < 1e-15);
    }
}

#[test]
fn a_gradient_with_places_of_another_plane_is_refused() {
    let graph = "g (float[1,2,2] dy, int64[1,2,2] places) => (float[1,2,4] dx) {
            dx = MaxPoolGrad <kernel_shape=[2], strides=[2]> (dy, places)
        }";
    let dy = Array::random(&[1, 2, 2], 1);
    let places = Array {
        shape: vec![1, 2, 2],
        data: vec![0.0, 4.0, 5.0, 6.0],
    };
    let inputs = [
        ("dy", dy.tensor(DataType::FLOAT)),
        ("places", places.tensor(DataType::INT64)),
    ];
    let message = try_run(1, graph, &inputs).unwrap_err();
    assert!(message.contains("outside of its plane"), "{message}");
}

#[test]
fn what_is_not_supported_is_refused_with_the_reason() {
    let four = "g (float[1,1,2,2,2,2] x, float[1,1,1,1,1,1] w) => (float[1,1,2,2,2,2] y) {
            y = Conv (x, w)
        }";
    let x = Array::random(&[1, 1, 2, 2, 2, 2], 1).tensor(DataType::FLOAT);
    let w = Array::random(&[1, 1, 1, 1, 1, 1], 1).tensor(DataType::FLOAT);
    let message = try_run(1, four, &[("x", x), ("w", w)]).unwrap_err();
    assert!(message.contains("expected one to 3 axes"), "{message}");
}
