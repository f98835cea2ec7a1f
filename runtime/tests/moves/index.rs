//! Elements at indices.

use super::{counting, run, try_run};
use velora_runtime::tensor::Tensor;

#[test]
fn an_embedding_and_its_gradient() {
    // Rows of 40 elements, 60 · 40 updates at 30 rows: several updates per row, some rows without one.
    // The second sizes are those at which updates are sorted by row.
    for (vocabulary, count, width) in [(30, 60, 40), (500, 2000, 40)] {
        let body = format!(
            "g (float[{vocabulary},{width}] w, int64[{count}] i, float[{count},{width}] dy)
               => (float[{count},{width}] y, float[{vocabulary},{width}] dw, float[{vocabulary},{width}] same)
            <int64[2] shape = {{{vocabulary}, {width}}}, int64[1] last = {{-1}}> {{
                y = Gather (w, i)
                dw = com.microsoft.GatherGrad <axis = 0> (shape, i, dy)
                zero = ConstantOfShape (shape)
                tuples = Unsqueeze (i, last)
                same = ScatterND <reduction = \"add\"> (zero, tuples, dy)
            }}"
        );
        let indices: Vec<i64> = (0..count as i64)
            .map(|i| (i * i * 7) % (vocabulary as i64 - 3) - i % 2 * vocabulary as i64)
            .collect();
        let w = counting(&[vocabulary, width]);
        let dy: Vec<f32> = (0..count * width)
            .map(|i| (i as f32 * 0.37).sin())
            .collect();
        let rows: Vec<usize> = (indices.iter())
            .map(|&i| i.rem_euclid(vocabulary as i64) as usize)
            .collect();
        let mut expected = vec![0f64; vocabulary * width];
        let mut size = vec![0f64; vocabulary * width];
        for (place, &row) in rows.iter().enumerate() {
            for j in 0..width {
                expected[row * width + j] += f64::from(dy[place * width + j]);
                size[row * width + j] += f64::from(dy[place * width + j]).abs();
            }
        }
        let outputs = run(
            &body,
            &[
                ("w", w.clone()),
                ("i", Tensor::from_i64(&[count], &indices)),
                ("dy", Tensor::from_f32(&[count, width], &dy)),
            ],
        );
        let w = w.to_f32().unwrap();
        let gathered = rows.iter().flat_map(|&row| &w[row * width..][..width]);
        assert!(outputs[0].to_f32().unwrap().iter().eq(gathered));
        // One rounding per update where they are added singly, one in all where they are sorted.
        let updates = count as f64 / 4.0;
        for output in &outputs[1..] {
            for (place, &found) in output.to_f32().unwrap().iter().enumerate() {
                let bound = size[place] * f64::from(f32::EPSILON) * updates;
                assert!((f64::from(found) - expected[place]).abs() <= bound);
            }
        }
    }
}

#[test]
fn gathered_elements_go_back_where_they_came_from() {
    let body = "g (float[2,4] x, int64[2,2] i) => (float[2,2] y, float[2,4] dx, float[2,4] z)
        <int64[2] shape = {2, 4}> {
            y = GatherElements <axis = 1> (x, i)
            dx = com.microsoft.GatherElementsGrad <axis = 1> (y, shape, i)
            z = ScatterElements <axis = 1, reduction = \"max\"> (x, i, y)
        }";
    let i = Tensor::from_i64(&[2, 2], &[3, -1, 0, 2]);
    let x = counting(&[2, 4]);
    let outputs = run(body, &[("x", x.clone()), ("i", i)]);
    assert_eq!(outputs[0].to_f32().unwrap(), [3.0, 3.0, 4.0, 6.0]);
    let expected = [0.0, 0.0, 0.0, 6.0, 4.0, 0.0, 6.0, 0.0];
    assert_eq!(outputs[1].to_f32().unwrap(), expected);
    assert_eq!(outputs[2], x);
}

#[test]
fn an_index_outside_is_named() {
    let body = "g (float[3,2] x, int64[2] i) => (float[2,2] y) { y = Gather (x, i) }";
    let inputs = [
        ("x", counting(&[3, 2])),
        ("i", Tensor::from_i64(&[2], &[0, 3])),
    ];
    let message = try_run(body, &inputs).unwrap_err().to_string();
    assert!(message.contains("index 3 at position 1"), "{message}");
}
