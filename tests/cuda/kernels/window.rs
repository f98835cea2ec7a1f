//! Convolutions and pooling.

use super::{assert_close, both, epsilon, numbers, random_tensor, tensor, try_both};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::window::{Conv, Geometry, Pool, Reduction, Window};
use velora_runtime::tensor::{Tensor, TensorType};

const REALS: [DataType; 2] = [DataType::FLOAT, DataType::DOUBLE];

/// A window with the output sizes that follow.
fn geometry(
    size: [usize; 3],
    kernel: [usize; 3],
    stride: usize,
    dilation: usize,
    pad: [usize; 3],
    pad_after: [usize; 3],
) -> Geometry {
    let out = std::array::from_fn(|axis| {
        let reach = (kernel[axis] - 1) * dilation + 1;
        let stride = if size[axis] == 1 { 1 } else { stride };
        (size[axis] + pad[axis] + pad_after[axis] - reach) / stride + 1
    });
    let each = |n: usize| std::array::from_fn(|axis| if size[axis] == 1 { 1 } else { n });
    Geometry {
        size,
        kernel,
        stride: each(stride),
        dilation: each(dilation),
        pad,
        pad_after,
        out,
    }
}

fn magnitudes(tensors: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
    let magnitude = |tensor: &Tensor| {
        let all: Vec<f64> = numbers(tensor).into_iter().map(f64::abs).collect();
        tensor_like(tensor, &all)
    };
    tensors.iter().map(|t| t.as_ref().map(magnitude)).collect()
}

fn tensor_like(like: &Tensor, numbers: &[f64]) -> Tensor {
    tensor(like.data_type, &like.shape, numbers)
}

/// Refuses sums of products that differ by more than their roundings: on each side at most one per term and
/// addition, of the sum of the terms' sizes, which the same operation gives on magnitudes.
fn check_sums(
    op: &Window,
    inputs: &[Option<Tensor>],
    output: &TensorType,
    terms: usize,
    what: &str,
) {
    let found = both(Op::Window(op.clone()), inputs, &[Some(output.clone())]);
    let sizes = both(
        Op::Window(op.clone()),
        &magnitudes(inputs),
        &[Some(output.clone())],
    );
    let sizes = numbers(sizes.cpu[0].as_ref().unwrap());
    let bound = |place: usize| 2.0 * (terms + 2) as f64 * epsilon(output.data_type) * sizes[place];
    assert_close(
        found.cpu[0].as_ref().unwrap(),
        found.cuda[0].as_ref().unwrap(),
        bound,
        what,
    );
}

fn convolutions() -> Vec<Conv> {
    let conv = |geometry, batch, groups, channels, filters| Conv {
        geometry,
        batch,
        groups,
        channels,
        filters,
    };
    let plain = geometry([1, 7, 9], [1, 3, 3], 1, 1, [0, 1, 1], [0, 1, 1]);
    let strided = geometry([1, 8, 11], [1, 3, 2], 2, 1, [0, 1, 0], [0, 2, 1]);
    let dilated = geometry([3, 6, 5], [2, 2, 3], 1, 2, [1, 0, 2], [1, 1, 2]);
    let pointwise = geometry([1, 4, 5], [1, 1, 1], 1, 1, [0; 3], [0; 3]);
    let line = geometry([1, 1, 20], [1, 1, 5], 3, 1, [0, 0, 2], [0, 0, 2]);
    vec![
        conv(plain, 3, 1, 4, 5),
        conv(plain, 2, 2, 3, 2),
        conv(strided, 2, 1, 3, 4),
        conv(strided, 1, 3, 2, 1),
        conv(dilated, 2, 1, 2, 3),
        conv(pointwise, 3, 1, 6, 4),
        conv(pointwise, 2, 2, 3, 3),
        conv(line, 2, 1, 1, 3),
        // Channel by channel.
        conv(plain, 2, 5, 1, 1),
        conv(strided, 3, 4, 1, 2),
        conv(dilated, 1, 2, 1, 3),
        conv(plain, 0, 1, 2, 2),
    ]
}

#[test]
fn convolutions_and_their_gradients() {
    for conv in convolutions() {
        for ty in REALS {
            let Conv {
                ref geometry,
                batch,
                groups,
                channels,
                filters,
            } = conv;
            let [d, h, w] = geometry.size;
            let [od, oh, ow] = geometry.out;
            let [kd, kh, kw] = geometry.kernel;
            let x_shape = [batch, groups * channels, d, h, w];
            let w_shape = [groups * filters, channels, kd, kh, kw];
            let y_shape = [batch, groups * filters, od, oh, ow];
            let (x, w) = (
                random_tensor(ty, &x_shape, 1),
                random_tensor(ty, &w_shape, 2),
            );
            let dy = random_tensor(ty, &y_shape, 3);
            let bias =
                |channels: usize, present: bool| present.then(|| random_tensor(ty, &[channels], 4));
            let what = format!("{conv:?} of {}", ty.0);
            let taps = geometry.taps();
            for present in [false, true] {
                let inputs = [
                    Some(x.clone()),
                    Some(w.clone()),
                    bias(groups * filters, present),
                ];
                let output = TensorType::new(ty, y_shape);
                check_sums(
                    &Window::Conv(conv.clone()),
                    &inputs,
                    &output,
                    channels * taps,
                    &what,
                );
                let inputs = [
                    Some(dy.clone()),
                    Some(w.clone()),
                    bias(groups * channels, present),
                ];
                let output = TensorType::new(ty, x_shape);
                let what = format!("input of {what}");
                check_sums(
                    &Window::ConvInput(conv.clone()),
                    &inputs,
                    &output,
                    filters * taps,
                    &what,
                );
            }
            let inputs = [Some(dy), Some(x)];
            let output = TensorType::new(ty, w_shape);
            let terms = batch * geometry.positions();
            let what = format!("weight of {what}");
            check_sums(
                &Window::ConvWeight(conv.clone()),
                &inputs,
                &output,
                terms,
                &what,
            );
        }
    }
}

#[test]
fn sums_of_channels() {
    for (batch, channels, positions) in [
        (3, 5, 7),
        (1, 1, 1),
        (2, 3, 1000),
        (40, 2, 900),
        (0, 3, 4),
        (2, 0, 4),
    ] {
        for ty in REALS {
            let op = Window::ChannelSum {
                batch,
                channels,
                positions,
            };
            let dy = random_tensor(ty, &[batch, channels, positions], 1);
            let output = TensorType::new(ty, [channels]);
            // The CPU keeps 64 terms at most in the element's own type.
            check_sums(
                &op,
                &[Some(dy)],
                &output,
                64,
                &format!("{batch} {channels} {positions}"),
            );
        }
    }
}

fn pools() -> Vec<Geometry> {
    vec![
        geometry([1, 8, 9], [1, 2, 2], 2, 1, [0; 3], [0; 3]),
        geometry([1, 7, 7], [1, 3, 3], 2, 1, [0, 1, 1], [0, 1, 1]),
        geometry([4, 5, 6], [2, 3, 2], 1, 2, [0, 1, 0], [1, 1, 1]),
        geometry([1, 6, 7], [1, 6, 7], 1, 1, [0; 3], [0; 3]),
        geometry([1, 1, 80], [1, 1, 40], 3, 1, [0, 0, 20], [0, 0, 20]),
        geometry([1, 1, 1], [1, 1, 1], 1, 1, [0; 3], [0; 3]),
    ]
}

#[test]
fn greatest_elements_of_windows() {
    for geometry in pools() {
        for ty in [1, 11, 10, 16, 2, 3].map(DataType) {
            for planes in [0, 3] {
                let [d, h, w] = geometry.size;
                let [od, oh, ow] = geometry.out;
                let mut all = numbers(&random_tensor(ty, &[planes * geometry.plane()], 1));
                // Equal ones, infinities, and NaN in a few windows.
                for (i, number) in all.iter_mut().enumerate() {
                    *number = match i % 11 {
                        3 | 4 | 7 => 0.5,
                        8 if ty.is_float() => f64::NEG_INFINITY,
                        _ if ty.is_float() && i % 61 == 5 => f64::NAN,
                        _ => *number,
                    };
                }
                let x = Some(tensor(ty, &[planes, d, h, w], &all));
                for column_major in [false, true] {
                    let reduction = Reduction::Max { column_major };
                    let op = Op::Window(Window::Pool(Pool {
                        geometry,
                        planes,
                        reduction,
                    }));
                    let y = Some(TensorType::new(ty, [planes, od, oh, ow]));
                    let places = Some(TensorType::new(DataType::INT64, [planes, od, oh, ow]));
                    let what = format!("{geometry:?} of {}", ty.0);
                    let found = both(op.clone(), std::slice::from_ref(&x), &[y.clone(), places]);
                    let one = |side: &Vec<Option<Tensor>>, n: usize| side[n].clone().unwrap();
                    assert_eq!(one(&found.cpu, 1), one(&found.cuda, 1), "{what}");
                    assert_close(&one(&found.cpu, 0), &one(&found.cuda, 0), |_| 0.0, &what);
                    let found = both(op, std::slice::from_ref(&x), &[y, None]);
                    assert_close(&one(&found.cpu, 0), &one(&found.cuda, 0), |_| 0.0, &what);
                }
            }
        }
    }
}

#[test]
fn means_and_norms_of_windows() {
    for geometry in pools() {
        for ty in [1, 11, 10, 16, 2, 3].map(DataType) {
            let [d, h, w] = geometry.size;
            let [od, oh, ow] = geometry.out;
            let x = random_tensor(ty, &[3, d, h, w], 1);
            for reduction in [
                Reduction::Average {
                    count_padding: false,
                },
                Reduction::Average {
                    count_padding: true,
                },
                Reduction::Norm { p: 2.0 },
                Reduction::Norm { p: 3.0 },
            ] {
                let op = Op::Window(Window::Pool(Pool {
                    geometry,
                    planes: 3,
                    reduction,
                }));
                let y = [Some(TensorType::new(ty, [3, od, oh, ow]))];
                let what = format!("{geometry:?} {reduction:?} of {}", ty.0);
                let found = both(op.clone(), &[Some(x.clone())], &y);
                let sizes = both(op, &magnitudes(&[Some(x.clone())]), &y);
                let sizes = numbers(sizes.cpu[0].as_ref().unwrap());
                // Sums of at most 64 terms in the element's own type, or in double precision; the powers
                // differ by some of its last places. Whole numbers may end on either side of one.
                let bound = |place: usize| match ty.is_float() {
                    true => {
                        70.0 * epsilon(ty).min(epsilon(DataType::FLOAT)) * sizes[place]
                            + 2.0 * epsilon(ty) * sizes[place]
                    }
                    false => f64::from(u8::from(matches!(reduction, Reduction::Norm { .. }))),
                };
                assert_close(
                    found.cpu[0].as_ref().unwrap(),
                    found.cuda[0].as_ref().unwrap(),
                    bound,
                    &what,
                );
            }
        }
    }
}

#[test]
fn gradients_of_pooling() {
    for geometry in pools() {
        for ty in REALS {
            for planes in [0, 3] {
                let [d, h, w] = geometry.size;
                let [od, oh, ow] = geometry.out;
                let (size, positions) = (geometry.plane(), geometry.positions());
                // Few different numbers, so that maxima are shared by windows.
                let x: Vec<f64> = (0..planes * size)
                    .map(|i| ((i * i * 31 + i) % 17) as f64)
                    .collect();
                let x = Some(tensor(ty, &[planes, d, h, w], &x));
                let pool = Pool {
                    geometry,
                    planes,
                    reduction: Reduction::Max {
                        column_major: false,
                    },
                };
                let y = TensorType::new(ty, [planes, od, oh, ow]);
                let places = TensorType::new(DataType::INT64, [planes, od, oh, ow]);
                let found = both(
                    Op::Window(Window::Pool(pool)),
                    &[x],
                    &[Some(y), Some(places)],
                );
                let dy = random_tensor(ty, &[planes, od, oh, ow], 3);
                let inputs = [Some(dy.clone()), found.cpu[1].clone()];
                let dx = TensorType::new(ty, [planes, d, h, w]);
                let op = Window::MaxGrad {
                    planes,
                    size,
                    positions,
                };
                let what = format!("{geometry:?} of {}", ty.0);
                let found = both(Op::Window(op.clone()), &inputs, &[Some(dx.clone())]);
                let sizes = [magnitudes(&inputs[..1])[0].clone(), inputs[1].clone()];
                let sizes = both(Op::Window(op), &sizes, &[Some(dx.clone())]);
                let sizes = numbers(sizes.cpu[0].as_ref().unwrap());
                let terms = geometry.taps() as f64;
                let bound = |place: usize| 2.0 * terms * epsilon(ty) * sizes[place];
                assert_close(
                    found.cpu[0].as_ref().unwrap(),
                    found.cuda[0].as_ref().unwrap(),
                    bound,
                    &what,
                );
                for count_padding in [false, true] {
                    let reduction = Reduction::Average { count_padding };
                    let op = Window::AverageGrad(Pool {
                        geometry,
                        planes,
                        reduction,
                    });
                    check_sums(&op, &[Some(dy.clone())], &dx, geometry.taps(), &what);
                }
            }
        }
    }
}

#[test]
fn many_windows_share_a_maximum() {
    // All positions of a plane of 700 elements fall on few of them, some windows have none.
    let (planes, size, positions) = (2, 700, 300);
    let places: Vec<f64> = (0..planes * positions)
        .map(|i| match i % 10 {
            9 => -1.0,
            _ => (i / positions * size + [5, 5, 699, 250, 5][i % 5]) as f64,
        })
        .collect();
    let places = Some(tensor(DataType::INT64, &[planes, positions], &places));
    let dy = Some(random_tensor(DataType::DOUBLE, &[planes, positions], 1));
    let op = Op::Window(Window::MaxGrad {
        planes,
        size,
        positions,
    });
    let dx = [Some(TensorType::new(DataType::DOUBLE, [planes, size]))];
    let found = both(op.clone(), &[dy, places], &dx);
    // 300 terms of size 1 at most.
    let bound = |_| 300.0 * 300.0 * f64::EPSILON;
    assert_close(
        found.cpu[0].as_ref().unwrap(),
        found.cuda[0].as_ref().unwrap(),
        bound,
        "shared",
    );
    for bad in [-2.0, 700.0, 1e15] {
        let places = Some(tensor(DataType::INT64, &[1, 3], &[5.0, bad, -1.0]));
        let dy = Some(random_tensor(DataType::FLOAT, &[1, 3], 1));
        let op = Op::Window(Window::MaxGrad {
            planes: 1,
            size,
            positions: 3,
        });
        let dx = [Some(TensorType::new(DataType::FLOAT, [1, size]))];
        let (cpu, cuda) = try_both(op, &[dy, places], &dx, &[]);
        assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
    }
}
