//! Cap'n Proto over a connected stream, with bounds per connection and the last check of C2.
//!
//! capnp-rpc queues calls and exports without a limit; the wrapper here counts both. It also knows
//! the moment at which a reply enters the writer, which is where a reply becomes an effect.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp_rpc::rpc_capnp::{message, return_};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Disconnector, IncomingMessage, OutgoingMessage, RpcSystem, VatNetwork, twoparty};
use distos_abi::{Fault, Meter, SlotRef};
use distos_table::{Seat, View};
use futures::FutureExt as _;
use futures::future::{Either, select};
use futures::io::{BufReader, BufWriter};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::admission::Stranger;
use crate::epoch::Epoch;
use crate::framing::{Framed, Lengths, Longest};

/// A call or reply that moves 64 KiB, with its table and its first segment, passes in one system
/// call, and so wakes the other side once.
const BUFFER_BYTES: usize = 80 * 1024;
/// How often a message may be read through before it counts as an attempt to keep the vat busy.
const TRAVERSALS: usize = 8;

/// What one connection may keep a vat busy with.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Calls that were received and not yet answered, and likewise messages that the other side
    /// has not taken yet. Beyond it the vat stops reading from the connection until there are
    /// fewer, so that a client which calls and does not read fills its own socket only.
    pub calls: usize,
    /// What both hold in memory, in 8-byte words.
    pub call_words: u64,
    /// The longest message, in 8-byte words; a longer one ends the connection before any memory
    /// is set aside for it.
    pub message_words: usize,
    /// Capabilities that the vat has exported to the other side and that were not released.
    pub exports: usize,
}

impl Bounds {
    /// For connections from holders, whom nobody vouches for.
    pub const HOLDER: Bounds =
        Bounds { calls: 32, call_words: 1 << 20, message_words: (2 << 20) / 8, exports: 4096 };
    /// For what is said of leases on a way of its own: a few renewals at one time, and what is given back with them.
    pub const LEASES: Bounds =
        Bounds { calls: 8, call_words: 1 << 16, message_words: (64 << 10) / 8, exports: 8 };
    /// For edges between vats of one node, and between a vat and its kernel. Calls go both ways
    /// there, so reading never stops.
    pub const EDGE: Bounds = Bounds {
        calls: usize::MAX,
        call_words: u64::MAX,
        message_words: (9 << 20) / 8,
        exports: usize::MAX,
    };
}

/// In whose name a reply is made.
#[derive(Clone)]
pub(crate) struct Tag {
    pub(crate) slot: SlotRef,
    /// In which epoch of its holder's node that was given, if it is another node.
    pub(crate) epoch: Option<Epoch>,
}

/// What a vat checks capabilities with. The `tag` is in whose name the reply is made that is being started right now.
pub(crate) struct Checker {
    pub(crate) view: View,
    pub(crate) guards: Seat,
    pub(crate) tag: Cell<Option<Tag>>,
}

/// Takes a connection's books apart when it is dropped: a system that is merely dropped keeps the calls
/// that it was answering, and what they hold, in a circle.
pub(crate) struct Cut(Option<Disconnector<Side>>);

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(disconnector) = self.0.take() {
            // One poll takes them apart; what it would wait for is the farewell.
            let _ = disconnector.now_or_never();
        }
    }
}

impl Cut {
    pub(crate) fn of(system: &RpcSystem<Side>) -> Cut {
        Cut(Some(system.get_disconnector()))
    }
}

/// A connection that is driven on the calling thread's `LocalSet` until it ends, or until this is dropped: then
/// the calls that still wait fail, and nothing more is sent.
pub struct Driven {
    _until: oneshot::Sender<()>,
}

impl Driven {
    /// Drives it from now on.
    pub fn new(system: RpcSystem<Side>) -> Driven {
        let (until, dropped) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // Nothing is ever sent.
            drive(system, async { drop(dropped.await) }).await;
        });
        Driven { _until: until }
    }
}

/// Drives a connection until it ends or `until` resolves. It is not driven on to say farewell: the library does
/// not bear to hear the end of a connection that it has ended itself.
pub async fn drive(system: RpcSystem<Side>, until: impl Future<Output = ()>) {
    let _cut = Cut::of(&system);
    tokio::select! {
        biased;
        () = until => {}
        // How a connection ends is the other side's affair, too.
        _ = system => {}
    }
}

/// Starts Cap'n Proto on a connected stream. The caller spawns the returned system; it ends when
/// the connection does.
pub fn start(
    stream: UnixStream,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
    bounds: Bounds,
) -> RpcSystem<Side> {
    let (reader, writer) = stream.into_split();
    over(reader, writer, side, bootstrap, bounds)
}

/// The same on any stream, as two halves. Dropping the system drops both.
pub fn over<R, W>(
    reader: R,
    writer: W,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
    bounds: Bounds,
) -> RpcSystem<Side>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    system(reader, writer, side, bootstrap, bounds, None, None)
}

/// `stranger` tells, where there is a door, whether the other side holds a capability here.
pub(crate) fn system<R, W>(
    reader: R,
    writer: W,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
    bounds: Bounds,
    checker: Option<Rc<Checker>>,
    stranger: Option<Rc<Stranger>>,
) -> RpcSystem<Side>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let mut options = ReaderOptions::new();
    // Reading a field again counts again, so this is several times what a message may hold.
    options.traversal_limit_in_words(Some(bounds.message_words * TRAVERSALS)).nesting_limit(32);
    let lengths = Lengths::default();
    let longest = Longest { words: bounds.message_words as u64, stranger };
    let reader = Framed::new(reader.compat(), longest, lengths.clone());
    let network = twoparty::VatNetwork::new(
        BufReader::with_capacity(BUFFER_BYTES, reader),
        BufWriter::with_capacity(BUFFER_BYTES, writer.compat_write()),
        side,
        options,
    );
    let ledger = Rc::new(Ledger::new(bounds, checker, lengths));
    RpcSystem::new(Box::new(Network { inner: network, ledger }), bootstrap)
}

/// The books of one connection.
struct Ledger {
    bounds: Bounds,
    /// Of messages that were read and not taken in.
    lengths: Lengths,
    checker: Option<Rc<Checker>>,
    /// Unanswered calls and the words of their parameters, by question.
    calls: RefCell<HashMap<u32, u64>>,
    call_words: Cell<u64>,
    /// Messages that wait for the other side to take them, oldest first, and their words. Not kept
    /// where there is no bound.
    unwritten: RefCell<VecDeque<(u64, Written)>>,
    unwritten_words: Cell<u64>,
    exports: Cell<usize>,
    /// Exports made by an answer that its caller has not finished with.
    answer_exports: RefCell<HashMap<u32, usize>>,
    room: Notify,
    /// That callers are done with calls which still run. It is passed on once they are answered:
    /// a call that was given up goes on to hold what it holds, so it goes on to count.
    finishes: RefCell<HashMap<u32, Box<dyn IncomingMessage>>>,
    /// What comes before anything else from the socket.
    next: RefCell<VecDeque<Box<dyn IncomingMessage>>>,
    next_added: Notify,
}

impl Ledger {
    fn new(bounds: Bounds, checker: Option<Rc<Checker>>, lengths: Lengths) -> Ledger {
        Ledger {
            bounds,
            lengths,
            checker,
            calls: RefCell::default(),
            call_words: Cell::new(0),
            unwritten: RefCell::default(),
            unwritten_words: Cell::new(0),
            exports: Cell::new(0),
            answer_exports: RefCell::default(),
            room: Notify::new(),
            finishes: RefCell::default(),
            next: RefCell::default(),
            next_added: Notify::new(),
        }
    }

    fn is_bounded(&self) -> bool {
        self.bounds.calls != usize::MAX
    }

    fn has_room(&self) -> bool {
        let words = self.call_words.get().saturating_add(self.unwritten_words.get());
        self.calls.borrow().len() < self.bounds.calls
            && self.unwritten.borrow().len() < self.bounds.calls
            && words < self.bounds.call_words
    }

    /// Resolves when the next message may be read.
    async fn until_room(&self) {
        loop {
            let answered = self.room.notified();
            futures::pin_mut!(answered);
            std::future::poll_fn(|cx| {
                self.forget_written(cx);
                match answered.as_mut().poll(cx) {
                    Poll::Pending if !self.has_room() => Poll::Pending,
                    _ => Poll::Ready(()),
                }
            })
            .await;
            if self.has_room() {
                return;
            }
        }
    }

    /// Notes a message that has entered the writer; `written` resolves when it has left.
    fn note_sent(&self, words: usize, written: Written) {
        let words = words as u64;
        self.unwritten_words.set(self.unwritten_words.get().saturating_add(words));
        self.unwritten.borrow_mut().push_back((words, written));
    }

    fn forget_written(&self, cx: &mut Context<'_>) {
        let mut unwritten = self.unwritten.borrow_mut();
        while let Some((words, written)) = unwritten.front_mut() {
            // An error means that the connection is gone, and the message with it.
            if Pin::new(written).poll(cx).is_pending() {
                return;
            }
            self.unwritten_words.set(self.unwritten_words.get().saturating_sub(*words));
            unwritten.pop_front();
        }
    }

    /// Takes in a message from the socket.
    fn receive(&self, message: Box<dyn IncomingMessage>) -> capnp::Result<()> {
        let words = self.lengths.borrow_mut().pop_front().unwrap_or(0);
        match self.note_incoming(message.get_body()?, words)? {
            Some(unanswered) => {
                self.finishes.borrow_mut().insert(unanswered, message);
            }
            None => self.next.borrow_mut().push_back(message),
        }
        Ok(())
    }

    /// The question, if the message finishes one that is not answered yet.
    fn note_incoming(
        &self,
        body: capnp::any_pointer::Reader<'_>,
        words: u64,
    ) -> capnp::Result<Option<u32>> {
        match body.get_as::<message::Reader<'_>>()?.which() {
            Ok(message::Call(call)) if self.is_bounded() => {
                let call = call?;
                if self.calls.borrow_mut().insert(call.get_question_id(), words).is_none() {
                    self.call_words.set(self.call_words.get().saturating_add(words));
                }
            }
            Ok(message::Release(release)) => {
                let count = release?.get_reference_count() as usize;
                self.exports.set(self.exports.get().saturating_sub(count));
            }
            Ok(message::Finish(finish)) => {
                let finish = finish?;
                let question = finish.get_question_id();
                if self.calls.borrow().contains_key(&question) {
                    return Ok(Some(question));
                }
                let made = self.answer_exports.borrow_mut().remove(&finish.get_question_id());
                if finish.get_release_result_caps() {
                    self.exports.set(self.exports.get().saturating_sub(made.unwrap_or(0)));
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn note_returned(&self, answer: u32) {
        let Some(words) = self.calls.borrow_mut().remove(&answer) else { return };
        self.call_words.set(self.call_words.get().saturating_sub(words));
        self.room.notify_one();
    }

    /// Passes on that a call which has just been answered is finished.
    fn release_finish(&self, answer: u32) {
        let Some(finish) = self.finishes.borrow_mut().remove(&answer) else { return };
        if finish.get_body().and_then(|body| self.note_incoming(body, 0)).is_ok() {
            self.next.borrow_mut().push_back(finish);
            self.next_added.notify_one();
        }
    }

    /// Counts the capabilities that a reply hands out; a fault if they would be too many.
    fn note_exports(&self, answer: u32, count: usize) -> Result<(), Fault> {
        let wanted = self.exports.get().saturating_add(count);
        if wanted > self.bounds.exports {
            return Err(Fault::OverQuota {
                meter: Meter::Calls,
                limit: self.bounds.exports as u64,
                wanted: wanted as u64,
            });
        }
        if count > 0 {
            self.exports.set(wanted);
            self.answer_exports.borrow_mut().insert(answer, count);
        }
        Ok(())
    }
}

struct Network<T: futures::AsyncRead + Unpin + 'static> {
    inner: twoparty::VatNetwork<T>,
    ledger: Rc<Ledger>,
}

type DynConnection = Box<dyn capnp_rpc::Connection<Side>>;

impl<T: futures::AsyncRead + Unpin> VatNetwork<Side> for Network<T> {
    fn connect(&mut self, host: Side) -> Option<DynConnection> {
        let inner = self.inner.connect(host)?;
        Some(Connection::wrap(inner, self.ledger.clone()))
    }

    fn accept(&mut self) -> Promise<DynConnection, capnp::Error> {
        let (accepted, ledger) = (self.inner.accept(), self.ledger.clone());
        Promise::from_future(async move { Ok(Connection::wrap(accepted.await?, ledger)) })
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        self.inner.drive_until_shutdown()
    }
}

/// A message from the socket; `None` at its end.
type Read = Promise<Option<Box<dyn IncomingMessage>>, capnp::Error>;

struct Connection {
    inner: Rc<RefCell<DynConnection>>,
    ledger: Rc<Ledger>,
    /// A read that something else overtook.
    read: Rc<RefCell<Option<Read>>>,
}

impl Connection {
    fn wrap(inner: DynConnection, ledger: Rc<Ledger>) -> DynConnection {
        Box::new(Connection { inner: Rc::new(RefCell::new(inner)), ledger, read: Rc::default() })
    }
}

impl capnp_rpc::Connection<Side> for Connection {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.borrow().get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        Box::new(Outgoing {
            inner: self.inner.borrow_mut().new_outgoing_message(first_segment_words),
            // Weak: an unfinished reply must not keep a closed connection open.
            connection: Rc::downgrade(&self.inner),
            tag: self.ledger.checker.as_ref().and_then(|checker| checker.tag.take()),
            ledger: self.ledger.clone(),
        })
    }

    fn receive_incoming_message(
        &mut self,
    ) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let (inner, ledger, read) = (self.inner.clone(), self.ledger.clone(), self.read.clone());
        Promise::from_future(async move {
            loop {
                if let Some(next) = ledger.next.borrow_mut().pop_front() {
                    return Ok(Some(next));
                }
                let overtaken = read.borrow_mut().take();
                let reading = match overtaken {
                    Some(reading) => reading,
                    None => {
                        let room = ledger.until_room();
                        let added = ledger.next_added.notified();
                        futures::pin_mut!(room, added);
                        if let Either::Right(_) = select(room, added).await {
                            continue;
                        }
                        inner.borrow_mut().receive_incoming_message()
                    }
                };
                let added = ledger.next_added.notified();
                futures::pin_mut!(added);
                match select(reading, added).await {
                    Either::Left((received, _)) => match received? {
                        Some(message) => ledger.receive(message)?,
                        None => return Ok(None),
                    },
                    Either::Right(((), reading)) => *read.borrow_mut() = Some(reading),
                }
            }
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        self.inner.borrow_mut().shutdown(result)
    }
}

struct Outgoing {
    inner: Box<dyn OutgoingMessage>,
    connection: Weak<RefCell<DynConnection>>,
    tag: Option<Tag>,
    ledger: Rc<Ledger>,
}

/// What the wrapper needs to know of a reply.
struct Reply {
    answer: u32,
    no_finish_needed: bool,
    caps: usize,
}

impl Outgoing {
    fn reply(&self) -> capnp::Result<Option<Reply>> {
        let body = self.inner.get_body_as_reader()?;
        let message::Return(reply) = body.get_as::<message::Reader<'_>>()?.which()? else {
            return Ok(None);
        };
        let reply = reply?;
        let caps = match reply.which()? {
            return_::Results(payload) => payload?.get_cap_table()?.len() as usize,
            _ => 0,
        };
        Ok(Some(Reply {
            answer: reply.get_answer_id(),
            no_finish_needed: reply.get_no_finish_needed(),
            caps,
        }))
    }

    /// A message that carries `fault` in place of this reply. It is a new message, so that not a
    /// byte of the refused reply leaves.
    fn refusal(
        &self,
        reply: &Reply,
        fault: &Fault,
    ) -> capnp::Result<Option<Box<dyn OutgoingMessage>>> {
        let Some(connection) = self.connection.upgrade() else {
            return Ok(None);
        };
        let mut refusal = connection.borrow_mut().new_outgoing_message(64);
        let root: message::Builder<'_> = refusal.get_body()?.init_as();
        let mut message = root.init_return();
        message.set_answer_id(reply.answer);
        message.set_release_param_caps(false);
        message.set_no_finish_needed(reply.no_finish_needed);
        let mut exception = message.init_exception();
        exception.set_reason(fault.to_wire());
        Ok(Some(refusal))
    }
}

impl Outgoing {
    fn send_reply(self, reply: &Reply) -> Sent {
        if let Err(fault) = self.ledger.note_exports(reply.answer, reply.caps) {
            return self.refuse(reply, &fault);
        }
        let (Some(checker), Some(by)) = (self.ledger.checker.clone(), self.tag.clone()) else {
            return dispatch(self.inner, &self.ledger);
        };
        if by.epoch.as_ref().is_some_and(Epoch::is_over) {
            return self.refuse(reply, &Fault::Revoked);
        }
        // The commit of a reply (C2): alive, under a guard, into the write queue.
        let Outgoing { inner, connection, tag, ledger } = self;
        let mut inner = Some(inner);
        let commit = || inner.take().map(|message| dispatch(message, &ledger));
        if let Some(Some(sent)) = checker.guards.commit(&checker.view, by.slot, commit) {
            return sent;
        }
        let inner = inner.expect("a refused commit does not run its action");
        Outgoing { inner, connection, tag, ledger }.refuse(reply, &Fault::Revoked)
    }

    /// Sends `fault` in place of this reply. The reply itself stays here, for calls that were
    /// pipelined on it: what it names checks them on its own.
    fn refuse(self, reply: &Reply, fault: &Fault) -> Sent {
        let sent = match self.refusal(reply, fault) {
            Ok(Some(refusal)) => refusal.send().0,
            Ok(None) => Promise::ok(()),
            Err(error) => Promise::err(error),
        };
        (sent, Rc::new(self.inner.take()))
    }
}

/// Resolves when a message has been written.
type Written = Promise<(), capnp::Error>;
type Sent = (Written, Rc<Builder<HeapAllocator>>);

/// Hands a message to the writer; nobody but the ledger waits until it is written.
fn dispatch(message: Box<dyn OutgoingMessage>, ledger: &Ledger) -> Sent {
    let words = message.size_in_words();
    let (written, message) = message.send();
    if !ledger.is_bounded() {
        return (written, message);
    }
    ledger.note_sent(words, written);
    (Promise::ok(()), message)
}

impl OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.inner.get_body()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.inner.get_body_as_reader()
    }

    fn send(self: Box<Self>) -> Sent {
        let reply = match self.reply() {
            Ok(Some(reply)) => reply,
            Ok(None) => return dispatch(self.inner, &self.ledger),
            Err(error) => return (Promise::err(error), Rc::new(self.inner.take())),
        };
        let (ledger, answer) = (self.ledger.clone(), reply.answer);
        ledger.note_returned(answer);
        let sent = self.send_reply(&reply);
        ledger.release_finish(answer);
        sent
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.inner.take()
    }

    fn size_in_words(&self) -> usize {
        self.inner.size_in_words()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::capability::FromClientHook;
    use distos_abi::{Generation, TenantId};
    use distos_schemas::capability_capnp::{door, edge};
    use distos_table::{GuardPage, Table};
    use std::future::Future;

    /// A server whose reply is written first and sent later: what happens in between is up to
    /// the test.
    struct Slow {
        checker: Rc<Checker>,
        slot: SlotRef,
        before_sending: Rc<dyn Fn()>,
        running: Rc<Cell<usize>>,
        go: Rc<Notify>,
    }

    impl door::Server for Slow {
        async fn challenge(
            self: Rc<Self>,
            _: door::ChallengeParams,
            mut results: door::ChallengeResults,
        ) -> Result<(), capnp::Error> {
            self.checker.tag.set(Some(Tag { slot: self.slot, epoch: None }));
            results.get().set_nonce(b"a secret that must not leave");
            self.checker.tag.set(None);
            tokio::task::yield_now().await;
            (self.before_sending)();
            Ok(())
        }

        async fn restore(
            self: Rc<Self>,
            _: door::RestoreParams,
            mut results: door::RestoreResults,
        ) -> Result<(), capnp::Error> {
            self.running.set(self.running.get() + 1);
            self.go.notified().await;
            let cap: edge::Client = capnp_rpc::new_client(Nothing);
            results.get().set_cap(cap.cast_to());
            Ok(())
        }
    }

    struct Nothing;
    impl edge::Server for Nothing {}

    struct World {
        table: Table,
        slot: SlotRef,
        checker: Rc<Checker>,
        running: Rc<Cell<usize>>,
        go: Rc<Notify>,
    }

    impl World {
        fn new() -> World {
            let (table, fd) = Table::create(8).unwrap();
            let slot = SlotRef { index: 1, generation: Generation::new(1, 1).unwrap() };
            table.publish(slot, None, TenantId(1));
            let guards = GuardPage::create(64).unwrap();
            let checker = Rc::new(Checker {
                view: View::map(&fd).unwrap(),
                guards: GuardPage::map(&guards).unwrap().seat().unwrap(),
                tag: Cell::new(None),
            });
            World { table, slot, checker, running: Rc::default(), go: Rc::default() }
        }

        /// A client of a [`Slow`] server over a real socket pair.
        fn serve(&self, bounds: Bounds, before_sending: Rc<dyn Fn()>) -> door::Client {
            let (here, there) = UnixStream::pair().unwrap();
            let (checker, slot) = (self.checker.clone(), self.slot);
            let (running, go) = (self.running.clone(), self.go.clone());
            let slow = Slow { checker: checker.clone(), slot, before_sending, running, go };
            let slow: door::Client = capnp_rpc::new_client(slow);
            let slow = capnp::capability::Client::new(slow.into_client_hook());
            let (reader, writer) = there.into_split();
            let checker = Some(checker);
            let server = system(reader, writer, Side::Server, Some(slow), bounds, checker, None);
            tokio::task::spawn_local(server);
            let mut client = start(here, Side::Client, None, Bounds::EDGE);
            let door = client.bootstrap(Side::Server);
            tokio::task::spawn_local(client);
            door
        }
    }

    fn local<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn a_reply_made_before_a_revocation_does_not_leave_after_it() {
        local(async {
            let world = Rc::new(World::new());
            let door = world.serve(Bounds::HOLDER, Rc::new(|| {}));
            let reply = door.challenge_request().send().promise.await.unwrap();
            assert_eq!(reply.get().unwrap().get_nonce().unwrap(), b"a secret that must not leave");

            let revoker = world.clone();
            let door = world.serve(
                Bounds::HOLDER,
                Rc::new(move || {
                    assert!(revoker.table.kill(revoker.slot));
                }),
            );
            let error = door.challenge_request().send().promise.await.err().unwrap();
            assert_eq!(Fault::from_wire(&error.extra), Some(Fault::Revoked));
            // The connection goes on after the refusal.
            assert!(door.challenge_request().send().promise.await.is_err());
        });
    }

    #[test]
    fn a_client_that_calls_without_end_is_held_back_and_not_buffered() {
        local(async {
            let world = World::new();
            let bounds = Bounds { calls: 4, ..Bounds::HOLDER };
            let door = world.serve(bounds, Rc::new(|| {}));
            let calls: Vec<_> = (0..20).map(|_| door.restore_request().send().promise).collect();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(world.running.get(), 4, "only as many as the bound are taken up");
            let done = tokio::task::spawn_local(futures::future::join_all(calls));
            while !done.is_finished() {
                world.go.notify_one();
                tokio::task::yield_now().await;
            }
            assert!(
                done.await.unwrap().iter().all(Result::is_ok),
                "and all are answered in the end"
            );
        });
    }

    #[test]
    fn a_client_that_does_not_read_its_replies_cannot_fill_the_vats_memory() {
        local(async {
            let (here, there) = UnixStream::pair().unwrap();
            let large = capnp_rpc::new_client::<door::Client, _>(Large);
            let large: capnp::capability::Client = large.cast_to();
            let bounds = Bounds { calls: 4, ..Bounds::HOLDER };
            tokio::task::spawn_local(start(there, Side::Server, Some(large.clone()), bounds));
            // The calls are read; no reply is.
            let calls = calls_of_a_raw_client(40);
            let (mut reader, mut writer) = here.into_split();
            let sending = tokio::task::spawn_local(async move {
                tokio::io::AsyncWriteExt::write_all(&mut writer, &calls).await.unwrap();
                writer
            });
            for _ in 0..500 {
                tokio::task::yield_now().await;
            }
            let answered = LARGE_REPLIES.with(Cell::get);
            assert!((1..=8).contains(&answered), "{answered} replies of 1 MiB were made");
            // Whoever reads gets everything.
            let mut rest = vec![0; 40 << 20];
            tokio::io::AsyncReadExt::read_exact(&mut reader, &mut rest).await.unwrap();
            drop(sending.await);
        });
    }

    #[test]
    fn calls_that_were_given_up_do_not_use_up_a_connection() {
        local(async {
            let world = World::new();
            let door = world.serve(Bounds { calls: 4, ..Bounds::HOLDER }, Rc::new(|| {}));
            for _ in 0..20 {
                let call = door.restore_request().send();
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                drop(call);
            }
            let call = tokio::task::spawn_local(door.challenge_request().send().promise);
            for _ in 0..2000 {
                world.go.notify_one();
                tokio::task::yield_now().await;
            }
            assert!(call.is_finished(), "the calls have ended, so there is room again");
            assert!(call.await.unwrap().is_ok());
        });
    }

    thread_local! {
        static LARGE_REPLIES: Cell<usize> = const { Cell::new(0) };
    }

    /// A server whose every reply is 1 MiB long.
    struct Large;

    impl door::Server for Large {
        async fn challenge(
            self: Rc<Self>,
            _: door::ChallengeParams,
            mut results: door::ChallengeResults,
        ) -> Result<(), capnp::Error> {
            LARGE_REPLIES.with(|count| count.set(count.get() + 1));
            results.get().init_nonce(1 << 20);
            Ok(())
        }

        async fn restore(
            self: Rc<Self>,
            _: door::RestoreParams,
            _: door::RestoreResults,
        ) -> Result<(), capnp::Error> {
            Ok(())
        }
    }

    /// The bytes of a client that asks for the bootstrap and calls `challenge` on it.
    fn calls_of_a_raw_client(count: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut bootstrap = Builder::new_default();
        bootstrap.init_root::<message::Builder<'_>>().init_bootstrap().set_question_id(0);
        capnp::serialize::write_message(&mut bytes, &bootstrap).unwrap();
        for question in 1..=count {
            let mut message = Builder::new_default();
            let mut call = message.init_root::<message::Builder<'_>>().init_call();
            call.set_question_id(question);
            call.set_interface_id(<door::Client as capnp::traits::HasTypeId>::TYPE_ID);
            call.set_method_id(0);
            call.reborrow().init_target().init_promised_answer().set_question_id(0);
            call.init_params();
            capnp::serialize::write_message(&mut bytes, &message).unwrap();
        }
        bytes
    }

    #[test]
    fn a_client_that_hoards_capabilities_gets_a_fault() {
        local(async {
            let world = World::new();
            let bounds = Bounds { exports: 3, ..Bounds::HOLDER };
            let door = world.serve(bounds, Rc::new(|| {}));
            let mut held = Vec::new();
            for _ in 0..3 {
                world.go.notify_one();
                held.push(door.restore_request().send().promise.await.unwrap());
            }
            world.go.notify_one();
            let refused = door.restore_request().send().promise.await.err().unwrap();
            assert_eq!(Fault::from_wire(&refused.extra).map(|f| f.code()), Some(13), "{refused}");
            held.clear();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            world.go.notify_one();
            assert!(
                door.restore_request().send().promise.await.is_ok(),
                "giving some up makes room"
            );
        });
    }
}
