//! The service's launcher: a small process that alone runs other programs, so that the service itself need not be
//! able to.
//!
//! The service starts it (`bulkhead launcher`) before it gives up its privileges, and asks it over a pair of sockets,
//! one message an order and one an answer. It knows the few orders below and nothing else; when the service dies, its
//! socket ends and the launcher does so too, after what is under way.
//!
//! Only so many orders are carried out at once; further ones wait for their turn ([`queue`]). None is refused: a stub
//! that nobody destroys would live on without a record.

mod queue;

use crate::host::recreate::{self, Domain, Spare};
use crate::host::store;
use crate::host::xl;
use crate::serde_text;
use crate::terms::Terms;
use crate::xen::xenctrl::DomId;
use queue::Queue;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use xenbus::bdf::Bdf;
use xenbus::device::SlotMode;

/// How the launcher appears in a list of processes, and its subcommand.
pub const NAME: &str = "bulkhead-launcher";
const SUBCOMMAND: &str = "launcher";
/// The longest message.
const LONGEST: usize = 64 << 10;
/// How many orders of each kind may be under way at once; see [`Desk`].
const MOST_AT_ONCE: usize = 32;
/// How long the service waits for the end of an order, at most: guests wait meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a service that ends waits for the launcher's end.
const END: Duration = Duration::from_secs(10);

/// What can be ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order")]
pub enum Order {
    /// `xl destroy DOMAIN`.
    DestroyDomain {
        /// The domain.
        domid: DomId,
    },
    /// `bulkhead detach BDF`.
    Detach {
        /// The device.
        #[serde(with = "serde_text::text")]
        bdf: Bdf,
    },
    /// `bulkhead destroy BDF`: the guest that has the device.
    DestroyGuest {
        /// The device.
        #[serde(with = "serde_text::text")]
        bdf: Bdf,
    },
    /// `bulkhead recreate`: a stub with a number of our choice.
    Recreate(Domain),
    /// Nothing, once no stub is being created by a launcher of before.
    Settle,
    /// A connection to xenstore, which the service itself cannot open.
    Store,
    /// A further connection to this launcher, for another thread.
    Connection,
    /// `bulkhead attach GUEST`: devices for a guest that has none, by a new stub.
    Attach {
        /// The guest.
        guest: DomId,
        /// The devices, each with the terms that the guest had it on.
        devices: Vec<(String, Terms)>,
        /// How the guest addresses them.
        #[serde(with = "serde_text::text")]
        slots: SlotMode,
        /// The stub's image.
        kernel: String,
    },
}

impl Order {
    /// True if a command of this program carries it out, which asks the service.
    const fn is_command(&self) -> bool {
        matches!(
            self,
            Self::Detach { .. } | Self::DestroyGuest { .. } | Self::Attach { .. }
        )
    }

    fn carry_out(&self, spare: &Spare) -> Result<(), String> {
        match self {
            Self::DestroyDomain { domid } => {
                xl::destroy(&domid.to_string()).map_err(|error| error.to_string())
            }
            Self::Detach { bdf } => bulkhead(&["detach", &bdf.to_string()]),
            Self::DestroyGuest { bdf } => bulkhead(&["destroy", &bdf.to_string()]),
            Self::Attach {
                guest,
                devices,
                slots,
                kernel,
            } => {
                let (guest, slots) = (guest.to_string(), slots.to_string());
                let terms: Vec<String> = devices.iter().map(|(_, terms)| terms.to_word()).collect();
                let mut words = vec!["attach", &guest, "--slots", &slots, "--kernel", kernel];
                for ((device, _), terms) in devices.iter().zip(&terms) {
                    words.extend(["--device", device, "--recorded-terms", terms]);
                }
                bulkhead(&words)
            }
            Self::Recreate(domain) => recreate::run(domain, spare),
            Self::Settle => recreate::wait_for_all().map_err(|error| error.to_string()),
            // Answered at once, with a file: see `open`.
            Self::Store | Self::Connection => Ok(()),
        }
    }
}

/// Runs a subcommand of this program; what it says goes where our own words go.
fn bulkhead(words: &[&str]) -> Result<(), String> {
    let failed = |why: &dyn Display| format!("`bulkhead {}` failed: {why}", words.join(" "));
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    let status = command.status().map_err(|error| failed(&error))?;
    status.success().then_some(()).ok_or_else(|| failed(&status))
}

/// An order on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket(u64);

#[derive(Serialize, Deserialize)]
struct Asked {
    ticket: Ticket,
    #[serde(flatten)]
    order: Order,
}

#[derive(Serialize, Deserialize)]
struct Answered {
    ticket: Ticket,
    failure: Option<String>,
}

/// An order that was not carried out.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// No launcher.
    #[error("cannot start the launcher, which runs other programs for the service")]
    Start(#[source] io::Error),
    /// It does not answer.
    #[error("the launcher is gone: the service has to be started again")]
    Gone(#[source] io::Error),
    /// It takes too long.
    #[error("it has not ended after {} s, and goes on", TIMEOUT.as_secs())]
    Slow,
    /// The program failed.
    #[error("{0}")]
    Failed(String),
}

/// The service's end.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    next: u64,
    /// Answers that nobody has asked for yet.
    answers: BTreeMap<Ticket, Result<(), String>>,
    /// Files that came with them.
    files: BTreeMap<Ticket, OwnedFd>,
    /// True if some came in while another was waited for, so that the socket does not show them.
    others: bool,
    /// None for a further connection.
    _process: Option<Child>,
}

impl Launcher {
    /// Starts the process.
    pub fn start() -> Result<Self, LaunchError> {
        let start = || {
            let (ours, theirs) = pair()?;
            let program = std::env::current_exe()?;
            let process = Command::new(program)
                .arg0(NAME)
                .arg(SUBCOMMAND)
                .stdin(Stdio::from(theirs))
                .spawn()?;
            Ok((ours, process))
        };
        let (socket, process) = start().map_err(LaunchError::Start)?;
        Ok(Self::over(socket, Some(process)))
    }

    fn over(socket: OwnedFd, process: Option<Child>) -> Self {
        Self {
            socket,
            next: 0,
            answers: BTreeMap::new(),
            files: BTreeMap::new(),
            others: false,
            _process: process,
        }
    }

    /// Has a connection to xenstore opened, for [`store::over`].
    pub fn open_store(&mut self) -> Result<OwnedFd, LaunchError> {
        self.open(Order::Store)
    }

    /// A further connection to the same launcher, whose orders another thread can wait for.
    pub fn connect(&mut self) -> Result<Self, LaunchError> {
        Ok(Self::over(self.open(Order::Connection)?, None))
    }

    fn open(&mut self, order: Order) -> Result<OwnedFd, LaunchError> {
        let ticket = self.order(order)?;
        self.wait(ticket)?;
        let file = self.files.remove(&ticket);
        file.ok_or_else(|| LaunchError::Gone(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Has the launcher end after what is under way, and waits for that.
    pub fn end(self) {
        // Its end of the connection closes with its process.
        let told = shutdown(&self.socket, Shutdown::Write);
        let deadline = Instant::now() + END;
        while told.is_ok() && Instant::now() < deadline {
            if let Ok(true) = ready(&self.socket, Duration::from_millis(100))
                && let Ok(None) | Err(_) = hear::<Answered>(&self.socket)
            {
                return;
            }
        }
    }

    /// Gives an order.
    pub fn order(&mut self, order: Order) -> Result<Ticket, LaunchError> {
        let ticket = Ticket(self.next);
        self.next += 1;
        tell(&self.socket, &Asked { ticket, order }, None).map_err(LaunchError::Gone)?;
        Ok(ticket)
    }

    /// What became of an order; `None` while it is under way.
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
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LaunchError::Slow);
            }
            self.listen(left)?;
        }
    }

    /// True, once, if answers have come in that the socket does not show any more.
    pub fn take_others(&mut self) -> bool {
        std::mem::take(&mut self.others)
    }

    fn answer(&mut self, ticket: Ticket) -> Option<Result<(), LaunchError>> {
        let answer = self.answers.remove(&ticket)?;
        Some(answer.map_err(LaunchError::Failed))
    }

    /// Takes in the answers that have come, waiting for so long for the first one.
    fn listen(&mut self, mut longest: Duration) -> Result<(), LaunchError> {
        while ready(&self.socket, longest).map_err(LaunchError::Gone)? {
            let heard: Option<(Answered, _)> = hear(&self.socket).map_err(LaunchError::Gone)?;
            let (Answered { ticket, failure }, file) =
                heard.ok_or_else(|| LaunchError::Gone(io::ErrorKind::UnexpectedEof.into()))?;
            self.answers.insert(ticket, failure.map_or(Ok(()), Err));
            self.others = true;
            self.files.extend(file.map(|file| (ticket, file)));
            longest = Duration::ZERO;
        }
        Ok(())
    }
}

/// To be waited for: it becomes ready when an order has ended, or the launcher.
impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The launcher itself: carries out what comes over `socket` until that ends.
/// `spare` is for orders to create a stub anew.
pub fn serve(socket: OwnedFd, spare: Arc<Spare>) -> io::Result<()> {
    let desk = Arc::new(Desk::new(spare, MOST_AT_ONCE));
    attend(socket, &desk)?;
    // What is under way would end with this process.
    while !desk.is_idle() {
        thread::sleep(Duration::from_millis(20));
    }
    desk.spare.end();
    Ok(())
}

/// What all connections of a launcher share.
struct Desk {
    spare: Arc<Spare>,
    /// Orders that need nobody else.
    own: Arc<Queue>,
    /// Orders that are commands. A command waits for the service, which may wait for an order to destroy a domain. In one
    /// queue, commands that take all the turns would keep that order waiting.
    commands: Arc<Queue>,
}

impl Desk {
    /// Carries `limit` orders of each kind out at once.
    fn new(spare: Arc<Spare>, limit: usize) -> Self {
        Self {
            spare,
            own: Arc::new(Queue::new(limit)),
            commands: Arc::new(Queue::new(limit)),
        }
    }

    fn is_idle(&self) -> bool {
        self.own.is_idle() && self.commands.is_idle()
    }

    fn queue(&self, order: &Order) -> &Arc<Queue> {
        if order.is_command() {
            &self.commands
        } else {
            &self.own
        }
    }
}

fn attend(socket: OwnedFd, desk: &Arc<Desk>) -> io::Result<()> {
    let socket = Arc::new(socket);
    while let Some((asked, _)) = hear::<Asked>(&*socket)? {
        let Asked { ticket, order } = asked;
        if matches!(order, Order::Store | Order::Connection) {
            let opened = open(&order, desk);
            let failure = opened.as_ref().err().map(ToString::to_string);
            tell(&*socket, &Answered { ticket, failure }, opened.ok().as_ref())?;
            continue;
        }
        let queue = Arc::clone(desk.queue(&order));
        let (socket, spare) = (Arc::clone(&socket), Arc::clone(&desk.spare));
        queue.add(move || {
            let failure = order.carry_out(&spare).err();
            // A service that has died has no use for it.
            let _ = tell(&*socket, &Answered { ticket, failure }, None);
            if matches!(order, Order::Recreate(_)) {
                spare.prepare_soon();
            }
        })?;
    }
    Ok(())
}

/// Opens what the service cannot.
fn open(order: &Order, desk: &Arc<Desk>) -> io::Result<OwnedFd> {
    if matches!(order, Order::Store) {
        return store::connect().map_err(io::Error::other);
    }
    let (ours, theirs) = pair()?;
    let desk = Arc::clone(desk);
    thread::Builder::new().spawn(move || attend(ours, &desk))?;
    Ok(theirs)
}

/// Two ends of a connection that keeps messages apart.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

fn ready(socket: &impl AsFd, longest: Duration) -> io::Result<bool> {
    let longest = Timespec::try_from(longest).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&longest)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sends a message, with a file if there is one.
fn tell(socket: &impl AsFd, message: &impl Serialize, file: Option<&OwnedFd>) -> io::Result<()> {
    let text = serde_json::to_string(message)?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message, with the file that came along; `None` if the other end is closed.
fn hear<T: DeserializeOwned>(socket: &impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut buffer = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let pieces = &mut [IoSliceMut::new(&mut buffer)];
        match recvmsg(socket, pieces, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            received => break received?.bytes,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.last();
        }
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    impl Launcher {
        /// One that is a thread of the test.
        pub fn to_a_thread() -> (Self, thread::JoinHandle<()>) {
            let (ours, theirs) = pair().unwrap();
            let thread = thread::spawn(move || serve(theirs, Arc::default()).unwrap());
            (Self::over(ours, None), thread)
        }
    }

    /// A service whose launcher is a thread of the test.
    fn launcher() -> Launcher {
        Launcher::to_a_thread().0
    }

    #[test]
    fn orders_are_messages_that_name_what_is_to_be_done() {
        let bdf = "00:05.0".parse().unwrap();
        let asked = Asked {
            ticket: Ticket(7),
            order: Order::Detach { bdf },
        };
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(text, r#"{"ticket":7,"order":"detach","bdf":"0000:00:05.0"}"#);
        let back: Asked = serde_json::from_str(&text).unwrap();
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
            assert!(serde_json::from_str::<Asked>(text).is_err(), "{text}");
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
        let desk = Arc::new(Desk::new(Arc::default(), 1));
        let launchers = Arc::clone(&desk);
        thread::spawn(move || attend(theirs, &launchers).unwrap());
        (Launcher::over(ours, None), desk)
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
                kernel: String::new(),
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
        assert!(first.take_others());
        assert!(!first.take_others());
        assert!(matches!(first.wait(ticket), Err(LaunchError::Failed(_))));
        drop(first);
        assert!(
            second.order(Order::Settle).is_ok(),
            "it does not end with the first"
        );
    }

    #[test]
    fn a_service_that_ends_has_its_launcher_end_first() {
        let (launcher, thread) = Launcher::to_a_thread();
        launcher.end();
        thread.join().unwrap();
    }

    #[test]
    fn a_xenstore_that_is_not_there_is_said_to_be() {
        let error = launcher().open_store().unwrap_err();
        assert!(error.to_string().contains("is xenstored running"), "{error}");
    }

    #[test]
    fn a_launcher_that_is_gone_is_noticed() {
        let (ours, theirs) = pair().unwrap();
        let mut launcher = Launcher::over(ours, None);
        drop(theirs);
        let gone = launcher.run(Order::DestroyDomain { domid: 1 });
        assert!(matches!(gone, Err(LaunchError::Gone(_))));
    }
}
