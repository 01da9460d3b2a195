//! The queue of watch events.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

/// Events that are queued one by one; see [`WatchEvent`] for what happens beyond.
pub const QUEUED_EVENTS_MAX: usize = 64;

/// A watch fired: the node, or one below the watched path, has changed.
///
/// Events are merged, so that a domain that writes without end cannot fill the
/// memory of one that watches (XSA-349). The same path and token are never
/// queued twice. Once [`QUEUED_EVENTS_MAX`] events wait, a further one names
/// the **watched path itself**, which means "anything at or below it may have
/// changed". No event is lost, and the queue exceeds that bound by no more
/// than the number of watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The changed node, in the spelling of the watch: relative if the watch was.
    pub path: String,
    /// The token given to the watch.
    pub token: String,
}

/// The watches that are set, and the queue of their events.
#[derive(Debug, Default)]
pub(super) struct Events {
    watches: Vec<WatchEvent>,
    /// Oldest first. It is short, so that taking the first one may move the others.
    queue: Vec<WatchEvent>,
}

impl Events {
    pub(super) fn add_watch(&mut self, path: &str, token: &str) {
        self.watches.push(WatchEvent {
            path: path.to_owned(),
            token: token.to_owned(),
        });
    }

    /// Forgets a watch and what it still has queued.
    pub(super) fn remove_watch(&mut self, path: &str, token: &str) {
        if let Some(at) = self
            .watches
            .iter()
            .position(|watch| watch.path == path && watch.token == token)
        {
            self.watches.remove(at);
            // Another watch with the same token may cover the same event.
            let watches = &self.watches;
            self.queue.retain(|event| watched_by(watches, event).is_some());
        }
    }

    /// Queues an event, merged as [`WatchEvent`] says. An event of no watch is dropped: it was under way
    /// when its watch ended.
    pub(super) fn push(&mut self, mut event: WatchEvent) {
        let Some(watch) = watched_by(&self.watches, &event) else {
            return;
        };
        // Merged into one event for each watch, which is found in the queue from then on.
        if self.queue.len() >= QUEUED_EVENTS_MAX {
            event.path.clone_from(&watch.path);
        }
        if !self.queue.contains(&event) {
            self.queue.push(event);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<WatchEvent> {
        (!self.queue.is_empty()).then(|| self.queue.remove(0))
    }
}

/// The watch that `event` belongs to.
fn watched_by<'a>(watches: &'a [WatchEvent], event: &WatchEvent) -> Option<&'a WatchEvent> {
    watches
        .iter()
        .find(|watch| watch.token == event.token && covers(&watch.path, &event.path))
}

/// True if `path` is `top` or lies below it.
fn covers(top: &str, path: &str) -> bool {
    // Not "/a" for "/ab". A top that ends in "/" is the root.
    path.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || top.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn event(path: &str, token: &str) -> WatchEvent {
        WatchEvent {
            path: path.into(),
            token: token.into(),
        }
    }

    #[test]
    fn the_same_path_and_token_wait_once() {
        let mut events = Events::default();
        events.add_watch("device", "d");
        events.add_watch("device", "e");
        for _ in 0..1000 {
            events.push(event("device/state", "d"));
            events.push(event("device/state", "e"));
        }
        assert_eq!(events.pop(), Some(event("device/state", "d")));
        assert_eq!(events.pop(), Some(event("device/state", "e")));
        assert_eq!(events.pop(), None);
    }

    #[test]
    fn beyond_the_bound_an_event_names_the_watch_and_none_is_lost() {
        let mut events = Events::default();
        events.add_watch("a", "t");
        events.add_watch("b", "t");
        for n in 0..10 * QUEUED_EVENTS_MAX {
            events.push(event(&format!("a/{n}"), "t"));
            events.push(event(&format!("b/{n}"), "t"));
        }
        assert_eq!(events.queue.len(), QUEUED_EVENTS_MAX + 2);
        assert_eq!(
            events
                .queue
                .iter()
                .filter(|queued| **queued == event("a", "t"))
                .count(),
            1
        );
        assert_eq!(
            events
                .queue
                .iter()
                .filter(|queued| **queued == event("b", "t"))
                .count(),
            1
        );
    }

    #[test]
    fn an_ended_watch_takes_its_events_along() {
        let mut events = Events::default();
        events.add_watch("a", "t");
        events.add_watch("b", "t");
        events.push(event("a/x", "t"));
        events.push(event("b/x", "t"));
        events.remove_watch("a", "t");
        events.push(event("a/late", "t"));
        assert_eq!(events.pop(), Some(event("b/x", "t")));
        assert_eq!(events.pop(), None);
    }

    #[test]
    fn a_watch_covers_its_node_and_what_is_below_only() {
        assert!(covers("/a", "/a"));
        assert!(covers("/a", "/a/b"));
        assert!(covers("/", "/a"));
        assert!(covers("@releaseDomain", "@releaseDomain"));
        assert!(!covers("/a", "/ab"));
        assert!(!covers("/a/b", "/a"));
    }
}
