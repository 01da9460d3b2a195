//! The paths that one source file mentions within its crate.

use super::files::{File, ModulePath};
use super::test_code::{attributes, attributes_within, is_test};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{ItemMacro, ItemUse, Macro, UseTree};

/// One source file.
pub struct Source {
    pub lines: usize,
    /// The paths that it mentions, from the crate's root: modules, and items below them.
    pub paths: BTreeSet<ModulePath>,
}

/// Reads all modules of a crate except its root, which only declares modules.
pub fn sources(files: &BTreeMap<ModulePath, File>) -> BTreeMap<ModulePath, Source> {
    let modules: BTreeSet<ModulePath> = files.keys().filter(|path| !path.is_empty()).cloned().collect();
    let source = |module: &ModulePath| {
        let file = files.get(module)?;
        let source = Source {
            lines: file.text.lines().count(),
            paths: mentioned(module, &modules, &file.syntax),
        };
        Some((module.clone(), source))
    };
    modules.iter().filter_map(source).collect()
}

fn mentioned(
    module: &ModulePath,
    modules: &BTreeSet<ModulePath>,
    syntax: &syn::File,
) -> BTreeSet<ModulePath> {
    let mut reader = Reader {
        module,
        modules,
        paths: BTreeSet::new(),
    };
    reader.visit_file(syntax);
    reader.paths
}

struct Reader<'a> {
    module: &'a ModulePath,
    modules: &'a BTreeSet<ModulePath>,
    paths: BTreeSet<ModulePath>,
}

impl Reader<'_> {
    /// Resolves a path as it is written, and keeps it.
    fn mention(&mut self, segments: &[String]) {
        let mut base = self.module.clone();
        let mut rest = segments;
        match rest.first().map(String::as_str) {
            Some("crate") => {
                base.clear();
                rest = &rest[1..];
            }
            Some("self" | "super") => {
                while let Some(first @ ("self" | "super")) = rest.first().map(String::as_str) {
                    if first == "super" {
                        base.pop();
                    }
                    rest = &rest[1..];
                }
            }
            // A child of this module, or a name from elsewhere.
            Some(child) => {
                base.push(child.to_owned());
                if !self.modules.contains(&base) {
                    return;
                }
                base.pop();
            }
            None => return,
        }
        base.extend(rest.iter().cloned());
        self.paths.insert(base);
    }

    fn mention_tree(&mut self, tree: &UseTree, prefix: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.mention_tree(&path.tree, prefix);
                prefix.pop();
            }
            UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|tree| self.mention_tree(tree, prefix)),
            UseTree::Name(name) if name.ident == "self" => self.mention(prefix),
            UseTree::Name(name) => {
                prefix.push(name.ident.to_string());
                self.mention(prefix);
                prefix.pop();
            }
            UseTree::Rename(rename) => {
                prefix.push(rename.ident.to_string());
                self.mention(prefix);
                prefix.pop();
            }
            UseTree::Glob(_) => self.mention(prefix),
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        if !is_test(attributes_within(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        // A re-export is an import too: its users depend on the module that the name comes from.
        self.mention_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let segments: Vec<String> = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string())
                .collect();
            self.mention(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_macro(&mut self, _: &'ast ItemMacro) {}

    fn visit_macro(&mut self, item: &'ast Macro) {
        // The arguments of most macros are expressions: paths among them are seen where they parse as such.
        if let Ok(arguments) =
            item.parse_body_with(syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated)
        {
            arguments.iter().for_each(|argument| self.visit_expr(argument));
        }
        self.visit_path(&item.path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::files;
    use super::*;

    #[test]
    fn the_root_is_no_module() {
        let files = files(&[
            ("lib", "mod a; mod b; pub use a::Item;"),
            ("a", "use crate::b;"),
            ("b", ""),
        ]);
        let sources = sources(&files);
        let names: Vec<String> = sources.keys().map(|path| path.join("::")).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(sources[&path("a")].paths, [path("b")].into());
    }

    fn path(text: &str) -> ModulePath {
        text.split("::").map(str::to_owned).collect()
    }

    #[test]
    fn a_path_is_seen_wherever_it_stands_but_in_tests() {
        let text = r#"
            use crate::{a::{self, Item}, b::*};
            pub use child::Passed;
            use std::fmt;
            fn function() -> super::Type {
                println!("{}", crate::c::value());
                child::call();
                String::new()
            }
            #[cfg(test)]
            use crate::only_for_tests;
            #[cfg(test)]
            mod tests {
                use crate::only_for_tests;
            }
            impl Item {
                #[cfg(test)]
                fn test(&self) -> crate::only_for_tests::Type {}
            }
        "#;
        let modules = ["room::this", "room::this::child"].map(path).into();
        let seen = mentioned(&path("room::this"), &modules, &syn::parse_file(text).unwrap());
        let expected = [
            "a",
            "a::Item",
            "b",
            "c::value",
            "room::Type",
            "room::this::child::Passed",
            "room::this::child::call",
        ];
        assert_eq!(seen, expected.map(path).into());
    }
}
