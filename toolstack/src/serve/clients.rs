//! The clients of the control socket. Each has a thread of its own, so that a client that sends nothing, or does not take its
//! answer, keeps nobody else waiting.

use super::wake::Wake;
use crate::control::{self, Listener, Reply, Request};
use rustix::fd::{AsFd, BorrowedFd};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Most clients at one time. Each takes a thread and a descriptor of the service.
const MOST: usize = 32;

/// How a request is answered: at once, or by more work in the client's thread.
pub type Answer = Box<dyn FnOnce() -> Reply + Send>;

/// A request of a client that waits for the answer.
pub struct ClientRequest {
    pub request: Request,
    /// If this is dropped, the client hears that nothing was done.
    pub client: Client,
}

/// A client that waits.
#[derive(Clone)]
pub struct Client(Sender<Answer>);

impl Client {
    /// Gives the answer.
    pub fn reply(self, reply: Reply) {
        self.finish(move || reply);
    }

    /// Has the client's own thread find the answer out.
    pub fn finish(self, answer: impl FnOnce() -> Reply + Send + 'static) {
        // A client that has gone away needs no answer.
        let _ = self.0.send(Box::new(answer));
    }
}

/// The control socket, and the requests that have come in over it.
pub struct Clients {
    listener: Listener,
    requests: Receiver<ClientRequest>,
    acceptor: Acceptor,
}

/// Gives each client its thread.
struct Acceptor {
    sender: Sender<ClientRequest>,
    wake: Wake,
    present: Arc<AtomicUsize>,
}

impl Clients {
    /// The clients of this socket. Their requests call `wake`.
    pub fn new(listener: Listener, wake: Wake) -> Self {
        let (sender, requests) = channel();
        Self {
            listener,
            requests,
            acceptor: Acceptor {
                sender,
                wake,
                present: Arc::default(),
            },
        }
    }

    /// Accepts a client that waits.
    pub fn accept(&self) -> io::Result<()> {
        match self.listener.accept()? {
            Some(stream) => self.acceptor.accept(stream),
            None => Ok(()),
        }
    }

    /// A request that waits.
    pub fn next(&self) -> Option<ClientRequest> {
        self.requests.try_recv().ok()
    }
}

impl Acceptor {
    /// Gives a client a thread, unless there are too many.
    fn accept(&self, mut stream: UnixStream) -> io::Result<()> {
        // Counted here and not in the thread: a burst of clients must not start more threads than that.
        let presence = Presence::new(&self.present);
        if presence.number > MOST {
            let message = format!("{MOST} commands are waiting for the service already: try again later");
            return control::reply(&mut stream, &Reply::Error { message });
        }
        let (sender, wake) = (self.sender.clone(), self.wake.clone());
        thread::Builder::new().name("client".into()).spawn(move || {
            // Until the thread ends, however it does.
            let _presence = presence;
            if let Err(error) = attend(stream, &sender, &wake) {
                log::warn!("a client of the control socket went away: {error}");
            }
        })?;
        Ok(())
    }
}

impl AsFd for Clients {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Reads a client's request, has it answered, and sends the answer.
fn attend(mut stream: UnixStream, sender: &Sender<ClientRequest>, wake: &Wake) -> io::Result<()> {
    let Some(request) = control::read_request(&stream)? else {
        return Ok(());
    };
    let reply = match request {
        Ok(request) => {
            let (client, answer) = channel();
            let client = Client(client);
            // If the main thread has ended, `recv` fails below.
            let _ = sender.send(ClientRequest { request, client });
            wake.wake();
            answer.recv().map_or_else(
                |_| Reply::Error {
                    message: "the request was dropped: try again".into(),
                },
                |answer| answer(),
            )
        }
        Err(refusal) => refusal,
    };
    control::reply(&mut stream, &reply)
}

/// Counts the clients.
struct Presence {
    present: Arc<AtomicUsize>,
    number: usize,
}

impl Presence {
    fn new(present: &Arc<AtomicUsize>) -> Self {
        let number = present.fetch_add(1, Ordering::AcqRel) + 1;
        Self {
            present: Arc::clone(present),
            number,
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.present.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::time::{Duration, Instant};

    /// A client whose thread is started by the caller's.
    pub fn attend_in_thread(stream: UnixStream, wake: &Wake) -> Receiver<ClientRequest> {
        let (sender, requests) = channel();
        let wake = wake.clone();
        thread::spawn(move || attend(stream, &sender, &wake).unwrap());
        requests
    }

    fn client() -> (
        UnixStream,
        std::thread::JoinHandle<io::Result<()>>,
        Receiver<ClientRequest>,
    ) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, requests) = channel();
        let wake = Wake::new().unwrap();
        let thread = thread::spawn(move || attend(theirs, &sender, &wake));
        (ours, thread, requests)
    }

    fn answer(stream: &mut UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_client_gets_the_answer_to_its_request() {
        let (mut stream, thread, requests) = client();
        stream
            .write_all(b"{\"request\":\"follow\",\"stub\":4}\n")
            .unwrap();
        let asked = requests.recv().unwrap();
        assert_eq!(asked.request, Request::Follow { stub: 4 });
        asked.client.reply(Reply::Followed);
        assert_eq!(answer(&mut stream), "{\"reply\":\"followed\"}\n");
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn one_whose_request_is_dropped_hears_of_it_and_nonsense_is_refused() {
        let (mut stream, _, requests) = client();
        stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
        drop(requests.recv().unwrap());
        assert!(answer(&mut stream).contains("try again"));
        let (mut stream, _, requests) = client();
        stream.write_all(b"\xff\xfe\n").unwrap();
        assert!(answer(&mut stream).contains("no request"));
        assert!(requests.try_recv().is_err());
    }

    #[test]
    fn one_that_only_looks_whether_somebody_listens_asks_nothing() {
        let (stream, thread, requests) = client();
        drop(stream);
        thread.join().unwrap().unwrap();
        assert!(requests.try_recv().is_err());
    }

    #[test]
    fn one_too_many_is_refused_until_another_has_gone() {
        let (sender, requests) = channel();
        let acceptor = Acceptor {
            sender,
            wake: Wake::new().unwrap(),
            present: Arc::default(),
        };
        let come = || {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(b"{\"request\":\"status\"}\n").unwrap();
            ours.set_read_timeout(Some(control::TIMEOUT)).unwrap();
            acceptor.accept(theirs).unwrap();
            ours
        };
        let mut inside: Vec<_> = (0..MOST).map(|_| come()).collect();
        let mut waiting: Vec<_> = (0..MOST).map(|_| requests.recv().unwrap()).collect();
        for _ in 0..2 {
            // Its request is never read, so that after the line comes an error and no end.
            let mut line = String::new();
            BufReader::new(come()).read_line(&mut line).unwrap();
            assert!(line.contains("32 commands are waiting"), "{line}");
        }
        assert!(requests.try_recv().is_err());
        // Whose turn comes first is open: the requests are all the same.
        waiting.pop().unwrap().client.reply(Reply::Followed);
        while acceptor.present.load(Ordering::Acquire) == MOST {
            thread::yield_now();
        }
        inside.push(come());
        waiting.push(requests.recv().unwrap());
        drop(waiting);
        let answers: Vec<String> = inside.iter_mut().map(answer).collect();
        let followed = answers.iter().filter(|text| text.contains("followed")).count();
        assert_eq!((followed, answers.len()), (1, MOST + 1));
    }

    #[test]
    fn a_silent_client_is_left_behind_in_the_end() {
        let began = Instant::now();
        let (mut stream, thread, _requests) = client();
        // A byte now and then does not make its time longer.
        while !thread.is_finished() && began.elapsed() < control::TIMEOUT * 2 {
            let _ = stream.write_all(b" ");
            thread::sleep(Duration::from_millis(100));
        }
        assert!(thread.join().unwrap().is_err());
    }
}
