//! How many bytes of an image each module has, by the symbols of a build that keeps them.
//!
//! Code that was inlined counts where it went to. What the outliner has made of code that several functions share, and
//! constants without a symbol (most texts), have rows of their own.

use anyhow::{Context, Result};
use goblin::elf::Elf;
use goblin::elf::section_header::{SHF_ALLOC, SHT_NOBITS};
use rustc_demangle::demangle;
use std::collections::BTreeMap;

/// What the machine outliner calls its functions.
const OUTLINED: &str = "OUTLINED_FUNCTION_";

/// Bytes by module. Only what is loaded from the file counts: no headers, and no memory that begins as zeros.
pub type Sizes = BTreeMap<String, u64>;

/// The sizes of the modules of an image with symbols.
///
/// # Errors
/// It is no ELF file, or has no symbols.
pub fn of_image(bytes: &[u8]) -> Result<Sizes> {
    let elf = Elf::parse(bytes).context("the image is no ELF file")?;
    anyhow::ensure!(!elf.syms.is_empty(), "the image has no symbols");
    let mut sizes = Sizes::new();
    for (index, section) in elf.section_headers.iter().enumerate() {
        if section.sh_flags & u64::from(SHF_ALLOC) == 0 || section.sh_type == SHT_NOBITS {
            continue;
        }
        let mut symbols: Vec<(u64, u64, &str)> = elf
            .syms
            .iter()
            .filter(|symbol| symbol.st_shndx == index && symbol.st_size > 0)
            .filter_map(|symbol| {
                Some((
                    symbol.st_value,
                    symbol.st_size,
                    elf.strtab.get_at(symbol.st_name)?,
                ))
            })
            .collect();
        symbols.sort_unstable();
        let mut named = 0;
        let mut counted = section.sh_addr;
        for (address, size, name) in symbols {
            // Several symbols may name the same bytes.
            let end = address + size;
            let new = end.saturating_sub(counted.max(address));
            counted = counted.max(end);
            named += new;
            *sizes.entry(module_of(name)).or_default() += new;
        }
        let section_name = elf.shdr_strtab.get_at(section.sh_name).unwrap_or_default();
        *sizes
            .entry(format!("{section_name} without a symbol"))
            .or_default() += section.sh_size.saturating_sub(named);
    }
    sizes.retain(|_, size| *size > 0);
    Ok(sizes)
}

/// The module that a symbol belongs to; the crate alone for a crate of others.
fn module_of(symbol: &str) -> String {
    if symbol.starts_with(OUTLINED) {
        return "shared code (outliner)".to_owned();
    }
    let name = format!("{:#}", demangle(symbol));
    let segments: Vec<&str> = subject(&name).split("::").collect();
    let [first, ..] = segments[..] else {
        return name;
    };
    if segments.len() == 1 {
        return "names without a module".to_owned();
    }
    if !is_ours(first) {
        return first.to_owned();
    }
    // A type, a constant or the function ends the path of the module.
    let is_module = |segment: &&&str| segment.starts_with(|first: char| first.is_ascii_lowercase());
    let modules = segments[..segments.len() - 1].iter().take_while(is_module);
    modules.copied().collect::<Vec<_>>().join("::")
}

/// The path of what a name is about: of the type for `<TYPE as TRAIT>::function`, of the trait if the type has no path.
fn subject(name: &str) -> &str {
    let path = match name.strip_prefix('<') {
        None => name,
        Some(inside) => {
            let (of_type, of_trait) = inside.split_once(" as ").unwrap_or((inside, ""));
            let of_type = of_type.trim_start_matches(['&', '*', '(']);
            let of_type = ["mut ", "const ", "dyn "]
                .iter()
                .fold(of_type, |text, word| text.strip_prefix(word).unwrap_or(text));
            match of_type.contains("::") {
                true => of_type,
                false => of_trait,
            }
        }
    };
    let end = path.find(['<', '>', '{', ' ', '[']).unwrap_or(path.len());
    path[..end].trim_end_matches("::")
}

fn is_ours(name: &str) -> bool {
    ["drivers", "netfront", "pci", "telemetry", "unikernel", "xenbus"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_belongs_to_the_module_of_its_function_type_or_constant() {
        for (name, module) in [
            ("drivers::stub::start_request", "drivers::stub"),
            ("drivers::hops::second::FIELDS", "drivers::hops::second"),
            (
                "drivers::hops::second::Link<P>::exchange",
                "drivers::hops::second",
            ),
            ("drivers::store::transaction::{{closure}}", "drivers::store"),
            (
                "<pci::bdf::Bdf as core::str::traits::FromStr>::from_str",
                "pci::bdf",
            ),
            (
                "<&unikernel::trap::Line as core::fmt::Display>::fmt",
                "unikernel::trap",
            ),
            ("<&mut T as core::fmt::Write>::write_str", "core"),
            ("<str as core::fmt::Display>::fmt", "core"),
            ("core::str::<impl str>::rsplit_once", "core"),
            (
                "linked_list_allocator::hole::HoleList::first_fit",
                "linked_list_allocator",
            ),
            ("OUTLINED_FUNCTION_12", "shared code (outliner)"),
            ("memcpy", "names without a module"),
        ] {
            assert_eq!(module_of(name), module, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_no_image_is_refused() {
        let error = of_image(b"no image").unwrap_err();
        assert!(error.to_string().contains("no ELF"), "{error}");
    }
}
