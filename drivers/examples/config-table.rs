//! Prints `docs/config-space.md`.

fn main() {
    print!("{}", drivers::policy::config::render());
}
