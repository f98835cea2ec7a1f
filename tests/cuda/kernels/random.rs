//! Draws: those of the CPU, to the bit where no function of the platform is part of them.

use super::{
    assert_close, assert_same, both, both_over, epsilon, numbers, random_tensor, tensor, try_both,
};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::random::{Distribution, Draw, Dropout, Random};
use velora_runtime::tensor::TensorType;

const FLOATS: [DataType; 4] = [
    DataType::FLOAT,
    DataType::DOUBLE,
    DataType::FLOAT16,
    DataType::BFLOAT16,
];
const STREAM: u64 = 0xfeed_beef_1357_2468;
const COUNTS: [usize; 5] = [0, 1, 3, 64, 1029];

#[test]
fn dropped_elements() {
    for ty in FLOATS {
        for count in COUNTS {
            let data = random_tensor(ty, &[count], 3);
            let outputs = [
                Some(TensorType::new(ty, [count])),
                Some(TensorType::new(DataType(9), [count])),
            ];
            for (ratio, training) in [(0.3, true), (1.0, true), (0.0, true), (0.5, false)] {
                let op = |known: bool| Dropout {
                    stream: STREAM,
                    ratio: known.then_some(ratio),
                    training: known.then_some(training),
                };
                let what = format!("{count} of {}, {ratio}, {training}", ty.0);
                let known = both(
                    Op::Random(Random::Dropout(op(true))),
                    &[Some(data.clone())],
                    &outputs,
                );
                assert_same(&known, &what);
                let given = [
                    tensor(DataType::DOUBLE, &[], &[ratio]),
                    tensor(DataType(9), &[], &[f64::from(u8::from(training))]),
                ]
                .map(Some);
                let inputs = [[Some(data.clone())].as_slice(), given.as_slice()].concat();
                let over = both_over(
                    Op::Random(Random::Dropout(op(false))),
                    &inputs,
                    &outputs,
                    &[0],
                );
                assert_same(&over, &what);
                assert!(
                    over.cpu == known.cpu,
                    "{what}: given settings are the known ones"
                );
                if count > 1000 && training && ratio == 0.3 {
                    let kept: f64 = numbers(known.cuda[1].as_ref().unwrap()).iter().sum();
                    // Within five standard deviations of a binomial.
                    let n = count as f64;
                    assert!(
                        (kept - 0.7 * n).abs() < 5.0 * (0.21 * n).sqrt(),
                        "{kept} of {n}"
                    );
                }
                let mask = known.cpu[1].clone();
                let inputs = [&[Some(data.clone()), mask][..], &given].concat();
                for known in [true, false] {
                    let op = Op::Random(Random::DropoutGrad(op(known)));
                    assert_same(&both_over(op, &inputs, &outputs[..1], &[0]), &what);
                }
            }
        }
    }
}

#[test]
fn a_ratio_that_is_none_is_reported() {
    let op = Op::Random(Random::Dropout(Dropout {
        stream: 1,
        ratio: None,
        training: Some(true),
    }));
    for ratio in [1.5, -0.25, f64::NAN] {
        let inputs = [
            Some(random_tensor(DataType::FLOAT, &[8], 1)),
            Some(tensor(DataType::FLOAT, &[], &[ratio])),
        ];
        let output = [Some(TensorType::new(DataType::FLOAT, [8]))];
        let (cpu, cuda) = try_both(op.clone(), &inputs, &output, &[]);
        assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
    }
}

#[test]
fn draws() {
    for ty in FLOATS {
        for count in COUNTS {
            let output = [Some(TensorType::new(ty, [count]))];
            let draw = |distribution| {
                Op::Random(Random::Draw(Draw {
                    stream: STREAM,
                    distribution,
                }))
            };
            // One rounding of the same double: through single precision, two, which may end at the neighbour.
            let found = both(
                draw(Distribution::Uniform {
                    low: -1.0,
                    high: 3.0,
                }),
                &[],
                &output,
            );
            let (cpu, cuda) = (
                found.cpu[0].as_ref().unwrap(),
                found.cuda[0].as_ref().unwrap(),
            );
            let single = matches!(ty, DataType::FLOAT | DataType::DOUBLE);
            let bound = if single { 0.0 } else { 2.0 * 3.0 * epsilon(ty) };
            assert_close(cpu, cuda, |_| bound, "uniform");
            // The functions differ by a few units in the last place of a double, of numbers below
            // 3 + 2 · 8.6; the rounding may then end at the neighbour.
            let found = both(
                draw(Distribution::Normal {
                    mean: 3.0,
                    deviation: 2.0,
                }),
                &[],
                &output,
            );
            let (cpu, cuda) = (
                found.cpu[0].as_ref().unwrap(),
                found.cuda[0].as_ref().unwrap(),
            );
            let bound = |place: usize| {
                let size = numbers(cpu)[place].abs();
                2.0 * size * epsilon(ty) + 20.2 * 8.0 * f64::EPSILON
            };
            assert_close(cpu, cuda, bound, "normal");
        }
    }
}

#[test]
fn hits() {
    for ty in FLOATS {
        let probabilities: Vec<f64> = (0..1001).map(|i| f64::from(i) / 1000.0).collect();
        let input = [Some(tensor(ty, &[1001], &probabilities))];
        for result in [1, 2, 3, 5, 7, 9, 10, 11, 16] {
            let op = Op::Random(Random::Bernoulli { stream: STREAM });
            let output = [Some(TensorType::new(DataType(result), [1001]))];
            assert_same(&both(op, &input, &output), "hits");
        }
    }
}
