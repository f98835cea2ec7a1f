//! The `velora-opt` command: an exported training graph in, a compressed training graph out.

/// As the standard library's, which panics where standard error cannot be written to. A full disk or a closed
/// pipe there is no reason to stop.
macro_rules! eprint {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($text)*);
    }};
}

/// As [`eprint`], and a line end.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod adapter_file;
mod allocations;
mod cli;
mod commands;
mod device;
mod dims;
mod io;
mod measure;
mod plan_file;
mod progress;
mod report;
mod settings;
mod suggest;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use cli::{Arguments, Command};
use std::process::ExitCode;
use velora_graph::onnx::signals::report_file_signals;

fn main() -> ExitCode {
    report_file_signals(
        "velora-opt: a file that was being read became shorter, or its disk failed; run again when nothing \
         else writes to it",
    );
    let arguments = Arguments::parse();
    if let Err(usage) = arguments.validate() {
        usage.exit();
    }
    let result = match (&arguments.command, &arguments.optimize) {
        (Some(Command::Inspect(inspect)), _) => commands::inspect::run(inspect),
        (Some(Command::Calibrate(calibrate)), _) => commands::calibrate::run(calibrate),
        (Some(Command::Verify(verify)), _) => commands::verify::run(verify),
        (Some(Command::Merge(merge)), _) => commands::merge::run(merge),
        (Some(Command::Run(run)), _) => commands::run::run(run),
        (Some(Command::Pareto(pareto)), _) => commands::pareto::run(pareto),
        (Some(Command::Print(print)), _) => commands::print::run(print),
        (Some(Command::Completions { shell }), _) => commands::completions::run(*shell),
        (Some(Command::Man { command }), _) => commands::man::run(command.as_deref()),
        (None, Some(optimize)) => commands::optimize::run(optimize),
        (None, None) => Arguments::command()
            .error(
                ErrorKind::MissingRequiredArgument,
                "MODEL and --output, or a command, are required",
            )
            .exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("velora-opt: {}", shown(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// A message as it is said: in one line, with nothing that steers a terminal, and not without end, whatever
/// names are in it.
fn shown(message: &str) -> String {
    const BEGIN: usize = 1200;
    const END: usize = 400;
    let message = message.replace(char::is_control, " ");
    let length = message.chars().count();
    if length <= BEGIN + END {
        return message;
    }
    let begin: String = message.chars().take(BEGIN).collect();
    let end: String = message.chars().skip(length - END).collect();
    format!("{begin} [{} characters more] {end}", length - BEGIN - END)
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn messages_are_short_and_steer_nothing() {
        assert_eq!(shown("a\n\u{1b}[31mb"), "a  [31mb");
        assert_eq!(shown(&"é".repeat(1600)), "é".repeat(1600));
        let long = format!("begin{}end", "é".repeat(10_000));
        let cut = shown(&long);
        assert!(
            cut.starts_with("beginé")
                && cut.ends_with("éend")
                && cut.contains(" [8408 characters more] "),
            "{cut}"
        );
    }
}
