//! What operations and updates cost, against numbers worked out by hand.
#![allow(clippy::unwrap_used)]

use velora_graph::shapes::DataType;
use velora_runtime::cost::device::{A100_SXM, H100_SXM, SingleProducts};
use velora_runtime::cost::roofline::{Bound, Roofline};
use velora_runtime::cost::{Arithmetic, Cost, Storage, gradient_norm, of_operation, update};
use velora_runtime::ops::Op;
use velora_runtime::ops::elementwise::{
    Binary, Elementwise, Expression, Instruction, Load, Operator, Unary,
};
use velora_runtime::ops::index::{Index, Reduction, Rows};
use velora_runtime::ops::matmul::{Access, Addend, MatMul};
use velora_runtime::ops::movement::copy::{Axis, Copy, Origin, Part};
use velora_runtime::ops::movement::{Movement, Trilu};
use velora_runtime::ops::velora::{SubTokens, Velora};
use velora_runtime::plan::{BufferId, Operand, TrainedOperands};
use velora_runtime::program::Factor;
use velora_runtime::session::optimizer::Optimizer;
use velora_runtime::tensor::TensorType;

const ADAMW: Optimizer = Optimizer::AdamW {
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.1,
};

fn operand(buffer: u32, shape: &[usize]) -> Operand {
    typed(buffer, DataType::FLOAT, shape)
}

fn typed(buffer: u32, data_type: DataType, shape: &[usize]) -> Operand {
    Operand {
        buffer: BufferId(buffer),
        ty: TensorType::new(data_type, shape),
    }
}

fn cost(op: &Op, inputs: &[Operand], outputs: &[Operand]) -> Cost {
    let some = |operands: &[Operand]| operands.iter().cloned().map(Some).collect::<Vec<_>>();
    of_operation(op, &some(inputs), &some(outputs), Storage::Declared)
}

fn row_major(batch: &[usize], columns: usize) -> Access {
    Access {
        batch: batch.to_vec(),
        row: columns,
        column: 1,
    }
}

/// Five products of 2 × 3 and 3 × 4 matrices, the right one the same for all, and a row is added.
#[test]
fn a_product_reads_a_shared_operand_once() {
    let op = Op::MatMul(MatMul {
        batch: vec![5],
        m: 2,
        n: 4,
        k: 3,
        a: row_major(&[6], 3),
        b: row_major(&[0], 4),
        alpha: 1.0,
        addend: Some(Addend {
            beta: 1.0,
            row: 0,
            column: 1,
        }),
    });
    let inputs = [
        operand(0, &[5, 2, 3]),
        operand(1, &[3, 4]),
        operand(2, &[4]),
    ];
    let expected = Cost {
        // 30 of A, 12 of B and 4 of the row.
        read: 4 * (30 + 12 + 4),
        // Five matrices of 2 × 4.
        written: 4 * 40,
        // 2 · 2 · 4 · 3 for each of five, and a sum for each of 40 elements.
        flops: 5 * 48 + 40,
    };
    assert_eq!(cost(&op, &inputs, &[operand(3, &[5, 2, 4])]), expected);
}

/// The product of a matrix with its own transpose reads the matrix once.
#[test]
fn bytes_that_two_operands_share_are_read_once() {
    let op = Op::MatMul(MatMul {
        batch: vec![],
        m: 4,
        n: 4,
        k: 3,
        a: row_major(&[], 3),
        b: Access {
            batch: vec![],
            row: 1,
            column: 3,
        },
        alpha: 1.0,
        addend: None,
    });
    let inputs = [operand(0, &[4, 3]), operand(0, &[4, 3])];
    let found = cost(&op, &inputs, &[operand(1, &[4, 4])]);
    assert_eq!((found.read, found.written), (4 * 12, 4 * 16));
    assert_eq!(found.flops, 2 * 4 * 4 * 3);
}

fn instruction(operator: Operator, arguments: [u16; 3]) -> Instruction {
    Instruction {
        operator,
        ty: DataType::FLOAT,
        arguments,
    }
}

/// exp(x · s) + x, where s has a number for each of six rows.
fn chain() -> Op {
    let load = |input, strides: &[usize]| Load {
        input,
        ty: DataType::FLOAT,
        strides: strides.to_vec(),
        offset: 0,
    };
    let code = vec![
        instruction(Operator::Load(0), [0; 3]),
        instruction(Operator::Load(1), [0; 3]),
        instruction(Operator::Binary(Binary::Mul), [0, 1, 0]),
        instruction(Operator::Unary(Unary::Exp), [2, 0, 0]),
        instruction(Operator::Binary(Binary::Add), [3, 0, 0]),
    ];
    let loads = vec![load(0, &[10, 1]), load(1, &[1, 0])];
    let expression = Expression::new(vec![6, 10], loads, code, vec![4]).unwrap();
    Op::Elementwise(Elementwise::Expression(expression))
}

#[test]
fn a_chain_reads_what_is_broadcast_once() {
    let inputs = [operand(0, &[6, 10]), operand(1, &[6, 1])];
    let expected = Cost {
        read: 4 * (60 + 6),
        written: 4 * 60,
        // A product, a function and a sum for each element.
        flops: 3 * 60,
    };
    assert_eq!(cost(&chain(), &inputs, &[operand(2, &[6, 10])]), expected);
    // Over its input it reads and writes the same.
    assert_eq!(cost(&chain(), &inputs, &[operand(0, &[6, 10])]), expected);
    let some = |operand: &Operand| Some(operand.clone());
    let halved = of_operation(
        &chain(),
        &inputs.each_ref().map(some),
        &[Some(operand(2, &[6, 10]))],
        Storage::Halved,
    );
    assert_eq!((halved.read, halved.written), (2 * 66, 2 * 60));
}

/// Rows of 10 features in 4 groups: sub-tokens of 3, the last of 1.
#[test]
fn a_compression_reads_the_activation_and_writes_a_number_for_each_group() {
    let op = Op::Velora(Velora::Compress(SubTokens {
        rows: 7,
        features: 10,
        groups: 4,
        places: 1,
    }));
    let inputs = [operand(0, &[7, 10]), operand(1, &[3])];
    let expected = Cost {
        read: 4 * (70 + 3),
        written: 4 * 28,
        // A product and a sum for each element of X.
        flops: 2 * 70,
    };
    assert_eq!(cost(&op, &inputs, &[operand(2, &[7, 4])]), expected);
}

/// A slice of half of each row, then one element everywhere.
#[test]
fn copies_read_what_they_copy() {
    let axes = |from| [(3, from, 4), (4, 1, 1)].map(|(size, from, to)| Axis { size, from, to });
    let part = Part::new(Origin::Input(0), 0, axes(8), 0, 0)
        .unwrap()
        .unwrap();
    let op = Op::Movement(Movement::Copy(Copy { parts: vec![part] }));
    let found = cost(&op, &[operand(0, &[3, 8])], &[operand(1, &[3, 4])]);
    assert_eq!((found.read, found.written, found.flops), (48, 48, 0));

    let parts = vec![Part::fill([0; 8], 12)];
    let op = Op::Movement(Movement::Copy(Copy { parts }));
    let found = cost(&op, &[], &[operand(1, &[3, 4])]);
    assert_eq!((found.read, found.written), (0, 48));
}

/// Five tokens of a table of 100 rows of 8: in place, the rows alone.
#[test]
fn indices_touch_the_rows_that_they_name() {
    let rows = Rows {
        outer: 1,
        batch: 1,
        count: 5,
        bounds: vec![100],
        slice: 8,
    };
    let table = operand(0, &[100, 8]);
    let tokens = typed(1, DataType::INT64, &[5]);
    let picked = operand(2, &[5, 8]);
    let gather = Op::Index(Index::Gather(rows.clone()));
    let inputs = [table.clone(), tokens.clone()];
    let found = cost(&gather, &inputs, std::slice::from_ref(&picked));
    // 40 numbers and five indices of 8 bytes.
    assert_eq!((found.read, found.written), (4 * 40 + 40, 4 * 40));

    let scatter = Op::Index(Index::Scatter(rows, Reduction::Add));
    let inputs = [table.clone(), tokens, picked];
    let within = cost(&scatter, &inputs, &[table]);
    // The rows of the table, the indices, and what is added to the rows.
    assert_eq!(
        (within.read, within.written),
        (4 * 40 + 40 + 4 * 40, 4 * 40)
    );
    assert_eq!(within.flops, 40);
    let apart = cost(&scatter, &inputs, &[operand(3, &[100, 8])]);
    assert_eq!((apart.read, apart.written), (3200 + 40 + 160, 3200));
}

/// Of a 3 × 4 matrix, 3 + 2 + 1 elements lie above the main diagonal.
#[test]
fn a_triangle_reads_what_it_keeps() {
    let op = Op::Movement(Movement::Trilu(Trilu {
        upper: true,
        diagonal: Some(1),
        rows: 3,
        columns: 4,
    }));
    let matrix = operand(0, &[3, 4]);
    let apart = cost(&op, std::slice::from_ref(&matrix), &[operand(1, &[3, 4])]);
    assert_eq!((apart.read, apart.written), (4 * 6, 4 * 12));
    let within = cost(
        &op,
        std::slice::from_ref(&matrix),
        std::slice::from_ref(&matrix),
    );
    assert_eq!((within.read, within.written), (0, 4 * 6));
}

/// A weight of 12 features and 5 outputs, in 3 groups where it is factored.
fn trained(factored: bool) -> TrainedOperands {
    let gradient = if factored { [3, 5] } else { [12, 5] };
    TrainedOperands {
        parameter: operand(0, &[12, 5]),
        gradient: operand(1, &gradient),
        state: vec![operand(2, &gradient), operand(3, &gradient)],
        projected: true,
        factor: factored.then(|| Factor {
            direction: operand(4, &[4]),
            groups: 3,
            features: 12,
            outputs: 5,
            features_last: false,
        }),
    }
}

#[test]
fn an_update_at_full_size_moves_seven_tensors() {
    let expected = Cost {
        // Weight, mean, mean square and gradient.
        read: 4 * 4 * 60,
        // Weight, mean and mean square.
        written: 4 * 3 * 60,
        flops: 15 * 60,
    };
    assert_eq!(update(&trained(false), &ADAMW, Storage::Declared), expected);
    let plain = Optimizer::Sgd {
        momentum: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    };
    let expected = Cost {
        read: 4 * 2 * 60,
        written: 4 * 60,
        // The gradient's factor, the learning rate's, and the difference.
        flops: 3 * 60,
    };
    assert_eq!(update(&trained(false), &plain, Storage::Declared), expected);
    let norm = gradient_norm(&trained(false), Storage::Declared);
    assert_eq!((norm.read, norm.written, norm.flops), (240, 0, 120));
}

/// Of 12 by 5, rank 2: P of 10 elements, and compressed tensors of 24.
#[test]
fn compressed_updates_move_what_their_passes_touch() {
    let galore = Optimizer::GaLore {
        rank: 2,
        update_period: 10,
        scale: 0.25,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let expected = Cost {
        // The gradient and P; three compressed ones; weight, P and what Adam made.
        read: 4 * ((60 + 10) + 3 * 24 + (60 + 10 + 24)),
        written: 4 * (24 + 3 * 24 + 60),
        // Two products of 2 · 60 multiplications.
        flops: (2 * 2 * 60 + 24) + 11 * 24 + (2 * 2 * 60 + 3 * 60),
    };
    assert_eq!(
        update(&trained(false), &galore, Storage::Declared),
        expected
    );
    let flora = |rank| Optimizer::Flora {
        rank,
        update_period: 10,
        beta: 0.9,
        weight_decay: 0.1,
        seed: 0,
    };
    let sides = 12 + 5;
    let expected = Cost {
        // The gradient four times, weight, update twice and once more added to; means of both sides twice; the
        // projection twice, and three compressed ones.
        read: 4 * ((2 * 60 + sides) + (60 + sides) + 3 * 60 + (2 * 60 + 2 * 10 + 3 * 24)),
        written: 4 * (sides + 60 + 60 + (60 + 10 + 2 * 24)),
        flops: (4 * 60 + 5 * sides) + (3 * 60 + 4 * 12) + 5 * 60 + (4 * 2 * 60 + 3 * 60 + 3 * 24),
    };
    assert_eq!(
        update(&trained(false), &flora(2), Storage::Declared),
        expected
    );
    // A side of the rank is not compressed.
    let plain = update(&trained(false), &flora(5), Storage::Declared);
    assert_eq!(plain.flops, expected.flops - (4 * 2 * 60 + 3 * 24));
    let adamw = update(&trained(false), &ADAMW, Storage::Declared);
    let plain = Optimizer::GaLore {
        rank: 5,
        update_period: 10,
        scale: 0.25,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    assert_eq!(update(&trained(false), &plain, Storage::Declared), adamw);
}

#[test]
fn a_factored_update_moves_the_weight_and_little_else() {
    let expected = Cost {
        // The weight; mean, mean square and P of 15 elements; v of 4.
        read: 4 * (60 + 3 * 15 + 4),
        written: 4 * (60 + 2 * 15),
        flops: 10 * 15 + 8 * 60,
    };
    assert_eq!(update(&trained(true), &ADAMW, Storage::Declared), expected);
    let halved = update(&trained(true), &ADAMW, Storage::Halved);
    assert_eq!(2 * halved.bytes(), expected.bytes());
    let norm = gradient_norm(&trained(true), Storage::Declared);
    assert_eq!((norm.read, norm.flops), (4 * 19, 2 * 19));
}

/// 4096³ products are bound by arithmetic at any peak here; what has two FLOP for four bytes is bound by
/// memory.
#[test]
fn the_larger_time_counts() {
    let n = 4096u64;
    let product = Cost {
        read: 8 * n * n,
        written: 4 * n * n,
        flops: 2 * n * n * n,
    };
    let at = |device, products, storage| Roofline {
        device,
        products,
        storage,
    };
    let float = Arithmetic::Product(DataType::FLOAT);
    let single = at(A100_SXM, SingleProducts::Single, Storage::Declared);
    let (seconds, bound) = single.seconds(&product, float);
    // 137.4 GFLOP at 19.5 TFLOP/s.
    assert_eq!(bound, Bound::Arithmetic);
    assert!((seconds - 7.048e-3).abs() < 1e-6, "{seconds}");
    let tf32 = at(A100_SXM, SingleProducts::Tf32, Storage::Declared);
    assert!((tf32.seconds(&product, float).0 * 8.0 - seconds).abs() < 1e-12);
    let halved = at(A100_SXM, SingleProducts::Single, Storage::Halved);
    assert!((halved.seconds(&product, float).0 * 16.0 - seconds).abs() < 1e-12);

    let thin = Cost {
        read: 3_350_000_000,
        written: 0,
        flops: 2 * 3_350_000_000 / 4,
    };
    let h100 = at(H100_SXM, SingleProducts::Single, Storage::Declared);
    let (seconds, bound) = h100.seconds(&thin, Arithmetic::Vector);
    // 3.35 GB at 3.35 TB/s.
    assert_eq!(bound, Bound::Memory);
    assert!((seconds - 1e-3).abs() < 1e-15);
}
