//! What givers, a receiver and their home did, each a process of its own, is a behaviour of their model
//! (`specs/handoff`), and no step of it could be another (C2, C4, N3). Receiver and stranger come over QUIC, each by the
//! SVID that it has, and givers are killed while they pass calls on and when they have nothing to do any more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Authority, Fault, Rights};
use distos_client::Connection;
use distos_client::handoff::{self, Home};
use distos_e2e::cluster::{Desk, LOOPBACK, Member, acquaint, alone_with, connect};
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::images::traced;
use distos_e2e::steps::step;
use distos_e2e::watch::Watched;
use distos_e2e::{COMMAND_TIMEOUT, eventually};
use distos_identity::{Subject, TenantName};
use distos_rpc::transport::{self, Bounds, Driven};
use distos_schemas::memory_capnp::region;
use distos_specs::trace::handoff::forged::forged;
use distos_specs::trace::handoff::{SPEC, events, giver_has_left, trace};
use distos_specs::value::Value;
use futures::future::LocalBoxFuture;
use rustix::process::Signal;
use tokio::net::UnixStream;

use super::{LONG, accepted, refused};

const GIVER: &str = env!("CARGO_BIN_EXE_distos-e2e-giver");
const BOTH: Rights = Rights::READ.join(Rights::WRITE);
/// Calls that wait for their answer. All are writes of one page, which take effect in the order in which they came.
const AT_A_TIME: usize = 6;

/// When a giver is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    /// When what it gave from has been revoked.
    Last,
    /// When the receiver has let go of it.
    Released,
    /// While it passes on what is called, though the receiver has changed over.
    Proxying,
    /// When it has given, and the receiver has not taken yet.
    Untaken,
}

impl Killed {
    const ALL: [Killed; 4] = [Killed::Last, Killed::Released, Killed::Proxying, Killed::Untaken];

    /// At least so many events of each kind.
    fn least(self) -> Vec<(&'static str, usize)> {
        let once = ["settle", "deposit", "deposited", "offer", "stranger", "withdraw", "granted"];
        let ends = ["withdrawn", "revoke", "giver_dies", "giver_session_ends"];
        let mut least: Vec<_> = once.into_iter().chain(ends).map(|kind| (kind, 1)).collect();
        least.extend([("call", 11), ("forward", 5), ("proxied", 5), ("direct", 6)]);
        if self != Killed::Untaken {
            least.extend([("forward_flush", 1), ("flushed", 1), ("go_direct", 1)]);
        }
        if matches!(self, Killed::Last | Killed::Released) {
            least.push(("release", 1));
        }
        least
    }
}

/// A home that tells what it does, another node that vouches for it, and two who reach it from elsewhere.
struct Stage {
    home: Member,
    other: Member,
    /// Who receives, as a giver names it, and the capability's home.
    receiver: String,
    place: Home,
    /// Sockets that lead to the home's memory service: blue's and red's, who are the receiver and a stranger.
    blue: (Watched, PathBuf),
    red: (Watched, PathBuf),
    _desk: Desk,
}

impl Stage {
    fn set_up() -> Stage {
        let desk = Desk::set_up();
        let (node, ports) = alone_with(3600, |image| traced(image, &["memory"]));
        let home = Member::of(&desk, node, LOOPBACK, ports);
        let other = Member::join(&desk, 3600);
        acquaint(&home, &other);
        home.node.tenants(&["red", "green", "blue"]);
        let [blue, red] = ["blue", "red"].map(|name| {
            desk.agent(&home.node, name);
            home.node.ok(&["peers", "add", &format!("tenant/{name}")]);
            let connected = connect(&desk, &home, name, name);
            (connected, desk.path(name).join("run/memory.sock"))
        });
        let holder = Holder::load(&home.node, "blue");
        let tenant = TenantName::new("blue").unwrap();
        let receiver = Subject::Agent { tenant, agent: holder.secret().key() }.to_string();
        let root = holder.chain("regions").root();
        let place = Home { node: Some(root.node), vat: root.vat.clone() };
        Stage { home, other, receiver, place, blue, red, _desk: desk }
    }

    /// Ends it; what the home wrote.
    fn end(mut self) -> String {
        for (connected, _) in [self.blue, self.red] {
            connected.signal(Signal::TERM);
            connected.finish(COMMAND_TIMEOUT);
        }
        self.other.node.down();
        self.home.node.down();
        self.home.node.log()
    }
}

/// A giver of green's.
struct Giver {
    program: Watched,
    socket: PathBuf,
}

impl Giver {
    /// One that holds what is in this file.
    fn start(home: &Member, name: &str, given: &str) -> Giver {
        let node = &home.node;
        let socket = node.file(&format!("{name}.sock"));
        let mut command = std::process::Command::new(GIVER);
        command.arg(node.directory().join("run/memory.sock"));
        command.args([node.file(given), node.file("green.key"), socket.clone()]);
        let mut program = Watched::spawn(command);
        let begun = Instant::now();
        while !program.text().contains("listens") {
            let goes_on = program.run_for(Duration::from_millis(5));
            assert!(goes_on && begun.elapsed() < LONG, "{}", program.complaints());
        }
        Giver { program, socket }
    }

    async fn has_released(&self) {
        let begun = Instant::now();
        while !self.program.text().contains(": release ") {
            assert!(begun.elapsed() < LONG, "{}", self.program.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills it, while no call is on its way, and waits until the home has seen that it is gone; what it has said.
    fn die(self, home: &Member, receiver: &Receiver, ticket: &str) -> String {
        receiver.tell("giver_dies", "");
        self.program.signal(Signal::KILL);
        let ended = self.program.finish(LONG);
        assert_eq!(ended.code, 128 + 9, "it was killed, and not: {}", ended.stderr);
        eventually("the home sees that the giver is gone", LONG, || {
            giver_has_left(&home.node.log(), ticket).then_some(())
        });
        ended.text()
    }
}

/// The receiver, which numbers its calls.
#[derive(Default)]
struct Receiver {
    said: RefCell<String>,
    made: Cell<u8>,
    calls: RefCell<VecDeque<LocalBoxFuture<'static, Result<(), Fault>>>>,
}

impl Receiver {
    fn tell(&self, kind: &str, fields: &str) {
        let line = step(SPEC, kind, fields);
        *self.said.borrow_mut() += &format!("{line}\n");
    }

    /// Writes its number where that says, by this way, and does not wait for the answer.
    async fn call(&self, by: &region::Client) {
        let waiting = self.calls.borrow().len();
        if waiting >= AT_A_TIME {
            assert_eq!(self.answer().await, Some(Ok(())));
        }
        let n = self.made.get() + 1;
        self.made.set(n);
        self.tell("call", &format!("n={n}"));
        let mut request = by.write_request();
        request.get().set_offset(n.into());
        request.get().set_data(&[n]);
        let sent = request.send().promise;
        let answer = async move { sent.await.map(drop).map_err(|e| distos_client::fault_of(&e)) };
        self.calls.borrow_mut().push_back(Box::pin(answer));
    }

    /// What the first call has come to of those that wait.
    async fn answer(&self) -> Option<Result<(), Fault>> {
        let first = self.calls.borrow_mut().pop_front()?;
        Some(first.await)
    }

    /// All calls have been answered, and worked.
    async fn is_settled(&self) {
        while let Some(answer) = self.answer().await {
            assert_eq!(answer, Ok(()));
        }
    }
}

/// One handoff, with calls before it, amid it and after it, and a last one when what was given from is revoked; what the
/// giver and all others have said.
async fn run(stage: &Stage, killed: Killed) -> [String; 2] {
    let Stage { home, receiver: name, place, .. } = stage;
    let made = format!("{killed:?}");
    let (own, given) = (format!("{made}.cap"), format!("{made}-given.cap"));
    let create = ["region", "create", &made, "--bytes", "64K", "--as", "red.cap", "--out", &own];
    home.node.ok(&create);
    home.node.ok(&["cap", "delegate", &own, "--as", "red.cap", "--to", "green.pub", "-o", &given]);
    let mut giver = Some(Giver::start(home, &made, &given));
    let socket = giver.as_ref().map(|giver| giver.socket.clone()).unwrap();
    let stream = UnixStream::connect(socket).await.unwrap();
    let mut system = transport::start(stream, Side::Client, None, Bounds::EDGE);
    let proxied: region::Client = system.bootstrap(Side::Server);
    let line = Driven::new(system);
    let receiver = Receiver::default();
    for _ in 0..3 {
        receiver.call(&proxied).await;
    }
    let wanted = Authority { rights: BOTH, ..Authority::FULL };
    let gift = handoff::give(&proxied, name, wanted, place.clone()).await.unwrap();
    let (traced, ticket) = (gift.traced(), format!("ticket={}", gift.traced()));
    for _ in 0..2 {
        receiver.call(&proxied).await;
    }
    // Whose the region is has the ticket, too, and is not the one.
    let stranger = Connection::open(&stage.red.1).await.unwrap();
    receiver.tell("stranger", &ticket);
    let stolen = stranger.withdraw::<region::Client>(&gift.ticket).await;
    assert!(matches!(stolen.err(), Some(Fault::NotFound(_))), "it is a stranger's");
    drop(stranger);
    let mut said = String::new();
    let mut kill = |giver: &mut Option<Giver>| {
        if let Some(giver) = giver.take() {
            said = giver.die(home, &receiver, &traced);
        }
    };
    if killed == Killed::Untaken {
        receiver.is_settled().await;
        kill(&mut giver);
    }
    let away = Connection::open(&stage.blue.1).await.unwrap();
    receiver.tell("withdraw", &ticket);
    let taken = away.withdraw::<region::Client>(&gift.ticket);
    let direct = if giver.is_some() {
        // It goes on to call meanwhile.
        futures::join!(taken, receiver.call(&proxied)).0
    } else {
        taken.await
    };
    receiver.tell("withdrawn", &ticket);
    let direct = handoff::change_over(proxied.clone(), direct.unwrap()).await;
    if giver.is_some() {
        receiver.tell("go_direct", "");
    }
    for _ in 0..3 {
        receiver.call(&direct).await;
    }
    receiver.is_settled().await;
    let again = away.withdraw::<region::Client>(&gift.ticket).await;
    assert!(matches!(again.err(), Some(Fault::NotFound(_))), "it works once");
    let line = Some((proxied, line)).filter(|_| killed == Killed::Proxying);
    if let (Some(giver), None) = (&giver, &line) {
        giver.has_released().await;
    }
    if killed != Killed::Last {
        kill(&mut giver);
    }
    for _ in 0..2 {
        receiver.call(&direct).await;
    }
    receiver.is_settled().await;
    home.node.ok(&["cap", "revoke", &given, "--as", "red.cap"]);
    receiver.tell("revoke", "");
    receiver.call(&direct).await;
    assert_eq!(receiver.answer().await, Some(Err(Fault::Revoked)));
    kill(&mut giver);
    let there = home.node.ok(&["region", "get", &made, "--as", "red.cap"]).stdout;
    let last = receiver.made.get();
    for n in 0..=last {
        let written = if n == last { 0 } else { n };
        assert_eq!(there[usize::from(n)], written, "{killed:?}: call {n} of {last}");
    }
    drop((line, away));
    [said, receiver.said.take()]
}

#[test]
fn a_handoff_between_processes_is_a_behaviour_of_its_model_and_forged_traces_are_not() {
    let stage = Stage::set_up();
    let said = Killed::ALL.map(|killed| in_this_process(run(&stage, killed)));
    let home = stage.end();
    let mut runs = Vec::new();
    for (killed, [giver, receiver]) in Killed::ALL.into_iter().zip(&said) {
        let events = events(&home, &[giver, receiver]).unwrap_or_else(|why| panic!("{why}"));
        eprintln!("the giver is killed: {killed:?}");
        accepted(SPEC, &trace(&events), &killed.least());
        let is_refused = |event: &&Value| {
            event.at("event").str() == "direct" && event.at("took") == &Value::Bool(false)
        };
        assert_eq!(events.iter().filter(is_refused).count(), 1, "the last call");
        runs.push(events);
    }
    let (wrong, fine) = forged(&runs[0]).unwrap_or_else(|why| panic!("{why}"));
    refused(SPEC, &wrong, &fine);
}
