//! Dom0's end: makes a request, and waits for the reply.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xenbus::client::Store as _;
use xenstore::Store;

use crate::nodes;
use crate::patience;
use crate::reply::{COMMAND_MAX, End, Reply, request};

/// How much longer than its command dom0 waits for a guest: it kills the command, and sends what that has printed.
const GRACE: Duration = Duration::from_secs(3);

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// What it printed.
    pub output: Vec<u8>,
}

/// The home of the domain with this name or number.
///
/// # Errors
/// There is none.
pub fn home(store: &mut Store, domain: &str) -> Result<String> {
    let domid = if domain.parse::<u16>().is_ok() {
        Some(domain.to_owned())
    } else {
        let domids = store.directory("/local/domain")?;
        let paths: Vec<String> = domids
            .iter()
            .map(|domid| format!("/local/domain/{domid}/name"))
            .collect();
        let names = store.read_many(&paths)?;
        let mut named = domids.into_iter().zip(names);
        named
            .find(|(_, name)| name.as_deref() == Some(domain))
            .map(|(domid, _)| domid)
    };
    let domid = domid.with_context(|| format!("no domain is named {domain}"))?;
    Ok(format!("/local/domain/{domid}"))
}

/// Runs a command in the guest with this home, for so many seconds at most; the time until its agent is up counts.
/// `Err` in the inner result says why there was no answer.
///
/// # Errors
/// The guest could not be asked.
pub fn run(
    store: &mut Store,
    home: &str,
    id: &str,
    seconds: u64,
    command: &str,
) -> Result<Result<Ended, String>> {
    if command.len() > COMMAND_MAX {
        bail!(
            "a command may have {COMMAND_MAX} bytes, this one has {}: put it into a file (guest-create -f)",
            command.len()
        );
    }
    let at = |node: String| format!("{home}/{node}");
    let end = Instant::now() + Duration::from_secs(seconds);
    let agent = at(nodes::AGENT.to_owned());
    if store.read_optional(&agent)?.is_none() {
        store.watch(&agent, "")?;
        if patience::value(store, home, &agent, end)?.is_none() {
            return Ok(Err("its agent did not come up".to_owned()));
        }
        store.unwatch(&agent, "")?;
    }
    let path = at(nodes::reply(id));
    store.watch(&path, "")?;
    let left = end.saturating_duration_since(Instant::now());
    store.write(&at(nodes::request(id)), &request(whole_seconds(left), command))?;
    let Some(reply) = patience::value(store, home, &path, end + GRACE)? else {
        // The guest may be gone, and its nodes with it.
        let _ = store.remove(&at(nodes::request(id)));
        return Ok(Err(format!("no answer to {command:?}")));
    };
    let Reply { end, pieces } = reply.parse().map_err(anyhow::Error::msg)?;
    let mut output = Vec::new();
    for number in 0..pieces {
        output.extend(store.read_bytes(&at(nodes::piece(id, number)))?);
    }
    store.remove(&path)?;
    if pieces > 0 {
        store.remove(&at(nodes::output(id)))?;
    }
    Ok(Ok(Ended { end, output }))
}

/// Rounded up.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::model::Xenstored;

    const ID: &str = "17";

    #[test]
    fn a_domain_is_found_by_its_name_or_its_number() {
        let daemon = Xenstored::new();
        let mut store = xenstore::over_model(daemon.connect(0));
        for (domid, name) in [(3, "one"), (5, "two")] {
            daemon.introduce(domid);
            store.write(&format!("/local/domain/{domid}/name"), name).unwrap();
        }
        assert_eq!(home(&mut store, "two").unwrap(), "/local/domain/5");
        assert_eq!(home(&mut store, "7").unwrap(), "/local/domain/7");
        let error = home(&mut store, "three").unwrap_err();
        assert_eq!(error.to_string(), "no domain is named three");
    }

    #[test]
    fn a_command_that_is_too_long_is_refused_before_the_guest_is_asked() {
        let mut store = xenstore::over_model(Xenstored::new().connect(0));
        let command = "x".repeat(COMMAND_MAX + 1);
        let error = run(&mut store, "/local/domain/1", ID, 9, &command).unwrap_err();
        assert!(error.to_string().contains("guest-create -f"), "{error}");
    }

    #[test]
    fn a_guest_that_has_gone_is_not_waited_for() {
        let daemon = Xenstored::new();
        let mut store = xenstore::over_model(daemon.connect(0));
        let answered = run(&mut store, "/local/domain/1", ID, 600, "true").unwrap();
        assert_eq!(answered, Err("its agent did not come up".to_owned()));
    }

    #[test]
    fn the_output_comes_from_the_pieces_and_nothing_is_left() {
        let daemon = Xenstored::new();
        daemon.introduce(1);
        let mut store = xenstore::over_model(daemon.connect(0));
        let home = "/local/domain/1";
        let nodes = [
            (nodes::AGENT.to_owned(), "1"),
            (nodes::piece(ID, 0), "one "),
            (nodes::piece(ID, 1), "two"),
            (nodes::reply(ID), "5 2"),
        ];
        for (node, value) in &nodes {
            store.write(&format!("{home}/{node}"), value).unwrap();
        }
        let answered = run(&mut store, home, ID, 9, "true").unwrap();
        assert_eq!(
            answered,
            Ok(Ended {
                end: End::Exited(5),
                output: b"one two".to_vec()
            })
        );
        assert_eq!(
            store
                .read(&format!("{home}/{}", super::nodes::request(ID)))
                .unwrap(),
            "9 true"
        );
        for node in [super::nodes::output(ID), super::nodes::reply(ID)] {
            assert_eq!(store.read_optional(&format!("{home}/{node}")).unwrap(), None);
        }
    }
}
