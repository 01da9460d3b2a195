//! What one source file refers to within its crate.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMacro, ItemUse, Macro, Meta, UseTree};

/// A path below the root of a crate, such as `serve::link`.
pub type ModulePath = Vec<String>;

/// One source file.
pub struct Source {
    pub lines: usize,
    /// The paths that it mentions, from the crate's root: modules, and items below them.
    pub paths: BTreeSet<ModulePath>,
}

/// Reads all modules of a crate but its root; `directory` has its sources.
pub fn read_crate(directory: &Path) -> Result<BTreeMap<ModulePath, Source>> {
    let mut files = BTreeMap::new();
    find(directory, &mut Vec::new(), &mut files)?;
    let modules: BTreeSet<ModulePath> = files.keys().cloned().collect();
    files
        .into_iter()
        .map(|(module, text)| {
            let paths = read_paths(&module, &modules, &text);
            let paths = paths.with_context(|| format!("parse {}", module.join("::")))?;
            let lines = text.lines().count();
            Ok((module, Source { lines, paths }))
        })
        .collect()
}

fn read_paths(
    module: &ModulePath,
    modules: &BTreeSet<ModulePath>,
    text: &str,
) -> syn::Result<BTreeSet<ModulePath>> {
    let mut reader = Reader {
        module,
        modules,
        paths: BTreeSet::new(),
    };
    reader.visit_file(&syn::parse_file(text)?);
    Ok(reader.paths)
}

fn find(directory: &Path, module: &mut ModulePath, files: &mut BTreeMap<ModulePath, String>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_root = module.is_empty();
        if path.is_dir() {
            // `bin` has crates of their own.
            if !(is_root && name == "bin") {
                module.push(name);
                find(&path, module, files)?;
                module.pop();
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !(is_root && matches!(&*name, "lib" | "main"))
        {
            let mut own = module.clone();
            if name != "mod" {
                own.push(name);
            }
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            files.insert(own, text);
        }
    }
    Ok(())
}

struct Reader<'a> {
    module: &'a ModulePath,
    modules: &'a BTreeSet<ModulePath>,
    paths: BTreeSet<ModulePath>,
}

impl Reader<'_> {
    /// Takes in a path as it is written.
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
        let attributes = match item {
            syn::ImplItem::Fn(item) => &*item.attrs,
            syn::ImplItem::Const(item) => &*item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        // A name that is passed on is imported too: whoever uses it from here depends on where it comes from.
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

fn attributes(item: &syn::Item) -> &[Attribute] {
    use syn::Item::{
        Const, Enum, ExternCrate, Fn, ForeignMod, Impl, Macro, Mod, Static, Struct, Trait, Type, Use,
    };
    match item {
        Const(item) => &item.attrs,
        Enum(item) => &item.attrs,
        ExternCrate(item) => &item.attrs,
        Fn(item) => &item.attrs,
        ForeignMod(item) => &item.attrs,
        Impl(item) => &item.attrs,
        Macro(item) => &item.attrs,
        Mod(item) => &item.attrs,
        Static(item) => &item.attrs,
        Struct(item) => &item.attrs,
        Trait(item) => &item.attrs,
        Type(item) => &item.attrs,
        Use(item) => &item.attrs,
        _ => &[],
    }
}

/// True for `#[cfg(test)]` and `#[test]`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::NameValue(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let seen = read_paths(&path("room::this"), &modules, text).unwrap();
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
