//! A holder on another machine: it reaches a service over QUIC, and has there what it was given, and
//! nothing else.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Authority, Fault, Rights, VatName};
use distos_client::handoff::{self, Home};
use distos_client::{Connection, Held};
use distos_identity::Subject;
use distos_quic::Endpoint;
use distos_rpc::transport::{self, Bounds};
use distos_rpc::{Facet, Faceted, Service, Vat, fault_of, serve_capability};
use distos_schemas::capability_capnp::{capability, lessee, lessor};
use distos_schemas::memory_capnp::{region, regions};
use distos_sim::far::{HOME, World, memory, tenant, tenants, test};
use distos_types::{Chain, HolderSecret, present_message};
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const DATA: &[u8] = b"written from far away";

async fn create(regions: &regions::Client) -> Result<region::Client, Fault> {
    let mut request = regions.create_request();
    request.get().set_name("far");
    request.get().set_bytes(DATA.len() as u64);
    let made = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let region = made.get().and_then(|made| made.get_region()).map_err(|e| fault_of(&e))?;
    let mut request = region.write_request();
    request.get().set_data(DATA);
    request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(region)
}

async fn read(region: &region::Client) -> Result<Vec<u8>, Fault> {
    let mut request = region.read_request();
    request.get().set_len(DATA.len() as u32);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    response.get().and_then(|r| r.get_data()).map(<[u8]>::to_vec).map_err(|e| fault_of(&e))
}

async fn revoke<T: FromClientHook>(cap: T) -> Result<(), Fault> {
    let cap: capability::Client = capability::Client::new(cap.into_client_hook());
    cap.revoke_request().send().promise.await.map(drop).map_err(|e| fault_of(&e))
}

#[test]
fn a_holder_far_away_works_as_one_nearby_does_and_is_refused_after_the_revocation() {
    test(async {
        let world = World::boot().await;
        let red = HolderSecret::from_seed([11; 32]);
        let chain = world.delegated(&red);
        let away = world.agent("red", &red, 61);
        let connection = world.connect(&away).await.expect("red is let in");
        let regions: regions::Client = connection.restore(&chain, &red).await.expect("red's");
        let region = create(&regions).await.expect("a region");
        assert_eq!(read(&region).await, Ok(DATA.to_vec()));
        // Only weaker, from far away too (C1).
        let as_any: capability::Client = region.clone().cast_to();
        let mut request = as_any.attenuate_request();
        request.get().set_rights(Rights::READ.0);
        let weaker = request.send().promise.await.expect("less than it has");
        let weaker = weaker.get().and_then(|made| made.get_cap()).expect("a capability");
        let weaker: region::Client = weaker.cast_to();
        assert_eq!(read(&weaker).await, Ok(DATA.to_vec()));
        let mut request = weaker.write_request();
        request.get().set_data(b"no");
        let fault = request.send().promise.await.err().map(|e| fault_of(&e));
        assert!(matches!(fault, Some(Fault::Denied { .. })), "{fault:?}");
        // Nearby, its owner takes back what it lent (C2).
        let (file, owner) = world.node.operator().expect("the operator's files");
        let nearby = world.node.connect("memory").await.expect("the socket");
        let own = &file.find("regions").expect("regions").chain;
        let root: regions::Client = nearby.restore(own, &owner).await.expect("the operator's");
        let link = chain.links().last().expect("a link").hash;
        let root: capability::Client = root.cast_to();
        let mut request = root.revoke_link_request();
        request.get().set_link(&link.0);
        request.get().set_expires_ms(u64::MAX);
        request.send().promise.await.expect("the link is revoked");
        for region in [&region, &weaker] {
            assert_eq!(read(region).await, Err(Fault::Revoked));
        }
        let again: Result<regions::Client, Fault> = connection.restore(&chain, &red).await;
        assert_eq!(again.err(), Some(Fault::Revoked));
    });
}

#[test]
fn whoever_is_let_in_has_nothing_until_it_shows_a_capability_of_its_own() {
    test(async {
        let world = World::boot().await;
        let (red, blue) = (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
        let chain = world.delegated(&red);
        let away = world.agent("blue", &blue, 62);
        let connection = world.connect(&away).await.expect("blue is let in");
        // Red's capability in blue's hands (C4).
        let stolen: Result<regions::Client, Fault> = connection.restore(&chain, &blue).await;
        assert!(matches!(stolen.err(), Some(Fault::Unauthenticated(_))));
        // A tenant whom the list does not name has not even the door.
        let own = world.delegated(&blue);
        let green = world.agent("green", &blue, 63);
        let refused = match world.connect(&green).await {
            Err(fault) => fault,
            // Its own side is done first; the first call tells.
            Ok(connection) => {
                connection.restore::<regions::Client>(&own, &blue).await.err().expect("refused")
            }
        };
        let told = matches!(refused, Fault::Unauthenticated(_) | Fault::Unavailable { .. });
        assert!(told, "{refused}");
        // The same capability and key, as blue's.
        let good: Result<regions::Client, Fault> = connection.restore(&own, &blue).await;
        assert!(good.is_ok());
    });
}

/// Whoever is told what somebody has signed elsewhere, or passes another connection's secret off as this one's, is
/// nobody (C4); whoever is who it is need not wait.
#[test]
fn what_is_presented_on_one_connection_is_worth_nothing_on_another() {
    test(async {
        let world = World::boot().await;
        let (red, blue) = (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
        let chain = world.delegated(&red);
        let away = world.agent("red", &red, 61);
        let to = world.cluster.id(memory());
        let first = away.connect(world.address, &to).await.expect("red is let in");
        let second = away.connect(world.address, &to).await.expect("red is let in");
        let (own, other) = (first.binding(), second.binding());
        assert!(own.is_some() && other.is_some() && own != other);
        let first = Connection::bound(first.start(None, Bounds::EDGE), own);
        let second = Connection::bound(second.start(None, Bounds::EDGE), own);
        let present = async |connection: &Connection, holder: &HolderSecret| {
            let regions: regions::Client = connection.present(&chain, holder).await?;
            // It goes out with the capability, and is answered if that is.
            create(&regions).await
        };
        let region = present(&first, &red).await.expect("red's");
        assert_eq!(read(&region).await, Ok(DATA.to_vec()));
        for refused in [present(&second, &red).await, present(&first, &blue).await] {
            assert!(matches!(refused, Err(Fault::Unauthenticated(_))), "{:?}", refused.err());
        }
        // At a socket of its own node there is no handshake, and so nothing to sign but a challenge.
        let (nearby, empty) = (world.node.connect("memory").await.expect("the socket"), [0; 32]);
        let bytes = chain.encode();
        let root = chain.root();
        let mut request = nearby.door().present_request();
        request.get().set_chain(&bytes);
        let message = present_message(&empty, root.node, &root.vat, &bytes);
        request.get().set_signature(&red.sign(&message));
        let fault = request.send().promise.await.err().map(|e| fault_of(&e));
        assert!(matches!(fault, Some(Fault::Unauthenticated(_))), "{fault:?}");
    });
}

#[test]
fn a_peer_that_is_taken_off_the_list_loses_what_it_held_and_others_keep_theirs() {
    test(async {
        let world = World::boot().await;
        let (red, blue) = (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
        let mut held = Vec::new();
        for (name, key, seed) in [("red", &red, 61), ("blue", &blue, 62)] {
            let chain = world.delegated(key);
            let away = world.agent(name, key, seed);
            let connection = world.connect(&away).await.expect("let in");
            let regions: regions::Client = connection.restore(&chain, key).await.expect("its own");
            let answers = async |regions: &regions::Client| {
                let listed = regions.list_request().send().promise.await;
                listed.map(drop).map_err(|e| fault_of(&e))
            };
            assert_eq!(answers(&regions).await, Ok(()));
            held.push((regions, connection, away, chain));
        }
        world.trust(tenants(&["blue"]));
        let answer = |at: usize| {
            let request = held[at].0.list_request();
            async move { request.send().promise.await.map(drop).map_err(|e| fault_of(&e)) }
        };
        while answer(0).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(matches!(answer(0).await, Err(Fault::Unavailable { .. })));
        assert_eq!(answer(1).await, Ok(()));
        // What blue gives up ends far away as nearby.
        revoke(held[1].0.clone()).await.expect("blue may give up its own");
        assert_eq!(answer(1).await, Err(Fault::Revoked));
    });
}

/// Leaves what `given` allows to read, for whoever has this path in its id.
async fn give(given: &region::Client, receiver: &Subject) -> Result<Vec<u8>, Fault> {
    let wanted = Authority { rights: Rights::READ, ..Authority::FULL };
    let home = Home { node: Some(HOME), vat: VatName::new("memory").expect("a vat's name") };
    let gift = handoff::give(given, &receiver.to_string(), wanted, home).await?;
    Ok(gift.ticket)
}

/// A region of red's, restored from a chain of its own, as a holder has it who was given it.
async fn restored(connection: &Connection, chain: &Chain, red: &HolderSecret) -> region::Client {
    let regions: regions::Client = connection.restore(chain, red).await.expect("red's");
    let region = create(&regions).await.expect("a region");
    again(connection, region, red).await
}

/// The same region, by a chain that was made for red's key.
async fn again(
    connection: &Connection,
    region: region::Client,
    red: &HolderSecret,
) -> region::Client {
    let as_any: capability::Client = region.cast_to();
    let mut request = as_any.persist_request();
    request.get().set_rights(Rights::READ.0);
    let kept = request.send().promise.await.expect("it is kept");
    let kept = kept.get().and_then(|kept| kept.get_chain()).expect("a chain");
    let kept = Chain::decode(kept).expect("a chain");
    connection.restore(&kept, red).await.expect("red's region")
}

/// Handoff, C2, C4, N3: whoever is given something takes it at its home itself, once, and has it without whoever
/// gave it, until that one's capability is revoked.
#[test]
fn what_is_given_to_somebody_far_away_works_without_the_giver_until_the_givers_is_revoked() {
    test(async {
        let world = World::boot().await;
        let (red, blue) = (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
        let chain = world.delegated(&red);
        let reds = world.agent("red", &red, 61);
        let connection = world.connect(&reds).await.expect("red is let in");
        let given = restored(&connection, &chain, &red).await;
        let agent = |name: &str, key: &HolderSecret| Subject::Agent {
            tenant: tenant(name),
            agent: key.key(),
        };
        // Blue's SVID is for the key of seed 62, so that is who it is.
        let blues = world.agent("blue", &blue, 62);
        let receiver = agent("blue", &blue);
        let away = world.connect(&blues).await.expect("blue is let in");
        let ticket = give(&given, &receiver).await.expect("a gift");
        // Red has the ticket, and is not the one; nor is whoever comes by the socket (C4).
        let wrong: Result<region::Client, Fault> = connection.withdraw(&ticket).await;
        assert!(matches!(wrong.err(), Some(Fault::NotFound(_))));
        let nearby = world.node.connect("memory").await.expect("the socket");
        let wrong: Result<region::Client, Fault> = nearby.withdraw(&ticket).await;
        assert!(matches!(wrong.err(), Some(Fault::NotFound(_))));
        let had: region::Client = away.withdraw(&ticket).await.expect("blue's");
        let again: Result<region::Client, Fault> = away.withdraw(&ticket).await;
        assert!(matches!(again.err(), Some(Fault::NotFound(_))), "it works once (N3)");
        assert_eq!(read(&had).await, Ok(DATA.to_vec()));
        let mut request = had.write_request();
        request.get().set_data(b"no");
        let fault = request.send().promise.await.err().map(|e| fault_of(&e));
        assert!(matches!(fault, Some(Fault::Denied { .. })), "{fault:?}");
        // What was not settled when the giver goes still is there.
        let late = give(&given, &receiver).await.expect("a gift");
        let link = given.clone();
        drop((connection, given));
        reds.leave().await;
        assert_eq!(read(&had).await, Ok(DATA.to_vec()), "the giver is gone");
        let later: region::Client = away.withdraw(&late).await.expect("blue's, too");
        assert_eq!(read(&later).await, Ok(DATA.to_vec()));
        drop(link);
        // Red comes back, and takes back what it gave from (C2).
        let reds = world.agent("red", &red, 61);
        let connection = world.connect(&reds).await.expect("red is let in");
        let regions: regions::Client = connection.restore(&chain, &red).await.expect("red's");
        revoke(regions).await.expect("red gives up its own");
        for region in [&had, &later] {
            assert_eq!(read(region).await, Err(Fault::Revoked));
        }
    });
}

/// Revoking exactly the capability that was given from ends the gift, whether or not it was taken.
#[test]
fn a_gift_ends_with_the_capability_that_it_was_given_from_and_not_with_another_of_the_object() {
    test(async {
        let world = World::boot().await;
        let (red, blue) = (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
        let chain = world.delegated(&red);
        let reds = world.agent("red", &red, 61);
        let connection = world.connect(&reds).await.expect("red is let in");
        let one = restored(&connection, &chain, &red).await;
        let other = again(&connection, one.clone(), &red).await;
        let blues = world.agent("blue", &blue, 62);
        let receiver = Subject::Agent { tenant: tenant("blue"), agent: blue.key() };
        let away = world.connect(&blues).await.expect("blue is let in");
        let taken = give(&other, &receiver).await.expect("a gift");
        let taken: region::Client = away.withdraw(&taken).await.expect("blue's");
        let waiting = give(&other, &receiver).await.expect("a gift");
        revoke(other).await.expect("red gives it up");
        assert_eq!(read(&taken).await, Err(Fault::Revoked));
        let late: Result<region::Client, Fault> = away.withdraw(&waiting).await;
        assert!(matches!(late.err(), Some(Fault::NotFound(_))));
        assert_eq!(read(&one).await, Ok(DATA.to_vec()), "that one was not given up");
    });
}

/// A3: whoever was put out, and let in again before its connections were closed, must not go on with what it had. One store ends
/// all of it; nothing is closed here, so that nothing else can be what ended it.
#[test]
fn what_a_peer_was_given_ends_with_its_attestation_epoch_though_its_connection_goes_on() {
    test(async {
        let home: Rc<RefCell<Option<Vat>>> = Rc::default();
        let known = home.clone();
        let world = World::boot_with(move |vat| {
            *known.borrow_mut() = Some(vat.clone());
            Box::pin(distos_memory::start(vat))
        })
        .await;
        let home = home.borrow().clone().expect("it has started");
        let (red, blue) = (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
        let chain = world.delegated(&red);
        let reds = world.agent("red", &red, 61);
        let connection = world.connect(&reds).await.expect("red is let in");
        let regions: regions::Client = connection.restore(&chain, &red).await.expect("red's");
        let region = create(&regions).await.expect("a region");
        let given = again(&connection, region.clone(), &red).await;
        let lease = connection.hold(&given).await.expect("a lease");
        let blues = world.agent("blue", &blue, 62);
        let away = world.connect(&blues).await.expect("blue is let in");
        let receiver = Subject::Agent { tenant: tenant("blue"), agent: blue.key() };
        let taken = give(&given, &receiver).await.expect("a gift");
        let taken: region::Client = away.withdraw(&taken).await.expect("blue's");
        let waiting = give(&given, &receiver).await.expect("a gift");

        home.raise_epoch("tenant/blue", 1);
        assert_eq!(read(&taken).await, Err(Fault::Revoked));
        let late: Result<region::Client, Fault> = away.withdraw(&waiting).await;
        assert_eq!(late.err(), Some(Fault::Revoked), "its connection is of an earlier epoch");
        let anew = world.connect(&blues).await.expect("blue is let in");
        let late: Result<region::Client, Fault> = anew.withdraw(&waiting).await;
        assert!(matches!(late.err(), Some(Fault::NotFound(_))), "it was left for it before");
        // What it is given from now on is its own, and nobody else has lost anything.
        let now = give(&given, &receiver).await.expect("a gift");
        let now: region::Client = anew.withdraw(&now).await.expect("blue's");
        assert_eq!(read(&now).await, Ok(DATA.to_vec()));
        for mine in [&region, &given] {
            assert_eq!(read(mine).await, Ok(DATA.to_vec()));
        }
        assert_eq!(lease.check(), Ok(()));

        home.raise_epoch("tenant/red", 7);
        for mine in [&region, &given] {
            assert_eq!(read(mine).await, Err(Fault::Revoked));
        }
        let refused = connection.hold(&given).await.err();
        assert_eq!(refused, Some(Fault::Revoked), "nothing more is lent");
        // What was lent is not renewed: it runs out within its term.
        assert!(tokio::time::timeout(EARLIER, lease.lost()).await.is_ok());
    });
}

/// A connection on which what the first end says arrives later.
fn slow_line(delay: Duration) -> (DuplexStream, DuplexStream) {
    let (near, mut entry) = tokio::io::duplex(1 << 16);
    let (mut exit, far) = tokio::io::duplex(1 << 16);
    tokio::task::spawn_local(async move {
        let (mut there, mut back) = (vec![0; 4096], vec![0; 4096]);
        loop {
            tokio::select! {
                read = entry.read(&mut there) => {
                    let Ok(len @ 1..) = read else { return };
                    tokio::time::sleep(delay).await;
                    if exit.write_all(&there[..len]).await.is_err() { return }
                }
                read = exit.read(&mut back) => {
                    let Ok(len @ 1..) = read else { return };
                    if entry.write_all(&back[..len]).await.is_err() { return }
                }
            }
        }
    });
    (near, far)
}

fn over(
    line: DuplexStream,
    side: Side,
    serves: Option<capability::Client>,
) -> capnp_rpc::RpcSystem<Side> {
    let (reader, writer) = tokio::io::split(line);
    let serves = serves.map(|cap| capnp::capability::Client::new(cap.into_client_hook()));
    transport::over(reader, writer, side, serves, Bounds::EDGE)
}

async fn write(region: &region::Client, byte: u8) -> Result<(), Fault> {
    let mut request = region.write_request();
    request.get().set_data(&[byte]);
    request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
}

/// Order per path: what the receiver calls after it has changed over takes effect after what it called before.
#[test]
fn calls_by_the_way_of_the_giver_take_effect_before_those_that_are_made_after_changing_over() {
    for changes_over in [true, false] {
        test(async {
            let world = World::boot().await;
            let (red, blue) =
                (HolderSecret::from_seed([11; 32]), HolderSecret::from_seed([12; 32]));
            let chain = world.delegated(&red);
            let reds = world.agent("red", &red, 61);
            let connection = world.connect(&reds).await.expect("red is let in");
            let regions: regions::Client = connection.restore(&chain, &red).await.expect("red's");
            let given = create(&regions).await.expect("a region");
            // Blue has red's reference over a line of theirs, on which it takes long.
            let (near, far) = slow_line(Duration::from_millis(50));
            tokio::task::spawn_local(over(far, Side::Server, Some(given.clone().cast_to())));
            let mut system = over(near, Side::Client, None);
            let proxied: region::Client = system.bootstrap(Side::Server);
            tokio::task::spawn_local(system);
            let blues = world.agent("blue", &blue, 62);
            let receiver = Subject::Agent { tenant: tenant("blue"), agent: blue.key() };
            let rights = Rights::READ.join(Rights::WRITE);
            let wanted = Authority { rights, ..Authority::FULL };
            let home = Home { node: Some(HOME), vat: VatName::new("memory").expect("a name") };
            let gift = handoff::give(&given, &receiver.to_string(), wanted, home).await;
            let away = world.connect(&blues).await.expect("blue is let in");
            let direct: region::Client =
                away.withdraw(&gift.expect("a gift").ticket).await.expect("blue's");
            let before: Vec<_> = (1..=20)
                .map(|byte| {
                    let region = proxied.clone();
                    tokio::task::spawn_local(async move { write(&region, byte).await })
                })
                .collect();
            // They are on their way.
            tokio::task::yield_now().await;
            let direct = match changes_over {
                true => handoff::change_over(proxied, direct).await,
                false => direct,
            };
            assert_eq!(write(&direct, b'A').await, Ok(()));
            for call in before {
                assert_eq!(call.await.expect("it ends"), Ok(()));
            }
            let last = read(&direct).await.expect("it is there")[0];
            let expected = if changes_over { b'A' } else { 20 };
            assert_eq!(last, expected, "changed over: {changes_over}");
        });
    }
}

/// A service whose calls take for ever, and hold something meanwhile.
struct Slow {
    facet: Facet,
    held: Rc<()>,
}

impl Slow {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<regions::Client, _>(self).into_client_hook()
    }
}

impl Faceted for Slow {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        Slow { facet, held: self.held.clone() }.hook()
    }
}

serve_capability!(Slow);

impl regions::Server for Slow {
    async fn list(
        self: Rc<Self>,
        _: regions::ListParams,
        _: regions::ListResults,
    ) -> Result<(), capnp::Error> {
        let _held = self.held.clone();
        std::future::pending().await
    }
}

struct SlowService(Rc<()>);

impl Service for SlowService {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        Ok(Slow { facet, held: self.0.clone() }.hook())
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Otherwise a client that goes away again and again uses up a service.
#[test]
fn what_was_under_way_for_a_peer_that_is_gone_holds_nothing() {
    test(async {
        let held = Rc::new(());
        let of_service = held.clone();
        let world = World::boot_with(move |vat| {
            let service = SlowService(of_service.clone());
            Box::pin(async move {
                drop(vat);
                Ok(Rc::new(service) as Rc<dyn Service>)
            })
        });
        let world = world.await;
        let red = HolderSecret::from_seed([11; 32]);
        let chain = world.delegated(&red);
        let away = world.agent("red", &red, 61);
        let idle = Rc::strong_count(&held);
        // More often than a peer has places, and with as many calls as a connection may have.
        for calls in [1, 32].repeat(10) {
            let link = away.connect(world.address, &world.cluster.id(memory())).await;
            let link = link.expect("a place for red");
            let closes = link.connection().clone();
            let connection = Connection::over(link.start(None, Bounds::EDGE));
            let regions: regions::Client = connection.restore(&chain, &red).await.expect("red's");
            let sent: Vec<_> = (0..calls).map(|_| regions.list_request().send().promise).collect();
            // The object itself, and each call twice: the object that it keeps, and its own.
            while Rc::strong_count(&held) < idle + 1 + calls {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            closes.close(0_u32.into(), b"");
            while Rc::strong_count(&held) > idle {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop((sent, regions, connection));
        }
    });
}

#[test]
fn nobody_far_away_stays_longer_than_its_identity() {
    test(async {
        let world = World::boot().await;
        let red = HolderSecret::from_seed([11; 32]);
        let chain = world.delegated(&red);
        let away = world.agent("red", &red, 61);
        let connection = world.connect(&away).await.expect("red is let in");
        let regions: regions::Client = connection.restore(&chain, &red).await.expect("red's");
        let region = create(&regions).await.expect("a region");
        world.cluster.pass(2 * 3600);
        let begun = tokio::time::Instant::now();
        while read(&region).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A look a second.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    });
}

/// An agent of this tenant's on a machine of its own, and what the operator has given to it.
struct Agent {
    away: Endpoint,
    connection: Connection,
    chain: Chain,
    regions: regions::Client,
}

impl Agent {
    async fn arrive(world: &World, name: &str, key: &HolderSecret, seed: u8) -> Agent {
        let chain = world.delegated(key);
        let away = world.agent(name, key, seed);
        let connection = world.connect(&away).await.expect("it is let in");
        let regions = connection.restore(&chain, key).await.expect("its own");
        Agent { away, connection, chain, regions }
    }

    async fn red(world: &World) -> Agent {
        Agent::arrive(world, "red", &HolderSecret::from_seed([11; 32]), 61).await
    }

    async fn lease(&self) -> Held {
        self.connection.hold(&self.regions).await.expect("a lease")
    }
}

/// A weaker capability to the same object.
async fn attenuated(cap: &regions::Client) -> regions::Client {
    let cap: capability::Client = cap.clone().cast_to();
    let mut request = cap.attenuate_request();
    request.get().set_rights(Rights::READ.join(Rights::LIST).0);
    let made = request.send().promise.await.expect("less than it has");
    made.get().and_then(|made| made.get_cap()).expect("a capability").cast_to()
}

/// A vat that starts counts a whole term of what an earlier run may have lent: after that it knows.
const EARLIER: Duration = Duration::from_millis(5200);

/// What runs far away by a capability would go on after its revocation has returned.
#[test]
fn whatever_is_held_by_a_lease_far_away_has_ended_when_its_revocation_returns() {
    test(async {
        let world = World::boot().await;
        tokio::time::sleep(EARLIER).await;
        let red = Agent::red(&world).await;
        let mut held = vec![red.lease().await];
        let mut caps = Vec::new();
        for _ in 0..20 {
            let cap = attenuated(&red.regions).await;
            held.push(red.connection.hold(&cap).await.expect("a lease"));
            caps.push(cap);
        }
        let key = HolderSecret::from_seed([12; 32]);
        let blue = Agent::arrive(&world, "blue", &key, 62).await;
        let blues_lease = blue.lease().await;
        // One of them by itself, and what hangs beside it goes on.
        revoke(caps.remove(0)).await.expect("it is revoked");
        assert_eq!(held.remove(1).check(), Err(Fault::Revoked));
        assert!(held.iter().all(|lease| lease.check().is_ok()));
        assert_eq!(world.take_back(&red.chain).await, 0, "nobody holds anything by it any more");
        assert!(held.iter().all(|lease| lease.check() == Err(Fault::Revoked)));
        assert_eq!(held[0].lost().await, Fault::Revoked);
        assert_eq!(blues_lease.check(), Ok(()), "blue's is another");
        assert_eq!(world.take_back(&blue.chain).await, 0);
    });
}

/// Somebody would believe a home about a capability that another one ends.
#[test]
fn a_capability_is_lent_over_its_own_connection_only_and_giving_up_breaks_nothing() {
    test(async {
        let world = World::boot().await;
        let red = Agent::red(&world).await;
        // Its first question is on its way.
        assert!(futures::FutureExt::now_or_never(red.connection.hold(&red.regions)).is_none());
        assert_eq!(red.lease().await.check(), Ok(()));
        let other = world.connect(&red.away).await.expect("once more");
        let key = HolderSecret::from_seed([11; 32]);
        let again: regions::Client = other.restore(&red.chain, &key).await.expect("red's");
        let mistaken = other.hold(&red.regions).await.err();
        assert!(matches!(mistaken, Some(Fault::Malformed(_))), "{mistaken:?}");
        assert!(other.hold(&again).await.is_ok());
    });
}

/// Leases are renewed while nobody asks, and go on beyond their first term.
#[test]
fn a_lease_goes_on_for_as_long_as_its_home_is_heard() {
    test(async {
        let world = World::boot().await;
        let red = Agent::red(&world).await;
        let lease = red.lease().await;
        tokio::time::sleep(Duration::from_millis(5500)).await;
        assert_eq!(lease.check(), Ok(()));
        // Without the home it ends by itself, and not at once: what it works on may come back.
        let cut = Instant::now();
        world.trust(tenants(&["blue"]));
        assert!(matches!(lease.lost().await, Fault::Unavailable { .. }));
        let lasted = cut.elapsed();
        let (least, most) = (Duration::from_millis(2500), Duration::from_millis(5500));
        assert!((least..most).contains(&lasted), "{lasted:?}");
    });
}

/// Never says that it knows.
struct Silent;

impl lessee::Server for Silent {
    async fn ended(
        self: Rc<Self>,
        _: lessee::EndedParams,
        _: lessee::EndedResults,
    ) -> Result<(), capnp::Error> {
        std::future::pending().await
    }
}

/// Somebody who does not answer would hold up everybody's revocations, or a revocation would say that it is over
/// though nobody knows.
#[test]
fn a_revocation_waits_a_moment_for_whoever_does_not_answer_and_says_when_it_is_over() {
    test(async {
        let world = World::boot().await;
        tokio::time::sleep(EARLIER).await;
        let blues = world.delegated(&HolderSecret::from_seed([12; 32]));
        let Agent { away: _away, connection, chain: reds, regions } = Agent::red(&world).await;
        let as_any: capability::Client = regions.cast_to();
        let nobody_is_told = as_any.lend_request().send().promise.await.err();
        assert!(nobody_is_told.is_some_and(|e| matches!(fault_of(&e), Fault::Denied { .. })));
        let mut request = connection.door().lessor_request();
        request.get().set_lessee(capnp_rpc::new_client(Silent));
        let answer = request.send().promise.await.expect("a lessor");
        let lessor = answer.get().and_then(|answer| answer.get_lessor()).expect("a lessor");
        let lent = as_any.lend_request().send().promise.await.expect("a lease");
        let line = lent.get().and_then(|lent| lent.get_line()).expect("a line").len();
        assert!(line >= 3, "the operator's, red's link and this session's: {line}");
        let mut again = connection.door().lessor_request();
        again.get().set_lessee(capnp_rpc::new_client(Silent));
        assert!(again.send().promise.await.is_err(), "what is lent is told to whom it was lent");
        // Numbers that it never had do nothing.
        let mut request = lessor::Client::renew_request(&lessor);
        let mut released = request.get().init_released(2);
        released.set(0, 0);
        released.set(1, u64::MAX);
        request.send().promise.await.expect("renewed");
        let begun = Instant::now();
        let first = world.take_back(&reds).await;
        assert!((4000..=5100).contains(&first), "{first}");
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(250), "{waited:?}");
        // Blue's has nothing to do with it.
        let begun = Instant::now();
        let others = world.take_back(&blues).await;
        assert_eq!(others, 0, "nothing of blue's is out");
        assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    });
}

/// Whoever goes with a lease may use it until its time is over.
#[test]
fn a_revocation_says_when_it_is_over_for_whoever_has_gone_with_a_lease() {
    test(async {
        let world = World::boot().await;
        tokio::time::sleep(EARLIER).await;
        let red = Agent::red(&world).await;
        let lease = red.lease().await;
        let Agent { away, connection, chain, .. } = red;
        drop(connection);
        away.leave().await;
        assert_eq!(lease.check(), Ok(()), "nobody has told it");
        let left = world.take_back(&chain).await;
        assert!((3000..=5100).contains(&left), "{left}");
        assert!(matches!(lease.lost().await, Fault::Unavailable { .. }));
    });
}
