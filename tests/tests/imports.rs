//! Which module may use which, in every crate.

use bulkhead_tests::imports::{CRATES, Graph};
use std::path::Path;

fn graphs() -> impl Iterator<Item = (&'static str, &'static [&'static str], Graph)> {
    CRATES.into_iter().map(|known| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let graph = Graph::read(&root.join(known.directory).join("src")).unwrap();
        assert!(graph.modules() > 1, "{}", known.directory);
        (known.directory, known.rooms, graph)
    })
}

#[test]
fn no_modules_and_no_rooms_use_one_another() {
    for (directory, _, graph) in graphs() {
        assert_eq!(graph.circles(), Vec::<Vec<String>>::new(), "{directory}");
        assert_eq!(graph.room_circles(), Vec::<Vec<String>>::new(), "{directory}");
    }
}

#[test]
fn a_room_uses_only_what_stands_below_it() {
    for (directory, rooms, graph) in graphs().filter(|(_, rooms, _)| !rooms.is_empty()) {
        assert_eq!(graph.upward(rooms), Vec::<String>::new(), "{directory}");
        let unplaced = graph.unplaced(rooms);
        assert!(
            unplaced.is_empty(),
            "{directory}: where do {unplaced:?} stand? See tests/src/imports/rooms.rs"
        );
    }
}
