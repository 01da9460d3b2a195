//! `bulkhead` with failures on demand ([`inject`]): for tests, never installed.

#[path = "../main.rs"]
mod command;

fn main() -> std::process::ExitCode {
    command::main()
}
