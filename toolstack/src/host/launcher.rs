//! The service's launcher: its first process. Only the launcher runs other programs, so that the workers, which
//! handle the stubs' data, need no privileges for that.
//!
//! It starts the workers (`serve::workers`). Each sends it orders over a pair of sockets, one message for an order
//! and one for an answer. The launcher knows the few [orders](Order) and nothing else ([`desk`]). When a worker dies,
//! its orders are still carried out.

pub mod desk;
pub mod messages;
mod queue;

use messages::{Answered, PlacedOrder, hear, ready, tell};
pub use messages::{Order, ServiceHistory, SharedFile, Ticket};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::SendFlags;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Limit for a worker to wait for the end of an order: guests wait meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An order that was not carried out.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The launcher does not answer.
    #[error("the service's launcher is gone: the service has to be started again")]
    Gone(#[source] io::Error),
    /// The order takes longer than [`TIMEOUT`].
    #[error("it has not ended after {} s, and goes on", TIMEOUT.as_secs())]
    Slow,
    /// The order failed.
    #[error("{0}")]
    Failed(String),
}

/// A worker's end of its connection to the launcher.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    next: u64,
    /// Answers that were received and not asked for yet.
    answers: BTreeMap<Ticket, Result<(), String>>,
    /// Files that came with them.
    files: BTreeMap<Ticket, OwnedFd>,
    /// What the launcher has told of the service.
    history: Option<ServiceHistory>,
    /// True if answers were received while another one was waited for, so that the socket is not ready for them.
    unseen: bool,
}

impl Launcher {
    /// The launcher at the other end of this socket.
    pub const fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            next: 0,
            answers: BTreeMap::new(),
            files: BTreeMap::new(),
            history: None,
            unseen: false,
        }
    }

    /// Orders a connection to xenstore, for [`over`](crate::host::store::over).
    pub fn open_store(&mut self) -> Result<OwnedFd, LaunchError> {
        self.open(Order::Store)
    }

    /// A further connection to the same launcher, whose orders another thread can wait for.
    pub fn connect(&mut self) -> Result<Self, LaunchError> {
        Ok(Self::over(self.open(Order::Connection)?))
    }

    /// A file that all workers have in common.
    pub fn share(&mut self, file: SharedFile) -> Result<OwnedFd, LaunchError> {
        self.open(Order::Share { file })
    }

    fn open(&mut self, order: Order) -> Result<OwnedFd, LaunchError> {
        let ticket = self.order(order)?;
        self.wait(ticket)?;
        // A launcher that reports success without a file has broken off.
        let file = self.files.remove(&ticket);
        file.ok_or_else(|| LaunchError::Gone(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Gives an order.
    pub fn order(&mut self, order: Order) -> Result<Ticket, LaunchError> {
        let ticket = Ticket(self.next);
        self.next += 1;
        tell(
            &self.socket,
            &PlacedOrder { ticket, order },
            None,
            SendFlags::empty(),
        )
        .map_err(LaunchError::Gone)?;
        Ok(ticket)
    }

    /// Tells that this worker's loop goes on. It does not wait: a launcher that takes no messages hangs itself.
    pub fn tell_alive(&mut self) -> Result<(), LaunchError> {
        let (ticket, order) = (Ticket(self.next), Order::Alive);
        self.next += 1;
        match tell(
            &self.socket,
            &PlacedOrder { ticket, order },
            None,
            SendFlags::DONTWAIT,
        ) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(LaunchError::Gone(error)),
            _ => Ok(()),
        }
    }

    /// The result of an order; `None` while it is under way.
    pub fn poll(&mut self, ticket: Ticket) -> Result<Option<Result<(), LaunchError>>, LaunchError> {
        self.listen(Duration::ZERO)?;
        Ok(self.answer(ticket))
    }

    /// Gives an order and waits until it is carried out.
    pub fn run(&mut self, order: Order) -> Result<(), LaunchError> {
        let ticket = self.order(order)?;
        self.wait(ticket)
    }

    /// Waits until an order is carried out.
    pub fn wait(&mut self, ticket: Ticket) -> Result<(), LaunchError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(answer) = self.answer(ticket) {
                return answer;
            }
            // Other answers may come in meanwhile, so the time that is left shrinks.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LaunchError::Slow);
            }
            self.listen(left)?;
        }
    }

    /// True, once, if answers have come in that the socket does not show any more.
    pub fn take_unseen(&mut self) -> bool {
        std::mem::take(&mut self.unseen)
    }

    /// What has become of the service so far; `None` before this worker's turn has come.
    pub const fn history(&self) -> Option<&ServiceHistory> {
        self.history.as_ref()
    }

    fn answer(&mut self, ticket: Ticket) -> Option<Result<(), LaunchError>> {
        let answer = self.answers.remove(&ticket)?;
        Some(answer.map_err(LaunchError::Failed))
    }

    /// Receives the answers that have come. Waits for the first one for `longest` at most.
    fn listen(&mut self, mut longest: Duration) -> Result<(), LaunchError> {
        while ready(&self.socket, longest).map_err(LaunchError::Gone)? {
            let heard: Option<(Answered, _)> = hear(&self.socket).map_err(LaunchError::Gone)?;
            let (answered, file) =
                heard.ok_or_else(|| LaunchError::Gone(io::ErrorKind::UnexpectedEof.into()))?;
            let Answered {
                ticket,
                failure,
                history,
            } = answered;
            self.history = history.or(self.history.take());
            self.answers.insert(ticket, failure.map_or(Ok(()), Err));
            self.unseen = true;
            self.files.extend(file.map(|file| (ticket, file)));
            // Only the first answer is waited for; the others must be there already.
            longest = Duration::ZERO;
        }
        Ok(())
    }
}

/// The socket, which becomes ready when an order has ended, or the launcher.
impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::desk::{Desk, News, SharedFiles, attend};
    use super::messages::pair;
    use super::queue::Queue;
    use super::*;
    use crate::host::guest_config::StubOrigin;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use xenbus::device::SlotMode;

    /// Files that are good for nothing.
    fn files() -> SharedFiles {
        let file = || File::open("/dev/null").unwrap().into();
        SharedFiles {
            socket: file(),
            lock: file(),
            uevents: file(),
        }
    }

    impl Launcher {
        /// One that is a thread of the test.
        pub fn to_a_thread() -> (Self, thread::JoinHandle<()>) {
            let (ours, theirs) = pair().unwrap();
            let desk = Arc::new(Desk::new(files(), give));
            let thread = thread::spawn(move || attend(theirs, 0, &desk).unwrap());
            (Self::over(ours), thread)
        }
    }

    /// Has each worker serve that is set up.
    fn give(news: News) {
        if let News::Ready(turn) = news {
            turn.give(ServiceHistory::default());
        }
    }

    /// A desk, and what workers say of themselves.
    fn desk(files: SharedFiles) -> (Arc<Desk>, Receiver<News>) {
        let (sender, news) = channel();
        let desk = Desk::new(files, move |news| sender.send(news).unwrap());
        (Arc::new(desk), news)
    }

    /// A worker of this desk.
    fn worker(id: desk::WorkerId, desk: &Arc<Desk>) -> Launcher {
        let (ours, theirs) = pair().unwrap();
        let desk = Arc::clone(desk);
        thread::spawn(move || attend(theirs, id, &desk));
        Launcher::over(ours)
    }

    /// A service whose launcher is a thread of the test.
    fn launcher() -> Launcher {
        Launcher::to_a_thread().0
    }

    #[test]
    fn orders_are_messages_that_name_what_is_to_be_done() {
        let bdf = "00:05.0".parse().unwrap();
        let asked = PlacedOrder {
            ticket: Ticket(7),
            order: Order::Detach { bdf },
        };
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(text, r#"{"ticket":7,"order":"detach","bdf":"0000:00:05.0"}"#);
        let back: PlacedOrder = serde_json::from_str(&text).unwrap();
        assert_eq!((back.ticket, back.order), (asked.ticket, asked.order));
    }

    #[test]
    fn nothing_else_can_be_ordered() {
        for text in [
            r#"{"ticket":7,"order":"sh","bdf":"0000:00:05.0"}"#,
            r#"{"ticket":7,"order":"detach","bdf":"; reboot"}"#,
            r#"{"ticket":7,"order":"open","path":"/etc/shadow"}"#,
            r#"{"ticket":7,"order":"destroy_domain","domid":"0"}"#,
            r#"{"order":"destroy_domain","domid":4}"#,
        ] {
            assert!(serde_json::from_str::<PlacedOrder>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_failure_comes_back_to_the_one_who_asked() {
        // There is no Xen here, nor a domain with this number.
        let mut launcher = launcher();
        let order = Order::DestroyDomain { domid: 32_751 };
        let error = launcher.run(order.clone()).unwrap_err();
        assert!(matches!(error, LaunchError::Failed(_)), "{error:?}");
        let tickets = [
            launcher.order(order.clone()).unwrap(),
            launcher.order(order).unwrap(),
        ];
        for ticket in tickets {
            let answer = loop {
                if let Some(answer) = launcher.poll(ticket).unwrap() {
                    break answer;
                }
                thread::sleep(Duration::from_millis(1));
            };
            assert!(answer.is_err());
        }
    }

    /// A service, and the desk of its launcher, which carries out one order of each kind at a time.
    fn one_at_a_time() -> (Launcher, Arc<Desk>) {
        let (ours, theirs) = pair().unwrap();
        let desk = Arc::new(Desk::with_limit(files(), give, 1));
        let launchers = Arc::clone(&desk);
        thread::spawn(move || attend(theirs, 0, &launchers).unwrap());
        (Launcher::over(ours), desk)
    }

    /// Keeps a queue busy until the sender is dropped.
    fn occupy(queue: &Arc<Queue>) -> Sender<()> {
        let (sender, end) = channel();
        queue
            .add(move || {
                let _ = end.recv();
            })
            .unwrap();
        sender
    }

    #[test]
    fn orders_beyond_the_limit_wait_and_all_are_carried_out() {
        let (mut launcher, desk) = one_at_a_time();
        let busy = occupy(&desk.own);
        let order = Order::DestroyDomain { domid: 32_751 };
        let tickets: Vec<Ticket> = (0..100).map(|_| launcher.order(order.clone()).unwrap()).collect();
        thread::sleep(Duration::from_millis(50));
        assert!(launcher.poll(tickets[0]).unwrap().is_none(), "it waits");
        drop(busy);
        // There is no Xen here: each answer is `xl`'s.
        let carried_out = |answer: Result<_, LaunchError>| answer.unwrap_err().to_string().contains("xl");
        assert!(
            tickets
                .into_iter()
                .all(|ticket| carried_out(launcher.wait(ticket)))
        );
        while !desk.is_idle() {
            thread::yield_now();
        }
    }

    #[test]
    fn commands_that_wait_for_the_service_do_not_keep_its_own_orders_waiting() {
        let (mut launcher, desk) = one_at_a_time();
        // For good: no command is to run from a test.
        std::mem::forget(occupy(&desk.commands));
        let bdf = "00:05.0".parse().unwrap();
        let commands = [
            Order::Detach { bdf },
            Order::DestroyGuest { bdf },
            Order::Attach {
                guest: 3,
                devices: Vec::new(),
                slots: SlotMode::Vpci,
                origin: StubOrigin::default(),
            },
        ];
        let waiting = commands.map(|command| launcher.order(command).unwrap());
        let destroyed = launcher.run(Order::DestroyDomain { domid: 32_751 });
        assert!(matches!(destroyed, Err(LaunchError::Failed(_))));
        for ticket in waiting {
            assert!(launcher.poll(ticket).unwrap().is_none());
        }
    }

    #[test]
    fn a_thread_of_the_service_has_a_connection_of_its_own_to_the_launcher() {
        let mut first = launcher();
        let mut second = first.connect().unwrap();
        let order = Order::DestroyDomain { domid: 32_751 };
        let ticket = first.order(order.clone()).unwrap();
        assert!(matches!(second.run(order), Err(LaunchError::Failed(_))));
        while first.answers.is_empty() {
            first.connect().unwrap();
        }
        // It came in while something else was waited for: nobody would see it at the socket.
        assert!(first.take_unseen());
        assert!(!first.take_unseen());
        assert!(matches!(first.wait(ticket), Err(LaunchError::Failed(_))));
        drop(first);
        assert!(
            second.order(Order::AwaitCreations).is_ok(),
            "it does not end with the first"
        );
    }

    #[test]
    fn a_worker_serves_when_it_is_given_its_turn_and_not_before() {
        let (desk, turns) = desk(files());
        let mut worker = worker(7, &desk);
        let ticket = worker.order(Order::Serve).unwrap();
        let Ok(News::Ready(turn)) = turns.recv() else {
            panic!("it is not set up")
        };
        assert_eq!(turn.worker, 7);
        // An order of later is answered meanwhile.
        worker.share(SharedFile::Lock).unwrap();
        assert!(worker.poll(ticket).unwrap().is_none());
        assert_eq!(worker.history(), None);
        let history = ServiceHistory {
            started: 1_795_968_000,
            died: 2,
            hung: 1,
        };
        turn.give(history.clone());
        assert!(worker.wait(ticket).is_ok());
        // An answer of later does not change it.
        worker.share(SharedFile::Lock).unwrap();
        assert_eq!(worker.history(), Some(&history));
        worker.run(Order::Begun).unwrap();
        assert!(matches!(turns.recv(), Ok(News::Began(7))));
    }

    #[test]
    fn a_worker_that_goes_on_says_so_as_often_as_it_likes_and_has_no_answer() {
        let (desk, _news) = desk(files());
        let mut worker = worker(7, &desk);
        for _ in 0..3 {
            worker.tell_alive().unwrap();
        }
        worker.share(SharedFile::Lock).unwrap();
        assert!(worker.answers.is_empty());
        assert!(desk.take_alive(7));
        assert!(!desk.take_alive(7), "once");
        worker.tell_alive().unwrap();
        worker.share(SharedFile::Lock).unwrap();
        desk.cut(7);
        assert!(!desk.take_alive(7), "it has ended");
    }

    #[test]
    fn a_launcher_that_takes_nothing_does_not_keep_a_worker_from_its_work() {
        let (ours, _theirs) = pair().unwrap();
        let mut worker = Launcher::over(ours);
        for _ in 0..10_000 {
            worker.tell_alive().unwrap();
        }
    }

    #[test]
    fn a_worker_that_says_of_itself_what_it_has_said_loses_its_connection() {
        for order in [Order::Serve, Order::Begun] {
            let (desk, _news) = desk(files());
            let mut first = worker(0, &desk);
            let mut other = first.connect().unwrap();
            first.order(order.clone()).unwrap();
            first.share(SharedFile::Lock).unwrap();
            first.order(order.clone()).unwrap();
            assert!(matches!(first.share(SharedFile::Lock), Err(LaunchError::Gone(_))));
            // Nor does it say so over a further connection.
            assert!(matches!(other.run(order), Err(LaunchError::Gone(_))));
        }
    }

    #[test]
    fn a_worker_that_takes_no_answers_keeps_nobody_waiting() {
        let (desk, _news) = desk(files());
        let mut worker = worker(0, &desk);
        let gone = (0..100_000).any(|_| {
            worker
                .order(Order::Share {
                    file: SharedFile::Lock,
                })
                .is_err()
        });
        assert!(gone, "its connection is ended");
    }

    #[test]
    fn with_a_worker_end_all_of_its_connections_whoever_has_copies() {
        let (desk, _news) = desk(files());
        let mut dead = worker(0, &desk);
        let mut further = dead.connect().unwrap();
        let mut other = worker(1, &desk);
        desk.cut(0);
        assert!(matches!(dead.share(SharedFile::Lock), Err(LaunchError::Gone(_))));
        assert!(matches!(
            further.share(SharedFile::Lock),
            Err(LaunchError::Gone(_))
        ));
        assert!(other.share(SharedFile::Lock).is_ok());
    }

    #[test]
    fn workers_have_the_launchers_files_and_each_the_one_that_it_asks_for() {
        let texts = ["socket", "lock", "uevents"];
        let [socket, lock, uevents] = texts.map(|text| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.into()
        });
        let (desk, _turns) = desk(SharedFiles {
            socket,
            lock,
            uevents,
        });
        for id in [0, 1] {
            let mut worker = worker(id, &desk);
            let shared = [SharedFile::Socket, SharedFile::Lock, SharedFile::Uevents].map(|file| {
                let (mut file, mut text) = (File::from(worker.share(file).unwrap()), String::new());
                file.rewind().unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            });
            assert_eq!(shared, texts);
        }
    }

    #[test]
    fn a_service_that_ends_is_heard_by_nobody_any_more_while_orders_are_under_way() {
        let (mut client, socket) = UnixStream::pair().unwrap();
        let (desk, _turns) = desk(SharedFiles {
            socket: socket.into(),
            ..files()
        });
        let busy = occupy(&desk.own);
        let closed = thread::spawn({
            let desk = Arc::clone(&desk);
            move || desk.close(Duration::from_secs(60))
        });
        // A client that asks now is not kept waiting.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(worker(0, &desk).share(SharedFile::Lock).is_err());
        assert!(!closed.is_finished());
        drop(busy);
        closed.join().unwrap();
    }

    #[test]
    fn what_a_dead_worker_has_ordered_goes_on_and_is_waited_for() {
        let (mut launcher, desk) = one_at_a_time();
        let busy = occupy(&desk.own);
        launcher.order(Order::DestroyDomain { domid: 32_751 }).unwrap();
        drop(launcher);
        let closed = thread::spawn({
            let desk = Arc::clone(&desk);
            move || desk.close(Duration::from_secs(60))
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!closed.is_finished());
        drop(busy);
        closed.join().unwrap();
        assert!(desk.is_idle());
    }

    #[test]
    fn a_xenstore_that_is_not_there_is_said_to_be() {
        let error = launcher().open_store().unwrap_err();
        assert!(error.to_string().contains("is xenstored running"), "{error}");
    }

    #[test]
    fn a_launcher_that_is_gone_is_noticed() {
        let (ours, theirs) = pair().unwrap();
        let mut launcher = Launcher::over(ours);
        drop(theirs);
        let gone = launcher.run(Order::DestroyDomain { domid: 1 });
        assert!(matches!(gone, Err(LaunchError::Gone(_))));
    }
}
