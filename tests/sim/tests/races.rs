//! C2, raced: a revocation against a use of what it revokes, with the use held at each of its
//! await points while the revocation runs. When `revoke` has returned, the use must have ended or
//! be refused, and nothing of it may take effect any more.
//!
//! Each race is made of one seed. `DISTOS_SEED=n` runs that one alone and tells what it does;
//! `DISTOS_RACES=n` runs another number than 10,000.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{Authority, ByteRange, Caveats, Fault, Rights};
use distos_client::Connection;
use distos_host::plan::{
    EdgePlan, OperatorGrant, Plan, Power, Profile, Program, VatLimits, VatPlan,
};
use distos_rpc::{Facet, Service, Vat, fault_of, write_caveats};
use distos_schemas::capability_capnp::capability;
use distos_schemas::kernel_capnp::outbox;
use distos_schemas::memory_capnp::{region, regions};
use distos_sim::held::{Gate, Held, Point};
use distos_sim::random::Random;
use distos_sim::{Life, Node, relay, tasks};
use distos_types::{Chain, HolderSecret, kind};
use futures::future::LocalBoxFuture;

const RACES: u64 = 10_000;
const PAGE: u64 = 65_536;
const REGION_BYTES: u64 = 4 * PAGE;
/// Races on one connection: a vat bounds what one may restore.
const RACES_OF_A_CONNECTION: u64 = 200;
/// How long a revocation runs before the use that it might be waiting for goes on.
const HOLD: Duration = Duration::from_millis(20);
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is raced against the revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Read,
    Write,
    Attenuate,
    Gift,
    Persist,
    Redeem,
    Withdraw,
}

/// Which authority ends, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The owner revokes the certificate of a delegation by its hash.
    Link,
    /// A delegator on the way gives up what it holds.
    Delegator,
    /// The owner drops the object.
    Drop,
}

/// One race, decided by its seed alone.
#[derive(Clone, Copy, Debug)]
struct Race {
    what: Use,
    cut: Cut,
    point: Point,
    /// Delegations between the owner and the user.
    depth: usize,
    /// Which of them ends, from 1.
    link: usize,
    offset: u64,
}

impl Race {
    fn of(random: &mut Random) -> Race {
        use Use::*;
        let what = random.pick(&[Read, Write, Write, Attenuate, Gift, Persist, Redeem, Withdraw]);
        let cut = random.pick(&[Cut::Link, Cut::Link, Cut::Link, Cut::Delegator, Cut::Drop]);
        let of_kernel = [Point::Asked(0), Point::Answered(0)];
        let point = match what {
            Redeem | Withdraw => random.pick(&of_kernel),
            Attenuate | Gift | Persist if random.below(2) == 0 => random.pick(&of_kernel),
            _ => Point::Await(random.below(7) as u32),
        };
        let depth = 1 + random.below(4) as usize;
        let link = 1 + random.below(depth as u64) as usize;
        Race { what, cut, point, depth, link, offset: random.below(REGION_BYTES - 64) }
    }
}

/// How a race went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// The use ended before the revocation began.
    Before,
    /// It was held, the revocation returned, and the use was refused.
    Refused,
}

#[test]
fn no_use_takes_effect_after_its_revocation_has_returned() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let one = number("DISTOS_SEED");
    let races = number("DISTOS_RACES").unwrap_or(RACES);
    let seeds = one.map_or(0..races, |seed| seed..seed + 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .expect("an event loop");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = World::boot().await;
        let mut ends: BTreeMap<(Use, End), u64> = BTreeMap::new();
        let mut blue = world.node.connect("memory").await.expect("the memory service answers");
        for seed in seeds.clone() {
            if seed % RACES_OF_A_CONNECTION == 0 {
                blue = world.node.connect("memory").await.expect("the memory service answers");
            }
            let mut random = Random::new(seed);
            let race = Race::of(&mut random);
            if one.is_some() {
                println!("seed {seed}: {race:?}");
            }
            let ended = tokio::time::timeout(PATIENCE, world.run(race, &mut random, &blue)).await;
            let ended = ended.unwrap_or_else(|_| Err("it does not end".to_owned()));
            let end = ended.unwrap_or_else(|why| panic!("DISTOS_SEED={seed}: {race:?}: {why}"));
            *ends.entry((race.what, end)).or_default() += 1;
        }
        for ((what, end), count) in &ends {
            println!("{count:6} {what:?}: {end:?}");
        }
        if one.is_none() {
            // Every use was caught half-way, in most of its races.
            let count = |what, end| ends.get(&(what, end)).copied().unwrap_or(0);
            let uses = [
                Use::Read,
                Use::Write,
                Use::Attenuate,
                Use::Gift,
                Use::Persist,
                Use::Redeem,
                Use::Withdraw,
            ];
            for what in uses {
                let (held, free) = (count(what, End::Refused), count(what, End::Before));
                assert!(held > 9 * free, "{what:?}: {held} were held, {free} were not");
            }
        }
        world.node.down().await.expect("the node stops in order");
    });
}

/// A node with the memory service behind a gate, and a vat that takes gifts.
struct World {
    node: Node,
    gate: Gate,
    owner: HolderSecret,
    regions: regions::Client,
    /// The region that most races share, and its chain.
    shared: (region::Client, Chain),
    taker: Rc<RefCell<Option<Vat>>>,
    _connection: Connection,
    _dir: tempfile::TempDir,
}

impl World {
    async fn boot() -> World {
        // In memory where that is possible: this test is about order, not about disks.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("dir");
        let gate = Gate::default();
        let taker: Rc<RefCell<Option<Vat>>> = Rc::default();
        let (of_memory, of_taker) = (gate.clone(), taker.clone());
        let spawn = tasks(move |boot| -> Life {
            let (gate, taker) = (of_memory.clone(), of_taker.clone());
            if boot.manifest.vat == "memory" {
                Box::pin(distos_rpc::serve(boot, async move |vat| {
                    let inner = distos_memory::start(vat).await?;
                    Ok(Rc::new(Held { inner, gate }) as Rc<dyn Service>)
                }))
            } else {
                Box::pin(distos_rpc::serve(boot, async move |vat: Vat| {
                    tokio::task::spawn_local(acknowledge(vat.outbox().await?));
                    *taker.borrow_mut() = Some(vat);
                    Ok(Rc::new(Taker) as Rc<dyn Service>)
                }))
            }
        });
        let spawn = relay::through("memory", gate.clone(), spawn);
        let node = Node::boot(plan(dir.path()), spawn).await.expect("the node starts");
        let (file, owner) = node.operator().expect("the operator's files");
        let connection = node.connect("memory").await.expect("the memory service answers");
        let chain = &file.find("regions").expect("the image grants it").chain;
        let regions: regions::Client = connection.restore(chain, &owner).await.expect("regions");
        let shared = create(&regions, "shared").await.expect("a region");
        World { node, gate, owner, regions, shared, taker, _connection: connection, _dir: dir }
    }

    async fn run(&self, race: Race, random: &mut Random, blue: &Connection) -> Result<End, String> {
        let (object, chain) = match race.cut {
            Cut::Drop => {
                let name = format!("r{}", random.bits());
                create(&self.regions, &name).await.map_err(text("create"))?
            }
            _ => self.shared.clone(),
        };
        let (chain, holders) = self.delegated(&chain, race, random)?;
        let data: [u8; 64] = random.bytes();
        let user = holders.last().ok_or("nobody")?;

        // The use, up to where it is held.
        let used = self.begin(race, &chain, user, blue, data).await?;
        let mut used = tokio::task::spawn_local(used);
        let held = tokio::select! {
            () = self.gate.held() => true,
            ended = &mut used => {
                self.gate.release();
                ended.map_err(|e| e.to_string())?.map_err(text("the use, undisturbed"))?;
                false
            }
        };

        // The revocation.
        let cut = self.cut(race, &chain, &holders, &object, blue).await?;
        let mut cut = tokio::task::spawn_local(cut);
        let mut done = None;
        if matches!(race.point, Point::Await(_)) {
            done = tokio::time::timeout(HOLD, &mut cut).await.ok();
            if done.is_none() {
                // It waits for what was handed to the disk already.
                self.gate.let_it_end();
            }
        }
        let done = match done {
            Some(done) => done,
            None => cut.await,
        };
        done.map_err(|e| e.to_string())?.map_err(text("revoke"))?;

        // From here on nothing of the use may take effect.
        let bytes = async || match race.cut {
            Cut::Drop => Ok(Vec::new()),
            _ => read(&object, 0, REGION_BYTES).await.map_err(text("the owner's read")),
        };
        if !held {
            return Ok(End::Before);
        }
        let at_revocation = bytes().await?;
        if used.is_finished() {
            return Err("it is not held, but has ended".to_owned());
        }
        self.gate.release();
        match used.await.map_err(|e| e.to_string())? {
            Err(Fault::Revoked) => {}
            // Whoever asks for an object or a gift that is gone may be told just that.
            Err(Fault::NotFound(_)) if race.cut == Cut::Drop || race.what == Use::Withdraw => {}
            Err(other) => return Err(format!("refused for another reason: {other}")),
            Ok(()) => return Err("it succeeded after its revocation had returned".to_owned()),
        }
        if bytes().await? != at_revocation {
            return Err("it wrote after its revocation had returned".to_owned());
        }
        let again: Result<capability::Client, Fault> = blue.restore(&chain, user).await;
        match again.err() {
            Some(Fault::Revoked | Fault::NotFound(_)) => Ok(End::Refused),
            other => Err(format!("its certificate can be redeemed again: {other:?}")),
        }
    }

    /// The owner's chain, delegated through as many hands as the race says.
    fn delegated(
        &self,
        chain: &Chain,
        race: Race,
        random: &mut Random,
    ) -> Result<(Chain, Vec<HolderSecret>), String> {
        let rights = Rights::READ.join(Rights::WRITE);
        let mut chain = chain.clone();
        let mut holders: Vec<HolderSecret> = Vec::new();
        for _ in 0..race.depth {
            let next = HolderSecret::from_seed(random.bytes());
            let by = holders.last().unwrap_or(&self.owner);
            let caveats =
                Caveats { range: ByteRange { start: 0, end: REGION_BYTES }, ..Caveats::NONE };
            let wanted = Authority { rights, caveats };
            chain =
                chain.delegate(by, next.key(), wanted, random.bytes()).map_err(text("delegate"))?;
            holders.push(next);
        }
        Ok((chain, holders))
    }

    /// Gets ready for the use, arms the gate and returns the use.
    async fn begin(
        &self,
        race: Race,
        chain: &Chain,
        user: &HolderSecret,
        blue: &Connection,
        data: [u8; 64],
    ) -> Result<LocalBoxFuture<'static, Result<(), Fault>>, String> {
        let Race { what, offset, point, .. } = race;
        if what == Use::Redeem {
            // Opened before, so that only the redemption is raced.
            let connection = self.node.connect("memory").await.map_err(text("connect"))?;
            let (chain, user) = (chain.clone(), HolderSecret::from_file_text(&user.to_file_text()));
            let user = user.map_err(text("key"))?;
            self.gate.arm(point);
            return Ok(Box::pin(async move {
                let live: capability::Client = connection.restore(&chain, &user).await?;
                describe(&live).await
            }));
        }
        let live: region::Client = blue.restore(chain, user).await.map_err(text("restore"))?;
        let common = live.clone().cast_to::<capability::Client>();
        if what == Use::Withdraw {
            let ticket = gift(&common).await.map_err(text("gift"))?;
            let taker = self.taker.borrow().clone().ok_or("no taker")?;
            let edge = taker.edge("memory").await.map_err(text("edge"))?;
            self.gate.arm(point);
            return Ok(Box::pin(async move {
                let _giver = live;
                let mut request = edge.withdraw_request();
                request.get().set_ticket(&ticket);
                let taken = request.send().promise.await.map_err(|e| fault_of(&e))?;
                let taken = taken.get().and_then(|t| t.get_cap()).map_err(|e| fault_of(&e))?;
                describe(&taken).await
            }));
        }
        self.gate.arm(point);
        Ok(Box::pin(async move {
            match what {
                Use::Read => read(&live, offset, 64).await.map(drop),
                Use::Write => {
                    let mut request = live.write_request();
                    request.get().set_offset(offset);
                    request.get().set_data(&data);
                    request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
                }
                Use::Attenuate => {
                    let mut request = common.attenuate_request();
                    request.get().set_rights(Rights::READ.0);
                    write_caveats(Caveats::NONE, request.get().init_caveats());
                    let weaker = request.send().promise.await.map_err(|e| fault_of(&e))?;
                    let weaker =
                        weaker.get().and_then(|w| w.get_cap()).map_err(|e| fault_of(&e))?;
                    describe(&weaker).await
                }
                Use::Gift => gift(&common).await.map(drop),
                _ => {
                    let mut request = common.persist_request();
                    request.get().set_rights(Rights::READ.0);
                    write_caveats(Caveats::NONE, request.get().init_caveats());
                    request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
                }
            }
        }))
    }

    /// Gets ready for the revocation and returns it.
    async fn cut(
        &self,
        race: Race,
        chain: &Chain,
        holders: &[HolderSecret],
        object: &region::Client,
        blue: &Connection,
    ) -> Result<LocalBoxFuture<'static, Result<(), Fault>>, String> {
        let object = object.clone();
        match race.cut {
            Cut::Drop => Ok(Box::pin(async move {
                object.drop_request().send().promise.await.map(drop).map_err(|e| fault_of(&e))
            })),
            Cut::Link => {
                let facts = chain.links();
                let link = facts.get(race.link).ok_or("no such link")?;
                let (hash, expires_ms) = (link.hash, link.authority.caveats.expires_ms);
                let owner = object.cast_to::<capability::Client>();
                Ok(Box::pin(async move {
                    let mut request = owner.revoke_link_request();
                    request.get().set_link(&hash.0);
                    request.get().set_expires_ms(expires_ms);
                    request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
                }))
            }
            Cut::Delegator => {
                let holder = holders.get(race.link - 1).ok_or("no such holder")?;
                let own = chain.prefix(race.link + 1);
                let live: capability::Client =
                    blue.restore(&own, holder).await.map_err(text("the delegator's restore"))?;
                Ok(Box::pin(async move {
                    live.revoke_request().send().promise.await.map(drop).map_err(|e| fault_of(&e))
                }))
            }
        }
    }
}

async fn create(regions: &regions::Client, name: &str) -> Result<(region::Client, Chain), Fault> {
    let mut request = regions.create_request();
    request.get().set_name(name);
    request.get().set_bytes(REGION_BYTES);
    let made = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let made = made.get().map_err(|e| fault_of(&e))?;
    let chain = Chain::decode(made.get_chain().map_err(|e| fault_of(&e))?)?;
    Ok((made.get_region().map_err(|e| fault_of(&e))?, chain))
}

async fn read(region: &region::Client, offset: u64, len: u64) -> Result<Vec<u8>, Fault> {
    let mut request = region.read_request();
    request.get().set_offset(offset);
    request.get().set_len(len as u32);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    response.get().and_then(|r| r.get_data()).map(<[u8]>::to_vec).map_err(|e| fault_of(&e))
}

async fn gift(from: &capability::Client) -> Result<Vec<u8>, Fault> {
    let mut request = from.gift_request();
    request.get().set_receiver("taker");
    request.get().set_rights(Rights::READ.0);
    write_caveats(Caveats::NONE, request.get().init_caveats());
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    response.get().and_then(|r| r.get_ticket()).map(<[u8]>::to_vec).map_err(|e| fault_of(&e))
}

async fn describe(cap: &capability::Client) -> Result<(), Fault> {
    cap.describe_request().send().promise.await.map(drop).map_err(|e| fault_of(&e))
}

fn text(what: &'static str) -> impl Fn(Fault) -> String {
    move |fault| format!("{what}: {fault}")
}

/// Takes what the journal holds and lets it be trimmed, as the audit service does.
async fn acknowledge(outbox: outbox::Client) {
    let mut after = 0;
    loop {
        let mut request = outbox.pull_request();
        request.get().set_after(after);
        request.get().set_max(1024);
        let Ok(pulled) = request.send().promise.await else { return };
        let Ok(records) = pulled.get().and_then(|p| p.get_records()) else { return };
        let Some(last) = records.iter().map(|r| r.get_seq()).last() else { continue };
        after = last;
        let mut request = outbox.ack_request();
        request.get().set_up_to(after);
        if request.send().promise.await.is_err() {
            return;
        }
    }
}

/// A vat that serves nothing and takes gifts.
struct Taker;

impl Service for Taker {
    fn open(self: Rc<Self>, _: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        Err(Fault::not_found("it serves nothing"))
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn plan(dir: &std::path::Path) -> Plan {
    let vat = |name: &str, serves: Vec<u16>, powers: Vec<Power>| VatPlan {
        name: name.to_owned(),
        program: Program::Builtin(name.to_owned()),
        listen: !serves.is_empty(),
        data: !serves.is_empty(),
        serves,
        profile: Profile::Service,
        limits: VatLimits { memory_bytes: 1 << 30, open_files: 256, threads: 64 },
        devices: BTreeMap::new(),
        powers,
        params: BTreeMap::new(),
    };
    let rights = Rights::CREATE.join(Rights::LIST).join(Rights::READ).join(Rights::WRITE);
    Plan {
        image: "races".to_owned(),
        image_hash: [0; 32],
        image_signer: None,
        data_dir: dir.to_path_buf(),
        slots: 1 << 16,
        vats: vec![
            vat("memory", vec![kind::REGIONS.0], Vec::new()),
            vat("taker", Vec::new(), vec![Power::Outbox]),
        ],
        templates: Vec::new(),
        foreign: Vec::new(),
        edges: vec![EdgePlan {
            name: "memory".to_owned(),
            holder: "taker".to_owned(),
            home: "memory".to_owned(),
            kind: kind::REGIONS.0,
            rights: 0,
        }],
        operator: vec![OperatorGrant {
            name: "regions".to_owned(),
            vat: "memory".to_owned(),
            kind: kind::REGIONS.0,
            rights: rights.join(Rights::DROP).0,
        }],
        operator_key: None,
    }
}
