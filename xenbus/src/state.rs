//! The xenbus states, which both ends of a device write into their `state` nodes.

/// State of one end of a xenbus device (`xen/include/public/io/xenbus.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// No node, or a value that is no state.
    Unknown = 0,
    /// The toolstack has made the device.
    Initialising = 1,
    /// The backend waits for the frontend's page and port.
    InitWait = 2,
    /// This end has published what it has to publish, and waits for the other end.
    Initialised = 3,
    /// In service.
    Connected = 4,
    /// Going down.
    Closing = 5,
    /// Down.
    Closed = 6,
    /// Hotplug: the backend announces a change of the device list.
    Reconfiguring = 7,
    /// Hotplug: the backend has followed the change.
    Reconfigured = 8,
}

impl XenbusState {
    /// Reads the text of a `state` node; anything unreadable is [`Self::Unknown`].
    pub fn parse(text: &str) -> Self {
        // Exact texts: `parse` as a number would take "+4" and "04", which Linux does not write.
        match text {
            "1" => Self::Initialising,
            "2" => Self::InitWait,
            "3" => Self::Initialised,
            "4" => Self::Connected,
            "5" => Self::Closing,
            "6" => Self::Closed,
            "7" => Self::Reconfiguring,
            "8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// The text of the `state` node.
    pub const fn as_str(self) -> &'static str {
        ["0", "1", "2", "3", "4", "5", "6", "7", "8"][self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_are_written() {
        use XenbusState::*;
        let states = [
            Initialising,
            InitWait,
            Initialised,
            Connected,
            Closing,
            Closed,
            Reconfiguring,
            Reconfigured,
        ];
        for (state, text) in states.into_iter().zip(["1", "2", "3", "4", "5", "6", "7", "8"]) {
            assert_eq!(state.as_str(), text);
            assert_eq!(XenbusState::parse(text), state);
        }
    }

    #[test]
    fn what_is_no_state_is_unknown() {
        for text in ["", "0", "9", "4 ", "+4", "04", "four", "4\0"] {
            assert_eq!(XenbusState::parse(text), XenbusState::Unknown, "{text:?}");
        }
    }
}
