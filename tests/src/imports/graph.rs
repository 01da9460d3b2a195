//! The imports between the modules of one crate.

use super::files::{File, ModulePath};
use super::source::{Source, sources};
use petgraph::algo::{condensation, tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use std::collections::{BTreeMap, BTreeSet};

/// Modules are nodes. An import is an edge from the module that uses to the module that is used.
pub struct Graph {
    modules: DiGraph<Module, ()>,
}

struct Module {
    path: ModulePath,
    lines: usize,
}

impl Module {
    fn name(&self) -> String {
        self.path.join("::")
    }

    fn room(&self) -> &str {
        self.path.first().map_or("", String::as_str)
    }
}

impl Graph {
    /// The imports of a crate.
    pub fn new(files: &BTreeMap<ModulePath, File>) -> Self {
        Self::of(&sources(files))
    }

    fn of(sources: &BTreeMap<ModulePath, Source>) -> Self {
        let mut modules = DiGraph::new();
        let nodes: BTreeMap<&ModulePath, NodeIndex> = sources
            .iter()
            .map(|(path, source)| {
                let module = Module {
                    path: path.clone(),
                    lines: source.lines,
                };
                (path, modules.add_node(module))
            })
            .collect();
        for (path, source) in sources {
            let used = source.paths.iter().filter_map(|used| {
                // The longest beginning of the path that is a module has the item.
                (1..=used.len())
                    .rev()
                    .find_map(|length| nodes.get(&used[..length].to_vec()))
            });
            let used: BTreeSet<NodeIndex> = used.copied().filter(|&used| used != nodes[path]).collect();
            for used in used {
                modules.add_edge(nodes[path], used, ());
            }
        }
        Self { modules }
    }

    /// How many modules there are.
    pub fn modules(&self) -> usize {
        self.modules.node_count()
    }

    /// How many imports there are.
    pub fn imports(&self) -> usize {
        self.modules.edge_count()
    }

    /// Groups of modules that use one another.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let mut circles: Vec<Vec<String>> = tarjan_scc(&self.modules)
            .into_iter()
            .filter(|group| group.len() > 1)
            .map(|group| {
                let mut names: Vec<String> = group.iter().map(|&node| self.modules[node].name()).collect();
                names.sort();
                names
            })
            .collect();
        circles.sort();
        circles
    }

    /// Groups of rooms that use one another.
    pub fn room_circles(&self) -> Vec<Vec<String>> {
        self.rooms_as_modules().circles()
    }

    fn rooms_as_modules(&self) -> Self {
        let mut rooms = DiGraph::new();
        let nodes: BTreeMap<String, NodeIndex> = self
            .rooms()
            .into_iter()
            .map(|(room, lines)| {
                let path = vec![room.to_owned()];
                (room.to_owned(), rooms.add_node(Module { path, lines }))
            })
            .collect();
        for edge in self.modules.edge_references() {
            let [user, used] = [edge.source(), edge.target()].map(|node| nodes[self.modules[node].room()]);
            if user != used {
                rooms.update_edge(user, used, ());
            }
        }
        Self { modules: rooms }
    }

    /// Number of floors. A module stands one floor above the highest module that it uses. Modules of a circle share one.
    pub fn floors(&self) -> usize {
        let circles = condensation(self.modules.map(|_, _| (), |_, ()| ()), true);
        let Ok(order) = toposort(&circles, None) else {
            return 0;
        };
        let mut floors = vec![1; circles.node_count()];
        for &node in order.iter().rev() {
            let below = circles.neighbors(node).map(|used| floors[used.index()]).max();
            floors[node.index()] = 1 + below.unwrap_or(0);
        }
        floors.into_iter().max().unwrap_or(0)
    }

    /// The rooms, each with its lines.
    pub fn rooms(&self) -> BTreeMap<&str, usize> {
        let mut rooms = BTreeMap::new();
        for module in self.modules.node_weights() {
            *rooms.entry(module.room()).or_default() += module.lines;
        }
        rooms
    }

    /// The longest module, with its lines.
    pub fn longest(&self) -> Option<(String, usize)> {
        let longest = self.modules.node_weights().max_by_key(|module| module.lines)?;
        Some((longest.name(), longest.lines))
    }

    /// All imports, as names.
    pub fn edges(&self) -> Vec<(String, String)> {
        let edges = self.modules.edge_references();
        let mut edges: Vec<_> = edges
            .map(|edge| {
                (
                    self.modules[edge.source()].name(),
                    self.modules[edge.target()].name(),
                )
            })
            .collect();
        edges.sort();
        edges
    }

    /// Rooms that `order` does not name.
    pub fn unplaced(&self, order: &[&str]) -> Vec<&str> {
        let rooms = self.rooms().into_keys();
        rooms.filter(|room| !order.contains(room)).collect()
    }

    /// Imports from a room to one above it. `order` has the rooms from top to bottom.
    pub fn upward(&self, order: &[&str]) -> Vec<String> {
        let floor = |module: &Module| order.iter().position(|&room| room == module.room());
        let mut upward: Vec<String> = self
            .modules
            .edge_references()
            .map(|edge| (&self.modules[edge.source()], &self.modules[edge.target()]))
            .filter(
                |(user, used)| matches!((floor(user), floor(used)), (Some(user), Some(used)) if used < user),
            )
            .map(|(user, used)| format!("{} uses {}", user.name(), used.name()))
            .collect();
        upward.sort();
        upward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(files: &[(&str, &[&str])]) -> Graph {
        let path = |text: &str| text.split("::").map(str::to_owned).collect::<ModulePath>();
        let sources = files.iter().map(|(name, paths)| {
            let paths = paths.iter().map(|used| path(used)).collect();
            (path(name), Source { lines: 10, paths })
        });
        Graph::of(&sources.collect())
    }

    #[test]
    fn modules_that_use_one_another_are_a_circle_however_far_around() {
        let graph = graph(&[
            ("a", &["b::Item", "elsewhere::Item"]),
            ("b", &["c::d::function"]),
            ("c::d", &["a"]),
            ("e", &["a", "e::Own"]),
        ]);
        assert_eq!(graph.circles(), [["a", "b", "c::d"]]);
        assert_eq!((graph.modules(), graph.imports(), graph.floors()), (4, 4, 2));
    }

    #[test]
    fn rooms_may_be_a_circle_where_their_modules_are_none() {
        let graph = graph(&[
            ("a::x", &["b::x"]),
            ("b::x", &[]),
            ("b::y", &["a::y"]),
            ("a::y", &[]),
        ]);
        assert!(graph.circles().is_empty());
        assert_eq!(graph.room_circles(), [["a", "b"]]);
    }

    #[test]
    fn an_import_of_a_room_above_is_upward() {
        let graph = graph(&[("top", &["low"]), ("low", &["top::Item"]), ("new", &[])]);
        assert_eq!(graph.upward(&["top", "low"]), ["low uses top"]);
        assert_eq!(graph.unplaced(&["top", "low"]), ["new"]);
    }
}
