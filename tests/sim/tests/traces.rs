//! What a receiver, a giver and a home did in a handoff is a behaviour of its model (`specs/handoff`), and no step
//! of it could be another. The three run on one thread, so that what they record is in the order in which it
//! happened; connections, the kernel, facets and the receiver's change over are those of production.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Authority, ByteRange, Fault, Rights, VatName};
use distos_client::Connection;
use distos_client::handoff::{self, Home};
use distos_identity::Subject;
use distos_rpc::transport::{self, Bounds, Driven};
use distos_rpc::{Base, Facet, Faceted, Service, fail, fault_of};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::{region, regions};
use distos_sim::far::{HOME, World, tenant, test};
use distos_sim::random::Random;
use distos_specs::root;
use distos_specs::tlc::Tlc;
use distos_specs::trace::handoff::forged::forged;
use distos_specs::trace::handoff::{SPEC, effect, event, trace};
use distos_specs::trace::{Finding, Trace, check};
use distos_specs::value::Value;
use distos_types::HolderSecret;
use futures::future::LocalBoxFuture;
use tokio::io::DuplexStream;

/// Runs of the whole protocol, each with calls at other moments.
const RUNS: u64 = 12;
const BOTH: Rights = Rights::READ.join(Rights::WRITE);

/// The giver, and the receiver.
fn red() -> HolderSecret {
    HolderSecret::from_seed([11; 32])
}

fn blue() -> HolderSecret {
    HolderSecret::from_seed([12; 32])
}

/// What happened, in its order.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<Value>>>);

impl Log {
    fn note(&self, kind: &str) {
        self.0.borrow_mut().push(event(kind, &[]));
    }

    fn ticket(&self, kind: &str, t: i64) {
        self.0.borrow_mut().push(event(kind, &[("t", t)]));
    }

    fn call(&self, kind: &str, n: i64) {
        self.0.borrow_mut().push(event(kind, &[("n", n)]));
    }
}

/// What the parties know of one another: a test sees them all.
#[derive(Clone, Default)]
struct Stage {
    log: Log,
    /// The ticket that is used now.
    ticket: Rc<Cell<i64>>,
    /// The giver is gone.
    gone: Rc<Cell<bool>>,
}

/// The object at its home, which records what arrives there.
struct Object {
    facet: Facet,
    stage: Stage,
}

impl Object {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<region::Client, _>(self).into_client_hook()
    }

    /// The giver has shown its key, and the receiver has what it was given.
    fn is_givers(&self) -> bool {
        self.facet.holder() == Some(red().key())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if self.is_givers() && self.stage.gone.get() {
            self.stage.log.note("giver_session_ends");
        }
    }
}

impl Faceted for Object {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        Object { facet, stage: self.stage.clone() }.hook()
    }
}

impl capability::Server for Object {
    async fn describe(
        self: Rc<Self>,
        _: capability::DescribeParams,
        mut results: capability::DescribeResults,
    ) -> Result<(), capnp::Error> {
        self.stage.log.ticket("flushed", self.stage.ticket.get());
        Base::describe(&self.facet, &mut results)
    }

    async fn revoke_link(
        self: Rc<Self>,
        params: capability::RevokeLinkParams,
        results: capability::RevokeLinkResults,
    ) -> Result<(), capnp::Error> {
        Base::revoke_link(&self.facet, params, results).await
    }

    async fn gift(
        self: Rc<Self>,
        params: capability::GiftParams,
        results: capability::GiftResults,
    ) -> Result<(), capnp::Error> {
        self.stage.log.ticket("deposited", self.stage.ticket.get());
        Base::gift(&self.facet, params, results).await
    }
}

impl region::Server for Object {
    async fn write(
        self: Rc<Self>,
        params: region::WriteParams,
        _: region::WriteResults,
    ) -> Result<(), capnp::Error> {
        let n = params.get()?.get_offset();
        let range = ByteRange { start: 0, end: 0 };
        let done = self.facet.commit(Rights::WRITE, range, || ());
        let way = if self.is_givers() { "proxied" } else { "direct" };
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        self.stage.log.0.borrow_mut().push(effect(way, n, done.is_ok()));
        done.map_err(fail)
    }
}

struct Recording(Stage);

impl Service for Recording {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if facet.holder().is_none() {
            self.0.log.ticket("granted", self.0.ticket.get());
        }
        Ok(Object { facet, stage: self.0.clone() }.hook())
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What the giver passes on, for as long as the receiver wants.
struct Proxy {
    home: region::Client,
    stage: Stage,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if !self.stage.gone.get() {
            self.stage.log.note("release");
        }
    }
}

impl capability::Server for Proxy {
    async fn describe(
        self: Rc<Self>,
        _: capability::DescribeParams,
        _: capability::DescribeResults,
    ) -> Result<(), capnp::Error> {
        self.stage.log.ticket("forward_flush", self.stage.ticket.get());
        let home: capability::Client = self.home.clone().cast_to();
        home.describe_request().send().promise.await.map(drop)
    }
}

impl region::Server for Proxy {
    async fn write(
        self: Rc<Self>,
        params: region::WriteParams,
        _: region::WriteResults,
    ) -> Result<(), capnp::Error> {
        let n = params.get()?.get_offset();
        self.stage.log.call("forward", i64::try_from(n).unwrap_or(i64::MAX));
        let mut request = self.home.write_request();
        request.get().set_offset(n);
        request.send().promise.await.map(drop)
    }
}

/// One end of a line between giver and receiver.
fn line(serves: Option<region::Client>, side: Side, end: DuplexStream) -> RpcSystem<Side> {
    let (reader, writer) = tokio::io::split(end);
    let serves = serves.map(|cap| capnp::capability::Client::new(cap.into_client_hook()));
    transport::over(reader, writer, side, serves, Bounds::EDGE)
}

/// The receiver, which numbers its calls.
struct Receiver {
    stage: Stage,
    made: Cell<i64>,
    calls: RefCell<Vec<LocalBoxFuture<'static, Result<(), Fault>>>>,
}

impl Receiver {
    /// Calls by this way, and does not wait.
    fn call(&self, by: &region::Client) {
        let n = self.made.get() + 1;
        self.made.set(n);
        self.stage.log.call("call", n);
        let mut request = by.write_request();
        request.get().set_offset(u64::try_from(n).unwrap_or_default());
        let sent = request.send().promise;
        self.calls
            .borrow_mut()
            .push(Box::pin(async move { sent.await.map(drop).map_err(|e| fault_of(&e)) }));
    }

    /// Waits for all calls that were made; whether all worked.
    async fn settled(&self) -> bool {
        let calls = self.calls.take();
        futures::future::join_all(calls).await.iter().all(Result::is_ok)
    }
}

async fn a_while(random: &mut Random) {
    match random.below(3) {
        0 => {}
        1 => tokio::task::yield_now().await,
        _ => tokio::time::sleep(Duration::from_millis(random.below(4))).await,
    }
}

/// One handoff, with calls at moments that `seed` chooses. The giver may die before it is over.
async fn run(seed: u64) -> Vec<Value> {
    let mut random = Random::new(seed);
    let stage = Stage::default();
    let at_home = stage.clone();
    let world = World::boot_with(move |vat| {
        let stage = at_home.clone();
        Box::pin(async move {
            drop(vat);
            Ok(Rc::new(Recording(stage)) as Rc<dyn Service>)
        })
    })
    .await;
    let (red, blue) = (red(), blue());
    let chain = world.delegated(&red);
    let reds = world.agent("red", &red, 61);
    let connection = world.connect(&reds).await.expect("red is let in");
    let given: regions::Client = connection.restore(&chain, &red).await.expect("red's");
    let given: region::Client = given.cast_to();
    stage.log.note("settle");
    let blues = world.agent("blue", &blue, 62);
    let away = world.connect(&blues).await.expect("blue is let in");
    let (near, far) = tokio::io::duplex(1 << 16);
    let proxy = Proxy { home: given.clone(), stage: stage.clone() };
    let giving = Driven::new(line(Some(capnp_rpc::new_client(proxy)), Side::Server, far));
    let mut system = line(None, Side::Client, near);
    let proxied: region::Client = system.bootstrap(Side::Server);
    let held = Driven::new(system);
    let receiver = Receiver { stage: stage.clone(), made: Cell::new(0), calls: RefCell::default() };
    for _ in 0..random.below(4) {
        receiver.call(&proxied);
        a_while(&mut random).await;
    }
    stage.ticket.set(1);
    stage.log.ticket("deposit", 1);
    let receives = Subject::Agent { tenant: tenant("blue"), agent: blue.key() };
    let wanted = Authority { rights: BOTH, ..Authority::FULL };
    let home = Home { node: Some(HOME), vat: VatName::new("memory").expect("a vat's name") };
    let gift = handoff::give(&given, &receives.to_string(), wanted, home).await.expect("a gift");
    stage.log.ticket("offer", 1);
    for _ in 0..random.below(3) {
        receiver.call(&proxied);
        a_while(&mut random).await;
    }
    // Red itself is not the one, though it has the ticket.
    stage.log.ticket("stranger", 1);
    assert!(connection.withdraw::<region::Client>(&gift.ticket).await.is_err());
    let dies = seed % 4 == 3;
    if dies {
        assert!(receiver.settled().await);
        stage.gone.set(true);
        stage.log.note("giver_dies");
        drop((giving, given, connection));
        reds.leave().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        stage.log.ticket("withdraw", 1);
        let direct: region::Client = away.withdraw(&gift.ticket).await.expect("blue's");
        stage.log.note("withdrawn");
        let direct = handoff::change_over(proxied, direct).await;
        end(&world, &stage, &receiver, &direct, &red, &mut random).await;
        drop((held, away));
        return stage.log.0.take();
    }
    stage.log.ticket("withdraw", 1);
    let asked = away.withdraw::<region::Client>(&gift.ticket);
    // It goes on to call meanwhile.
    receiver.call(&proxied);
    let direct = asked.await.expect("blue's");
    stage.log.note("withdrawn");
    let direct = handoff::change_over(proxied, direct).await;
    stage.log.note("go_direct");
    receiver.call(&direct);
    a_while(&mut random).await;
    drop(held);
    tokio::time::sleep(Duration::from_millis(5)).await;
    end(&world, &stage, &receiver, &direct, &red, &mut random).await;
    drop((giving, connection, away));
    stage.log.0.take()
}

/// Calls that work, a revocation of what the giver has, and a call that does not.
async fn end(
    world: &World,
    stage: &Stage,
    receiver: &Receiver,
    direct: &region::Client,
    red: &HolderSecret,
    random: &mut Random,
) {
    for _ in 0..=random.below(3) {
        receiver.call(direct);
        a_while(random).await;
    }
    assert!(receiver.settled().await, "nothing was revoked yet");
    revoke(world, red).await;
    stage.log.note("revoke");
    receiver.call(direct);
    assert!(!receiver.settled().await, "it was revoked");
}

/// The operator takes back what red has.
async fn revoke(world: &World, red: &HolderSecret) {
    let link = world.delegated(red).links().last().expect("a link").hash;
    let (file, owner) = world.node.operator().expect("the operator's files");
    let nearby: Connection = world.node.connect("memory").await.expect("the socket");
    let own = &file.find("regions").expect("regions").chain;
    let root: capability::Client = nearby.restore(own, &owner).await.expect("the operator's");
    let mut request = root.revoke_link_request();
    request.get().set_link(&link.0);
    request.get().set_expires_ms(u64::MAX);
    request.send().promise.await.expect("it is revoked");
}

fn findings(traces: &[Trace]) -> Vec<Finding> {
    let tlc = Tlc::find(&root()).expect("TLC");
    let checked = check(&tlc, &root().join("specs").join(SPEC), traces);
    checked.unwrap_or_else(|why| panic!("{why}")).findings
}

#[test]
fn what_a_handoff_did_is_a_behaviour_of_its_model_and_forged_traces_are_not() {
    let runs = RefCell::new(Vec::new());
    for seed in 0..RUNS {
        test(async {
            let events = run(seed).await;
            runs.borrow_mut().push(events);
        });
    }
    let runs = runs.into_inner();
    let traces: Vec<Trace> = runs.iter().map(|events| trace(events)).collect();
    for (seed, finding) in findings(&traces).into_iter().enumerate() {
        assert_eq!(finding, Finding::Accepted, "seed {seed}: {:#?}", traces[seed].events());
    }
    let (wrong, fine) = forged(&runs[0]).unwrap_or_else(|why| panic!("{why}"));
    let all: Vec<Trace> = wrong.iter().chain(&fine).map(|(_, trace)| trace.clone()).collect();
    let mut found = findings(&all);
    for ((what, _), finding) in fine.iter().zip(found.split_off(wrong.len())) {
        assert_eq!(finding, Finding::Accepted, "{what}: nothing is wrong with it");
    }
    for ((what, trace), finding) in wrong.iter().zip(found) {
        let last = trace.len();
        let is_last = matches!(&finding, Finding::Refused { event, .. } if *event == last);
        assert!(is_last, "{what}: the last of {last} events is wrong, but: {finding:?}");
    }
}
