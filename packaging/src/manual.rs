//! Manual pages and completions, made from the command line's definition.

use anyhow::Result;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use toolstack::arguments::Cli;

/// The command with the subcommands that are meant for people.
fn visible() -> Command {
    let mut all = Cli::command();
    let mut command = Command::new("bulkhead").version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = all.get_about() {
        command = command.about(about.clone());
    }
    for subcommand in all.get_subcommands_mut() {
        if !subcommand.is_hide_set() {
            command = command.subcommand(subcommand.clone());
        }
    }
    command.disable_help_subcommand(true)
}

/// The manual pages, each with the name of its file: `bulkhead.1`, and one for each subcommand.
///
/// # Errors
/// A page cannot be made.
pub fn pages(date: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = visible();
    command.build();
    let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
    let pages = std::iter::once(command).chain(subcommands);
    pages
        .map(|command| {
            let page = Man::new(command).date(date).manual("Bulkhead");
            let mut text = Vec::new();
            page.render(&mut text)?;
            Ok((page.get_filename(), text))
        })
        .collect()
}

/// The shells, each with the path of the file that it reads.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "usr/share/bash-completion/completions/bulkhead"),
    (Shell::Zsh, "usr/share/zsh/vendor-completions/_bulkhead"),
    (Shell::Fish, "usr/share/fish/vendor_completions.d/bulkhead.fish"),
];

/// The completions, each with its path.
pub fn completions() -> Vec<(&'static str, Vec<u8>)> {
    let file = |(shell, path)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut visible(), "bulkhead", &mut text);
        (path, text)
    };
    SHELLS.map(file).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden() -> Vec<String> {
        let command = Cli::command();
        let hidden = command
            .get_subcommands()
            .filter(|subcommand| subcommand.is_hide_set());
        hidden
            .map(|subcommand| subcommand.get_name().to_owned())
            .collect()
    }

    #[test]
    fn each_subcommand_has_a_page_and_what_only_the_service_runs_has_none() {
        let pages = pages("2026-11-30").unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "bulkhead.1",
            "bulkhead-run.1",
            "bulkhead-attach.1",
            "bulkhead-status.1",
        ] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert!(!hidden().is_empty());
        for name in hidden() {
            assert!(!names.contains(&format!("bulkhead-{name}.1").as_str()), "{name}");
        }
        let (_, run) = pages.iter().find(|(name, _)| name == "bulkhead-run.1").unwrap();
        let run = String::from_utf8(run.clone()).unwrap();
        for part in [".TH bulkhead-run 1 2026-11-30", ".SH SYNOPSIS", "\\-\\-device"] {
            assert!(run.contains(part), "{part}: {run}");
        }
    }

    #[test]
    fn completions_know_the_subcommands_and_none_that_only_the_service_runs() {
        for (path, text) in completions() {
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.contains("attach") && text.contains("trusted-guest"),
                "{path}"
            );
            for name in hidden() {
                assert!(!text.contains(&format!("bulkhead__{name}")), "{path}: {name}");
                assert!(
                    !text.contains(&format!("bulkhead__subcmd__{name}")),
                    "{path}: {name}"
                );
            }
        }
    }
}
