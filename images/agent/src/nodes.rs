//! The nodes through which dom0 and an agent talk, below the guest's home.
//!
//! | node | written by | holds |
//! |---|---|---|
//! | `data/rig/agent` | the agent | 1, once it takes requests |
//! | `data/rig/cmd/ID` | dom0 | the request: seconds and command, with a space between them |
//! | `data/rig/out/ID/N` | the agent | the pieces of what the command printed |
//! | `data/rig/done/ID` | the agent | the [`Reply`](crate::reply::Reply), after all pieces |

/// There once the agent takes requests.
pub const AGENT: &str = "data/rig/agent";
/// Has the requests.
pub const REQUESTS: &str = "data/rig/cmd";

/// The node of a request.
pub fn request(id: &str) -> String {
    format!("{REQUESTS}/{id}")
}

/// Has the pieces of what the command of a request printed.
pub fn output(id: &str) -> String {
    format!("data/rig/out/{id}")
}

/// One of the pieces.
pub fn piece(id: &str, number: usize) -> String {
    format!("{}/{number}", output(id))
}

/// The node of the reply to a request.
pub fn reply(id: &str) -> String {
    format!("data/rig/done/{id}")
}

/// The request that a watch of [`REQUESTS`] tells of. `None` for the event that a new watch begins with.
pub fn request_of_event(path: &str) -> Option<&str> {
    path.strip_prefix(REQUESTS)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_the_request_and_the_first_one_names_none() {
        assert_eq!(request_of_event(&request("17")), Some("17"));
        assert_eq!(request_of_event(REQUESTS), None);
    }
}
