//! Prints `docs/config-space.md`.

fn main() {
    print!("{}", drivers::pciback::config::render());
}
