//! The text of `docs/size.md`: how many bytes of the usual image each module has.

use crate::markdown::table;
use images::sizes::Sizes;
use std::collections::BTreeSet;

/// The page as it was last taken.
pub const DOCUMENT: &str = include_str!("../../../docs/size.md");

/// A module may differ from the page by so many bytes, and so may their sum. Another release of the compiler or a small
/// change stays within that.
pub const TOLERANCE: u64 = 1024;

const INTRODUCTION: &str = "\
# Size: what the stub's image is made of

Each byte of the image is part of the trusted base. This is the usual image, without a network, by module; crates of others
and Rust's own libraries as a whole. Code that was inlined counts where it went to.

`cargo measure size` builds the image with symbols and prints this table; `cargo measure size --take` writes this page.
`cargo verify` fails if a module differs from it by more than 1,024 bytes.

";

/// The row with the sum.
const SUM: &str = "all that is loaded from the file";

/// The page in Markdown.
pub fn render(sizes: &Sizes) -> String {
    [INTRODUCTION, &rows(sizes)].concat()
}

/// Its table: the largest first.
pub fn rows(sizes: &Sizes) -> String {
    let mut rows: Vec<(&str, u64)> = sizes
        .iter()
        .map(|(module, &size)| (module.as_str(), size))
        .collect();
    rows.sort_by_key(|&(module, size)| (std::cmp::Reverse(size), module));
    rows.push((SUM, sizes.values().sum()));
    table(
        &["Module", "Bytes"],
        rows.iter()
            .map(|(module, size)| [(*module).to_owned(), size.to_string()]),
    )
}

/// The sizes that a page shows.
pub fn parse(page: &str) -> Sizes {
    let cells = page.lines().filter_map(|line| {
        let (module, size) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((module.to_owned(), size.parse().ok()?))
    });
    cells.filter(|(module, _)| module != SUM).collect()
}

/// What differs from the page by more than [`TOLERANCE`], as text.
pub fn differences(page: &Sizes, now: &Sizes) -> Vec<String> {
    let modules: BTreeSet<&String> = page.keys().chain(now.keys()).collect();
    let of = |sizes: &Sizes, module: &String| sizes.get(module).copied().unwrap_or_default();
    let each = modules
        .iter()
        .map(|module| (module.as_str(), of(page, module), of(now, module)));
    let sum = (SUM, page.values().sum::<u64>(), now.values().sum::<u64>());
    each.chain([sum])
        .filter(|(_, before, after)| before.abs_diff(*after) > TOLERANCE)
        .map(|(what, before, after)| format!("{what}: {after} bytes, {before} on the page"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(rows: &[(&str, u64)]) -> Sizes {
        rows.iter()
            .map(|&(module, size)| (module.to_owned(), size))
            .collect()
    }

    #[test]
    fn a_page_has_the_largest_module_first_and_can_be_read_again() {
        let all = sizes(&[("drivers::stub", 200), ("core", 7000)]);
        let page = render(&all);
        let table = "| core | 7000 |\n| drivers::stub | 200 |\n| all that is loaded from the file | 7200 |\n";
        assert!(page.ends_with(table), "{page}");
        assert_eq!(parse(&page), all);
    }

    #[test]
    fn a_module_that_grows_shrinks_comes_or_goes_is_told() {
        let page = sizes(&[("a", 5000), ("b", 3000), ("c", 2000)]);
        assert_eq!(
            differences(&page, &sizes(&[("a", 5900), ("b", 2900), ("c", 2000)])),
            Vec::<String>::new()
        );
        let now = sizes(&[("a", 6025), ("b", 3000), ("d", 2000)]);
        let told = [
            "a: 6025",
            "c: 0",
            "d: 2000",
            "all that is loaded from the file: 11025",
        ];
        let differences = differences(&page, &now);
        assert_eq!(differences.len(), told.len(), "{differences:?}");
        for (found, told) in differences.iter().zip(told) {
            assert!(found.starts_with(told), "{found}");
        }
    }

    #[test]
    fn the_sum_alone_can_differ() {
        let page = sizes(&[("a", 5000), ("b", 3000)]);
        let told = differences(&page, &sizes(&[("a", 5600), ("b", 3600)]));
        assert_eq!(
            told,
            ["all that is loaded from the file: 9200 bytes, 8000 on the page"]
        );
    }

    #[test]
    fn the_page_is_printed_from_its_own_rows() {
        assert!(
            render(&parse(DOCUMENT)) == DOCUMENT,
            "print it anew: cargo measure size --take"
        );
    }
}
