//! Gradients as factors, and adapters: trained, they are what full gradients and whole weights are.

use super::{DIGITS, Place, difference};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_runtime::data::safetensors;
use velora_runtime::tensor::Tensor;

const OPTIMIZERS: [&str; 5] = [
    "--optimizer sgd --momentum 0 --lr 0.1",
    "--optimizer sgd --momentum 0 --lr 0.1 --weight-decay 0.01",
    "--optimizer sgd --momentum 0.9 --lr 0.02",
    "--optimizer adam --lr 1e-3",
    "--optimizer adamw --lr 1e-3 --weight-decay 0.1",
];
const STEPS: usize = 50;

impl Place {
    /// Token sequences for the llamas, of which each next token follows from the last.
    fn write_tokens(&self, name: &str, samples: usize, length: usize) {
        let token = |sample: usize, place: usize| ((sample * 37 + place * place * 11) % 61) as i64;
        let rows = |shift: usize| -> Vec<i64> {
            let all = (0..samples).flat_map(|s| (0..length).map(move |p| (s, p + shift)));
            all.map(|(sample, place)| token(sample, place)).collect()
        };
        let tensor = |shift| Tensor::from_i64(&[samples, length], &rows(shift));
        self.write(name, &[("x", tensor(0)), ("y", tensor(1))]);
    }

    fn rewrite_with(&self, model: &str, options: &str, to: &str) {
        let arguments = format!("{model} -o {to} -q {options}");
        let output = self.command(&arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments}: {message}");
    }

    fn merge(&self, model: &str, adapter: &str, to: &str) {
        let arguments = format!("merge {model} {adapter} -o {to} -q");
        let output = self.command(&arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments}: {message}");
    }
}

/// Trains with full and with factored gradients, with every optimiser; and as a measure of what rounding
/// alone does over so many steps, with the full gradients of two halves of each batch in the place of one.
fn check_curves(place: &Place, model: &str, data: &str, batch: usize) {
    let init = "--init random --groups 8";
    place.rewrite_with(model, init, "full.onnx");
    place.rewrite_with(
        model,
        &format!("{init} --gradients factored"),
        "factored.onnx",
    );
    for optimizer in OPTIMIZERS {
        let settings = format!("{data} {optimizer} --clip 1 --steps {STEPS}");
        let full = place.run(&format!("full.onnx {settings} --batch {batch}"));
        let halves = format!("--batch {} --accumulate 2", batch / 2);
        let other = place.run(&format!("full.onnx {settings} {halves}"));
        let factored = place.run(&format!("factored.onnx {settings} --batch {batch}"));
        factored.check_memory();
        assert_eq!(full.losses().len(), STEPS);
        let apart = difference(&full.losses(), &factored.losses());
        let noise = difference(&full.losses(), &other.losses());
        assert!(
            apart <= 8.0 * noise,
            "{model}, {optimizer}: {apart:e}, and rounding alone {noise:e}"
        );
        assert!(noise < 1e-3, "{model}, {optimizer}: {noise:e}");
        // Both really train.
        assert!(full.losses()[STEPS - 1] < full.losses()[0]);
    }
}

#[test]
fn factored_gradients_train_digits_as_full_ones() {
    let place = Place::new();
    for model in ["models/aot/digits_mlp.onnx", "models/ort/digits_mlp.onnx"] {
        check_curves(&place, model, DIGITS, 32);
    }
}

#[test]
fn factored_gradients_train_a_llama_as_full_ones() {
    let place = Place::new();
    place.write_tokens("tokens", 64, 16);
    check_curves(&place, "models/aot/llama_tiny.onnx", "--data tokens", 8);
}

/// Gradient descent on W and on A with W = W₀ + v ⊗ A, merged afterwards: the same weights, but for
/// roundings. In each step, W is rounded once and A once, and both end in a sum that is rounded once more:
/// half a unit of 2⁻²³ of the greatest weight each. Gradients differ by what the weights do, and with a
/// rate at which training is stable, steps do not make that more.
#[test]
fn descent_on_adapters_is_descent_on_weights() {
    const STEPS: usize = 50;
    let place = Place::new();
    for (model, data) in [
        ("models/aot/digits_mlp.onnx", format!("{DIGITS} --batch 32")),
        ("models/ort/digits_vit.onnx", format!("{DIGITS} --batch 16")),
    ] {
        for cut in ["--groups 8", "--sub-token-size 7 --directions group"] {
            let settings = format!("{data} --optimizer sgd --momentum 0 --lr 0.02 --steps {STEPS}");
            let init = format!("--init random {cut}");
            place.rewrite_with(
                model,
                &format!("{init} --gradients factored"),
                "weights.onnx",
            );
            place.rewrite_with(model, &format!("{init} --adapter f32"), "adapters.onnx");
            place.run(&format!("weights.onnx {settings} --save weights"));
            let adapters = format!("adapters.onnx {settings} --save-adapter adapters");
            let adapters = place.run(&adapters);
            adapters.check_memory();
            place.merge(model, "adapters", "merged.onnx");
            // Nothing is trained at a rate of 0: the parameters of the merged model, as they stand in it.
            place.run(&format!(
                "merged.onnx {data} --steps 1 --lr 0 --weight-decay 0 --save merged"
            ));
            let (weights, merged) = (place.parameters("weights"), place.parameters("merged"));
            let adapted = safetensors::read(&place.at("adapters")).unwrap().metadata;
            assert!(adapted["layers"].contains("features_last"), "{adapted:?}");
            for (name, weight) in &weights {
                if name.starts_with("velora.") {
                    continue;
                }
                let apart = difference(weight, &merged[name]);
                let bound = STEPS as f64 * 2.0 * f64::from(f32::EPSILON);
                assert!(apart < bound, "{model}, {cut}, {name}: {apart:e}");
            }
        }
    }
}

/// Under gradient descent, a weight leaves where it started along v only: the columns of W − W₀ within a
/// group are multiples of the entries of v, up to the roundings of W.
#[test]
fn weights_stay_in_the_space_of_the_directions() {
    const STEPS: usize = 30;
    let place = Place::new();
    let model = "models/aot/digits_mlp.onnx";
    let options = "--gradients factored --groups 8 --init random";
    place.rewrite_with(model, options, "factored.onnx");
    let settings = format!("{DIGITS} --batch 32 --optimizer sgd --momentum 0.9 --lr 0.02");
    place.run(&format!(
        "factored.onnx {settings} --steps {STEPS} --save after"
    ));
    place.run(&format!(
        "factored.onnx {DIGITS} --batch 32 --optimizer sgd --lr 0 --steps 1 --save before"
    ));
    let (before, after) = (place.parameters("before"), place.parameters("after"));
    let file = read(&place.at("factored.onnx"), UnknownFields::Allow).unwrap();
    let constants = file.graph.unwrap().initializer;
    for (weight, tensor) in [("fc2.weight", "gelu"), ("fc3.weight", "gelu_1")] {
        let name = format!("velora.{tensor}.v");
        let v = constants.iter().find(|t| t.name() == name).unwrap();
        let (v, _) = v.raw_data.as_ref().unwrap().as_chunks::<4>();
        let v: Vec<f32> = v.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let moved: Vec<f64> = (after[weight].iter().zip(&before[weight]))
            .map(|(a, b)| f64::from(*a) - f64::from(*b))
            .collect();
        let largest = after[weight]
            .iter()
            .fold(0f64, |m, w| m.max(f64::from(w.abs())));
        let bound = STEPS as f64 * f64::from(f32::EPSILON) * largest;
        let (mut left, mut total) = (0f64, 0f64);
        // Weights are [O, D]: M neighbours are a group.
        for group in moved.chunks(v.len()) {
            let along = |(m, v): (&f64, &f32)| m * f64::from(*v);
            let a: f64 = group.iter().zip(&v).map(along).sum();
            for (m, &v) in group.iter().zip(&v) {
                left = left.max((m - a * f64::from(v)).abs());
                total = total.max(m.abs());
            }
        }
        assert!(
            left <= bound,
            "{weight}: {left:e} beside the space, {bound:e} are roundings"
        );
        assert!(
            total > 100.0 * bound,
            "{weight} has hardly moved: {total:e}"
        );
    }
}

/// What `--save-adapter` writes is what the run had: a run from it starts with the loss of the merged model,
/// to the bit, on a base of 32 bits; on others the base's own rounding is between them.
#[test]
fn adapters_can_be_loaded_and_merged() {
    let place = Place::new();
    let model = "models/aot/digits_mlp.onnx";
    let data = format!("{DIGITS} --batch 32");
    for base in ["f32", "bf16"] {
        place.rewrite_with(
            model,
            &format!("--adapter {base} --groups 8"),
            "adapters.onnx",
        );
        let first = place.run(&format!(
            "adapters.onnx {data} --steps 20 --lr 1e-2 --save-adapter saved"
        ));
        let loaded = place.run(&format!("adapters.onnx {data} --steps 1 --params saved"));
        place.merge(model, "saved", "merged.onnx");
        let merged = place.run(&format!("merged.onnx {data} --steps 1"));
        assert!(loaded.losses()[0] < first.losses()[0] / 2.0);
        match base {
            "f32" => assert_eq!(loaded.losses(), merged.losses()),
            _ => {
                let apart = difference(&loaded.losses(), &merged.losses());
                assert!(apart > 0.0 && apart < 2.0_f64.powi(-6), "{apart}");
            }
        }
    }
    // Adapters of other groups, and of directions that another batch filled.
    place.rewrite_with(model, "--adapter f32 --groups 4", "other.onnx");
    let refused = place.try_run(&format!("other.onnx {data} --steps 1 --params saved"));
    assert!(
        refused
            .unwrap_err()
            .contains("8 groups there and into 4 in the graph")
    );
    place.rewrite_with(
        model,
        "--adapter f32 --groups 8 --init random",
        "other.onnx",
    );
    let refused = place.try_run(&format!("other.onnx {data} --steps 1 --params saved"));
    assert!(
        refused
            .unwrap_err()
            .contains("is another one than the graph's")
    );
}

/// A factored run goes on from its checkpoint as any other does.
#[test]
fn factored_runs_resume_exactly() {
    let place = Place::new();
    let model = "models/ort/digits_mlp.onnx";
    place.rewrite_with(model, "--gradients factored --groups 8", "factored.onnx");
    super::check_resume(
        &place,
        &format!("factored.onnx {DIGITS} --batch 16 --accumulate 2 --clip 1 --lr 1e-3"),
    );
    place.rewrite_with(model, "--adapter bf16 --groups 8", "adapters.onnx");
    super::check_resume(
        &place,
        &format!("adapters.onnx {DIGITS} --batch 32 --lr 1e-3"),
    );
}

#[test]
fn optimizers_whose_state_has_no_factors_are_refused() {
    let place = Place::new();
    let model = "models/aot/digits_mlp.onnx";
    place.rewrite_with(model, "--gradients factored --groups 8", "factored.onnx");
    let run = |options: &str| {
        place.try_run(&format!(
            "factored.onnx {DIGITS} --batch 32 --steps 1 {options}"
        ))
    };
    for options in [
        "--optimizer adam --weight-decay 0.1",
        "--optimizer sgd --momentum 0.9 --weight-decay 0.1",
    ] {
        let message = run(options).err().unwrap_or_default();
        assert!(
            message.contains("the gradient of 'fc2.weight' is factored"),
            "{message}"
        );
        assert!(message.contains("adamw"), "{message}");
    }
    run("--optimizer sgd --momentum 0 --weight-decay 0.1").unwrap();
}
