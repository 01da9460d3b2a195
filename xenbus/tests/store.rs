//! The client against a model xenstored: what its callers may rely on.

use xenbus::client::{Cause, Client, QUEUED_EVENTS_MAX, Store, TRANSACTION_TRIES, Transport, WatchEvent};
use xenbus::model::{Connection, Xenstored};
use xenbus::permission::{Access, Permission};
use xenbus::wire::ErrorName;

fn connect(daemon: &Xenstored, domid: u16) -> Client<Connection> {
    Client::new(daemon.connect(domid))
}

fn event(path: &str, token: &str) -> Option<WatchEvent> {
    Some(WatchEvent {
        path: path.into(),
        token: token.into(),
    })
}

mod nodes {
    use super::*;

    #[test]
    fn what_is_written_can_be_read_and_listed() {
        let mut client = connect(&Xenstored::new(), 0);
        client.write("/a/one", "1").unwrap();
        client.write("/a/two", "").unwrap();
        client.mkdir("/a/three").unwrap();
        assert_eq!(client.read("/a/one").unwrap(), "1");
        assert_eq!(client.read("/a/three").unwrap(), "");
        let mut names = client.directory("/a").unwrap();
        names.sort();
        assert_eq!(names, ["one", "three", "two"]);
        assert!(client.directory("/a/one").unwrap().is_empty());
    }

    #[test]
    fn a_missing_node_is_told_from_a_failure() {
        let mut client = connect(&Xenstored::new(), 0);
        let error = client.read("/a/b").unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "read /a/b: ENOENT");
        assert_eq!(client.read_optional("/a/b").unwrap(), None);
        client.write("/a/b", "x").unwrap();
        assert_eq!(client.read_optional("/a/b").unwrap().as_deref(), Some("x"));
    }

    #[test]
    fn many_nodes_are_read_at_once_and_each_answer_is_of_its_node() {
        let daemon = Xenstored::new();
        let mut client = connect(&daemon, 0);
        client.watch("/a", "token").unwrap();
        // More than are under way at a time.
        let paths: Vec<String> = (0..150).map(|number| format!("/a/{number}")).collect();
        for path in paths.iter().step_by(2) {
            client.write(path, path).unwrap();
            client.write(&format!("{path}/below"), "").unwrap();
        }
        let values = client.read_many(&paths).unwrap();
        let listed = client.directories(&paths).unwrap();
        let in_transaction = client.transaction(|store| store.read_many(&paths)).unwrap();
        for (number, path) in paths.iter().enumerate() {
            let is_there = number % 2 == 0;
            assert_eq!(values[number], is_there.then(|| path.clone()));
            assert_eq!(listed[number], is_there.then(|| vec!["below".to_owned()]));
        }
        assert_eq!(in_transaction, values);
        assert!(client.has_events(), "those that came in between wait");
        assert_eq!(client.read_many(&[]).unwrap(), []);
        daemon.introduce(3);
        assert_eq!(client.are_introduced(&[3, 4, 0]).unwrap(), [true, false, true]);
        let closed = Permission {
            domid: 0,
            access: Access::None,
        };
        client.set_permissions("/a/0", &[closed]).unwrap();
        let refused = connect(&daemon, 3).read_many(&paths).unwrap_err();
        assert_eq!(refused.cause(), &Cause::Refused(ErrorName::Eacces));
    }

    #[test]
    fn many_requests_wait_for_xenstored_together() {
        let daemon = Xenstored::new();
        let mut client = connect(&daemon, 0);
        let mut waits = |ask: &mut dyn FnMut(&mut Client<Connection>)| {
            let before = daemon.round_trips();
            ask(&mut client);
            daemon.round_trips() - before
        };
        let paths = ["/a", "/b", "/c"].map(str::to_owned);
        assert_eq!(waits(&mut |client| _ = client.read_optional("/a").unwrap()), 1);
        assert_eq!(waits(&mut |client| _ = client.read_many(&paths).unwrap()), 1);
        let watches = [("/a", "1"), ("/b", "2"), ("@releaseDomain", "3")];
        assert_eq!(waits(&mut |client| client.watch_all(&watches).unwrap()), 1);
    }

    #[test]
    fn removing_takes_everything_below_along() {
        let mut client = connect(&Xenstored::new(), 0);
        client.write("/a/b/c", "x").unwrap();
        client.write("/a/bc", "x").unwrap();
        client.remove("/a/b").unwrap();
        client.remove("/a/b").unwrap();
        assert_eq!(client.directory("/a").unwrap(), ["bc"]);
        assert!(client.read("/a/b/c").unwrap_err().is_not_found());
    }

    #[test]
    fn a_relative_path_starts_at_the_callers_home() {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        connect(&daemon, 3).write("device/x", "1").unwrap();
        assert_eq!(connect(&daemon, 0).read("/local/domain/3/device/x").unwrap(), "1");
    }

    #[test]
    fn a_refusal_names_the_operation_the_node_and_the_reason() {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        let error = connect(&daemon, 3).write("/local/domain/4/x", "1").unwrap_err();
        assert_eq!(error.to_string(), "write /local/domain/4/x: EACCES");
        assert_eq!(error.cause(), &Cause::Refused(ErrorName::Eacces));
    }
}

mod permissions {
    use super::*;

    #[test]
    fn are_read_back_as_they_were_set() {
        let mut client = connect(&Xenstored::new(), 0);
        client.mkdir("/a").unwrap();
        let list = [
            Permission {
                domid: 4,
                access: Access::None,
            },
            Permission {
                domid: 3,
                access: Access::Read,
            },
            Permission {
                domid: 5,
                access: Access::Both,
            },
        ];
        client.set_permissions("/a", &list).unwrap();
        assert_eq!(client.permissions("/a").unwrap(), list);
    }

    #[test]
    fn a_device_node_is_the_owners_and_readable_by_the_other_end_only() {
        let daemon = Xenstored::new();
        let mut dom0 = connect(&daemon, 0);
        dom0.mkdir("/device").unwrap();
        dom0.set_permissions("/device", &Permission::owned_by(3, 4))
            .unwrap();

        connect(&daemon, 3).write("/device/state", "3").unwrap();
        let mut reader = connect(&daemon, 4);
        assert_eq!(reader.read("/device/state").unwrap(), "3");
        assert!(reader.write("/device/state", "4").is_err());
        assert!(connect(&daemon, 5).read("/device/state").is_err());
    }
}

mod refused_before_sending {
    use super::*;

    #[test]
    fn an_impossible_path() {
        let mut client = connect(&Xenstored::new(), 0);
        for path in ["", "/a\0b", &"/a".repeat(1537), &"a".repeat(2049)] {
            assert_eq!(client.read(path).unwrap_err().cause(), &Cause::Path);
            assert_eq!(client.watch(path, "t").unwrap_err().cause(), &Cause::Path);
        }
        assert_eq!(
            client.read("/a\0b").unwrap_err().to_string().split(": ").next(),
            Some("read /a?b")
        );
        assert!(client.read(&"/a".repeat(1536)).unwrap_err().is_not_found());
    }

    #[test]
    fn a_payload_that_xenstored_would_not_take() {
        let mut client = connect(&Xenstored::new(), 0);
        let fits = "x".repeat(4096 - 3);
        client.write("/a", &fits).unwrap();
        assert_eq!(client.read("/a").unwrap(), fits);
        let error = client.write("/a", &"x".repeat(4094)).unwrap_err();
        assert_eq!(error.cause(), &Cause::TooLong(4097));
        assert_eq!(client.read("/a").unwrap(), fits);
    }

    #[test]
    fn a_token_that_would_split() {
        let mut client = connect(&Xenstored::new(), 0);
        assert_eq!(client.watch("/a", "t\0u").unwrap_err().cause(), &Cause::Token);
        assert_eq!(client.unwatch("/a", "t\0u").unwrap_err().cause(), &Cause::Token);
    }
}

mod transactions {
    use super::*;

    #[test]
    fn happen_at_once() {
        let daemon = Xenstored::new();
        let (mut writer, mut reader) = (connect(&daemon, 0), connect(&daemon, 0));
        let seen = writer
            .transaction(|tx| {
                tx.write("/a/x", "1")?;
                assert_eq!(tx.read("/a/x")?, "1");
                assert!(reader.read("/a/x").unwrap_err().is_not_found());
                tx.write("/a/y", "2")?;
                tx.directory("/a")
            })
            .unwrap();
        assert_eq!(seen, ["x", "y"]);
        assert_eq!(reader.read("/a/y").unwrap(), "2");
    }

    #[test]
    fn run_again_when_another_writer_came_first() {
        let daemon = Xenstored::new();
        let (mut client, mut other) = (connect(&daemon, 0), connect(&daemon, 0));
        client.write("/count", "0").unwrap();
        let mut runs = 0;
        client
            .transaction(|tx| {
                let count: u32 = tx.read("/count")?.parse().unwrap();
                runs += 1;
                if runs <= 3 {
                    other.write("/count", &(10 * runs).to_string()).unwrap();
                }
                tx.write("/count", &(count + 1).to_string())
            })
            .unwrap();
        assert_eq!(runs, 4);
        assert_eq!(client.read("/count").unwrap(), "31");
    }

    #[test]
    fn give_up_against_a_writer_who_never_rests() {
        let daemon = Xenstored::new();
        let (mut client, mut other) = (connect(&daemon, 0), connect(&daemon, 0));
        let mut runs = 0;
        let error = client
            .transaction(|tx| {
                runs += 1;
                other.write("/x", &runs.to_string()).unwrap();
                tx.write("/y", "")
            })
            .unwrap_err();
        assert_eq!(runs, TRANSACTION_TRIES);
        assert_eq!(
            error.to_string(),
            "end transaction: other writers came first, 64 times in a row"
        );
        assert!(client.read("/y").unwrap_err().is_not_found());
    }

    #[test]
    fn leave_nothing_behind_when_their_body_fails() {
        let mut client = connect(&Xenstored::new(), 0);
        let error = client
            .transaction(|tx| {
                tx.write("/a", "1")?;
                tx.read("/missing")
            })
            .unwrap_err();
        assert_eq!(error.to_string(), "read /missing: ENOENT");
        assert!(client.read("/a").unwrap_err().is_not_found());
    }
}

mod watches {
    use super::*;

    #[test]
    fn fire_at_once_and_then_on_every_change_below() {
        let daemon = Xenstored::new();
        let (mut client, mut other) = (connect(&daemon, 0), connect(&daemon, 0));
        client.watch("/a", "t").unwrap();
        assert_eq!(client.next_event().unwrap(), event("/a", "t"));
        assert_eq!(client.next_event().unwrap(), None);
        other.write("/a/b/c", "1").unwrap();
        other.write("/ab", "1").unwrap();
        assert_eq!(client.next_event().unwrap(), event("/a/b/c", "t"));
        assert_eq!(client.next_event().unwrap(), None);
    }

    #[test]
    fn of_watches_that_are_set_together_come_as_of_others_and_one_that_is_refused_has_none() {
        let daemon = Xenstored::new();
        let mut client = connect(&daemon, 0);
        client.watch("/b", "t").unwrap();
        client.next_event().unwrap();
        let refused = client
            .watch_all(&[("/a", "t"), ("/b", "t"), ("/c", "t")])
            .unwrap_err();
        assert_eq!(refused.cause(), &Cause::Refused(ErrorName::Eexist));
        for path in ["/a", "/c"] {
            assert_eq!(client.next_event().unwrap(), event(path, "t"));
        }
        connect(&daemon, 0).write("/c/d", "1").unwrap();
        connect(&daemon, 0).write("/b/d", "1").unwrap();
        for path in ["/c/d", "/b/d"] {
            assert_eq!(
                client.next_event().unwrap(),
                event(path, "t"),
                "the earlier watch goes on"
            );
        }
        assert_eq!(client.next_event().unwrap(), None);
    }

    #[test]
    fn that_come_in_with_a_reply_are_not_waited_for_at_the_transport() {
        let daemon = Xenstored::new();
        let (mut client, mut other) = (connect(&daemon, 0), connect(&daemon, 0));
        client.watch("/a", "t").unwrap();
        client.next_event().unwrap();
        other.write("/a/b", "1").unwrap();
        assert!(!client.has_events());
        client.read("/a/b").unwrap();
        assert!(!client.transport_mut().ready().unwrap());
        assert!(client.has_events());
        assert_eq!(client.next_event().unwrap(), event("/a/b", "t"));
        assert!(!client.has_events());
    }

    #[test]
    fn tell_paths_in_the_spelling_they_were_set_with() {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        let mut client = connect(&daemon, 3);
        client.watch("device", "t").unwrap();
        client.next_event().unwrap();
        connect(&daemon, 0)
            .write("/local/domain/3/device/pci/0/state", "1")
            .unwrap();
        assert_eq!(client.next_event().unwrap(), event("device/pci/0/state", "t"));
    }

    #[test]
    fn fire_for_a_node_that_goes_with_its_parent() {
        let daemon = Xenstored::new();
        let (mut client, mut other) = (connect(&daemon, 0), connect(&daemon, 0));
        other.write("/a/b/state", "4").unwrap();
        client.watch("/a/b/state", "t").unwrap();
        client.next_event().unwrap();
        other.remove("/a").unwrap();
        assert_eq!(client.next_event().unwrap(), event("/a/b/state", "t"));
    }

    #[test]
    fn wait_while_a_request_is_under_way() {
        let mut client = connect(&Xenstored::new(), 0);
        client.watch("/a", "t").unwrap();
        // Its own writes fire, and those events arrive before the replies.
        for name in ["/a/1", "/a/2", "/a/1", "/a/2"] {
            client.write(name, "").unwrap();
            assert_eq!(client.read(name).unwrap(), "");
        }
        let events: Vec<_> = std::iter::from_fn(|| client.next_event().unwrap()).collect();
        assert_eq!(
            events.into_iter().map(Some).collect::<Vec<_>>(),
            [event("/a", "t"), event("/a/1", "t"), event("/a/2", "t"),]
        );
    }

    #[test]
    fn fire_when_a_transaction_is_committed_and_not_before() {
        let daemon = Xenstored::new();
        let (mut client, mut other) = (connect(&daemon, 0), connect(&daemon, 0));
        client.watch("/a", "t").unwrap();
        client.next_event().unwrap();
        other
            .transaction(|tx| {
                tx.write("/a/x", "")?;
                assert_eq!(client.next_event().unwrap(), None);
                Ok(())
            })
            .unwrap();
        assert_eq!(client.next_event().unwrap(), event("/a/x", "t"));
    }

    #[test]
    fn of_a_flood_the_watched_path_remains() {
        let mut client = connect(&Xenstored::new(), 0);
        client.watch("/a", "t").unwrap();
        for n in 0..1000 {
            client.write(&format!("/a/{n}"), "").unwrap();
        }
        let events: Vec<_> = std::iter::from_fn(|| client.next_event().unwrap()).collect();
        assert!(events.len() <= QUEUED_EVENTS_MAX + 1, "{} events", events.len());
        assert!(events.contains(&event("/a", "t").unwrap()));
    }

    #[test]
    fn end() {
        let mut client = connect(&Xenstored::new(), 0);
        client.watch("/a", "t").unwrap();
        client.write("/a", "").unwrap();
        client.unwatch("/a", "t").unwrap();
        client.write("/a", "").unwrap();
        assert_eq!(client.next_event().unwrap(), None);
        assert_eq!(
            client.unwatch("/a", "t").unwrap_err().to_string(),
            "unwatch /a: ENOENT"
        );
    }

    #[test]
    fn cannot_be_set_twice_and_then_stay_in_force() {
        let mut client = connect(&Xenstored::new(), 0);
        client.watch("/a", "t").unwrap();
        assert_eq!(
            client.watch("/a", "t").unwrap_err().to_string(),
            "watch /a: EEXIST"
        );
        assert_eq!(client.next_event().unwrap(), event("/a", "t"));
        client.write("/a", "").unwrap();
        assert_eq!(client.next_event().unwrap(), event("/a", "t"));
    }

    #[test]
    fn tell_when_a_domain_dies() {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        let mut client = connect(&daemon, 0);
        client.watch("@releaseDomain", "death").unwrap();
        client.next_event().unwrap();
        daemon.release(3);
        assert_eq!(client.next_event().unwrap(), event("@releaseDomain", "death"));
    }
}

mod domains {
    use super::*;

    #[test]
    fn have_a_home_and_are_known_while_they_live() {
        let daemon = Xenstored::new();
        let mut client = connect(&daemon, 0);
        assert_eq!(client.domain_path(7).unwrap(), "/local/domain/7");
        assert!(!client.is_introduced(7).unwrap());
        daemon.introduce(7);
        assert!(client.is_introduced(7).unwrap());
    }
}
