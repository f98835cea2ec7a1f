//! `velora-opt run` trains real graphs: whatever convention they follow, however often it is interrupted,
//! and with the memory that its plan says.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod compressing;
mod factored;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::NodeProto;
use velora_graph::onnx::write::write;
use velora_runtime::data::safetensors;
use velora_runtime::session::checkpoint;
use velora_runtime::tensor::Tensor;

const DIGITS: &str = "--data models/data/digits_train.npz";
const HELD_OUT: &str = "--eval models/data/digits_test.npz";

/// A folder for the files of a test, where `models` leads to the repository's.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        symlink(models, folder.path().join("models")).unwrap();
        Place(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The tool with arguments that are split at spaces.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_velora-opt"));
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command.args(arguments.split_whitespace());
        command
    }

    /// Trains; the message where that fails, with status 1 and in one line.
    fn try_run(&self, arguments: &str) -> Result<Outcome, String> {
        let arguments = format!("run {arguments} -q --json -");
        let output = self.command(&arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{arguments}: {message}");
            assert_eq!(message.lines().count(), 1, "{arguments}: {message}");
            return Err(message);
        }
        let json = serde_json::from_slice(&output.stdout);
        Ok(Outcome(json.unwrap_or_else(|e| panic!("{arguments}: {e}"))))
    }

    fn run(&self, arguments: &str) -> Outcome {
        let outcome = self.try_run(arguments);
        outcome.unwrap_or_else(|message| panic!("{arguments}: {message}"))
    }

    /// Rewrites a graph.
    fn rewrite(&self, model: &str, to: &str) {
        let arguments = format!("{model} -o {to} -q");
        let status = self.command(&arguments).status().unwrap();
        assert!(status.success(), "{arguments}");
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap()
    }

    /// Parameters that `--save` wrote.
    fn parameters(&self, name: &str) -> BTreeMap<String, Vec<f32>> {
        let arrays = safetensors::read(&self.at(name)).unwrap().arrays;
        let numbers = |(name, tensor): (String, Tensor)| (name, tensor.to_f32().unwrap());
        arrays.into_iter().map(numbers).collect()
    }

    fn write(&self, name: &str, arrays: &[(&str, Tensor)]) {
        let views = arrays.iter().map(|(name, tensor)| (*name, tensor.view()));
        safetensors::write(&self.at(name), &BTreeMap::new(), views).unwrap();
    }

    /// Sentences of 16 tokens, as many as `samples`, of which the label says whether the first token is
    /// an even number.
    fn write_sentences(&self, name: &str, samples: usize) {
        let tokens: Vec<i64> = (0..samples * 16)
            .map(|i| (i * i * 31 % 255) as i64)
            .collect();
        let labels: Vec<i64> = tokens.chunks(16).map(|sentence| sentence[0] % 2).collect();
        let x = Tensor::from_i64(&[samples, 16], &tokens);
        self.write(
            name,
            &[("x", x), ("labels", Tensor::from_i64(&[samples], &labels))],
        );
    }
}

/// What `--json` says.
#[derive(Debug)]
struct Outcome(Value);

impl Outcome {
    fn losses(&self) -> Vec<f64> {
        let pairs = self.0["loss"].as_array().unwrap().iter();
        pairs.map(|pair| pair[1].as_f64().unwrap()).collect()
    }

    fn accuracy(&self) -> f64 {
        self.0["eval"]["accuracy"].as_f64().unwrap()
    }

    /// The memory is what the plan says, region by region, and steps take no other.
    #[track_caller]
    fn check_memory(&self) {
        let regions = self.0["memory"].as_object().unwrap();
        assert!(regions.len() == 6, "{regions:?}");
        for (region, bytes) in regions {
            assert_eq!(bytes["predicted"], bytes["measured"], "{region}");
        }
        assert!(regions["activations"]["measured"].as_u64() > Some(0));
        assert_eq!(self.0["allocated_in_steps"]["count"], 0);
    }

    fn activations(&self) -> u64 {
        self.0["memory"]["activations"]["measured"]
            .as_u64()
            .unwrap()
    }
}

/// The greatest difference, relative to the greater magnitude of all numbers.
fn difference<'a, T: Copy + Into<f64> + 'a>(
    a: impl IntoIterator<Item = &'a T>,
    b: impl IntoIterator<Item = &'a T>,
) -> f64 {
    let (mut greatest, mut magnitude) = (0.0_f64, 0.0_f64);
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        match (a.next(), b.next()) {
            (Some(&a), Some(&b)) => {
                let (a, b) = (a.into(), b.into());
                greatest = greatest.max((a - b).abs());
                magnitude = magnitude.max(a.abs()).max(b.abs());
            }
            (None, None) => return greatest / magnitude.max(f64::MIN_POSITIVE),
            _ => panic!("different lengths"),
        }
    }
}

/// Eight steps are the same, to the bit, as four, a checkpoint, and four more.
#[track_caller]
fn check_resume(place: &Place, arguments: &str) {
    let whole = place.run(&format!("{arguments} --steps 8 --save whole"));
    let first = place.run(&format!(
        "{arguments} --steps 4 --save half --checkpoint at4"
    ));
    let second = place.run(&format!(
        "{arguments} --steps 8 --resume at4 --save joined --checkpoint at8"
    ));
    let joined = [first.losses(), second.losses()].concat();
    assert_eq!(whole.losses(), joined, "{arguments}");
    assert_eq!(joined.len(), 8);
    assert!(place.bytes("whole") == place.bytes("joined"), "{arguments}");
    assert!(place.bytes("whole") != place.bytes("half"), "{arguments}");
    // The same command again has nothing to do.
    let nothing = place.run(&format!("{arguments} --steps 8 --resume at8 --save again"));
    assert!(nothing.losses().is_empty());
    assert!(place.bytes("again") == place.bytes("whole"), "{arguments}");
}

#[test]
fn resuming_is_exact() {
    let place = Place::new();
    // 14 samples are 7 batches of 2, and step 4 begins in the second epoch.
    place.write_sentences("sentences", 14);
    check_resume(
        &place,
        "models/ort/bert_tiny_dropout.onnx --data sentences --init-params normal --batch 2 \
         --optimizer adamw --betas 0.9,0.95 --accumulate 2 --clip 0.5 --warmup 6 --seed 3",
    );
    check_resume(
        &place,
        &format!("models/ort/digits_mlp.onnx {DIGITS} --batch 400 --keep-last --optimizer sgd"),
    );
    check_resume(
        &place,
        &format!("models/aot/digits_sgd.onnx {DIGITS} --batch 300"),
    );
}

/// Directions that the first batch fills, and those that move, are what they were.
#[test]
fn resuming_keeps_directions() {
    let place = Place::new();
    for init in ["first-batch", "svd --rank 2 --groups 8", "running-average"] {
        let arguments = format!("models/ort/digits_vit.onnx -o vit.onnx -q --init {init}");
        assert!(place.command(&arguments).status().unwrap().success());
        check_resume(&place, &format!("vit.onnx {DIGITS} --batch 32 --clip 1"));
        let [half, whole] = ["half", "whole"].map(|name| place.parameters(name));
        let directions = |of: &BTreeMap<String, Vec<f32>>| {
            let mut of = of.clone();
            of.retain(|name, _| name.starts_with("velora."));
            of
        };
        let (half, whole) = (directions(&half), directions(&whole));
        assert!(half.len() >= 8, "{init}: {}", half.len());
        assert_eq!(half == whole, init != "running-average", "{init}");
        for (name, v) in &whole {
            let squares = v.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>();
            let rank = if init.contains("--rank 2") { 2.0 } else { 1.0 };
            assert!((squares - rank).abs() < 1e-5, "{init}: {name}: {squares}");
        }
    }
}

/// With learning rate 0 and one batch, only dropout changes the loss from step to step.
#[test]
fn dropout_is_drawn_anew_in_every_step() {
    let place = Place::new();
    place.write_sentences("sentences", 4);
    let settings = "--data sentences --init-params normal --batch 4 --lr 0 --steps 3";
    let with = place
        .run(&format!("models/ort/bert_tiny_dropout.onnx {settings}"))
        .losses();
    assert!(with[0] != with[1] && with[1] != with[2], "{with:?}");
    let without = place
        .run(&format!("models/ort/bert_tiny.onnx {settings}"))
        .losses();
    // The order of the samples is another in each epoch.
    assert!(difference(&[without[0]; 3], &without) < 1e-6, "{without:?}");
}

/// A process that a test may not leave behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Interrupts training again and again, each time a moment after a checkpoint, while the next are
/// written. What comes out in the end is what an uninterrupted run makes.
fn check_interruptions(signal: &str, mut moment: u64) {
    const STEPS: u64 = 1500;
    const INTERRUPTIONS: usize = 5;
    let place = Place::new();
    let arguments = format!(
        "run models/aot/digits_mlp.onnx {DIGITS} -q --steps {STEPS} --schedule cosine --warmup 20"
    );
    let uninterrupted = place.command(&format!("{arguments} --save whole")).status();
    assert!(uninterrupted.unwrap().success());
    let file = place.at("checkpoint");
    let mut arguments = format!("{arguments} --checkpoint checkpoint --checkpoint-every 1");
    let mut step = 0;
    for _ in 0..INTERRUPTIONS {
        let mut child = Running(place.command(&arguments).spawn().unwrap());
        let begin = Instant::now();
        while !file.exists() || checkpoint::read(&file).unwrap().progress.step == step {
            assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint");
            sleep(Duration::from_millis(1));
        }
        // xorshift64: moments between 0 and 20 ms.
        moment ^= moment << 13;
        moment ^= moment >> 7;
        moment ^= moment << 17;
        sleep(Duration::from_micros(moment % 20_000));
        let sent = Command::new("kill")
            .args([signal, &child.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let status = child.0.wait().unwrap();
        assert_eq!(status.code(), None, "it was over before the signal");
        // Reading checks that it is whole.
        let reached = checkpoint::read(&file).unwrap().progress.step;
        assert!(step < reached && reached < STEPS, "{step} {reached}");
        step = reached;
        if !arguments.contains("--resume") {
            arguments += " --resume checkpoint";
        }
    }
    let finished = place
        .command(&format!("{arguments} --save joined"))
        .status();
    assert!(finished.unwrap().success());
    assert!(place.bytes("whole") == place.bytes("joined"));
}

#[test]
fn sigkill_at_any_moment_loses_at_most_a_step() {
    check_interruptions("-KILL", 0x9E37_79B9_7F4A_7C15);
}

#[test]
fn sigint_at_any_moment_loses_at_most_a_step() {
    check_interruptions("-INT", 0xD1B5_4A32_D192_ED03);
}

#[test]
fn gradients_as_outputs_and_accumulators_train_alike() {
    let place = Place::new();
    let settings = format!("{DIGITS} --batch 32 --steps 20 --optimizer sgd --lr 0.05");
    let outputs = place.run(&format!("models/aot/digits_mlp.onnx {settings} --save aot"));
    let accumulators = place.run(&format!("models/ort/digits_mlp.onnx {settings} --save ort"));
    let (a, b) = (outputs.losses(), accumulators.losses());
    assert!(difference(&a, &b) < 1e-5, "{a:?} {b:?}");
    assert!(a[19] < a[0] - 0.05, "{a:?}");
    let (a, b) = (place.parameters("aot"), place.parameters("ort"));
    assert!(a.keys().eq(b.keys()));
    for (name, a) in &a {
        let difference = difference(a, &b[name]);
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

/// `digits_sgd` without its optimiser, so that its gradients are outputs.
fn without_optimizer(place: &Place, to: &str) {
    let from = place.at("models/aot/digits_sgd.onnx");
    let mut model = read(&from, UnknownFields::Refuse).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let of_optimizer =
        |name: &String| name.starts_with("momentum.") || name.starts_with("updated.");
    let mut gradients = Vec::new();
    graph
        .output
        .retain(|output| !of_optimizer(&output.name.clone().unwrap()));
    for node in &graph.node {
        // updated.momentum.P = 0.9 momentum.P + gradient
        let Some(parameter) = node.output[0].strip_prefix("updated.momentum.") else {
            continue;
        };
        let name = format!("grad.{parameter}");
        let mut output = graph
            .input
            .iter()
            .find(|i| i.name() == parameter)
            .unwrap()
            .clone();
        output.name = Some(name.clone());
        graph.output.push(output);
        gradients.push(NodeProto {
            op_type: Some("Identity".to_owned()),
            input: vec![node.input[1].clone()],
            output: vec![name],
            ..NodeProto::default()
        });
    }
    assert_eq!(gradients.len(), 6);
    graph
        .node
        .retain(|node| !node.input.iter().chain(&node.output).any(of_optimizer));
    graph.node.extend(gradients);
    graph
        .input
        .retain(|input| !of_optimizer(&input.name.clone().unwrap()));
    graph
        .initializer
        .retain(|tensor| !of_optimizer(&tensor.name.clone().unwrap()));
    write(&model, &place.at(to)).unwrap();
}

#[test]
fn an_optimizer_inside_the_graph_does_what_ours_does() {
    let place = Place::new();
    without_optimizer(&place, "outside.onnx");
    let settings = format!("{DIGITS} --batch 32 --steps 30");
    let inside = place.run(&format!(
        "models/aot/digits_sgd.onnx {settings} --save inside"
    ));
    // The graph's own rate and momentum.
    let ours = "--optimizer sgd --lr 0.05 --momentum 0.9 --save outside";
    let outside = place.run(&format!("outside.onnx {settings} {ours}"));
    let (a, b) = (inside.losses(), outside.losses());
    assert!(difference(&a, &b) < 1e-6, "{a:?} {b:?}");
    assert!(a[29] < a[0] - 0.05, "{a:?}");
    let (a, b) = (place.parameters("inside"), place.parameters("outside"));
    for (name, b) in &b {
        let difference = difference(&a[name], b);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn two_batches_of_16_are_one_of_32() {
    let place = Place::new();
    for model in ["models/aot/digits_mlp.onnx", "models/ort/digits_mlp.onnx"] {
        let settings = format!("{model} {DIGITS} --optimizer sgd --lr 0.05 --clip 1 --steps 20");
        let one = place.run(&format!("{settings} --batch 32 --save one"));
        let two = place.run(&format!("{settings} --batch 16 --accumulate 2 --save two"));
        let (a, b) = (one.losses(), two.losses());
        assert!(difference(&a, &b) < 1e-5, "{model}: {a:?} {b:?}");
        two.check_memory();
        let (a, b) = (place.parameters("one"), place.parameters("two"));
        for (name, a) in &a {
            let difference = difference(a, &b[name]);
            assert!(difference < 1e-4, "{model}, {name}: {difference}");
        }
    }
}

#[test]
fn a_loss_that_is_no_number_names_step_and_place() {
    let place = Place::new();
    let message = place.try_run(&format!(
        "models/aot/digits_mlp.onnx {DIGITS} --lr 1e30 --steps 50 --checkpoint c --checkpoint-every 1"
    ));
    let message = message.err().unwrap();
    assert!(message.contains("step 2: the loss is "), "{message}");
    assert!(message.contains(" of node 'node_"), "{message}");
    // What was saved is from before it.
    assert_eq!(checkpoint::read(&place.at("c")).unwrap().progress.step, 1);

    // One pixel of a sample of the third batch.
    let mut pixels = vec![0.5_f32; 40 * 64];
    pixels[25 * 64 + 7] = f32::NAN;
    let x = Tensor::from_f32(&[40, 64], &pixels);
    place.write(
        "data",
        &[("x", x), ("labels", Tensor::from_i64(&[40], &[3; 40]))],
    );
    let settings = "--data data --batch 10 --no-shuffle --steps 4";
    for (model, first) in [
        ("models/aot/digits_mlp.onnx", "'node_addmm' (MatMul)"),
        ("models/ort/digits_mlp.onnx", "'/fc1/Gemm' (MatMul)"),
    ] {
        let message = place.try_run(&format!("{model} {settings}")).err().unwrap();
        let expected = format!(
            "step 3: the loss is NaN; the first tensor with NaN is output 0 of node {first}"
        );
        assert!(message.contains(&expected), "{message}");
    }
    // Parameters that are no numbers are told apart from what they make of others.
    place.write(
        "parameters",
        &[("fc2.bias", Tensor::from_f32(&[256], &[f32::INFINITY; 256]))],
    );
    let arguments = format!("models/aot/digits_mlp.onnx {DIGITS} --params parameters");
    let message = place.try_run(&arguments).err().unwrap();
    assert!(
        message.contains("parameter 'fc2.bias' has infinity"),
        "{message}"
    );
}

/// More than 95 % of the held-out digits, plain and rewritten, with the memory that was predicted.
#[track_caller]
fn check_digits(model: &str) {
    let place = Place::new();
    place.rewrite(model, "rewritten.onnx");
    let settings =
        format!("{DIGITS} {HELD_OUT} --batch 32 --lr 5e-3 --schedule cosine --steps 220");
    let plain = place.run(&format!("{model} {settings}"));
    let rewritten = place.run(&format!("rewritten.onnx {settings}"));
    for outcome in [&plain, &rewritten] {
        outcome.check_memory();
        assert!(outcome.accuracy() > 0.95, "{model}: {}", outcome.accuracy());
    }
    // The first forward pass is the same, to the bit; later ones have other parameters.
    assert_eq!(plain.losses()[0], rewritten.losses()[0]);
    assert_ne!(plain.losses(), rewritten.losses());
    // Batches of 32 are small beside the weights, copies of which decide the peak then.
    let settings = format!("{DIGITS} --batch 512 --steps 1");
    let plain = place.run(&format!("{model} {settings}"));
    let rewritten = place.run(&format!("rewritten.onnx {settings}"));
    rewritten.check_memory();
    let (before, after) = (plain.activations(), rewritten.activations());
    assert!(after < before, "{model}: {before} {after}");
}

/// `--dim` says for which size a graph is rewritten; the 8 samples that are left of 360 are no batch of 32.
#[test]
fn a_graph_rewritten_for_one_size_takes_others() {
    let place = Place::new();
    let model = "models/aot/digits_mlp.onnx";
    place.rewrite(&format!("{model} --dim batch=32"), "fixed.onnx");
    place.rewrite(model, "open.onnx");
    let settings = format!("{DIGITS} {HELD_OUT} --batch 32 --steps 10");
    let fixed = place.run(&format!("fixed.onnx {settings}"));
    let open = place.run(&format!("open.onnx {settings}"));
    assert_eq!(fixed.losses(), open.losses());
    assert_eq!(fixed.0["eval"], open.0["eval"]);
}

#[test]
fn digits_mlp_learns() {
    check_digits("models/aot/digits_mlp.onnx");
}

#[test]
fn digits_mlp_of_onnx_runtime_learns() {
    check_digits("models/ort/digits_mlp.onnx");
}

/// Evaluations, smaller batches and accumulation have plans of their own in the same memory.
#[test]
fn several_plans_take_what_is_predicted() {
    let place = Place::new();
    let settings = format!("{DIGITS} --batch 100 --keep-last --steps 32");
    for model in ["models/aot/digits_mlp.onnx", "models/ort/digits_vit.onnx"] {
        let settings = format!("{model} {settings}");
        let outcome = place.run(&format!(
            "{settings} {HELD_OUT} --eval-every 10 --save with"
        ));
        outcome.check_memory();
        assert_eq!(outcome.0["evaluations"].as_array().unwrap().len(), 3);
        // Evaluation changes nothing.
        place
            .run(&format!("{settings} --save without"))
            .check_memory();
        assert!(place.bytes("with") == place.bytes("without"), "{model}");
    }
    // A batch is never larger than the data.
    let one = format!("models/aot/digits_mlp.onnx {DIGITS} --batch 5000 --keep-last --steps 2");
    place.run(&one).check_memory();
}

#[test]
fn threads_change_nothing() {
    let place = Place::new();
    place.write_sentences("sentences", 16);
    for arguments in [
        format!("models/aot/digits_vit.onnx {DIGITS} --batch 64 --clip 1"),
        "models/ort/bert_tiny_dropout.onnx --data sentences --init-params normal --batch 8"
            .to_owned(),
    ] {
        let arguments = format!("{arguments} --steps 6");
        let one = place.run(&format!("{arguments} --seed 5 --threads 1 --save one"));
        let two = place.run(&format!("{arguments} --seed 5 --threads 2 --save two"));
        assert_eq!(one.losses(), two.losses(), "{arguments}");
        assert!(place.bytes("one") == place.bytes("two"), "{arguments}");
        let other = place.run(&format!("{arguments} --seed 9"));
        assert_ne!(one.losses(), other.losses(), "{arguments}");
    }
}

/// The log says of each step what the outcome says, and goes on when training does.
#[test]
fn the_log_has_a_line_for_each_step() {
    let place = Place::new();
    let arguments = format!(
        "models/aot/digits_mlp.onnx {DIGITS} {HELD_OUT} --clip 1 --warmup 4 --lr 0.004 --log log"
    );
    let first = place.run(&format!("{arguments} --steps 3 --checkpoint c"));
    let second = place.run(&format!("{arguments} --steps 5 --resume c --eval-every 4"));
    let log = fs::read_to_string(place.at("log")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (evaluations, steps): (Vec<&Value>, Vec<&Value>) =
        lines.iter().partition(|line| line.get("eval").is_some());
    let losses: Vec<f64> = steps
        .iter()
        .map(|line| line["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses, [first.losses(), second.losses()].concat());
    let rates: Vec<f64> = steps
        .iter()
        .map(|line| line["learning_rate"].as_f64().unwrap())
        .collect();
    assert!(
        difference(&rates, &[0.001, 0.002, 0.003, 0.004, 0.004]) < 1e-12,
        "{rates:?}"
    );
    assert!(
        steps
            .iter()
            .all(|line| line["gradient_norm"].as_f64() > Some(0.0))
    );
    let at: Vec<u64> = evaluations
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(at, [3, 4, 5]);
    assert_eq!(evaluations[2]["eval"], second.0["eval"]);
}
