//! How much code a crate has, and how many comments in it.

use super::files::{File, ModulePath};
use super::test_code::{attributes, attributes_within, is_test};
use proc_macro2::{Span, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{AddAssign, RangeInclusive};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// Lines of a crate. Tests are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Lines of code: neither blank nor a comment alone.
    pub code: usize,
    /// Lines of `//` comments within functions, which say why. A comment behind code on the same line does not count.
    pub why: usize,
    /// Lines of `SAFETY` remarks within functions; none of them is in `why`.
    pub safety: usize,
}

impl Size {
    /// Comments that say why, for each 100 lines of code.
    pub fn why_per_100(self) -> f64 {
        100.0 * self.why as f64 / self.code.max(1) as f64
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.code += other.code;
        self.why += other.why;
        self.safety += other.safety;
    }
}

/// Measures a crate.
pub fn measure(files: &BTreeMap<ModulePath, File>) -> Size {
    let mut all = Size::default();
    for file in files.values() {
        all += measure_file(&file.text, &file.syntax);
    }
    all
}

fn measure_file(text: &str, syntax: &syn::File) -> Size {
    let mut regions = Regions::default();
    regions.visit_file(syntax);
    let mut with_tokens = BTreeSet::new();
    // What parses as a file consists of tokens.
    find_tokens(text.parse().unwrap_or_default(), &mut with_tokens);
    let is_in = |regions: &[Lines], line| regions.iter().any(|lines| lines.contains(&line));
    let mut size = Size::default();
    let mut in_safety = false;
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        let is_doc = text.starts_with("///") || text.starts_with("//!");
        let is_code = with_tokens.contains(&line) && !is_doc;
        let is_comment = text.starts_with("//") && !is_doc && !is_code;
        // A remark goes on for as long as comment follows comment.
        in_safety = is_comment && (in_safety || text.starts_with("// SAFETY"));
        if is_in(&regions.tests, line) {
            continue;
        }
        size.code += usize::from(is_code);
        if is_comment && is_in(&regions.functions, line) {
            size.safety += usize::from(in_safety);
            size.why += usize::from(!in_safety);
        }
    }
    size
}

/// Lines of a file, the first one being 1.
type Lines = RangeInclusive<usize>;

fn lines(span: Span) -> Lines {
    span.start().line..=span.end().line
}

/// Notes each line on which a token stands.
fn find_tokens(tokens: TokenStream, found: &mut BTreeSet<usize>) {
    for token in tokens {
        if let TokenTree::Group(group) = &token {
            found.extend(lines(group.span_open()));
            found.extend(lines(group.span_close()));
            find_tokens(group.stream(), found);
        } else {
            found.extend(lines(token.span()));
        }
    }
}

/// Parts of a file.
#[derive(Default)]
struct Regions {
    tests: Vec<Lines>,
    functions: Vec<Lines>,
}

impl<'ast> Visit<'ast> for Regions {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test(attributes(item)) {
            self.tests.push(lines(item.span()));
        } else {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        if is_test(attributes_within(item)) {
            self.tests.push(lines(item.span()));
        } else {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.functions.push(lines(function.block.span()));
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.functions.push(lines(function.block.span()));
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.functions
            .extend(function.default.iter().map(|block| lines(block.span())));
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(text: &str) -> (usize, usize, usize) {
        let Size { code, why, safety } = measure_file(text, &syn::parse_file(text).unwrap());
        (code, why, safety)
    }

    #[test]
    fn comments_within_functions_count_and_others_do_not() {
        let text = r#"
            //! A module.

            // The constant's reason.
            const A: u8 = 1;

            /// A function.
            fn f() {
                // Why this.
                // And why not that.
                g(); // Behind code.
                /// A rule.
                const B: u8 = 2;
            }
            trait T {
                // Not in a function.
                fn f(&self) {
                    // Why.
                }
            }
        "#;
        assert_eq!(measured(text), (9, 3, 0));
    }

    #[test]
    fn remarks_on_safety_are_counted_by_themselves_to_their_last_line() {
        let text = "
            fn f() {
                // SAFETY: the page is ours,
                // and mapped.
                unsafe { g() }
                // Why.
                h();
            }
        ";
        assert_eq!(measured(text), (4, 1, 2));
    }

    #[test]
    fn tests_are_left_out() {
        let text = "
            fn f() {}
            #[cfg(test)]
            mod tests {
                fn g() {
                    // Why.
                }
            }
            impl X {
                #[cfg(test)]
                fn t() {
                    // Why.
                }
            }
        ";
        assert_eq!(measured(text), (3, 0, 0));
    }

    #[test]
    fn text_that_looks_like_a_comment_is_code() {
        let text = "fn f() {\n    g(\"first\n    // second\");\n}\n";
        assert_eq!(measured(text), (4, 0, 0));
    }

    #[test]
    fn a_crate_is_the_sum_of_its_files() {
        let mut all = Size::default();
        for why in [2, 4] {
            all += Size {
                code: 100,
                why,
                safety: 1,
            };
        }
        assert_eq!((all.code, all.safety, all.why_per_100()), (200, 2, 3.0));
        assert_eq!(Size::default().why_per_100(), 0.0);
    }
}
