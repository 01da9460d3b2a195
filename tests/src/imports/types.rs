//! Type names that stand twice in one crate.

use super::files::{File, ModulePath};
use super::test_code::{attributes, is_test};
use std::collections::BTreeMap;
use std::fmt;
use syn::Ident;
use syn::visit::{self, Visit};

/// A name that several types of one crate have.
#[derive(Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The name.
    pub name: String,
    /// Where each of the types is declared: file and line.
    pub places: Vec<String>,
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.places.join(", "))
    }
}

/// Finds the names of structs, enums, unions, traits and aliases that are declared more than once. Associated types
/// have the name that their trait gives them, and do not count.
pub fn duplicates(files: &BTreeMap<ModulePath, File>) -> Vec<Duplicate> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files.values() {
        let mut declared = Declared(Vec::new());
        declared.visit_file(&file.syntax);
        for name in declared.0 {
            let place = format!("{}:{}", file.path.display(), name.span().start().line);
            places.entry(name.to_string()).or_default().push(place);
        }
    }
    places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| Duplicate { name, places })
        .collect()
}

/// The names that one file declares.
struct Declared<'ast>(Vec<&'ast Ident>);

impl<'ast> Visit<'ast> for Declared<'ast> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test(attributes(item)) {
            return;
        }
        match item {
            syn::Item::Enum(item) => self.0.push(&item.ident),
            syn::Item::Struct(item) => self.0.push(&item.ident),
            syn::Item::Trait(item) => self.0.push(&item.ident),
            syn::Item::TraitAlias(item) => self.0.push(&item.ident),
            syn::Item::Type(item) => self.0.push(&item.ident),
            syn::Item::Union(item) => self.0.push(&item.ident),
            _ => {}
        }
        visit::visit_item(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::files;
    use super::*;

    fn found(texts: &[(&str, &str)]) -> Vec<String> {
        duplicates(&files(texts))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_name_that_stands_twice_is_told_with_each_place() {
        let found = found(&[
            ("lib", "mod serve; mod state; pub struct Link;\npub struct Other;"),
            ("serve/link", "\n\nenum Link { Up }"),
            ("serve", "mod link; pub(crate) trait Kind {}"),
            (
                "state",
                "type Kind = u8; union Value { a: u8 }\nmod inner { struct Value; }",
            ),
        ]);
        assert_eq!(
            found,
            [
                "Kind: serve.rs:1, state.rs:1",
                "Link: lib.rs:1, serve/link.rs:3",
                "Value: state.rs:1, state.rs:2",
            ]
        );
    }

    #[test]
    fn a_type_within_a_function_counts() {
        let found = found(&[
            ("lib", "mod a; mod b;"),
            ("a", "fn f() { struct Step; }"),
            ("b", "impl X { fn g() { enum Step {} } }"),
        ]);
        assert_eq!(found, ["Step: a.rs:1, b.rs:1"]);
    }

    #[test]
    fn tests_associated_types_imports_and_methods_do_not_count() {
        let found = found(&[
            ("lib", "mod a; mod b; mod c; mod d; mod e;"),
            ("a", "struct Model; struct Error;"),
            ("b", "#[cfg(test)] struct Model; use a::Error;"),
            (
                "c",
                "#[cfg(test)] mod tests { struct Model; } trait Machine { type Error; }",
            ),
            (
                "d",
                "#[test] fn t() { struct Model; } impl Machine for X { type Error = u8; }",
            ),
            ("e", "#[cfg(test)] mod fixture;"),
            ("e/fixture", "struct Model; enum Error {}"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }
}
