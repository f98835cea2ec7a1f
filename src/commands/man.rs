//! `man`: the manual page.

use crate::cli::Arguments;
use crate::io::print;
use crate::suggest::nearest;
use anyhow::{Context, Result, bail};
use clap::CommandFactory;

/// Prints the main page, or that of one command, to standard output as roff.
///
/// # Errors
/// Where there is no such command, or standard output cannot be written.
pub fn run(command: Option<&str>) -> Result<()> {
    let mut all = Arguments::command();
    // Names the commands' pages and usage lines after the whole command.
    all.build();
    let page = match command {
        None => all,
        Some(name) => {
            let Some(found) = all.find_subcommand(name) else {
                let names = all.get_subcommands().map(clap::Command::get_name);
                bail!(
                    "there is no command '{name}'; the nearest are '{}'",
                    nearest(name, names).join("', '")
                );
            };
            found.clone()
        }
    };
    let mut roff = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut roff);
    rendered.context("cannot write the manual page")?;
    print(&String::from_utf8(roff).context("the manual page is not UTF-8")?)
}
