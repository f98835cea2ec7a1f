//! The same input makes the same bytes: whatever the number of threads, the folder, the environment and the day.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use regex::Regex;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Files by name.
type Files = BTreeMap<String, Vec<u8>>;

/// How the tool is run.
#[derive(Default)]
struct Circumstances<'a> {
    environment: &'a [(&'a str, &'a str)],
    /// For the commands that take it.
    threads: Option<&'a str>,
    /// Below the temporary folder.
    folder: &'a str,
    /// How old the input is said to be.
    age: Duration,
    /// Whether the input is given by its absolute path.
    absolute: bool,
}

/// What is to be the same; `$THREADS` is `--threads N` or nothing.
const COMMANDS: [&str; 9] = [
    "MODEL -o out.onnx -q --json out.json --html out.html --emit-plan out.toml",
    "MODEL -o inline.onnx -q --inline --no-pin --init random --groups 8 --dim batch=32",
    "MODEL -o first.onnx -q --init first-batch",
    "inspect MODEL -q --json inspected.json --html inspected.html",
    "inspect MODEL -q --data samples.npz --sweep 8,16 --json measured.json --html measured.html",
    "verify MODEL out.onnx -q --data samples.npz --json verified.json",
    "calibrate first.onnx -o filled.onnx -q --data samples.npz --batches 2 $THREADS",
    "run out.onnx -q --data samples.npz --steps 3 --save saved.safetensors --checkpoint \
     checkpoint.safetensors --log log.jsonl --json run.json --plan-json plan.json $THREADS",
    "run filled.onnx -q --data samples.npz --eval samples.npz --steps 2 --optimizer sgd --save more.safetensors \
     $THREADS",
];

/// Runs all commands, in a folder of their own.
fn outputs(model: &str, circumstances: &Circumstances<'_>) -> Files {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join(circumstances.folder);
    fs::create_dir_all(&folder).unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let input = folder.join("m.onnx");
    fs::copy(models.join(model), &input).unwrap();
    let modified = SystemTime::now() - circumstances.age;
    let file = File::options().write(true).open(&input).unwrap();
    file.set_modified(modified).unwrap();
    fs::copy(
        models.join("data/digits_train.npz"),
        folder.join("samples.npz"),
    )
    .unwrap();
    let before = list(&folder);
    for arguments in COMMANDS {
        let threads = circumstances.threads.map(|n| format!("--threads {n}"));
        let arguments = arguments.replace("$THREADS", &threads.unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_velora-opt"));
        command.current_dir(&folder).stdin(Stdio::null());
        command.env("CUDA_VISIBLE_DEVICES", "");
        command.envs(circumstances.environment.iter().copied());
        for argument in arguments.split_whitespace() {
            match argument {
                "MODEL" if circumstances.absolute => command.arg(&input),
                "MODEL" => command.arg("m.onnx"),
                argument => command.arg(argument),
            };
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    }
    let mut files = list(&folder);
    files.retain(|name, _| !before.contains_key(name));
    if let Some(outcome) = files.get_mut("run.json") {
        let mut json: serde_json::Value = serde_json::from_slice(outcome).unwrap();
        let time = json.as_object_mut().unwrap().remove("seconds_per_step");
        assert!(time.is_some(), "the one number that is measured");
        *outcome = json.to_string().into_bytes();
    }
    // What the device is called.
    let device = Regex::new(r"cpu, \d+ threads").unwrap();
    for name in ["run.json", "verified.json"] {
        let text = String::from_utf8(files[name].clone()).unwrap();
        assert!(device.is_match(&text), "{name}");
        let text = device.replace_all(&text, "cpu").into_owned();
        files.insert(name.to_owned(), text.into_bytes());
    }
    if circumstances.absolute {
        // Reports name the model as it was given; nothing else does.
        for (name, bytes) in &mut files {
            let is_report = name.ends_with(".json") || name.ends_with(".html");
            if let (true, Ok(text)) = (is_report, std::str::from_utf8(bytes)) {
                *bytes = text.replace(input.to_str().unwrap(), "m.onnx").into_bytes();
            }
        }
    }
    files
}

fn list(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

const MLP: &str = "ort/digits_mlp.onnx";

#[test]
fn the_same_bytes_under_all_circumstances() {
    let usual = outputs(MLP, &Circumstances::default());
    assert_eq!(usual.len(), 18, "{:?}", usual.keys());
    let year = Duration::from_secs(366 * 24 * 3600);
    let elsewhere = [
        ("TZ", "Pacific/Kiritimati"),
        ("LANG", "tr_TR.UTF-8"),
        ("LC_ALL", "tr_TR.UTF-8"),
        ("HOME", "/nonexistent"),
        ("TMPDIR", "/nonexistent"),
        ("SOURCE_DATE_EPOCH", "1"),
        ("COLUMNS", "40"),
        ("USER", "somebody"),
    ];
    let circumstances = [
        ("again", Circumstances::default()),
        (
            "one thread",
            Circumstances {
                environment: &[("RAYON_NUM_THREADS", "1")],
                threads: Some("1"),
                ..Circumstances::default()
            },
        ),
        (
            "two threads",
            Circumstances {
                environment: &[("RAYON_NUM_THREADS", "2")],
                threads: Some("2"),
                ..Circumstances::default()
            },
        ),
        (
            "seven threads",
            Circumstances {
                environment: &[("RAYON_NUM_THREADS", "7")],
                threads: Some("7"),
                ..Circumstances::default()
            },
        ),
        (
            "another folder, environment and date of the file",
            Circumstances {
                environment: &elsewhere,
                folder: "another/folder with spaces/and umläuts",
                age: 30 * year,
                ..Circumstances::default()
            },
        ),
        (
            "an absolute path",
            Circumstances {
                folder: "absolute",
                absolute: true,
                ..Circumstances::default()
            },
        ),
    ];
    for (what, circumstances) in circumstances {
        let other = outputs(MLP, &circumstances);
        let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&other), names(&usual), "{what}");
        for (name, bytes) in &usual {
            assert!(other[name] == *bytes, "{what}: {name} differs");
        }
    }
}

/// Nothing of when, where and by whom is in any output.
#[test]
fn outputs_do_not_say_when_where_and_by_whom() {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let environment = [
        ("USER", "zaphod-of-the-test"),
        ("LOGNAME", "zaphod-of-the-test"),
        ("HOME", "/home/zaphod-of-the-test"),
        ("HOSTNAME", "heart-of-gold"),
        ("PWD", "/wherever/zaphod-of-the-test"),
    ];
    let begin = SystemTime::now();
    let files = outputs(
        MLP,
        &Circumstances {
            environment: &environment,
            folder: "folder-that-is-nowhere-to-be-found",
            age: Duration::from_secs(1_234_567),
            ..Circumstances::default()
        },
    );
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut words: Vec<String> = [
        "zaphod-of-the-test",
        "heart-of-gold",
        "folder-that-is-nowhere-to-be-found",
        env!("CARGO_MANIFEST_DIR"),
    ]
    .map(str::to_owned)
    .to_vec();
    // Shorter names may be words of the text.
    words.extend(Some(host.trim().to_owned()).filter(|host| host.len() > 5));
    let times = [
        begin,
        SystemTime::now(),
        begin - Duration::from_secs(1_234_567),
    ];
    for time in times.map(seconds) {
        // All but the last two digits: the seconds may have gone on.
        words.push((time / 100).to_string());
        let (year, month, day) = date(time / 86_400);
        words.push(format!("{year}-{month:02}-{day:02}"));
        words.push(format!("{year}/{month:02}/{day:02}"));
        words.push(format!("{day:02}.{month:02}.{year}"));
        words.push(format!("{}, {year}", day));
    }
    for (name, bytes) in &files {
        for word in &words {
            let found = bytes
                .windows(word.len())
                .any(|part| part == word.as_bytes());
            assert!(!found, "{name} contains '{word}'");
        }
    }
}

/// Year, month and day of a day after 1970-01-01 (Hinnant's `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[test]
fn dates_are_those_of_the_calendar() {
    assert_eq!(date(0), (1970, 1, 1));
    assert_eq!(date(11_016), (2000, 2, 29));
    assert_eq!(date(20_786), (2026, 11, 29));
}
